"""The text of a pass that reduces.

It goes tile by tile, see `nbopt_backends.meaning.tree`: its chunks are tiles.

Where a tile is short, what would be behind its end is replaced by a value that changes no other one (-0 for
sums, infinities for extremes), so that every tile is folded as a full one. A lane folds the two halves of a
tile, and what has come of them is folded in shared memory. Where that is too small for as many reductions, a
lane folds the halves of the halves first, in nested loops of two rounds each.
"""

from nbopt_backends.cuda.closing import arrive
from nbopt_backends.cuda.pieces import CHUNK_FIELDS
from nbopt_backends.lowering.text import COMMON_OPS, ITEM_SIZES, indented
from nbopt_backends.meaning.tree import TILE
from nbopt_backends.meaning.xoroshiro import LANES

# op -> the primitive that joins two values, and the value that changes no other one.
_JOINED = {"sum": ("add", "-0.0"), "max": ("maximum", "-inf"), "min": ("minimum", "inf")}
_MOST_SHARED = 48 * 1024  # bytes of shared memory that every GPU gives a block

_LOOP = """{buffers}
    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
{chunk}
        # Lane l takes {width} elements from {width} l on, and so on each {step} elements.
        # A short tile has fewer lanes.
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
        {arrive}
        c += cuda.gridDim.x"""


def reducing(pieces):
    """Return the loop over the chunks, given the kernel's `Pieces`."""
    reductions, width, arithmetic = pieces.stage.reductions, pieces.width, pieces.arithmetic
    step = TILE // 2
    while len(reductions) * step * ITEM_SIZES[arithmetic] > _MOST_SHARED:
        step //= 2
    depth = (TILE // step).bit_length() - 1
    neutrals = [neutral(pieces, r) for r in range(len(reductions))]
    every = [(r, k) for r in range(len(reductions)) for k in range(width)]

    # A function that knows itself is a circle, which waits for the collector: it is given itself.
    def rounds(level, again):
        """Return the lines that fold each 2**level-th vector from `at` on into a{level}_...."""
        start, found = [f"a{level}_{r}_{k} = {neutrals[r]}" for r, k in every], []
        for r, k in every:
            value = f"a{level + 1}_{r}_{k}"
            if level == depth - 1:
                value = f"e{k}[{len(pieces.written) + r}] if {k} < left else {neutrals[r]}"
            found.append(f"a{level}_{r}_{k} = {joined(pieces, r, f'a{level}_{r}_{k}', f'({value})')}")
        if level == depth - 1:
            lines = [f"while at * {width} < n:", f"    i = at * {width}", "    left = n - i"]
            inner = [*_words(pieces), *pieces.some(), *found, f"at += {2**level * step // width}"]
            return [*start, *lines, *(f"    {line}" for line in inner)]
        outer = f"at{level}"
        inner = [f"at = {outer}", *again(level + 1, again), *found, f"{outer} += {2**level * step // width}"]
        return [*start, f"{outer} = at", "for _ in range(2):", *(f"    {line}" for line in inner)]

    buffers = [f"b{r} = cuda.shared.array({step}, {arithmetic})" for r in range(len(reductions))]
    joins = [
        f"b{r}[lane] = {joined(pieces, r, f'b{r}[lane]', f'b{r}[lane + half]')}"
        for r in range(len(reductions))
    ]
    results = [f"tile = load_int64(chunks, {CHUNK_FIELDS} * c + 4, -1) * {8 * len(reductions)}"]
    results += [f"store_float64(sums + tile, {r}, -1, float64(b{r}[0]))" for r in range(len(reductions))]
    first = [f"first = load_int64(chunks, {CHUNK_FIELDS} * c + 3, -1) * {LANES}"] if pieces.rounded else []
    return _LOOP.format(
        buffers=indented(buffers, 1),
        chunk=indented([*pieces.chunk(), *first], 2),
        width=width,
        step=step,
        elements=indented(["at = lane", *rounds(0, rounds)], 3),
        leave=indented([f"b{r}[lane * {width} + {k}] = a0_{r}_{k}" for r, k in every], 3),
        joins=indented(joins, 4),
        results=indented(results, 3),
        arrive=arrive(f"load_int64(chunks, {CHUNK_FIELDS} * c + 5, -1)", "b0"),
    )


def joined(pieces, reduction, *values):
    """Return an expression for what two values of a reduction become."""
    op = _JOINED[pieces.stage.reductions[reduction][0]][0]
    return {**COMMON_OPS, **pieces.dialect.ops}.get(op, f"{op}({{0}}, {{1}})").format(*values)


def neutral(pieces, reduction):
    """Return an expression for the value that changes no other one in a reduction."""
    return f"{pieces.arithmetic}({_JOINED[pieces.stage.reductions[reduction][0]][1]})"


def _words(pieces):
    """Return the lines that draw the random bits of the vector that is number `at` of a tile."""
    lines = []
    for _, index, word in pieces.rounded:
        count = pieces.width * word // 64
        lines.append(f"word = at * {count}")
        words = [
            f"drawn(k{index}, l{index}, uint64(first + word % {LANES} + {k}), word // {LANES})"
            for k in range(count)
        ]
        lines.append(f"u{index} = slices{word}({', '.join(words)})")
    return lines
