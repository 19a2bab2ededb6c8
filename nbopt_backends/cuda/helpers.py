"""What both toolchains share: helpers in plain Python, how formulas are spelled, what memory holds.

`primitives` and `primitives_mlir` compile the helpers with their own names.
"""

# ruff: noqa: F821  (names that these modules provide)

import ast
import inspect
import textwrap
from types import FunctionType
from typing import Any, NamedTuple


def address(row, slot, offset, item_size):
    """Return the address of element `offset` of a slot; `row` is the address of the tensor's row."""
    return load_int64(row, slot, -1) + offset * item_size


def place(geometry, row, slot, position):
    """Return the address of the element at a C-order position of a slot that may be strided.

    See `nbopt_backends.cpu.chunks.run_strided_chunk` for geometries.
    """
    shape = load_int64(geometry, slot, -1)
    here = load_int64(row, slot, -1)
    if load_int64(shape, 0, -1) == 0:
        here += position * load_int64(shape, 1, -1)
    else:
        ndim = load_int64(shape, 2, -1)
        axis = ndim - 1
        while axis >= 0:
            extent = load_int64(shape, 3 + axis, -1)
            outer = position // extent
            here += (position - outer * extent) * load_int64(shape, 3 + ndim + axis, -1)
            position = outer
            axis -= 1
    return here


def beats(x, y, kind):
    """Return whether x goes before y in a search for the largest (kind 2) or smallest (kind 3) value.

    NaN goes first.
    """
    return y == y and (x != x or (x > y if kind == 2 else x < y))


def narrowed(x):
    """Return a float64 as a float32, NaN as the one whose upper half is bfloat16's canonical NaN.

    PTX's conversion gives another NaN.
    """
    return float32(x) if x == x else from_bits_float32(0x7FC00000)


def swift_stochastic_bfloat16_float32(x, kept, top, random):
    """Return a float32 rounded stochastically to bfloat16 if it is not beyond `top`; `kept` is 7."""
    return from_bits_float32((bits_float32(x) + random) & 0xFFFF0000)


def drawn(key_0, key_1, counter, draw):
    """Return word number `draw` of a lane, whatever was drawn before."""
    s0, s1 = seeded(key_0, key_1, counter)
    word, s0, s1 = advanced(s0, s1)
    for _ in range(draw):
        word, s0, s1 = advanced(s0, s1)
    return word


def arrived(node):
    """Return 1 if this is the last one to arrive at a node, else 0: see `nbopt_backends.cuda.closing`.

    What the others have written before is seen then. For one thread of a block.
    """
    last = load_int64(node, 1, -1) - 1
    found = int64(1)
    if last > 0:
        found = int64(1) if counted_up(node) == last else int64(0)
        if found != 0:
            store_int64(node, 0, -1, int64(0))
    return found


HELPERS = {
    function.__name__: function
    for function in (address, place, beats, narrowed, swift_stochastic_bfloat16_float32, drawn, arrived)
}


class Spelled(ast.NodeTransformer):
    """Replaces infix arithmetic by calls of operations."""

    names = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}

    def visit_BinOp(self, node):
        """Replace one operation."""
        self.generic_visit(node)
        if type(node.op) not in self.names:
            return node
        return ast.copy_location(
            ast.Call(ast.Name(self.names[type(node.op)], ast.Load()), [node.left, node.right], []), node
        )


def respelled(function, spelling, names):
    """Return a function with another spelling, and with other global names.

    Parameters
    ----------
    function : callable
        One that a module's source has.
    spelling : ast.NodeTransformer
    names : dict
    """
    tree = spelling.visit(ast.parse(textwrap.dedent(inspect.getsource(function))))
    code = compile(ast.fix_missing_locations(tree), inspect.getsourcefile(function), "exec")
    made: dict = {}
    exec(code, names, made)
    return FunctionType(made[function.__name__].__code__, names, function.__name__)


class Storage(NamedTuple):
    """How elements of one dtype lie in memory.

    Attributes
    ----------
    element : numba type
        What a load gives and a store takes.
    size : int
        In bytes.
    memory : object
        The toolchain's type of what is in memory, or what makes it.
    widened, narrowed : callable
        Emit the exact conversion from and to memory; what they take last is the value.
    """

    element: Any
    size: int
    memory: Any
    widened: Any = lambda *given: given[-1]
    narrowed: Any = lambda *given: given[-1]


def vectors(storages):
    """Return what there are loads and stores of vectors of: name, storage, count.

    They are as many as 16 bytes hold of the narrowest storage of a kernel, or half as many.

    Parameters
    ----------
    storages : dict of str to Storage
    """
    return [
        (name, storage, count)
        for name, storage in storages.items()
        for count in (2, 4, 8)
        if count * storage.size >= 8 and count > 1
    ]


def vector_names(name, count):
    """Return the names of the four functions of vectors of `count` elements of a dtype."""
    return [f"{word}_{name}x{count}" for word in ("load", "store", "load_first", "store_first")]
