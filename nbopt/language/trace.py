"""Tracing: from a rule's operations and assignments to a trace.

`nbopt.language.stages` describes this straight-line code.

For RMSProp with slots param, grad, mean_square this begins::

    0 ("source", "divisor")   1 ("load", 1)   2 ("divide", 1, 0)
    3 ("source", "self.decay_rate")   4 ("load", 2)   5 ("multiply", 3, 4)   ...

Inside a rule there are no expression trees: each operation goes straight onto the tape.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nbopt.errors import TraceError
from nbopt.language.cutter import cut
from nbopt.language.expressions import Node, as_number
from nbopt.language.lines import ELEMENT, STEP, TENSOR, along, axes_of, extents_of, is_number, operands_of
from nbopt.language.scalars import evaluate
from nbopt.language.values import Number, Slot, Value

if TYPE_CHECKING:
    import numpy as np

    from nbopt.language.lines import Line
    from nbopt.language.program import Program
    from nbopt.language.scalars import ScalarCode


def too_deep() -> TraceError:
    """Return the error of an expression that is nested more deeply than Python's stack."""
    return TraceError("the expression is nested too deeply: assign parts of it to tensors of their own")


def _called(extent: int) -> str:
    numbers = {
        STEP: "one number for the whole step",
        TENSOR: "one number for each parameter",
        ELEMENT: "one for each element",
    }
    return numbers.get(extent) or f"one for each slice along the axes {axes_of(extent, extent.bit_length())}"


class NeedsAxesError(Exception):
    """A rule depends on the parameters' number of axes or dtype, and is to be traced for each."""


class _Tracing(threading.local):
    active = False


#: ``tracing.active`` says whether a rule is being traced in this thread.
tracing = _Tracing()


