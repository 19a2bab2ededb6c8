"""The text of a program's CUDA kernels. Pure functions of what they are given.

A kernel takes a handful of int64 arguments, however many tensors there are: addresses of tables in device memory. Each block
takes a chunk of the table, and strides on where there are fewer blocks than chunks; its threads share the chunk. No kernel depends on the number
of blocks or threads for its results.
"""

from nbopt_backends.lowering.text import ITEM_SIZES, Dialect, body_lines, by_reciprocals, indented, rounded_stores, rule_comment, scalar_divisors
from nbopt_backends.meaning.xoroshiro import LANES

_EXACT = {"add": "add({0}, {1})", "subtract": "subtract({0}, {1})", "multiply": "multiply({0}, {1})", "divide": "divide({0}, {1})"}
_PARTS = {"kernel": "", "loop": "", "load": "x{slot}", "store": "y{slot} = {value}", "random": "u{index}", "narrowed": "narrowed({value})"}

#: Every operation rounds by itself: an infix ``*`` followed by ``+`` could become one fma, which rounds once.
DIALECT = Dialect(
    name="cuda",
    ops={**_EXACT, "finite": "{F}(1) if subtract({0}, {0}) == {F}(0) else {F}(0)"},
    header="from nbopt_backends.cuda.primitives import *\n\n",
    **_PARTS,
)
#: What ``fast_math`` allows: contraction and approximate division. (More by NVVM, but numba-cuda hands it on to no link-time optimization.)
FAST = DIALECT._replace(ops={})
#: The simulator has neither libdevice nor addresses: `cuda_simulated` has functions of the same names in NumPy.
SIMULATED = DIALECT._replace(name="cuda simulator", ops={}, header="from nbopt_backends.cuda.simulated import *\n\n")

_CONTIGUOUS = """{head}
def update(table, chunks, n_chunks, scalars{skip}):
{scalars}
    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
        row = table + load_int64(chunks, 3 * c, -1) * {row_bytes}
        offset = load_int64(chunks, 3 * c + 1, -1)
        n = load_int64(chunks, 3 * c + 2, -1)
{pointers}
        # {width} elements at a time, as far as every tensor starts at a multiple of 16 bytes; the rest one by one.
        whole = n & -{width} if ({misaligned}) & 15 == 0 else int64(0)
        i = int64(cuda.threadIdx.x) * {width}
        while i < whole:
{vector}
            i += int64(cuda.blockDim.x) * {width}
        i = whole + cuda.threadIdx.x
        while i < n:
{single}
            i += cuda.blockDim.x
        c += cuda.gridDim.x
"""

_STRIDED = """{head}
def update(table, chunks, n_chunks, scalars, views{skip}):
{scalars}
    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
        number = load_int64(chunks, 3 * c, -1) * {row_bytes}
        row, geometry = table + number, views + number
        offset = load_int64(chunks, 3 * c + 1, -1)
        n = load_int64(chunks, 3 * c + 2, -1)
        k = int64(cuda.threadIdx.x)
        while k < n:
            i = int64(0)
{pointers}
{single}
            k += cuda.blockDim.x
        c += cuda.gridDim.x
"""


_ROUNDED = """{head}
def update(table, chunks, n_chunks, scalars, random{views}{skip}):
{scalars}
    seed, count = load_uint64(random, 0, -1), load_uint64(random, 1, -1)
{keys}
    item = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    # {threads} threads share a chunk, a block of the random stream. Each has the lanes whose words belong to its elements.
    while item < n_chunks * {threads}:
        c = item // {threads}
        t = item - c * {threads}
        number = load_int64(chunks, 4 * c, -1) * {row_bytes}
        row = table + number
        offset = load_int64(chunks, 4 * c + 1, -1)
        n = load_int64(chunks, 4 * c + 2, -1)
{pointers}
        i = t * {width}
{seeds}
        while i < n:
            left = n - i
{words}
{load}
{elements}
{store}
            i += {step}
        item += int64(cuda.gridDim.x) * cuda.blockDim.x
"""


def vector_width(program, dtypes, strided, rounded):
    """Return how many elements a thread takes at a time."""
    if rounded and strided:
        return 4  # a word of 64 random bits is enough for them, and addresses are not
    return 16 // min(ITEM_SIZES[dtypes[slot]] for slot in program.used())


def _step(rounded):
    """Return how many elements of a block of the random stream are gone through at a time: one draw of the words with the fewest bits."""
    return 64 * LANES // min(word for _, _, word in rounded)


def threads_per_chunk(program, dtypes, strided, kept):
    """Return how many threads share a chunk, or None where all of a block do. The arguments are those of `update_text`."""
    rounded = rounded_stores(program, dtypes, kept)
    return _step(rounded) // vector_width(program, dtypes, strided, rounded) if rounded else None


