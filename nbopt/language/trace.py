"""Tracing: from a rule's operations and assignments to a `Program`, the straight-line code that backends run.

A program is a tuple of instructions. The value of an instruction is known by its position; operands from 0 on are such values, operands
below 0 are run-time scalars (``~j`` is scalar j):

    ("load", slot)           read a slot; emitted at its first use only
    ("store", slot, value)   write a slot; its value is what was stored, after rounding
    (op, operand, ...)       a primitive of `nbopt.language.ops`

For RMSProp with slots param, grad, r and scalars [decay, 1 - decay, bsz, ...] this begins

    0 ("load", 2)   1 ("multiply", ~0, 0)   2 ("load", 1)   3 ("divide", 2, ~2)   ...

Inside a rule there are no expression trees: each operation goes straight onto the tape, since all this happens once in every step.
"""

import threading
from typing import Any, NamedTuple

from nbopt.errors import TraceError
from nbopt.language.expressions import Lazy, Node, Reduction, as_number
from nbopt.language.words import reduction_for


class Program(NamedTuple):
    """Straight-line code over slots. Hashable: two rules with the same structure share one.

    Attributes
    ----------
    names : tuple of str
        The slots' names, which the kernel's text uses.
    code : tuple of tuples
    n_scalars : int
    factor : int or None
        The index of the scalar that a backend fills with the norm-clip factor.
    """

    names: tuple
    code: tuple
    n_scalars: int
    factor: object = None

    def written(self):
        """Return which slots are stored to.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] == "store"})

    def used(self):
        """Return which slots are loaded or stored.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] in ("load", "store")})

    def loses(self, slot):
        """Return whether a value that is computed from a slot is neither stored nor part of another value.

        Parameters
        ----------
        slot : int

        Returns
        -------
        bool
        """
        computed: set[int] = set()
        read: set[int] = set()
        for index, (op, *operands) in enumerate(self.code):
            values = [] if op == "load" else operands[1:] if op == "store" else operands
            read.update(values)
            if (op == "load" and operands[0] == slot) or (op != "store" and computed.intersection(values)):
                computed.add(index)
        return bool(computed - read)


_NO_REDUCTION = (
    "A rule works element by element, and a reduction (be.sum, be.mean, a norm) would have to wait for all elements. "
    "Compute the number before the step, keep it as an attribute of the optimizer, and read that in the rule. "
    "To bound the norm of all gradients, set gradient_clip_norm."
)


def reduction_error():
    """Return the error of a rule that asks for a reduction."""
    return TraceError(f"the rule holds a reduction. {_NO_REDUCTION}")


def too_deep():
    """Return the error of an expression that is nested more deeply than Python's stack."""
    return TraceError("the expression is nested too deeply: assign parts of it to tensors of their own")


def _taped(name):
    def method(self, other):
        # A dozen of these run in every step: the commonest cases come first and call nothing.
        tracer = self.tracer
        left = self.index if self.seen == tracer.stores else tracer.operand(self)
        if type(other) is float:
            tracer.scalars.append(other)
            right = -len(tracer.scalars)
        elif type(other) is Value and other.seen == tracer.stores and other.tracer is tracer:
            right = other.index
        else:
            right = tracer.operand(other)
        tracer.code.append((name, left, right))
        return Value(tracer, len(tracer.code) - 1)

    return method


def _taped_reflected(name):
    def method(self, other):
        tracer = self.tracer
        if type(other) is float:
            tracer.scalars.append(other)
            left = -len(tracer.scalars)
        else:
            left = tracer.operand(other)
        right = self.index if self.seen == tracer.stores else tracer.operand(self)
        tracer.code.append((name, left, right))
        return Value(tracer, len(tracer.code) - 1)

    return method


_SHAPES = {"shape", "size", "ndim", "dim", "numel", "dtype", "device", "itemsize", "nbytes", "len"}


class Value(Lazy):
    """A value inside a rule: what an instruction on the tape gives, or a scalar that only the device knows.

    Attributes
    ----------
    tracer : Tracer
    index : int
        Its operand code.
    seen : int
        The number of stores when it was last known to be fresh.
    """

    __slots__ = ("index", "seen", "tracer")
    array_advice = (
        "A rule reads its slots and numbers. An array of one element becomes a number by float(x); an array of the parameter's shape can be a state, "
        "named in state_names."
    )
    be_advice = "with be = self.be"

    def __init__(self, tracer, index):
        self.tracer = tracer
        self.index = index
        self.seen = tracer.stores

    __add__, __radd__ = _taped("add"), _taped_reflected("add")
    __sub__, __rsub__ = _taped("subtract"), _taped_reflected("subtract")
    __mul__, __rmul__ = _taped("multiply"), _taped_reflected("multiply")
    __truediv__, __rtruediv__ = _taped("divide"), _taped_reflected("divide")

    def build(self, op, args):
        """Put an operation onto the tape; what `nbopt.language.expressions.apply` calls."""
        tracer = self.tracer
        line = [op]
        for arg in args:
            if type(arg) is Value and arg.seen == tracer.stores and arg.tracer is tracer:
                line.append(arg.index)
            else:
                line.append(tracer.operand(arg))
        tracer.code.append(tuple(line))
        return Value(tracer, len(tracer.code) - 1)

    def __getitem__(self, key):
        raise TraceError("an expression can't be indexed: a rule works on all elements alike")

    def __float__(self):
        raise TraceError(
            f"{self!r} is not a number: a rule says once what is done to all elements, whose values are not known yet. "
            f"In place of a function of numbers, such as math.sqrt(x), write be.sqrt(x), {self.be_advice}."
        )

    __int__ = __index__ = __trunc__ = __float__

    def advice(self, name):
        """Return what to type in a rule for a function or method that another library calls `name`."""
        if reduction_for(name):
            return _NO_REDUCTION
        if name in _SHAPES:
            return (
                "One rule serves parameters of all shapes and dtypes. Give those that need another rule an optimizer of their own: "
                "nbopt.MultiOptimizer goes by layers, nbopt.torch.Optimizer by groups of parameters."
            )
        return super().advice(name)

    def __repr__(self):
        return "<a value of the rule>"