class Tracer:
    """Collects operations and assignments into a trace.

    Parameters
    ----------
    names : sequence of str
        The slots' names.
    slots : sequence of int, optional
        Their extents, see `nbopt.language.stages`; all vary with elements without it.
    ndim : int, optional
        How many axes the parameters have. Without it a rule that asks raises `NeedsAxesError`.
    dtype : numpy.dtype, optional
        The parameters' dtype, if `ndim` is given.

    Attributes
    ----------
    code : list of tuple
        The trace, see `nbopt.language.stages`.
    numbers : list of float
        The Python numbers in it, by index.
    stores : int
        How many assignments there were so far.
    assigned : dict of int to int
        How many assignments each slot had.
    amended : (int, int) or None
        Which assignment to which slot stores ``amend(value)`` in place of its value; the first is number 1.
    tests : list of (int, bool, object)
        The numbers of the step that the rule has looked at: the line, whether it was for its truth only, and
        what it found.
    """

    def __init__(
        self,
        names: Iterable[str],
        slots: Iterable[int] | None = None,
        ndim: int | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        self.names = tuple(names)
        self.ndim: Any = ndim
        self.dtype: Any = dtype
        self.slot_extents = tuple(slots or (ELEMENT,) * len(self.names))
        self.code: list[Line] = []
        self._extents: list[int] = []
        self.numbers: list[float] = []
        self.stores = 0
        self.assigned: dict[int, int] = {}
        self.amended: Any = None
        self.amend: Any = None
        self.tests: list[tuple[int, bool, Any]] = []
        self._known: dict[int, Any] = {}  # line -> its number now, where the host knows it
        self._sources: dict[str, int] = {}
        self._current: list[Any] = [None] * len(self.names)  # the line that a read of each slot gives now

    def slots(self) -> list[Slot]:
        """Return new symbolic tensors, one for each name."""
        # Kept here they would make a circle, which only the garbage collector could end.
        return [Slot(self, number, name) for number, name in enumerate(self.names)]

    def program(self, guard: int | None = None, waits: Sequence[int] = ()) -> tuple[Program, ScalarCode]:
        """Return the program of all assignments so far, and the scalar code of its numbers.

        Parameters
        ----------
        guard, waits
            See `nbopt.language.cutter.cut`.
        """
        return cut(
            self.names,
            self.slot_extents,
            self.code,
            [(line, truth) for line, truth, _ in self.tests],
            guard,
            self.ndim,
            waits,
        )

    def extent(self, value: Any) -> int:
        """Return the extent of a node or a number."""
        if type(value) is Slot:
            return self.slot_extents[value.number]
        return self._extent(value.index) if isinstance(value, Value) else STEP

    def _extent(self, line: int) -> int:
        if line >= len(self._extents):
            self._extents = extents_of(self.code, self.slot_extents, self._extents, self.ndim)
        return self._extents[line]

    def source(self, name: str, number: Any) -> Number:
        """Return a number of the step.

        Parameters
        ----------
        name : str
        number : int or float
            What it is now.

        Returns
        -------
        Number
        """
        line = self._sources.get(name)
        if line is None:
            line = self._sources[name] = self._line(("source", name))
            self._known[line] = number
        return Number(self, line, number)

    def size(self) -> Value:
        """Return the number of elements of the parameter."""
        return Value(self, self._once(("size",)))

    def length(self, extent: int) -> Value:
        """Return the number of elements along the axes of an extent."""
        return Value(self, self._once(("length", extent)))

    def axes(self, axis: int | tuple[int, ...] | None = None) -> int:
        """Return the extent that has some axes, or all.

        Parameters
        ----------
        axis : int or tuple of int, optional

        Returns
        -------
        int

        Raises
        ------
        NeedsAxesError
            If it is not known how many axes the parameters have.
        TraceError
            If they have no such axis.
        """
        if self.ndim is None:
            raise NeedsAxesError
        if axis is None:
            return along(range(self.ndim))
        asked = axis if isinstance(axis, tuple) else (axis,)
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in asked):
            raise TraceError(f"axis= takes an int or a tuple of ints, not {axis!r}")
        for one in asked:
            if not -self.ndim <= one < self.ndim:
                raise TraceError(
                    f"axis={axis!r} asks for an axis that a parameter with {self.ndim} axes does not have"
                )
        return along({one % self.ndim for one in asked})

    def taken(self) -> Value:
        """Return 1.0 if the step stores what a condition guards, else 0.0, for counters alone."""
        return Value(self, self._once(("taken",)))

    def _once(self, line: Line) -> int:
        return self.code.index(line) if line in self.code else self._line(line)

    def reduce(self, op: str, over: str | int, value: Any) -> Value:
        """Append a reduction; return its value, or the value itself if there is nothing to reduce over.

        Parameters
        ----------
        op : str
            ``"sum"``, ``"max"`` or ``"min"``.
        over : str or int
            ``"tensor"``: over the elements of each parameter. ``"step"``: over all elements of all
            parameters. Else over the axes of this extent.
        value : Node or float

        Returns
        -------
        Value
        """
        line = self.operand(value)
        extent = self._extent(line)
        if not isinstance(over, str):
            wide = self.axes() if extent == ELEMENT else extent
            rest = wide & ~over | wide & TENSOR
            if rest == wide:
                return value
            over = "tensor" if rest == TENSOR else rest
        elif is_number(extent) and (over == "tensor" or extent == STEP):
            return value
        return Value(self, self._line(("reduce", op, over, line)))

    def matrix(self, function: Any, lines: Sequence[int], seen: int | None = None) -> int:
        """Append a function of matrices; return its line.

        Parameters
        ----------
        function : Product or Orthogonalize
        lines : list of int
            Those of its operands.
        seen : int, optional
            The number of stores when these were last known to be fresh.

        Raises
        ------
        NeedsAxesError
            If it is not known how many axes the parameters have.
        TraceError
            If they have fewer than two, or an operand varies with less than elements.
        """
        if self.ndim is None:
            raise NeedsAxesError
        if self.ndim < 2:
            raise TraceError(
                "a function of matrices takes parameters with two axes or more. Give vectors, and matrices "
                "that are flattened or cut to shards, another rule"
            )
        for line in lines:
            if seen not in (None, self.stores):
                self._check_fresh(line)
            if self._extent(line) != ELEMENT:
                raise TraceError(
                    "a function of matrices takes one number for each element of the parameter, and this"
                    f" value is {_called(self._extent(line))}"
                )
        return self._line(("matrix", function, *lines))

    def only_if(self, value: Any) -> None:
        """Append a condition: where it is 0 or NaN, the step stores nothing."""
        line = self.operand(value)
        if self._extent(line) != STEP:
            raise TraceError(
                "step.only_if takes one number for the whole step, such as be.finite(step.norm(grad)); this "
                "value varies with the parameter. Reduce it over all parameters: step.min(x), step.sum(x)"
            )
        self._line(("only_if", line))

    def apply(self, op: str, args: tuple[Any, ...]) -> Value:
        """Append a primitive; return its value."""
        operands = [self.operand(arg) for arg in args]
        line = self._line((op, *operands))
        if all(operand in self._known for operand in operands):
            self._known[line] = evaluate(op, *(self._known[operand] for operand in operands))
            return Number(self, line, self._known[line])
        return Value(self, line)

    def store(self, number: int, value: Any, assignment: int | None = None) -> None:
        """Append an assignment.

        Parameters
        ----------
        number : int
            The slot's.
        value : Node or float
        assignment : int, optional
            Which assignment it is for random bits. Without it: its place among those of the rule.
        """
        place = self.assigned[number] = self.assigned.get(number, 0) + 1
        if self.amended == (number, place):
            value = self.amend(value)
        try:
            line = self.operand(value)
        except RecursionError:
            raise too_deep() from None
        if self._extent(line) & ~self.slot_extents[number]:
            raise TraceError(
                f"{self.names[number]} holds {_called(self.slot_extents[number])}, and the value assigned to "
                f"it is {_called(self._extent(line))}: reduce it first (be.sum, be.mean, be.norm, or "
                "step.sum and so on)"
            )
        self._line(("store", number, line, *(() if assignment is None else (assignment,))))
        self._current[number] = len(self.code) - 1
        self.stores += 1

    def load(self, number: int) -> int:
        """Return the line of the current value of slot `number`; its first use emits the load."""
        line = self._current[number]
        if line is None:
            line = self._current[number] = self._line(("load", number))
        return line

    def operand(self, arg: Any) -> int:
        """Return the line of `arg`, a node or a number, after a look at whether it is fresh."""
        if isinstance(arg, Value):
            if arg.tracer is not self:
                raise TraceError(
                    f"the expression holds {arg!r} of another step: build expressions inside the rule, at "
                    "every step"
                )
            if arg.seen != self.stores:
                if type(arg) is Slot:
                    arg.index = self.load(arg.number)
                elif type(arg) is not Number:
                    self._check_fresh(arg.index)
                arg.seen = self.stores
            return arg.index
        if isinstance(arg, Node):
            return self.leaf(arg)
        self.numbers.append(arg if type(arg) is float else as_number(arg, (Value,)))
        line = self._line(("number", len(self.numbers) - 1))
        self._known[line] = self.numbers[-1]
        return line

    def _line(self, line: Line) -> int:
        self.code.append(line)
        return len(self.code) - 1

    def leaf(self, node: Any) -> int:
        """Return the line of a node that is no value of the rule. A rule has its slots and nothing else."""
        raise TraceError(
            f"a rule reads its slots ({', '.join(self.names)}) and numbers; {node!r} is neither. "
            "A tensor that a rule needs can be one of its states: name it in state_names."
        )

    def _check_fresh(self, index: int) -> None:
        """Check that no slot that the value at `index` was computed from has been assigned since.

        What a reduction or a function of matrices has given stays what it is, so it may be used later.
        """
        seen, stack = set(), [index]
        while stack:
            here = stack.pop()
            if here in seen:
                continue
            seen.add(here)
            op, *operands = self.code[here]
            if op in ("load", "store"):
                if self._current[operands[0]] != here:
                    name = self.names[operands[0]]
                    raise TraceError(
                        f"an expression built from {name} is used after {name} was assigned: it would not be "
                        f"clear which value it means. Build the expression after {name}[:] = ..., or assign "
                        "it before."
                    )
            elif op not in ("reduce", "matrix"):
                stack.extend(operands_of(self.code[here]))
