"""The text of a pass's CUDA kernels. Pure functions of what they are given.

A kernel takes a handful of int64 arguments, however many tensors there are: addresses of tables in device memory. Each block
takes a chunk of the table, and strides on where there are fewer blocks than chunks; its threads share the chunk. No kernel depends on the number
of blocks or threads for its results.

A pass that reduces goes tile by tile, see `nbopt_backends.meaning.tree`: its chunks are tiles. Where a tile is short, what would be behind its end
is replaced by a value that changes no other one (-0 for sums, infinities for extremes), so that every tile is folded as a full one.
"""

from nbopt_backends.lowering.text import COMMON_OPS, ITEM_SIZES, body_lines, by_reciprocals, indented, rounded_stores, rule_comment, scalar_divisors
from nbopt_backends.meaning.tree import TILE
from nbopt_backends.meaning.xoroshiro import LANES

#: How many int64 arguments a kernel takes.
N_ARGUMENTS = 9
#: Columns of a chunk table: the tensor's row, offset and length in elements, the number of its first block of random bits, and of its first tile.
CHUNK_FIELDS = 5
#: op -> the primitive that joins two values, and the value that changes no other one.
JOINED = {"sum": ("add", "-0.0"), "max": ("maximum", "-inf"), "min": ("minimum", "inf")}
_MOST_SHARED = 48 * 1024  # bytes of shared memory that every GPU gives a block

_KERNEL = """{head}
def update(table, chunks, n_chunks, numbers, stride, random, views, taken, sums):
{body}
"""

_CHUNK = """number = load_int64(chunks, {fields} * c, -1)
row = table + number * {row_bytes}
offset = load_int64(chunks, {fields} * c + 1, -1)
n = load_int64(chunks, {fields} * c + 2, -1)""".replace("{fields}", str(CHUNK_FIELDS))

_CONTIGUOUS = """    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
{chunk}
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
        c += cuda.gridDim.x"""

_STRIDED = """    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
{chunk}
        i = int64(cuda.threadIdx.x)
        while i < n:
{single}
            i += cuda.blockDim.x
        c += cuda.gridDim.x"""

_ROUNDED = """    item = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    # {threads} threads share a chunk, a block of the random stream. Each has the lanes whose words belong to its elements.
    while item < n_chunks * {threads}:
        c = item // {threads}
        t = item - c * {threads}
{chunk}
        i = t * {width}
{seeds}
        while i < n:
            left = n - i
{words}
{elements}
            i += {step}
        item += int64(cuda.gridDim.x) * cuda.blockDim.x"""

_REDUCING = """{buffers}
    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
{chunk}
        # Of a tile, lane l takes {width} elements from {width} l on, and so on each {step} elements. A short tile has fewer lanes.
        size = int64({step})
        while size >= 2 * n:
            size >>= 1
        lane = int64(cuda.threadIdx.x)
        while lane * {width} < size:
{elements}
{leave}
            lane += cuda.blockDim.x
        cuda.syncthreads()
        half = size >> 1
        while half > 0:
            lane = int64(cuda.threadIdx.x)
            while lane < half:
{joins}
                lane += cuda.blockDim.x
            cuda.syncthreads()
            half >>= 1
        if cuda.threadIdx.x == 0:
{results}
        cuda.syncthreads()
        c += cuda.gridDim.x"""


def vector_width(stage, dtypes, strided, rounded):
    """Return how many elements a thread takes at a time."""
    if strided:
        return 4 if rounded else 1  # a word of 64 random bits is enough for four, and addresses are not
    return 16 // min(ITEM_SIZES[dtypes[slot]] for slot in stage.used())


def _step(rounded):
    """Return how many elements of a block of the random stream are gone through at a time: one draw of the words with the fewest bits."""
    return 64 * LANES // min(word for _, _, word in rounded)


def threads_per_chunk(stage, dtypes, strided, kept):
    """Return how many threads share a chunk, or None where all of a block do. The arguments are those of `update_text`."""
    rounded = rounded_stores(stage, dtypes, kept)
    return _step(rounded) // vector_width(stage, dtypes, strided, rounded) if rounded and not stage.reductions else None


def goes_by_tiles(stage, dtypes, kept):
    """Return whether a pass's chunks have to be tiles, which are blocks of the random stream as well."""
    return bool(stage.reductions or rounded_stores(stage, dtypes, kept))


