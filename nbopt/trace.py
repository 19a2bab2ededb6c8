"""Tracing: from assignments of expressions to a `Program`, the straight-line code that backends run.

A program is a tuple of instructions. The value of an instruction is known by its position; operands from 0 on are such values, operands
below 0 are run-time scalars (``~j`` is scalar j):

    ("load", slot)           read a slot; emitted at its first use only
    ("store", slot, value)   write a slot; its value is what was stored, after rounding
    (op, operand, ...)       a primitive of `nbopt.ops`

For RMSProp with slots param, grad, r and scalars [bsz, decay, 1 - decay, ...] this begins

    0 ("load", 2)   1 ("multiply", ~1, 0)   2 ("load", 1)   3 ("divide", 2, ~0)   ...
"""

import threading
from typing import Any, NamedTuple

from nbopt.errors import TraceError
from nbopt.expr import Expr, Node, Reduction, as_number, clock


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
        """Return the indices of the slots that are stored to, in slot order."""
        return sorted({line[1] for line in self.code if line[0] == "store"})

    def used(self):
        """Return the indices of the slots that are loaded or stored, in slot order."""
        return sorted({line[1] for line in self.code if line[0] in ("load", "store")})


def reduction_error():
    """Return the error of a rule that asks for a reduction."""
    return TraceError(
        "a rule works element by element, and a reduction (be.sum, be.mean, ...) would have to wait for all elements. "
        "Compute it before the step and pass it as a hyper-parameter."
    )


def too_deep():
    """Return the error of an expression that is nested more deeply than Python's stack."""
    return TraceError("the expression is nested too deeply: assign parts of it to tensors of their own")


class Slot(Node):
    """A symbolic tensor inside a rule. Assign to it with ``slot[:] = expression``."""

    __slots__ = ("assigned", "index", "name", "tracer")

    def __init__(self, tracer, index, name):
        self.tracer, self.index, self.name = tracer, index, name
        self.assigned = -1  # the clock's time of the latest assignment

    def __setitem__(self, key, value):
        if key != slice(None):
            raise TraceError(f"a rule assigns whole slots: write {self.name}[:] = ...")
        self.tracer.store(self.index, value)
        self.assigned = next(clock)

    def __getitem__(self, key):
        if key != slice(None):
            raise TraceError(f"{self.name} stands for a tensor of any shape inside a rule and can't be indexed")
        return self

    def __repr__(self):
        return self.name


class Factor(Node):
    """The norm-clip factor: a scalar that the device computes, and that the host never reads during a step."""

    __slots__ = ()

    def __repr__(self):
        return "step.scale"


_UNKNOWN = (None, -1)


class _Tracing(threading.local):
    active = False


#: ``tracing.active`` says whether a rule is being traced in this thread.
tracing = _Tracing()


class Tracer:
    """Collects assignments into a program.

    Parameters
    ----------
    names : sequence of str
        The slots' names.

    Attributes
    ----------
    slots : list of Slot
    code : list of tuple
    scalars : list of float
        The values of the run-time scalars, by index.
    """

    def __init__(self, names):
        self.names = tuple(names)
        self.slots = [Slot(self, index, name) for index, name in enumerate(names)]
        self.code = []
        self.scalars = []
        self.factor = None
        self._current: list[Any] = [None] * len(names)  # the value that a read of each slot gives now
        self._stores = 0
        # Node -> (its value, the number of stores when its operands were last found fresh). Nodes hash by identity, and the
        # dictionary keeps them alive, so an id can't be used twice while it is here.
        self._values = {}

    @property
    def written(self):
        """Whether anything was assigned."""
        return self._stores > 0

    def program(self):
        """Return the program of all assignments so far."""
        return Program(self.names, tuple(self.code), len(self.scalars), self.factor)

    def store(self, index, value):
        """Append the assignment of `value`, a node or a number, to slot `index`."""
        try:
            self.code.append(("store", index, self._operand(value, None)))
        except RecursionError:
            raise too_deep() from None
        self._current[index] = len(self.code) - 1
        self._stores += 1

    def _operand(self, arg, parent):
        """Return the operand code of `arg`, emitting what it needs."""
        kind = type(arg)
        if kind is Expr:
            return self._expression(arg)
        if kind is Slot:
            return self._slot(arg, parent)
        if kind is Factor:
            if self.factor is None:
                self.factor = len(self.scalars)
                self.scalars.append(1.0)
            return ~self.factor
        if kind is Reduction:
            raise reduction_error()
        if isinstance(arg, Node):
            return self.leaf(arg)
        self.scalars.append(as_number(arg))
        return -len(self.scalars)

    def leaf(self, node):
        """Return the operand code of a node that is no expression. A rule has its slots and nothing else."""
        raise TraceError(
            f"a rule reads its slots ({', '.join(self.names)}) and numbers; {node!r} is neither. "
            "A tensor that a rule needs can be one of its states: name it in state_names."
        )

    def load(self, index):
        """Return the current value of slot `index`, emitting its load where it is the first use."""
        value = self._current[index]
        if value is None:
            self.code.append(("load", index))
            value = self._current[index] = len(self.code) - 1
        return value

    def _slot(self, slot, parent):
        if slot.tracer is not self:
            raise TraceError(f"the expression holds {slot.name} of another step: build expressions inside the rule, at every step")
        if parent is not None and slot.assigned > parent.time:
            raise TraceError(
                f"an expression built from {slot.name} is used after {slot.name} was assigned: it would not be clear which value it means. "
                f"Build the expression after {slot.name}[:] = ..., or assign it before."
            )
        return self.load(slot.index)

    def _expression(self, node):
        # The innermost loop of every step's Python: one call for each operation, and the commonest operands without another call.
        value, stores = self._values.get(node, _UNKNOWN)
        if stores == self._stores:
            return value
        line = [node.op]
        scalars = self.scalars
        for arg in node.args:
            kind = type(arg)
            if kind is Expr:
                line.append(self._expression(arg))
            elif kind is not float:
                line.append(self._operand(arg, node))
            elif value is None:
                scalars.append(arg)
                line.append(-len(scalars))
        if value is None:
            # (Emitted before the latest assignment, a node is only looked at again, which finds stale reads.)
            self.code.append(tuple(line))
            value = len(self.code) - 1
        self._values[node] = value, self._stores
        return value
