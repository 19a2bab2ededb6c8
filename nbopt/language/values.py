"""What a rule works with: values, numbers of the step, and slots.

Each operation on one goes onto the tape of its `Tracer`.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from nbopt.errors import TraceError
from nbopt.language.expressions import Lazy, apply_named
from nbopt.language.lines import ELEMENT, TENSOR, axes_of, is_number
from nbopt.language.matrices import Product
from nbopt.language.ops import COMPOSED, PRIMITIVES

if TYPE_CHECKING:
    from nbopt.language.expressions import Node, Operand
    from nbopt.language.trace import Tracer

_SHAPES = {"shape", "size", "ndim", "dim", "numel", "dtype", "device", "itemsize", "nbytes", "len"}


class Value(Lazy):
    """A value inside a rule: what a line of the trace gives.

    Attributes
    ----------
    tracer : Tracer
    index : int
        The line.
    seen : int
        The number of stores when it was last known to be fresh.
    """

    __slots__ = ("index", "seen", "tracer")
    array_advice = (
        "A rule reads its slots and numbers. An array of one element becomes a number by float(x); an array "
        "of the parameter's shape can be a state, named in state_names."
    )
    be_advice = "with be = self.be"

    def __init__(self, tracer: Tracer, index: int) -> None:
        self.tracer = tracer
        self.index = index
        self.seen = tracer.stores

    def build(self, op: str, args: tuple[Any, ...]) -> Value:
        """Put an operation onto the tape; what `nbopt.language.expressions.apply` calls."""
        return self.tracer.apply(op, args)

    def __getitem__(self, key: Any) -> Any:
        raise TraceError("an expression can't be indexed: a rule works on all elements alike")

    def reduce(self, op: str, axis: int | tuple[int, ...] | None = None) -> Value:
        """Put a reduction onto the tape.

        Parameters
        ----------
        op : str
            ``"sum"``, ``"max"`` or ``"min"``.
        axis : int or tuple of int, optional
            Which axes of the parameter it is over; all without it.

        Returns
        -------
        Value
        """
        return self.tracer.reduce(op, "tensor" if axis is None else self.tracer.axes(axis), self)

    def count(self, axis: int | tuple[int, ...] | None = None) -> Any:
        """Return how many elements a mean of this value is over, at least 1: the mean over none is 0."""
        tracer, extent = self.tracer, self.tracer.extent(self)
        if axis is None and extent == ELEMENT:
            count = tracer.size()
        else:
            every = TENSOR if is_number(extent) else tracer.axes() if extent == ELEMENT else extent
            gone = every & (every if axis is None else tracer.axes(axis)) & ~TENSOR
            if not gone:
                return 1.0
            count = tracer.length(gone | TENSOR)
        return apply_named("maximum", count, 1.0)

    @property
    def T(self) -> Factors:  # noqa: N802
        """The transpose, a factor of `be.matmul`."""
        return self.factors().transposed()

    def factors(self) -> Factors:
        """Return the value as a product of one matrix."""
        return Factors(self.tracer, ((self.tracer.operand(self), False),))

    def __bool__(self) -> bool:
        if self.tracer.extent(self) != ELEMENT:
            raise TraceError(
                "an if needs to know a number that is computed on the device while the step runs: it comes "
                f"from a reduction, or from memory. Write be.where(condition, a, b), {self.be_advice}."
            )
        return super().__bool__()

    def __float__(self) -> float:
        raise TraceError(
            f"{self!r} is not a number: a rule says once what is done to all elements, whose values are not "
            "known yet. In place of a function of numbers, such as math.sqrt(x), write be.sqrt(x), "
            f"{self.be_advice}."
        )

    __int__ = __index__ = __trunc__ = __float__

    def advice(self, name: str) -> str:
        """Return what to type in a rule for a function or method that another library calls `name`."""
        if name in _SHAPES:
            return (
                "The parameter tells: param.ndim, param.shape, param.size, param.dtype. Parameters that need "
                "another rule can have an optimizer of their own: nbopt.MultiOptimizer goes by layers, "
                "nbopt.torch.Optimizer by groups of parameters."
            )
        return super().advice(name)

    def __repr__(self) -> str:
        return "<a value of the rule>"


class Number(Value):
    """A number of the step.

    Such are a hyper-parameter, the learning rate, the count of steps, and what a rule computes from them. It
    stands for whatever the number is at each step. Where a rule needs to know it now, to test it or to pass
    it to a function of Python's, that becomes a test of the trace: the trace holds as long as the test has
    the same outcome.

    Attributes
    ----------
    number : int or float
        What it is now.
    """

    __slots__ = ("number",)

    def __init__(self, tracer: Tracer, index: int, number: float) -> None:
        super().__init__(tracer, index)
        self.number = number

    def _known(self) -> Any:
        self.tracer.tests.append((self.index, False, self.number))
        return self.number

    def __bool__(self) -> bool:
        self.tracer.tests.append((self.index, True, bool(self.number)))
        return bool(self.number)

    def __float__(self) -> float:
        return float(self._known())

    def __int__(self) -> int:
        return int(self._known())

    def __index__(self) -> int:
        return self._known().__index__()

    def __trunc__(self) -> int:
        return self._known().__trunc__()

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._known(), digits)

    def __floor__(self) -> int:  # type: ignore[override]
        return self._known().__floor__()

    def __ceil__(self) -> int:  # type: ignore[override]
        return self._known().__ceil__()

    def __floordiv__(self, other: Any) -> Any:
        return self._known() // other

    def __rfloordiv__(self, other: Any) -> Any:
        return other // self._known()

    def __mod__(self, other: Any) -> Any:
        return self._known() % other

    def __rmod__(self, other: Any) -> Any:
        return other % self._known()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if (
            method == "__call__"
            and not options
            and all(isinstance(x, (Number, numbers.Real)) for x in inputs)
        ):
            if ufunc.__name__ in PRIMITIVES or ufunc.__name__ in COMPOSED:
                return apply_named(ufunc.__name__, *inputs)
            return ufunc(*(x._known() if isinstance(x, Number) else x for x in inputs))
        return super().__array_ufunc__(ufunc, method, *inputs, **options)

    def __format__(self, spec: str) -> str:
        return format(self.number, spec)

    def __repr__(self) -> str:
        return repr(self.number)


class Factors(Value):
    """A product of matrices that is not on the tape yet: it may become a part of a longer one.

    Attributes
    ----------
    parts : tuple of (int, bool)
        The line of each factor, and whether it is transposed.
    """

    __slots__ = ("_line", "parts")

    def __init__(self, tracer: Tracer, parts: tuple[tuple[int, bool], ...]) -> None:
        self.tracer, self.parts = tracer, parts
        self._line: int | None = None
        self.seen = tracer.stores

    @property
    def index(self) -> int:  # type: ignore[override]
        """The line, which is emitted if nothing has asked for it yet."""
        if self._line is None:
            lines = [*dict.fromkeys(line for line, _ in self.parts)]
            product = Product(tuple((lines.index(line), flipped) for line, flipped in self.parts))
            self._line = self.tracer.matrix(product, lines, self.seen)
        return self._line

    def factors(self) -> Factors:
        """Return the product itself."""
        return self

    def transposed(self) -> Factors:
        """Return the transpose."""
        return Factors(self.tracer, tuple((line, not flipped) for line, flipped in self.parts[::-1]))

    def then(self, other: Factors) -> Factors:
        """Return the product of this and another one."""
        return Factors(self.tracer, (*self.parts, *other.parts))

    def __repr__(self) -> str:
        return "<a product of matrices>"


class Slot(Value):
    """A symbolic tensor inside a rule. Assign to it with ``slot[:] = expression``.

    Rules get slots, and make none.

    Parameters
    ----------
    tracer : Tracer
    number : int
        Its place among the program's slots.
    name : str
        As messages and kernels call it.
    """

    __slots__ = ("name", "number")

    def __init__(self, tracer: Tracer, number: int, name: str) -> None:
        self.tracer, self.number, self.name = tracer, number, name
        self.index = None  # type: ignore[assignment]  # until it is loaded
        self.seen = -1  # before the first store there was no load

    @property
    def size(self) -> Node:
        """Return the parameter's number of elements."""
        return self.tracer.size()

    @property
    def ndim(self) -> int:
        """Return how many axes the parameter has: the rule is traced for each number of axes."""
        return len(axes_of(self.tracer.axes(), self.tracer.ndim))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the parameter's dtype, which only the parameter tells: the rule is traced for each dtype."""
        if self.number:
            raise TraceError(f"a rule can't ask for {self.name}.dtype, only for param.dtype")
        self.tracer.axes()
        return self.tracer.dtype

    @property
    def axes(self) -> tuple[int, ...]:
        """Return the axes that it varies with, as `nbopt.State` names them: a rule may test this, too."""
        return tuple(axes_of(self.tracer.axes() & self.tracer.slot_extents[self.number], self.tracer.ndim))

    @property
    def shape(self) -> tuple[Node, ...]:
        """Return the lengths of the parameter's axes, which are numbers of the parameter."""
        self.tracer.axes()
        return tuple(self.tracer.length(2 << axis | TENSOR) for axis in range(self.tracer.ndim))

    def __setitem__(self, key: slice, value: Operand) -> None:
        if not (isinstance(key, slice) and key == slice(None)):
            raise TraceError(f"a rule assigns whole slots: write {self.name}[:] = ...")
        self.tracer.store(self.number, value)

    def __getitem__(self, key: slice) -> Slot:
        if not (isinstance(key, slice) and key == slice(None)):
            raise TraceError(
                f"{self.name} stands for a tensor of any shape inside a rule and can't be indexed"
            )
        return self

    def __repr__(self) -> str:
        return self.name