class Slot(Value):
    """A symbolic tensor inside a rule. Assign to it with ``slot[:] = expression``."""

    __slots__ = ("name", "number")

    def __init__(self, tracer, number, name):
        self.tracer, self.number, self.name = tracer, number, name
        self.index = None
        self.seen = -1

    def __setitem__(self, key, value):
        if not (isinstance(key, slice) and key == slice(None)):
            raise TraceError(f"a rule assigns whole slots: write {self.name}[:] = ...")
        self.tracer.store(self.number, value)

    def __getitem__(self, key):
        if not (isinstance(key, slice) and key == slice(None)):
            raise TraceError(f"{self.name} stands for a tensor of any shape inside a rule and can't be indexed")
        return self

    def __repr__(self):
        return self.name


class _Tracing(threading.local):
    active = False


#: ``tracing.active`` says whether a rule is being traced in this thread.
tracing = _Tracing()


class Tracer:
    """Collects operations and assignments into a program.

    Parameters
    ----------
    names : sequence of str
        The slots' names.

    Attributes
    ----------
    code : list of tuple
    scalars : list of float
        The values of the run-time scalars, by index.
    stores : int
        How many assignments there were so far.
    """

    def __init__(self, names):
        self.names = tuple(names)
        self.code: list[tuple] = []
        self.scalars: list[float] = []
        self.stores = 0
        self._factor = None
        self._current: list[Any] = [None] * len(self.names)  # the value that a read of each slot gives now

    def slots(self):
        """Return new symbolic tensors, one for each name."""
        # Kept here they would make a circle, which only the garbage collector could end, after every step.
        return [Slot(self, number, name) for number, name in enumerate(self.names)]

    def program(self):
        """Return the program of all assignments so far."""
        return Program(self.names, tuple(self.code), len(self.scalars), self._factor)

    def factor(self):
        """Return the norm-clip factor: a scalar that the device computes, and that the host never reads during a step."""
        self._factor = len(self.scalars)
        self.scalars.append(1.0)
        return Value(self, ~self._factor)

    def store(self, number, value):
        """Append the assignment of `value`, a node or a number, to slot `number`."""
        try:
            self.code.append(("store", number, self.operand(value)))
        except RecursionError:
            raise too_deep() from None
        self._current[number] = len(self.code) - 1
        self.stores += 1

    def load(self, number):
        """Return the current value of slot `number`, emitting its load where it is the first use."""
        value = self._current[number]
        if value is None:
            self.code.append(("load", number))
            value = self._current[number] = len(self.code) - 1
        return value

    def operand(self, arg):
        """Return the operand code of `arg`, a node or a number, after a look at whether it is fresh."""
        if type(arg) is float:
            self.scalars.append(arg)
            return -len(self.scalars)
        if isinstance(arg, Value):
            if arg.tracer is not self:
                raise TraceError(f"the expression holds {arg!r} of another step: build expressions inside the rule, at every step")
            if arg.seen != self.stores:
                if type(arg) is Slot:
                    arg.index = self.load(arg.number)
                elif arg.index >= 0:
                    self._check_fresh(arg.index)
                arg.seen = self.stores
            return arg.index
        if isinstance(arg, Node):
            return self.leaf(arg)
        self.scalars.append(as_number(arg, (Value,)))
        return -len(self.scalars)

    def leaf(self, node):
        """Return the operand code of a node that is no value of the rule. A rule has its slots and nothing else."""
        if isinstance(node, Reduction):
            raise reduction_error()
        raise TraceError(
            f"a rule reads its slots ({', '.join(self.names)}) and numbers; {node!r} is neither. "
            "A tensor that a rule needs can be one of its states: name it in state_names."
        )

    def _check_fresh(self, index):
        """Check that no slot that the value at `index` was computed from has been assigned since."""
        seen, stack = set(), [index]
        while stack:
            here = stack.pop()
            if here < 0 or here in seen:
                continue
            seen.add(here)
            op, *operands = self.code[here]
            if op in ("load", "store"):
                if self._current[operands[0]] != here:
                    name = self.names[operands[0]]
                    raise TraceError(
                        f"an expression built from {name} is used after {name} was assigned: it would not be clear which value it means. "
                        f"Build the expression after {name}[:] = ..., or assign it before."
                    )
            else:
                stack.extend(operands)