def update_text(stage, dialect, dtypes, arithmetic, strided=False, kept=None):
    """Return the text of the module that holds the kernel of a pass.

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

        def update(table, chunks, n_chunks, numbers, stride, random, views, taken, sums):
            ...
                own = numbers + number * stride
                s0 = float32(load_float64(own, 0, -1))
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

    Its arguments are the addresses of int64[rows, slots], the tensors' addresses; of the chunk table, see `CHUNK_FIELDS`, and its length; of the
    first row's numbers, and the bytes from one row's to the next; of uint64[2], the seed and the update count; of int64[rows, slots], the addresses
    of geometries, see `nbopt_backends.cpu.drivers`; of an int64, which is 0 where the step is not taken; of float64[tiles, reductions].

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

    A pass that reduces folds the two halves of a tile, and then what has come of them in shared memory. Where that is too small for as many
    reductions, it folds the halves of the halves first, in nested loops of two rounds each.

    Parameters
    ----------
    stage : nbopt.language.stages.Pass
    dialect : Dialect
        One of `nbopt_backends.cuda.dialects`.
    dtypes : tuple of str
        The slots' storage.
    arithmetic : str
    strided : bool
        Whether some tensors are not contiguous: then every element's address is computed from its position.
    kept : tuple of int, optional
        For each slot, how many mantissa bits a stochastic rounding keeps, or 0; all 0 without it.
    """
    return _Writer(stage, dialect, dtypes, arithmetic, strided, kept or (0,) * len(dtypes)).text()


