"""Assignments outside rules: shapes, broadcasting, reductions, and the program of ``out[:] = expression``."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nbopt.arrays.tensor import Tensor
from nbopt.errors import OperandError, ShapeError
from nbopt.language.expressions import Node, Operation, Reduction
from nbopt.language.lines import ELEMENT
from nbopt.language.trace import Tracer, too_deep


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that `shapes` broadcast to, or raise ShapeError."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ShapeError(f"shapes {' and '.join(map(str, shapes))} don't broadcast") from None


def shape_of(node: object) -> tuple[int, ...]:
    """Return the shape of an expression over tensors; numbers have shape ()."""
    try:
        return _shape_of(node, {})
    except RecursionError:
        raise too_deep() from None


def _shape_of(node: object, known: dict[Node, tuple[int, ...]]) -> tuple[int, ...]:
    if isinstance(node, Tensor):
        return node.shape
    if not isinstance(node, Node):
        return ()
    if node not in known:
        if isinstance(node, Operation):
            known[node] = broadcast(*(_shape_of(arg, known) for arg in node.args))
        elif isinstance(node, Reduction):
            known[node] = reduced_shape(_shape_of(node.arg, known), node.axis, node.keepdims)
        else:
            raise OperandError(f"{node!r} belongs to a rule and has no values outside it")
    return known[node]


def reduced_shape(shape: tuple[int, ...], axis: int | None, keepdims: bool) -> tuple[int, ...]:
    """Return what a reduction over `axis` (None: all) makes of `shape`."""
    if axis is None:
        return (1,) * len(shape) if keepdims else ()
    if not (isinstance(axis, (int, np.integer)) and 0 <= axis < len(shape)):
        raise ShapeError(
            f"axis must be None or an int from 0 to {len(shape) - 1} for shape {shape}, not {axis!r}"
        )
    return tuple(1 if i == axis else n for i, n in enumerate(shape) if keepdims or i != axis)


def dtypes_of(node: object, found: dict[Node, set[Any]] | None = None) -> set[Any]:
    """Return the set of dtypes of the tensors in an expression."""
    found = {} if found is None else found
    if isinstance(node, Node) and node not in found:
        found[node] = {node.dtype} if isinstance(node, Tensor) else set()
        children = (
            node.args if isinstance(node, Operation) else (node.arg,) if isinstance(node, Reduction) else ()
        )
        for child in children:
            found[node] |= dtypes_of(child, found)
    return found[node] if isinstance(node, Node) else set()


class TensorTracer(Tracer):
    """Traces one assignment over tensors: every distinct tensor in the expression becomes a slot.

    Slot 0 is the target.

    Attributes
    ----------
    tensors : list of Tensor
        By slot.
    """

    def __init__(self, target: Tensor) -> None:
        super().__init__(())
        self.tensors: list[Tensor] = []
        self._slots: dict[Tensor, int] = {}
        # Nodes hash by identity, and the dictionary keeps them alive, so an id can't be used twice while it
        # is here.
        self._values: dict[Node, int] = {}
        self._slot_of(target)

    def assign(self, value: Any) -> None:
        """Append ``target[:] = value``."""
        self.store(0, value)

    def leaf(self, node: Any) -> int:
        """Return the line of a tensor or an expression, emitting what it needs; shared parts once."""
        if isinstance(node, Tensor):
            return self.load(self._slot_of(node))
        if node not in self._values:
            self._values[node] = self.apply(node.op, node.args).index
        return self._values[node]

    def _slot_of(self, tensor: Tensor) -> int:
        slot = self._slots.get(tensor)
        if slot is None:
            slot = self._slots[tensor] = len(self.tensors)
            self.tensors.append(tensor)
            self.names += (f"x{slot}" if slot else "out",)
            self.slot_extents += (ELEMENT,)
            self._current.append(None)
        return slot


def without_reductions(node: Any, evaluate: Callable[[Reduction], Tensor]) -> Any:
    """Return `node` with every reduction in it replaced by ``evaluate(reduction)``, innermost first.

    Parameters
    ----------
    node : Node or float
    evaluate : callable
        Takes a Reduction whose argument holds no further reduction; returns a tensor.
    """
    try:
        return _without_reductions(node, evaluate, {})
    except RecursionError:
        raise too_deep() from None


def _without_reductions(node: Any, evaluate: Callable[[Reduction], Tensor], done: dict[Node, Any]) -> Any:
    if not isinstance(node, (Operation, Reduction)):
        return node
    if node not in done:
        if isinstance(node, Reduction):
            arg = _without_reductions(node.arg, evaluate, done)
            done[node] = evaluate(Reduction(node.op, arg, node.axis, node.keepdims))
        else:
            args = tuple(_without_reductions(arg, evaluate, done) for arg in node.args)
            unchanged = all(new is old for new, old in zip(args, node.args))
            done[node] = node if unchanged else Operation(node.op, args)
    return done[node]
