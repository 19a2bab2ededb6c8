"""The text of a pass's CUDA kernels. Pure functions of what they are given.

A kernel takes a handful of int64 arguments, however many tensors there are: addresses of tables in device
memory. Each block takes a chunk of the table, and strides on where there are fewer blocks than chunks; its
threads share the chunk. No kernel depends on the number of blocks or threads for its results.
"""

from nbopt_backends.cuda.closing import Closing, beginning, ending, functions
from nbopt_backends.cuda.pieces import CHUNK_FIELDS, Pieces, vector_width
from nbopt_backends.cuda.tiles import reducing
from nbopt_backends.lowering.text import indented, rounded_stores
from nbopt_backends.meaning.xoroshiro import LANES

#: How many int64 arguments a kernel takes.
N_ARGUMENTS = 10

_KERNEL = """{head}
def update(table, chunks, n_chunks, numbers, stride, random, views, taken, sums, after):
{body}
"""

_CONTIGUOUS = """    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
{chunk}
        # {width} elements at a time if every tensor starts at a multiple of 16 bytes; the rest one by one.
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
    # {threads} threads share a chunk, which is a block of the random stream.
    # Each has the lanes whose words belong to its elements.
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


def _step(rounded):
    """Return how many elements of a block of the random stream are gone through at a time.

    It is one draw of the words with the fewest bits.
    """
    return 64 * LANES // min(word for _, _, word in rounded)


def threads_per_chunk(stage, dtypes, strided, kept):
    """Return how many threads share a chunk, or None where all of a block do.

    The arguments are those of `update_text`.
    """
    rounded = rounded_stores(stage, dtypes, kept)
    return (
        _step(rounded) // vector_width(stage, dtypes, strided, rounded)
        if rounded and not stage.reductions
        else None
    )


def goes_by_tiles(stage, dtypes, kept):
    """Return whether a pass's chunks have to be tiles, which are blocks of the random stream as well."""
    return bool(stage.reductions or rounded_stores(stage, dtypes, kept))