class _Writer:
    """Writes the text of one kernel."""

    def __init__(self, stage, dialect, dtypes, arithmetic, strided, kept):
        self.stage, self.dialect, self.dtypes, self.arithmetic, self.strided, self.kept = stage, dialect, dtypes, arithmetic, strided, kept
        self.read, self.written, self.moved, self.numbers = stage.read(), stage.written(), stage.moved(), stage.scalars()
        self.rounded = rounded_stores(stage, dtypes, kept)
        self.width = vector_width(stage, dtypes, strided, self.rounded)
        one_by_one = self.width == 1
        self.divisors = [] if one_by_one else scalar_divisors(stage)

    def text(self):
        write = self._reducing if self.stage.reductions else self._rounding if self.rounded else self._strided if self.strided else self._contiguous
        before = ["if load_int64(taken, 0, -1) == 0:", "    return"] if self.stage.guarded else []
        if self.rounded:
            before.append("seed, count = load_uint64(random, 0, -1), load_uint64(random, 1, -1)")
            before += [f"k{index}, l{index} = keys(seed, count, uint64({number}))" for number, index, _ in self.rounded]
        return self.dialect.header + _KERNEL.format(head=self._head(), body="\n".join([*(f"    {line}" for line in before), write()]))

    # --- the functions of an element ---

    def _head(self):
        lines = [*(f"# {line}" for line in rule_comment(self.stage)), *self._function("element", self.stage)]
        if self.divisors:
            taken = ", ".join(f"s{j}" for j in self.divisors)
            lines += [f"# The same, given 1 / {taken} for {taken}.", *self._function("multiplied", by_reciprocals(self.stage, self.divisors))]
        return "\n".join(lines)

    def _function(self, name, stage):
        parameters = [*(f"x{slot}" for slot in self.read), *(f"u{index}" for _, index, _ in self.rounded), *(f"s{j}" for j in self.numbers)]
        results = ["float64" if self.dtypes[slot] == "float64" else "float32" for slot in self.written] + [self.arithmetic] * len(stage.reductions)
        returned = [*(f"y{slot}" for slot in self.written), *(f"z{number}" for number in range(len(stage.reductions)))]
        return [
            f"@once({', '.join(results)})",
            f"def {name}({', '.join(parameters)}):",
            *(f"    {line}" for line in body_lines(stage, self.dialect, self.dtypes, self.arithmetic, self.kept)),
            f"    return ({', '.join(returned)},)",
            "",
        ]

    def _elements(self, count):
        """Return the lines that compute so many elements, e0, e1, ..."""
        arguments = [[f"x{slot}[{k}]" for slot in self.read] + [f"u{index}[{k}]" for _, index, _ in self.rounded] for k in range(count)]
        divided = [f"e{k} = element({', '.join([*arguments[k], *(f's{j}' for j in self.numbers)])})" for k in range(count)]
        if not self.divisors or count == 1:
            return divided
        factors = [f"r{j}" if j in self.divisors else f"s{j}" for j in self.numbers]
        return _either("exact", [f"e{k} = multiplied({', '.join(arguments[k] + factors)})" for k in range(count)], divided)

    # --- what is done for a chunk ---

    def _chunk(self):
        """Return the lines that look at a chunk: its tensor's numbers and addresses."""
        lines = _CHUNK.format(row_bytes=8 * len(self.stage.names)).split("\n")
        if self.numbers:
            lines.append("own = numbers + number * stride")
        for j in self.numbers:
            loaded = f"load_float64(own, {j}, -1)"
            lines.append(f"s{j} = {loaded if self.arithmetic == 'float64' else f'{self.arithmetic}({loaded})'}")
        if self.divisors:
            lines += [f"r{j} = reciprocal_{self.arithmetic}(s{j})" for j in self.divisors]
            lines.append(f"exact = {' and '.join(f'r{j} != {self.arithmetic}(0)' for j in self.divisors)}")
        if self.strided:
            return [*lines, f"geometry = views + number * {8 * len(self.stage.names)}"]
        for slot in self.moved:
            lines.append(f"p{slot} = address(row, {slot}, offset, {ITEM_SIZES[self.dtypes[slot]]})  # {self._what(slot)}")
        return lines

    def _what(self, slot):
        what = " and ".join(["read"] * (slot in self.read) + ["written"] * (slot in self.written))
        return f"{self.stage.names[slot]}: {self.dtypes[slot]}, {what}"

    def _misaligned(self):
        return " | ".join(f"p{slot}" for slot in self.moved)

    def _stored(self, place):
        """Return the values of the slot that is stored to as number `place`, of all elements."""
        return ", ".join(f"e{k}[{place}]" for k in range(self.width))

    def _vector(self):
        """Return the lines that load and store a vector, each at a multiple of 16 bytes."""
        loads = [f"x{slot} = load_{self.dtypes[slot]}x{self.width}(p{slot}, i)" for slot in self.read]
        stores = [f"store_{self.dtypes[slot]}x{self.width}(p{slot}, i, {self._stored(j)})" for j, slot in enumerate(self.written)]
        return loads, stores

    def _some(self):
        """Return the lines that load, compute and store the elements from i on of which `left` are there.

        Beyond the end of a tensor, its last element is computed once more, and not stored.
        """
        if not self.strided:
            loads, stores = self._vector()
            first_loads = [f"x{slot} = load_first_{self.dtypes[slot]}x{self.width}(p{slot}, i, left)" for slot in self.read]
            first_stores = [
                f"store_first_{self.dtypes[slot]}x{self.width}(p{slot}, i, left, {self._stored(j)})" for j, slot in enumerate(self.written)
            ]
            whole = f"whole = left >= {self.width} and ({self._misaligned()}) & 15 == 0"
            return [whole, *_either("whole", loads, first_loads), *self._elements(self.width), *_either("whole", stores, first_stores)]
        loads = [f"i{k} = i + min({k}, left - 1)" if k else "i0 = i" for k in range(self.width)]
        for slot in self.read:
            loads += [f"p{slot}_{k} = place(geometry, row, {slot}, offset + i{k})" for k in range(self.width)]
            loads.append(f"x{slot} = ({', '.join(f'load_{self.dtypes[slot]}(p{slot}_{k}, 0, {slot})' for k in range(self.width))},)")
        stores = []
        for k in range(self.width) if self.written else ():
            stores += [f"if {k} < left:"] if k else []
            for j, slot in enumerate(self.written):
                stores.append(f"{'    ' * (k > 0)}store_{self.dtypes[slot]}(place(geometry, row, {slot}, offset + i{k}), 0, {slot}, e{k}[{j}])")
        return [*loads, *self._elements(self.width), *stores]

    # --- the forms of a kernel ---

    def _contiguous(self):
        loads, stores = self._vector()
        single = [
            *(f"x{slot} = (load_{self.dtypes[slot]}(p{slot}, i, {slot}),)" for slot in self.read),
            *self._elements(1),
            *(f"store_{self.dtypes[slot]}(p{slot}, i, {slot}, e0[{j}])" for j, slot in enumerate(self.written)),
        ]
        return _CONTIGUOUS.format(
            chunk=indented(self._chunk(), 2),
            width=self.width,
            misaligned=self._misaligned(),
            vector=indented([*loads, *self._elements(self.width), *stores], 3),
            single=indented(single, 3),
        )

    def _strided(self):
        return _STRIDED.format(chunk=indented(self._chunk(), 2), single=indented(self._some(), 3))

    def _rounding(self):
        step = _step(self.rounded)
        seeds, words, skipped = [f"first = load_int64(chunks, {CHUNK_FIELDS} * c + 3, -1) * {LANES}"], [], []
        for _, index, word in self.rounded:
            lanes, draws = self.width * word // 64, step * word // (64 * LANES)
            states = [f"g{index}_{lane}, h{index}_{lane}" for lane in range(lanes)]
            skip = [f"_, {state} = advanced({state})" for state in states]
            seeds += [f"{state} = seeded(k{index}, l{index}, uint64(first + t * {lanes} % {LANES} + {k}))" for k, state in enumerate(states)]
            if draws > 1:
                seeds += [f"for _ in range(t * {lanes} // {LANES}):", *(f"    {line}" for line in skip)]
            words += [f"w{index}_{lane}, {state} = advanced({state})" for lane, state in enumerate(states)]
            words.append(f"u{index} = slices{word}({', '.join(f'w{index}_{lane}' for lane in range(lanes))})")
            skipped += skip * (draws - 1)
        return _ROUNDED.format(
            threads=step // self.width,
            step=step,
            width=self.width,
            chunk=indented(self._chunk(), 2),
            seeds=indented(["if i < n:", *(f"    {line}" for line in seeds)], 2),
            words=indented(words, 3),
            elements=indented([*self._some(), *skipped], 3),
        )

    def _reducing(self):
        reductions, width, arithmetic = self.stage.reductions, self.width, self.arithmetic
        step = TILE // 2
        while len(reductions) * step * ITEM_SIZES[arithmetic] > _MOST_SHARED:
            step //= 2
        depth = (TILE // step).bit_length() - 1
        neutral = [f"{arithmetic}({JOINED[op][1]})" for op, _ in reductions]
        every = [(r, k) for r in range(len(reductions)) for k in range(width)]

        def rounds(level):
            """Return the lines that fold the vectors from `at` on, each {2**level * step} elements, to a{level}_..., in two rounds."""
            start, found = [f"a{level}_{r}_{k} = {neutral[r]}" for r, k in every], []
            for r, k in every:
                value = f"e{k}[{len(self.written) + r}] if {k} < left else {neutral[r]}" if level == depth - 1 else f"a{level + 1}_{r}_{k}"
                found.append(f"a{level}_{r}_{k} = {self._join(r, f'a{level}_{r}_{k}', f'({value})')}")
            if level == depth - 1:
                lines = [f"while at * {width} < n:", f"    i = at * {width}", "    left = n - i"]
                inner = [*self._words(), *self._some(), *found, f"at += {2**level * step // width}"]
                return [*start, *lines, *(f"    {line}" for line in inner)]
            outer = f"at{level}"
            inner = [f"at = {outer}", *rounds(level + 1), *found, f"{outer} += {2**level * step // width}"]
            return [*start, f"{outer} = at", "for _ in range(2):", *(f"    {line}" for line in inner)]

        results = [f"store_float64(sums + tile, {r}, -1, float64(b{r}[0]))" for r in range(len(reductions))]
        tile = f"tile = load_int64(chunks, {CHUNK_FIELDS} * c + 4, -1) * {8 * len(reductions)}"
        first = [f"first = load_int64(chunks, {CHUNK_FIELDS} * c + 3, -1) * {LANES}"] if self.rounded else []
        return _REDUCING.format(
            buffers=indented([f"b{r} = cuda.shared.array({step}, {arithmetic})" for r in range(len(reductions))], 1),
            chunk=indented([*self._chunk(), *first], 2),
            width=width,
            step=step,
            elements=indented(["at = lane", *rounds(0)], 3),
            leave=indented([f"b{r}[lane * {width} + {k}] = a0_{r}_{k}" for r, k in every], 3),
            joins=indented([f"b{r}[lane] = {self._join(r, f'b{r}[lane]', f'b{r}[lane + half]')}" for r in range(len(reductions))], 4),
            results=indented([tile, *results], 3),
        )

    def _join(self, reduction, *values):
        op = JOINED[self.stage.reductions[reduction][0]][0]
        return {**COMMON_OPS, **self.dialect.ops}.get(op, f"{op}({{0}}, {{1}})").format(*values)

    def _words(self):
        """Return the lines that draw the random bits of the vector that is number `at` of a tile."""
        lines = []
        for _, index, word in self.rounded:
            count = self.width * word // 64
            lines.append(f"word = at * {count}")
            words = [f"drawn(k{index}, l{index}, uint64(first + word % {LANES} + {k}), word // {LANES})" for k in range(count)]
            lines.append(f"u{index} = slices{word}({', '.join(words)})")
        return lines


def _either(condition, lines, otherwise):
    """Return lines that run some lines where a condition holds, and others where it doesn't; none of both where there are none."""
    if not lines:
        return []
    return [f"if {condition}:", *(f"    {line}" for line in lines), "else:", *(f"    {line}" for line in otherwise)]
