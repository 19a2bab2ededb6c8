"""Lazy expressions: the trees that operators and `be` ops build, and that an assignment evaluates."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, Union

import numpy as np

from nbopt.errors import MissingError, OperandError, TraceError
from nbopt.language.ops import COMPOSED, evaluate_numbers
from nbopt.language.words import MATRIX, op_for, reduction_for

#: What an operation takes.
Operand = Union["Node", float, "np.number[Any]", np.bool_]


def apply(name: str, *operands: Operand) -> Any:
    """Apply primitive `name`: a float if all operands are numbers, else an expression.

    Raises
    ------
    OperandError
        If an operand is no tensor, expression or real number.
    """
    node: Node | None = None
    checked: list[Any] = []
    for operand in operands:
        if isinstance(operand, Node):
            # A value of a rule decides over a tensor, which has no business there.
            node = operand if node is None or node.build is _tree else node
        elif type(operand) is not float:
            operand = as_number(operand, operands)
        checked.append(operand)
    return evaluate_numbers(name, *checked) if node is None else node.build(name, tuple(checked))


def apply_named(name: str, *operands: Any) -> Any:
    """Apply the op that users call `name`, composed or primitive."""
    composed = COMPOSED.get(name)
    if composed is None:
        return apply(name, *operands)
    result = composed.build(apply, *operands)
    return result if isinstance(result, Node) else as_number(result)


def as_number(value: object, beside: Iterable[object] = ()) -> float:
    """Return `value` as a float.

    Parameters
    ----------
    value : object
    beside : sequence
        The operands of the same operation, or their class, on which the advice depends.

    Returns
    -------
    float

    Raises
    ------
    OperandError
        If `value` is no real number.
    """
    if isinstance(value, (numbers.Real, np.bool_)):
        try:
            return float(value)
        except OverflowError:
            raise OperandError(f"the number {str(value)[:20]}... is too large for float64") from None
    hint = ""
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        advice = {getattr(other, "array_advice", Node.array_advice) for other in beside} - {Node.array_advice}
        hint = f" {advice.pop() if advice else Node.array_advice}"
    raise OperandError(
        f"an operand must be a tensor, an expression or a real number, not {type(value).__name__}.{hint}"
    )


def _binary(name: str) -> Callable[[Node, Operand], Node]:
    def method(self: Node, other: Operand) -> Node:
        return apply(name, self, other)

    return method


def _reflected(name: str) -> Callable[[Node, Operand], Node]:
    def method(self: Node, other: Operand) -> Node:
        return apply(name, other, self)

    return method


class Node:
    """Anything that can stand in an expression. Users know it as `nbopt.Expr`.

    Operators on it call ``build(op, args)``, which gives an `Operation` unless a subclass says other.
    """

    __slots__ = ()
    build: Any
    #: What to do with an array that is an operand of the same operation.
    array_advice = (
        "Make a tensor of it first: nbopt.get_backend().array(x) copies, nbopt.get_backend().wrap(x) shares "
        "memory."
    )
    #: Where `be` comes from.
    be_advice = "with be = nbopt.get_backend()"
    __hash__ = object.__hash__

    __add__, __radd__ = _binary("add"), _reflected("add")
    __sub__, __rsub__ = _binary("subtract"), _reflected("subtract")
    __mul__, __rmul__ = _binary("multiply"), _reflected("multiply")
    __truediv__, __rtruediv__ = _binary("divide"), _reflected("divide")
    __eq__, __ne__ = _binary("equal"), _binary("not_equal")  # type: ignore[assignment]
    __lt__, __le__ = _binary("less"), _binary("less_equal")
    __gt__, __ge__ = _binary("greater"), _binary("greater_equal")

    def __pow__(self, other: Operand) -> Node:
        return apply_named("power", self, other)

    def __rpow__(self, other: Operand) -> Node:
        return apply("power", other, self)

    def __neg__(self) -> Node:
        return self.build("negative", (self,))

    def __pos__(self) -> Node:
        return self

    def __abs__(self) -> Node:
        return self.build("absolute", (self,))

    def __bool__(self) -> bool:
        raise TraceError(
            "an expression has no truth value: it stands for many elements, and its values are not known "
            "before the kernel runs. To choose element by element write be.where(condition, a, b), "
            "be.maximum or be.minimum; to look at a tensor's values call .get() on it, outside a rule."
        )

    def __float__(self) -> float:
        raise TraceError(
            "an expression is not a number: assign it to a tensor (t[:] = ...) and call t.get(). "
            f"In place of a function of numbers, such as math.sqrt(x), write be.sqrt(x), {self.be_advice}."
        )

    __int__ = __index__ = __trunc__ = __float__

    def __iter__(self) -> Any:
        raise TraceError(
            f"{self!r} can't be iterated over, so that list(x) and sum(x) don't work either: an operation is "
            "on all elements at once"
        )

    def __round__(self, digits: int | None = None) -> Any:
        raise self.refusal("round")

    __ceil__ = __floor__ = __round__

    def __matmul__(self, other: object) -> NoReturn:
        raise self.refusal("@")

    __rmatmul__ = __matmul__

    def __floordiv__(self, other: Any) -> Any:
        raise self.refusal("//")

    def __mod__(self, other: Any) -> Any:
        raise self.refusal("%")

    __rfloordiv__, __rmod__ = __floordiv__, __mod__

    def __and__(self, other: object) -> Any:
        raise TraceError(
            "conditions are numbers here, 1.0 or 0.0: in place of a & b write a * b, of a | b be.maximum(a, "
            "b), and of ~a 1.0 - a"
        )

    __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __and__

    def __invert__(self) -> Any:
        return self & self

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TraceError(
            "an expression can't be assigned to: a rule assigns its slots, param and the states; grad is an "
            "expression"
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        # The scalars and arrays of NumPy come here for operators, too: np.float64(2) * node.
        if method == "__call__" and not options and ufunc.__name__ in _OPERATORS:
            # In comparisons a scalar of NumPy's arrives as an array without dimensions.
            return apply_named(
                ufunc.__name__, *(x[()] if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs)
            )
        raise self.refusal(
            f"np.{ufunc.__name__}" if method == "__call__" else f"np.{ufunc.__name__}.{method}"
        )

    if not TYPE_CHECKING:  # a type checker names what is missing by itself

        def __getattr__(self, name):
            if name.startswith("__"):  # a protocol
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise MissingError(f"{self!r} has no attribute {name!r}. {self.advice(name)}")

    def refusal(self, called: str) -> TraceError:
        """Return the error of another library's function that this node was given to.

        Parameters
        ----------
        called : str
            What the function is called, such as ``"np.sqrt"``.

        Returns
        -------
        TraceError
        """
        return TraceError(f"{called} does not work on {self!r}. {self.advice(called.rpartition('.')[2])}")

    def advice(self, name: str) -> str:
        """Return what to type for a function or method of another library.

        Parameters
        ----------
        name : str
            What the other library calls it, such as ``"clamp"``.

        Returns
        -------
        str
        """
        typed = op_for(name) or reduction_for(name)
        if typed:
            return f"Write {typed}, {self.be_advice}."
        if name in MATRIX:
            return (
                "Operations are element by element. In a rule, be.matmul(x, y) is a product of matrices, and"
                " x.T a transpose in it."
            )
        return (
            "What works are operators, and the ops of the backend, such as be.sqrt, be.where and be.maximum, "
            f"{self.be_advice}."
        )


#: The ufuncs that stand for an operator. The ops have the same names.
_OPERATORS = {
    "add", "subtract", "multiply", "divide", "power",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
}  # fmt: skip


class Lazy(Node):
    """A node that has no values yet.

    Functions of other libraries look for values, so they are refused.
    """

    __slots__ = ()

    def __len__(self) -> int:
        raise self.refusal("len")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise self.refusal("np.asarray")

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise self.refusal(f"{function.__module__}.{function.__name__}".replace("numpy", "np", 1))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        node = next(arg for arg in [*args, *(kwargs or {}).values()] if isinstance(arg, cls))
        name = getattr(function, "__name__", "function")
        for arg in args if name in _TORCH_OPERATORS else ():
            if not isinstance(arg, Node):
                as_number(arg, args)
        raise node.refusal(f"torch.{name}")


#: What PyTorch's tensors call for an operator, or its reflection.
_TORCH_OPERATORS = {
    "add",
    "sub",
    "rsub",
    "mul",
    "div",
    "true_divide",
    "pow",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
}


class Operation(Lazy):
    """An operation on nodes and numbers, not evaluated yet.

    Attributes
    ----------
    op : str
        A primitive's name.
    args : tuple
        Nodes and floats.
    """

    __slots__ = ("args", "op")

    def __init__(self, op: str, args: tuple[Any, ...]) -> None:
        self.op = op
        self.args = args

    def __getitem__(self, key: Any) -> NoReturn:
        raise OperandError(
            "an expression can't be indexed: index the tensors in it, or assign it to a tensor first"
        )

    def __repr__(self) -> str:
        return (
            "<expression "
            f"{self.op}({', '.join('...' if isinstance(a, Operation) else repr(a) for a in self.args)})>"
        )


class Reduction(Lazy):
    """A reduction of a node over an axis.

    It becomes a small tensor when the expression around it is assigned.

    Attributes
    ----------
    op : str
        A name from `nbopt.language.ops.REDUCTIONS`.
    arg : Node
    axis : int or None
    keepdims : bool
    """

    __slots__ = ("arg", "axis", "keepdims", "op")

    def __init__(self, op: str, arg: Any, axis: int | None, keepdims: bool) -> None:
        self.op, self.arg, self.axis, self.keepdims = op, arg, axis, keepdims

    def __repr__(self) -> str:
        return f"<expression {self.op}(..., axis={self.axis})>"


def _tree(op: str, args: tuple[Any, ...]) -> Operation:
    return Operation(op, args)


# Tensors and expressions build trees, which an assignment evaluates; the values of a rule have a way of their
# own (nbopt.language.trace).
Node.build = staticmethod(_tree)
