"""Assignments to tensors, outside of rules."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from nbopt.arrays.assignment import (
    TensorTracer,
    broadcast,
    dtypes_of,
    reduced_shape,
    shape_of,
    without_reductions,
)
from nbopt.arrays.tensor import Tensor
from nbopt.errors import ShapeError, TraceError
from nbopt.interface.creation import Creation
from nbopt.interface.update import Update
from nbopt.language.expressions import Node, Reduction, as_number
from nbopt.language.ops import compute_dtype
from nbopt.language.trace import tracing


class Assigning(Creation):
    """The part of `nbopt.Backend` that evaluates expressions of tensors."""

    update: Any
    _updates: int
    _lock: threading.Lock

    def assign(self, target: Tensor, value: Any) -> None:
        """Evaluate `value` and store it in the tensor `target`: what ``target[:] = value`` does.

        Parameters
        ----------
        target : Tensor
            Modified in place.
        value : Node, number or array
            Shapes broadcast to the target's, as in NumPy. Two that differ by axes of length 1 alone fit as
            well, as in neon: (n,) and (n, 1). Reductions in it are evaluated first, each to a small tensor.

        Raises
        ------
        ShapeError
            If the shapes don't fit.
        LayoutError
            If the target is read-only.
        TraceError
            Inside a rule, which can assign its own slots only.
        """
        if tracing.active:
            raise TraceError(
                "a rule assigns its own slots and nothing else: what else it needs must be a number or one "
                "of its states"
            )
        if hasattr(value, "__array__") and not isinstance(value, (Node, np.generic)):
            value = np.asanyarray(value)
            target = _fitted(target, value.shape)
            if target.rounding is not False:
                storable = (
                    value.dtype if value.dtype.name in ("float32", "float16", "bfloat16") else np.float64
                )
                self.update(self._assignment(target, self.array(value, storable)))
                return
            self.set_values(target, value)
            with self._lock:
                self._updates += 1
            if self.counts_on_device:
                self.counted()
        else:
            self.update(self._assignment(target, value if isinstance(value, Node) else as_number(value)))

    def _assignment(self, target: Tensor, value: Any) -> Update:
        value = without_reductions(value, self._reduce)
        shape = shape_of(value)
        target = _fitted(target, shape)
        if broadcast(shape, target.shape) != target.shape:
            raise ShapeError(
                f"an expression of shape {shape} can't be assigned to a tensor of shape {target.shape}"
            )
        tracer = TensorTracer(target)
        tracer.assign(value)
        program, scalars = tracer.program()
        given, _ = scalars.function()(tracer.numbers)
        return Update(program, given, None, lambda update: [[tensor] for tensor in tracer.tensors])

    def _reduce(self, node: Reduction) -> Tensor:
        arg = node.arg
        if not isinstance(arg, Tensor):
            arg = self.empty(shape_of(arg), compute_dtype(dtypes_of(arg)))
            arg.rounding = False
            # No user made this assignment, so the update count stays.
            self.prepare([self._assignment(arg, node.arg)])(0)
        if node.op != "sum" and (arg.size if node.axis is None else arg.shape[node.axis]) == 0:
            raise ShapeError(f"be.{node.op} of no elements has no value; the tensor has shape {arg.shape}")
        return self.reduce(node.op, arg, node.axis, reduced_shape(arg.shape, node.axis, node.keepdims))


def _fitted(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the target of an assignment as a view of the value's shape.

    It is another view only if the shapes differ by axes of length 1 alone.
    """
    if shape != target.shape and [n for n in shape if n != 1] == [n for n in target.shape if n != 1]:
        return target.reshape(shape)
    return target