def update_text(program, dialect, dtypes, arithmetic, strided=False, kept=None, skips=False):
    """Return the text of the module that holds the kernel of `program`.

    For RMSProp on float32 it reads

        # mean_square = ...
        @once(float32, float32)
        def element(x0, x1, x2, s0, s1, s2, s3, s4, s5, s6):
            v0 = x2
            v1 = multiply(s0, v0)
            ...
            y2 = v6
            ...
            return y0, y2

        # The same, given 1 / s0 for s0.
        @once(float32, float32)
        def multiplied(x0, x1, x2, s0, s1, s2, s3, s4, s5, s6):
            ...

        def update(table, chunks, n_chunks, scalars):
            s0 = load_float32(scalars, 0, -1)
            ...
            r0 = reciprocal_float32(s0)
            exact = r0 != float32(0)
            ...
                while i < whole:
                    x0 = load_float32x4(p0, i)
                    ...
                    if exact:
                        e0 = multiplied(x0[0], x1[0], x2[0], r0, s1, s2, s3, s4, s5, s6)
                        e1 = multiplied(x0[1], ...)
                        ...
                    else:
                        e0 = element(x0[0], x1[0], x2[0], s0, s1, s2, s3, s4, s5, s6)
                        ...
                    store_float32x4(p0, i, e0[0], e1[0], e2[0], e3[0])

    Where a store rounds stochastically, `element` takes its random bits as well (u12, ...), and a thread goes through its part of a block of the
    random stream, with the states of its lanes in registers:

                while i < n:
                    w12_0, g12_0, h12_0 = advanced(g12_0, h12_0)
                    w12_1, g12_1, h12_1 = advanced(g12_1, h12_1)
                    u12 = slices16(w12_0, w12_1)
                    ...
                        e0 = element(x0[0], x1[0], x2[0], u12[0], s0, ...)

    The kernel divides in one branch and multiplies in another, since a division by a number takes a fifth of the instructions of RMSProp
    (`asv_bench/machine_code.py` counts them). Where elements are taken one by one, at the end of a tensor or where it is not aligned or strided, they
    are divided.

    Parameters
    ----------
    program : nbopt.language.trace.Program
    dialect : Dialect
        One of this module's.
    dtypes : tuple of str
        The slots' storage.
    arithmetic : str
    strided : bool
        Whether some tensors are not contiguous: then every element's address is computed from its position.
    kept : tuple of int, optional
        For each slot, how many mantissa bits a stochastic rounding keeps, or 0; all 0 without it.
    skips : bool
        Whether the kernel has an argument more, the address of an int64, and does nothing where that is not 0.
    """
    kept = kept or (0,) * len(dtypes)
    read = sorted({line[1] for line in program.code if line[0] == "load"})
    written, used = program.written(), program.used()
    rounded = rounded_stores(program, dtypes, kept)
    scalars = [f"s{j}" for j in range(program.n_scalars)]
    one_by_one = strided and not rounded
    divisors = [] if one_by_one else scalar_divisors(program)
    parameters = ", ".join([*(f"x{slot}" for slot in read), *(f"u{index}" for _, index, _ in rounded), *scalars])

    def function(name, program):
        return [
            f"@once({', '.join('float64' if dtypes[slot] == 'float64' else 'float32' for slot in written)})",
            f"def {name}({parameters}):",
            *(f"    {line}" for line in body_lines(program, dialect, dtypes, arithmetic, kept)),
            f"    return ({', '.join(f'y{slot}' for slot in written)},)",
            "",
        ]

    head = [*(f"# {line}" for line in rule_comment(program)), *function("element", program)]
    if divisors:
        taken = ", ".join(f"s{j}" for j in divisors)
        head += [f"# The same, given 1 / {taken} for {taken}.", *function("multiplied", by_reciprocals(program, divisors))]
    width = vector_width(program, dtypes, strided, rounded)
    numbers = [f"{s} = load_{arithmetic}(scalars, {j}, -1)" for j, s in enumerate(scalars)]
    if divisors:
        numbers += [f"r{j} = reciprocal_{arithmetic}(s{j})" for j in divisors]
        numbers.append(f"exact = {' and '.join(f'r{j} != {arithmetic}(0)' for j in divisors)}")
    guard = ["if load_int64(skip, 0, -1) != 0:", "    return"] if skips else []
    parts = {
        "head": "\n".join(head),
        "skip": ", skip" if skips else "",
        "scalars": indented(guard + numbers or ["pass"], 1),
        "row_bytes": 8 * len(dtypes),
        "width": width,
    }

    def pointers(position):
        lines = []
        for slot in used:
            what = " and ".join(["read"] * (slot in read) + ["written"] * (slot in written))
            here = f"address(row, {slot}, offset, {ITEM_SIZES[dtypes[slot]]})" if position is None else f"place(geometry, row, {slot}, {position})"
            lines.append(f"p{slot} = {here}  # {program.names[slot]}: {dtypes[slot]}, {what}")
        return lines

    def elements(count):
        arguments = [[f"x{slot}[{k}]" for slot in read] + [f"u{index}[{k}]" for _, index, _ in rounded] for k in range(count)]
        divided = [f"e{k} = element({', '.join(arguments[k] + scalars)})" for k in range(count)]
        if not divisors or count == 1:
            return divided
        factors = [f"r{j}" if j in divisors else f"s{j}" for j in range(program.n_scalars)]
        return _either("exact", [f"e{k} = multiplied({', '.join(arguments[k] + factors)})" for k in range(count)], divided)

    vector_loads = [f"x{slot} = load_{dtypes[slot]}x{width}(p{slot}, i)" for slot in read]
    stored = [", ".join(f"e{k}[{j}]" for k in range(width)) for j in range(len(written))]
    vector_stores = [f"store_{dtypes[slot]}x{width}(p{slot}, i, {stored[j]})" for j, slot in enumerate(written)]
    misaligned = " | ".join(f"p{slot}" for slot in used)
    if not rounded:
        single = [
            *(f"x{slot} = (load_{dtypes[slot]}(p{slot}, i, {slot}),)" for slot in read),
            *elements(1),
            *(f"store_{dtypes[slot]}(p{slot}, i, {slot}, e0[{j}])" for j, slot in enumerate(written)),
        ]
        parts["single"] = indented(single, 3)
        if one_by_one:
            return dialect.header + _STRIDED.format(pointers=indented(pointers("offset + k"), 3), **parts)
        vector = indented([*vector_loads, *elements(width), *vector_stores], 3)
        return dialect.header + _CONTIGUOUS.format(pointers=indented(pointers(None), 2), misaligned=misaligned, vector=vector, **parts)

    step = _step(rounded)
    keys, seeds, words, skipped = [], [f"first = load_int64(chunks, 4 * c + 3, -1) * {LANES}"], [], []
    for number, index, word in rounded:
        lanes, draws = width * word // 64, step * word // (64 * LANES)
        states = [f"g{index}_{lane}, h{index}_{lane}" for lane in range(lanes)]
        skip = [f"_, {state} = advanced({state})" for state in states]
        keys.append(f"k{index}, l{index} = keys(seed, count, uint64({number}))")
        seeds += [f"{state} = seeded(k{index}, l{index}, uint64(first + t * {lanes} % {LANES} + {k}))" for k, state in enumerate(states)]
        if draws > 1:
            seeds += [f"for _ in range(t * {lanes} // {LANES}):", *(f"    {line}" for line in skip)]
        words += [f"w{index}_{lane}, {state} = advanced({state})" for lane, state in enumerate(states)]
        words.append(f"u{index} = slices{word}({', '.join(f'w{index}_{lane}' for lane in range(lanes))})")
        skipped += skip * (draws - 1)

    # Beyond the end of a tensor, its last element is computed once more, and not stored.
    if strided:
        loads = [f"i{k} = i + min({k}, left - 1)" for k in range(width)]
        for slot in read:
            loads += [f"p{slot}_{k} = place(geometry, row, {slot}, offset + i{k})" for k in range(width)]
            loads.append(f"x{slot} = ({', '.join(f'load_{dtypes[slot]}(p{slot}_{k}, 0, {slot})' for k in range(width))})")
        stores = []
        for k in range(width):
            stores.append(f"if {k} < left:")
            for j, slot in enumerate(written):
                stores.append(f"    store_{dtypes[slot]}(place(geometry, row, {slot}, offset + i{k}), 0, {slot}, e{k}[{j}])")
    else:
        first_loads = [f"x{slot} = load_first_{dtypes[slot]}x{width}(p{slot}, i, left)" for slot in read]
        first_stores = [f"store_first_{dtypes[slot]}x{width}(p{slot}, i, left, {stored[j]})" for j, slot in enumerate(written)]
        loads = [f"whole = left >= {width} and ({misaligned}) & 15 == 0", *_either("whole", vector_loads, first_loads)]
        stores = _either("whole", vector_stores, first_stores)
    return dialect.header + _ROUNDED.format(
        views=", views" if strided else "",
        keys=indented(keys, 1),
        threads=step // width,
        step=step,
        pointers=indented(["geometry = views + number"] if strided else pointers(None), 2),
        seeds=indented(["if i < n:", *(f"    {line}" for line in seeds)], 2),
        words=indented(words, 3),
        load=indented(loads, 3),
        elements=indented(elements(width) + skipped, 3),
        store=indented(stores, 3),
        **parts,
    )


def _either(condition, lines, otherwise):
    """Return lines that run some lines where a condition holds, and others where it doesn't; none of both where there are none."""
    if not lines:
        return []
    return [f"if {condition}:", *(f"    {line}" for line in lines), "else:", *(f"    {line}" for line in otherwise)]
