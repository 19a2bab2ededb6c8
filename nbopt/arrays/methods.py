"""The methods ``be.add``, ``be.clip``, ``be.sum`` and so on: one for each row of the op table."""

import numpy as np

from nbopt.arrays.assignment import shape_of
from nbopt.arrays.tensor import Tensor
from nbopt.errors import OperandError, TraceError
from nbopt.language.expressions import Node, Reduction, apply, apply_named
from nbopt.language.linear import matmul, orthogonalize
from nbopt.language.ops import COMPOSED, PRIMITIVES, REDUCTIONS
from nbopt.language.values import Value
from nbopt.language.words import AXES, advising


class Ops:
    """What type checkers know of these methods, in ``methods.pyi``. Here it has none: see `add_methods`."""


def _reduced(name, value, axis, keepdims):
    """Return a reduction of a node, in a rule or outside of it.

    A wrong axis is an error here already, not only at the assignment.
    """
    if not isinstance(value, Node):
        raise OperandError(f"a reduction takes a tensor or an expression, not {type(value).__name__}")
    if isinstance(value, Value):
        if name not in ("sum", "max", "min"):
            raise TraceError(
                f"a rule has be.sum, be.mean, be.max, be.min, be.norm, be.var and be.std, not be.{name}"
            )
        return value.reduce(name, axis)
    reduction = Reduction(name, value, axis, keepdims)
    shape_of(reduction)
    return reduction


def _evaluated(be, value, out):
    if out is None:
        return value
    if not isinstance(out, Tensor):
        raise OperandError(f"out must be a tensor, not {type(out).__name__}")
    be.assign(out, value)
    return out


def _unary(name):
    def method(self, a, out=None):
        return _evaluated(self, apply_named(name, a), out)

    return method


def _binary(name):
    def method(self, a, b, out=None):
        return _evaluated(self, apply_named(name, a, b), out)

    return method


def _where(self, c, a, b, out=None):
    return _evaluated(self, apply("where", c, a, b), out)


def _clip(self, a, a_min, a_max, out=None):
    return _evaluated(self, apply_named("clip", a, a_min, a_max), out)


def _shift(self, a, b, value=True, out=None):
    return _evaluated(self, apply_named("shift", a, b, value), out)


def _reduction(name, default_axis):
    def method(self, a, axis=default_axis, out=None, keepdims=True):
        return _evaluated(self, _reduced(name, a, axis, keepdims), out)

    return method


_OPERANDS = """Return {doc}.

        Parameters
        ----------
        {operands} : Tensor, expression or number
            They broadcast as in NumPy.{also}
        out : Tensor, optional
            Modified in place: where the result is stored, rounded to its dtype.

        Returns
        -------
        expression, float or Tensor
            `out` if it is given; a float if all operands are numbers; else an expression. An expression is
            computed when it is assigned, in float64 if any tensor of it is float64, else in float32.

        Raises
        ------
        OperandError
            If an operand is no tensor, expression or real number: arrays become tensors by `wrap` or `array`.
        ShapeError
            If shapes do not fit together, when the expression is assigned.
        """

_SHIFT_VALUE = """
        value : bool
            True: `b` is the value to shift by, of which the nearest power of two counts. False: `b` is the
            power's exponent, an integer."""

_REDUCED = """Reduce `a` over an axis to {doc}.

        Parameters
        ----------
        a : Tensor or expression
        axis : int or None
            Which axis of `a`, from 0 on; None: over all elements.
        out : Tensor, optional
            Modified in place: where the result is stored, rounded to its dtype.
        keepdims : bool
            Whether the axis stays, with length 1.

        Returns
        -------
        expression or Tensor
            `out` if it is given, else an expression. An expression is computed when it is assigned, in
            float64 if `a` is or holds float64, else in float32.

        Raises
        ------
        OperandError
            If `a` is no tensor or expression.
        ShapeError
            If `a` has no such axis.
        """


def _composed_reduction(build):
    def method(self, a, axis=None, out=None, keepdims=True):
        return _evaluated(self, build(a, axis, keepdims), out)

    return method


def _mean(arg, axis, keepdims):
    total = _reduced("sum", arg, axis, keepdims)
    if isinstance(arg, Value):
        return apply("divide", total, arg.count(axis))
    shape = shape_of(arg)
    return apply("divide", total, float(np.prod(shape, dtype=np.int64) if axis is None else shape[axis]))


def _variance(arg, axis, keepdims):
    distance = apply("subtract", arg, _mean(arg, axis, True))
    return _mean(apply("multiply", distance, distance), axis, keepdims)


def _deviation(arg, axis, keepdims):
    return apply("sqrt", _variance(arg, axis, keepdims))


def _norm(arg, axis, keepdims):
    return apply("sqrt", _reduced("sum", apply("multiply", arg, arg), axis, keepdims))


_COMPOSED_REDUCTIONS = {
    "mean": (_mean, "the mean"),
    "var": (_variance, "the variance, the mean squared distance from the mean"),
    "std": (_deviation, "the standard deviation, the square root of the variance"),
    "norm": (_norm, "the Euclidean norm, the square root of the sum of squares"),
}


def add_methods(cls):
    """Give a class of backends its ops, each with its docstring."""
    special = {"where": _where, "clip": _clip, "shift": _shift}
    operands = {
        row.name: ("c, a, b" if row.name == "where" else ", ".join("ab"[: row.arity]), row.doc)
        for row in PRIMITIVES.values()
    }
    operands |= {
        row.name: (", ".join(name for name in row.operands if "=" not in name), row.doc)
        for row in COMPOSED.values()
    }
    for name, (names, doc) in operands.items():
        method = special.get(name) or (_unary, _binary)[names.count(",")](name)
        _add_method(
            cls,
            name,
            method,
            _OPERANDS.format(doc=doc, operands=names, also=_SHIFT_VALUE if name == "shift" else ""),
        )
    for name, doc in REDUCTIONS.items():
        _add_method(
            cls, name, _reduction(name, 1 if name.startswith("arg") else None), _REDUCED.format(doc=doc)
        )
    for function in (matmul, orthogonalize):
        setattr(cls, function.__name__, staticmethod(function))
    for name, (build, doc) in _COMPOSED_REDUCTIONS.items():
        _add_method(cls, name, _composed_reduction(build), _REDUCED.format(doc=doc))


def _add_method(cls, name, method, doc):
    method.__name__, method.__qualname__, method.__doc__ = name, f"{cls.__name__}.{name}", doc
    setattr(cls, name, advising(method, AXES) if "axis" in method.__code__.co_varnames else method)
