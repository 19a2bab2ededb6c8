"""The text with which a pass ends its own reductions, and runs small stages.

Blocks finish in any order, and the last one goes on. Whatever is waited for is a *node*: a counter in memory,
and how many have to arrive there. The block that arrives last folds what the others have left, in the tree of
`nbopt_backends.meaning.tree`, so no bit depends on which block that is. Then it arrives at the next node: a
tile's at that of its parameter, and the parameter's at `after`, where all parameters of the launch arrive.
The block that is the last one there runs the *tail*: the small stages between this pass and the next one.
The blocks of a pass that reduces nothing arrive at `after` themselves.

Small stages before the first pass, such as numbers that depend on a count in memory, can be its *head*: each
block computes them for itself, and writes the same as all others. The count goes on in a tail, which is after
all of them.

Who arrives last makes the counter 0 again, so the next launch, or the next replay of a graph, finds it so.

A parameter with very many tiles has several nodes more, its segments, at which its tiles arrive first. A
fold of all results first joins those that are a large power of two apart. Segments do that for some places
each, so that many blocks begin the fold.

A pass that knows slices doesn't end so: its chunks are no tiles. A launch of its own folds what it has left.
"""

from typing import NamedTuple

from nbopt_backends.cuda.numbers import fold_text
from nbopt_backends.meaning.tree import OPS

#: What a node is: how many have arrived, and how many have to; the address of the node after it, or 0 for
#: `after`; the parameter's row; its first result, and how many results there are from that on; for how many
#: places the results that are a multiple of `MOST` apart are folded, each by a thread; how many results are
#: folded into one then.
NODE_FIELDS = 9
ARRIVED, EXPECTED, NEXT, ROW, FIRST, COUNT, PLACES, MOST, LEFT = range(NODE_FIELDS)
#: What `after` begins with; the arguments of the tail's functions follow, then those of the head's.
AFTER_FIELDS = 2

_OPS = {op: number for number, op in enumerate(OPS)}

_CLOSED = '''
@inline
def closed(node, flag, sums, numbers, stride, after):
    """Go on from what a tile was the last one of, and return 1 if that is the whole launch, else 0.

    For all threads of a block together. `flag` is an array that they share, whose first value is used up.
    """
    found = int64(0)
    while node != 0:
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            flag[0] = arrived(node)
        cuda.syncthreads()
        following = int64(0)
        if flag[0] != 0:
            if node == after:
                found = int64(1)
            else:
                first = sums + load_int64(node, {FIRST}, -1) * {bytes}
                count, left = load_int64(node, {COUNT}, -1), load_int64(node, {LEFT}, -1)
                places, most = load_int64(node, {PLACES}, -1), load_int64(node, {MOST}, -1)
                for r in range({reductions}):
                    values = first + r * 8
                    fold_apart(values, {bytes}, count, places, most, {op})
                    cuda.syncthreads()
                    fold(values, {bytes}, left, {op})
{outputs}                following = load_int64(node, {NEXT}, -1)
                if following == 0:
                    following = after
        node = following
    cuda.syncthreads()
    return found

'''

_CLOSE = '''{header}
{functions}
def close(leaves, n_leaves, numbers, stride, sums, after):
    """Fold what a pass has left of each tile, as its own blocks would: a block for each node without others.

    Parameters
    ----------
    leaves, n_leaves : int64
        Address of int64[n_leaves]: the addresses of these nodes.
    numbers, stride, sums, after : int64
        As for a pass, see `nbopt_backends.cuda.kernels.update_text`.
    """
    flag = cuda.shared.array(1, int64)
    closes = int64(0)
    c = int64(cuda.blockIdx.x)
    while c < n_leaves:
        {arrive}
        c += cuda.gridDim.x
{end}'''


class Parts(NamedTuple):
    """Small stages that run inside a pass.

    Attributes
    ----------
    functions : tuple of str
        Their texts.
    calls : tuple of (str, int)
        For each, the function and how many arguments it takes.
    """

    functions: tuple = ()
    calls: tuple = ()


class Closing(NamedTuple):
    """What a pass ends with, and begins with.

    Attributes
    ----------
    outputs : tuple of (int, int)
        Which of its reductions becomes which number of the parameter, if they are over parameters.
    tail : Parts
        What the last block does in the end.
    head : Parts
        What each block does in the beginning.
    """

    outputs: tuple = ()
    tail: Parts = Parts()
    head: Parts = Parts()