def update_text(stage, dialect, dtypes, arithmetic, strided=False, kept=None, shared=True, closing=None):
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

        def update(table, chunks, n_chunks, numbers, stride, random, views, taken, sums, after):
            s0 = float32(load_float64(numbers, 0, -1))
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

    Its arguments are the addresses of int64[rows, slots], the tensors' addresses; of the chunk table, see
    `CHUNK_FIELDS`, and its length; of the first row's numbers, and the bytes from one row's to the next; of
    uint64[2], the seed and the update count; of int64[rows, slots], the addresses of geometries, see
    `nbopt_backends.cpu.chunks`; of an int64, which is 0 where the step is not taken; of float64[tiles,
    reductions]; of `after`, see `nbopt_backends.cuda.closing`, or 0.

    Where a store rounds stochastically, `element` takes its random bits as well (u12, ...), and a thread goes
    through its part of a block of the random stream, with the states of its lanes in registers:

                while i < n:
                    w12_0, g12_0, h12_0 = advanced(g12_0, h12_0)
                    u12 = slices16(w12_0)
                    ...
                        e0 = element(x0[0], x1[0], x2[0], u12[0], s0, ...)

    The kernel divides in one branch and multiplies in another, since a division by a number takes a fifth of
    the instructions of RMSProp (`asv_bench/machine_code.py` counts them). Where elements are taken one by
    one, at the end of a tensor or where it is not aligned or strided, they are divided.

    Kernels that store bfloat16 have a shorter way, `swift`, for vectors of which every value is a usual one,
    see `nbopt_backends.cuda.pieces.goes_swiftly`; it multiplies. In the others `element` divides.

    `nbopt_backends.cuda.tiles` has the form of a pass that reduces.

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
    shared : bool
        Whether all parameters have the same numbers. Then they are loaded before the loop over chunks, which
        takes fewer registers: RMSProp 32, else 36, and with 32 a multiprocessor has all the threads that it
        can have.
    closing : Closing, optional
        What the pass begins and ends with.
    """
    closing = closing or Closing()
    pieces = Pieces(stage, dialect, dtypes, arithmetic, strided, kept or (0,) * len(dtypes), shared)
    form = (
        reducing
        if stage.reductions
        else _rounding
        if pieces.rounded
        else _strided
        if strided
        else _contiguous
    )
    called = functions(stage, dialect, closing)
    head, end = [*pieces.head(), *[called] * bool(called)], ending(stage, closing)
    before = [*beginning(stage, closing), *pieces.stream_keys()]
    if shared:
        before += pieces.loaded_numbers()
    body = [*(f"    {line}" for line in before), form(pieces), *(f"    {line}" for line in end)]
    return dialect.header + _KERNEL.format(head="\n".join(head), body="\n".join(body))


def _contiguous(pieces):
    loads, stores = pieces.vector()
    vector = [*loads, *pieces.elements(pieces.width), *stores]
    if pieces.swift:
        vector = [*loads, *_swift_first(pieces, vector)]
    single = [
        *(f"x{slot} = (load_{pieces.dtypes[slot]}(p{slot}, i, {slot}),)" for slot in pieces.read),
        *pieces.elements(1),
        *(
            f"store_{pieces.dtypes[slot]}(p{slot}, i, {slot}, e0[{j}])"
            for j, slot in enumerate(pieces.written)
        ),
    ]
    return _CONTIGUOUS.format(
        chunk=indented(pieces.chunk(), 2),
        width=pieces.width,
        misaligned=pieces.misaligned(),
        vector=indented(vector, 3),
        single=indented(single, 3),
    )


def _swift_first(pieces, otherwise, condition="", before=()):
    """Return lines that go the short way, see `Pieces.swiftly`, and where that does not do, others."""
    condition = " and ".join([part for part in ("exact" * bool(pieces.divisors), condition) if part])
    swift = [*before, *pieces.swiftly()]
    if condition:
        swift = ["fine = False", f"if {condition}:", *(f"    {line}" for line in swift)]
    # Loaded anew, so that nothing is kept for this way.
    return [*swift, "if not fine:", "    i = apart(i)", *(f"    {line}" for line in otherwise)]


def _strided(pieces):
    return _STRIDED.format(chunk=indented(pieces.chunk(), 2), single=indented(pieces.some(), 3))


def _rounding(pieces):
    step = _step(pieces.rounded)
    # Most threads have one chunk. Keys that are computed for each take no registers beyond that.
    keys = ["random = apart(random)", *pieces.stream_keys()]
    seeds, words, skipped = (
        [*keys, f"first = load_int64(chunks, {CHUNK_FIELDS} * c + 3, -1) * {LANES}"],
        [],
        [],
    )
    for _, index, word in pieces.rounded:
        lanes, draws = pieces.width * word // 64, step * word // (64 * LANES)
        states = [f"g{index}_{lane}, h{index}_{lane}" for lane in range(lanes)]
        skip = [f"_, {state} = advanced({state})" for state in states]
        seeds += [
            f"{state} = seeded(k{index}, l{index}, uint64(first + t * {lanes} % {LANES} + {k}))"
            for k, state in enumerate(states)
        ]
        if draws > 1:
            seeds += [f"for _ in range(t * {lanes} // {LANES}):", *(f"    {line}" for line in skip)]
        words += [f"w{index}_{lane}, {state} = advanced({state})" for lane, state in enumerate(states)]
        words.append(f"u{index} = slices{word}({', '.join(f'w{index}_{lane}' for lane in range(lanes))})")
        skipped += skip * (draws - 1)
    some, chunk = pieces.some(), pieces.chunk()
    if pieces.swift:
        # Up to where whole vectors begin, where all tensors start at a multiple of 16 bytes.
        chunk.append(f"last = n - {pieces.width} if ({pieces.misaligned()}) & 15 == 0 else int64(-1)")
        some = _swift_first(pieces, some, "i <= last", pieces.vector()[0])
    return _ROUNDED.format(
        threads=step // pieces.width,
        step=step,
        width=pieces.width,
        chunk=indented(chunk, 2),
        seeds=indented(["if i < n:", *(f"    {line}" for line in seeds)], 2),
        words=indented(words, 3),
        elements=indented([*some, *skipped], 3),
    )
