"""Lazy expressions: the trees that operators and `be` ops build, and that an assignment evaluates."""

import numbers
from typing import Any

import numpy as np

from nbopt.errors import OperandError, TraceError
from nbopt.ops import COMPOSED, evaluate_numbers


def apply(name, *operands):
    """Apply primitive `name`: a float if all operands are numbers, else an expression.

    Raises
    ------
    OperandError
        If an operand is no tensor, expression or real number.
    """
    node = None
    checked = []
    for operand in operands:
        if isinstance(operand, Node):
            # A value of a rule decides over a tensor, which has no business there.
            node = operand if node is None or node.build is _tree else node
        elif type(operand) is not float:
            operand = as_number(operand)
        checked.append(operand)
    return evaluate_numbers(name, *checked) if node is None else node.build(name, tuple(checked))


def apply_named(name, *operands):
    """Apply the op that users call `name`, composed or primitive."""
    composed = COMPOSED.get(name)
    if composed is None:
        return apply(name, *operands)
    result = composed.build(apply, *operands)
    return result if isinstance(result, Node) else as_number(result)


def as_number(value):
    """Return `value` as a float, or raise OperandError where it is not a real number."""
    if isinstance(value, (numbers.Real, np.bool_)):
        try:
            return float(value)
        except OverflowError:
            raise OperandError(f"the number {str(value)[:20]}... is too large for float64") from None
    hint = ""
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        hint = " Make a tensor of it first: be.array(x) copies, be.wrap(x) shares memory."
    raise OperandError(f"an operand must be a tensor, an expression or a real number, not {type(value).__name__}.{hint}")


def _binary(name):
    def method(self, other):
        return apply(name, self, other)

    return method


def _reflected(name):
    def method(self, other):
        return apply(name, other, self)

    return method


class Node:
    """Anything that can stand in an expression. Operators on it call ``build(op, args)``, which gives an `Expr` unless a subclass says other."""

    __slots__ = ()
    build: Any
    __array_ufunc__ = None  # NumPy scalars and arrays leave operators to us
    __hash__ = object.__hash__

    __add__, __radd__ = _binary("add"), _reflected("add")
    __sub__, __rsub__ = _binary("subtract"), _reflected("subtract")
    __mul__, __rmul__ = _binary("multiply"), _reflected("multiply")
    __truediv__, __rtruediv__ = _binary("divide"), _reflected("divide")
    __eq__, __ne__ = _binary("equal"), _binary("not_equal")
    __lt__, __le__ = _binary("less"), _binary("less_equal")
    __gt__, __ge__ = _binary("greater"), _binary("greater_equal")

    def __pow__(self, other):
        return apply_named("power", self, other)

    def __rpow__(self, other):
        return apply("power", other, self)

    def __neg__(self):
        return self.build("negative", (self,))

    def __pos__(self):
        return self

    def __abs__(self):
        return self.build("absolute", (self,))

    def __bool__(self):
        raise TraceError(
            "an expression has no truth value: it stands for many elements, and its values are not known before the kernel runs. "
            "To choose element by element write be.where(condition, a, b), be.maximum or be.minimum; "
            "to look at a tensor's values call .get() on it, outside a rule."
        )

    def __float__(self):
        raise TraceError("an expression is not a number: assign it to a tensor (t[:] = ...) and call t.get()")

    __int__ = __index__ = __float__
    __iter__ = None

    def __setitem__(self, key, value):
        raise TraceError("an expression can't be assigned to: a rule assigns its slots, param and the states; grad is an expression")


class Expr(Node):
    """An operation on nodes and numbers, not evaluated yet.

    Attributes
    ----------
    op : str
        A primitive's name.
    args : tuple
        Nodes and floats.
    """

    __slots__ = ("args", "op")

    def __init__(self, op, args):
        self.op = op
        self.args = args

    def __getitem__(self, key):
        raise OperandError("an expression can't be indexed: index the tensors in it, or assign it to a tensor first")

    def __repr__(self):
        return f"<expression {self.op}({', '.join('...' if isinstance(a, Expr) else repr(a) for a in self.args)})>"


class Reduction(Node):
    """A reduction of a node over an axis, evaluated to a small tensor when the expression around it is assigned.

    Attributes
    ----------
    op : str
        A name from `nbopt.ops.REDUCTIONS`.
    arg : Node
    axis : int or None
    keepdims : bool
    """

    __slots__ = ("arg", "axis", "keepdims", "op")

    def __init__(self, op, arg, axis, keepdims):
        self.op, self.arg, self.axis, self.keepdims = op, arg, axis, keepdims

    def __repr__(self):
        return f"<expression {self.op}(..., axis={self.axis})>"


def _tree(op, args):
    return Expr(op, args)


# Tensors and expressions build trees, which an assignment evaluates; the values of a rule have a way of their own (nbopt.trace).
Node.build = staticmethod(_tree)