def functions(stage, dialect, closing):
    """Return the text of the functions that the lines of `beginning`, `arrive` and `ending` call.

    Parameters
    ----------
    stage : nbopt.language.stages.Pass
    dialect : Dialect
    closing : Closing
    """
    parts = [*closing.head.functions, *closing.tail.functions]
    if not stage.reductions:
        return "\n".join([*[fold_text(dialect)] * any("of_nothing" in part for part in parts), *parts])
    n = len(stage.reductions)
    kinds = [_OPS[op] for op, *_ in stage.reductions]
    ops = f"int64({kinds[-1]})"
    for number in range(n - 2, -1, -1):
        if kinds[number:] != [kinds[-1]] * (n - number):
            ops = f"(int64({kinds[number]}) if r == {number} else {ops})"
    stores = [
        f"store_float64(own, {output}, -1, load_float64(first, {number}, -1))"
        for number, output in closing.outputs
    ]
    own = f"own = numbers + load_int64(node, {ROW}, -1) * stride"
    lines = ["if cuda.threadIdx.x == 0 and left > 0:", *(f"    {line}" for line in [own, *stores])]
    fields = {"FIRST": FIRST, "COUNT": COUNT, "PLACES": PLACES, "MOST": MOST, "LEFT": LEFT, "NEXT": NEXT}
    closed = _CLOSED.format(
        bytes=8 * n,
        reductions=n,
        op=ops,
        outputs="".join(f"{'    ' * 4}{line}\n" for line in lines * bool(stores)),
        **fields,
    )
    return "\n".join([fold_text(dialect), closed, *parts])


def beginning(stage, closing):
    """Return the lines at the beginning of the kernel.

    Where the step is not taken, a pass goes over no chunk, and still runs the tail, which has what is not
    guarded.
    """
    lines = _calls(closing.head, AFTER_FIELDS + sum(count for _, count in closing.tail.calls))
    lines += ["cuda.syncthreads()"] * bool(lines)
    reduces = ["closes = int64(0)"] * bool(stage.reductions)
    if not stage.guarded:
        return lines + reduces
    if not closing.tail.calls:
        return [*lines, "if load_int64(taken, 0, -1) == 0:", "    return", *reduces]
    lines += ["there = load_int64(taken, 0, -1)", "n_chunks = n_chunks if there != 0 else int64(0)"]
    if stage.reductions:  # no tile arrives then
        lines.append("closes = int64(1) if there == 0 and cuda.blockIdx.x == 0 else int64(0)")
    return lines


def arrive(node, flag):
    """Return the line after a chunk, all of whose results have been written; both are expressions."""
    return f"closes |= closed({node}, {flag}, sums, numbers, stride, after)"


def ending(stage, closing):
    """Return the lines at the end of the kernel.

    The blocks of a pass that does not reduce arrive at `after` themselves.
    """
    calls = _calls(closing.tail, AFTER_FIELDS)
    lines = [line for call in calls for line in ("    cuda.syncthreads()", f"    {call}")]
    if not lines or stage.reductions:
        return ["if closes != 0:"] * bool(lines) + lines
    return [
        "flag = cuda.shared.array(1, int64)",
        "cuda.syncthreads()",
        "if cuda.threadIdx.x == 0:",
        "    flag[0] = arrived(after)",
        "cuda.syncthreads()",
        "if flag[0] != 0:",
        *lines,
    ]


def _calls(parts, place):
    """Return the lines that call small stages, whose arguments begin at a place behind `after`."""
    lines = []
    for name, count in parts.calls:
        arguments = ", ".join(f"load_int64(after, {place + k}, -1)" for k in range(count))
        lines.append(f"{name}({arguments})")
        place += count
    return lines


def close_text(stage, dialect, closing):
    """Return the text of the module that folds what a pass has left: see `functions`."""
    return _CLOSE.format(
        header=dialect.header,
        functions=functions(stage, dialect, closing),
        arrive=arrive("load_int64(leaves, c, -1)", "flag"),
        end="".join(f"    {line}\n" for line in ending(stage, closing)),
    )
