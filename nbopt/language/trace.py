"""Tracing: from a rule's operations and assignments to a trace, the straight-line code that `nbopt.language.stages` describes.

For RMSProp with slots param, grad, mean_square this begins

    0 ("source", "divisor")   1 ("load", 1)   2 ("divide", 1, 0)   3 ("source", "self.decay_rate")   4 ("load", 2)   5 ("multiply", 3, 4)   ...

Inside a rule there are no expression trees: each operation goes straight onto the tape.
"""

import numbers
import threading
from typing import Any

from nbopt.errors import TraceError
from nbopt.language.cutter import cut
from nbopt.language.expressions import Lazy, Node, apply_named, as_number
from nbopt.language.ops import COMPOSED, PRIMITIVES
from nbopt.language.scalars import evaluate
from nbopt.language.stages import ELEMENT, STEP, TENSOR, operands_of


def too_deep():
    """Return the error of an expression that is nested more deeply than Python's stack."""
    return TraceError("the expression is nested too deeply: assign parts of it to tensors of their own")


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
        "A rule reads its slots and numbers. An array of one element becomes a number by float(x); an array of the parameter's shape can be a state, "
        "named in state_names."
    )
    be_advice = "with be = self.be"

    def __init__(self, tracer, index):
        self.tracer = tracer
        self.index = index
        self.seen = tracer.stores

    def build(self, op, args):
        """Put an operation onto the tape; what `nbopt.language.expressions.apply` calls."""
        return self.tracer.apply(op, args)

    def __getitem__(self, key):
        raise TraceError("an expression can't be indexed: a rule works on all elements alike")

    def reduce(self, op, over):
        """Put a reduction onto the tape.

        Parameters
        ----------
        op : str
            ``"sum"``, ``"max"`` or ``"min"``.
        over : str
            ``"tensor"`` or ``"step"``.

        Returns
        -------
        Value
        """
        return self.tracer.reduce(op, over, self)

    def count(self):
        """Return how many elements a reduction of this value is over."""
        return self.tracer.size() if self.tracer.extent(self) == ELEMENT else 1.0

    def __bool__(self):
        if self.tracer.extent(self) < ELEMENT:
            raise TraceError(
                "an if needs to know a number that is computed on the device while the step runs: it comes from a reduction, or from memory. "
                f"Write be.where(condition, a, b), {self.be_advice}."
            )
        return super().__bool__()

    def __float__(self):
        raise TraceError(
            f"{self!r} is not a number: a rule says once what is done to all elements, whose values are not known yet. "
            f"In place of a function of numbers, such as math.sqrt(x), write be.sqrt(x), {self.be_advice}."
        )

    __int__ = __index__ = __trunc__ = __float__

    def advice(self, name):
        """Return what to type in a rule for a function or method that another library calls `name`."""
        if name in _SHAPES:
            return (
                "One rule serves parameters of all shapes and dtypes. Give those that need another rule an optimizer of their own: "
                "nbopt.MultiOptimizer goes by layers, nbopt.torch.Optimizer by groups of parameters."
            )
        return super().advice(name)

    def __repr__(self):
        return "<a value of the rule>"


class Number(Value):
    """A number of the step: a hyper-parameter, the learning rate, the count of steps, and what a rule computes from them.

    It stands for whatever the number is at each step. Where a rule needs to know it now, to test it or to pass it to a function of Python's,
    that becomes a test of the trace: the trace holds as long as the test has the same outcome.

    Attributes
    ----------
    number : int or float
        What it is now.
    """

    __slots__ = ("number",)

    def __init__(self, tracer, index, number):
        super().__init__(tracer, index)
        self.number = number

    def _known(self):
        self.tracer.tests.append((self.index, False, self.number))
        return self.number

    def __bool__(self):
        self.tracer.tests.append((self.index, True, bool(self.number)))
        return bool(self.number)

    def __float__(self):
        return float(self._known())

    def __int__(self):
        return int(self._known())

    def __index__(self):
        return self._known().__index__()

    def __trunc__(self):
        return self._known().__trunc__()

    def __round__(self, digits=None):
        return round(self._known(), digits)

    def __floor__(self):  # type: ignore[override]
        return self._known().__floor__()

    def __ceil__(self):  # type: ignore[override]
        return self._known().__ceil__()

    def __floordiv__(self, other):
        return self._known() // other

    def __rfloordiv__(self, other):
        return other // self._known()

    def __mod__(self, other):
        return self._known() % other

    def __rmod__(self, other):
        return other % self._known()

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method == "__call__" and not options and all(isinstance(x, (Number, numbers.Real)) for x in inputs):
            if ufunc.__name__ in PRIMITIVES or ufunc.__name__ in COMPOSED:
                return apply_named(ufunc.__name__, *inputs)
            return ufunc(*(x._known() if isinstance(x, Number) else x for x in inputs))
        return super().__array_ufunc__(ufunc, method, *inputs, **options)

    def __format__(self, spec):
        return format(self.number, spec)

    def __repr__(self):
        return repr(self.number)


class Slot(Value):
    """A symbolic tensor inside a rule. Assign to it with ``slot[:] = expression``."""

    __slots__ = ("name", "number")

    def __init__(self, tracer, number, name):
        self.tracer, self.number, self.name = tracer, number, name
        self.index = None
        self.seen = -1  # before the first store there was no load

    @property
    def size(self):
        """Return the parameter's number of elements."""
        return self.tracer.size()

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
    """Collects operations and assignments into a trace.

    Parameters
    ----------
    names : sequence of str
        The slots' names.
    slots : sequence of int, optional
        Their extents, see `nbopt.language.stages`; all vary with elements without it.

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
        The numbers of the step that the rule has looked at: the line, whether it was for its truth only, and what it found.
    """

    def __init__(self, names, slots=None):
        self.names = tuple(names)
        self.slot_extents = tuple(slots or (ELEMENT,) * len(self.names))
        self.code: list[tuple] = []
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

    def slots(self):
        """Return new symbolic tensors, one for each name."""
        # Kept here they would make a circle, which only the garbage collector could end.
        return [Slot(self, number, name) for number, name in enumerate(self.names)]

    def program(self, guard=None):
        """Return the program of all assignments so far, and the scalar code of its numbers.

        Parameters
        ----------
        guard : int, optional
            See `nbopt.language.cutter.cut`.
        """
        return cut(self.names, self.slot_extents, self.code, [(line, truth) for line, truth, _ in self.tests], guard)

    def extent(self, value):
        """Return the extent of a node or a number."""
        if type(value) is Slot:
            return self.slot_extents[value.number]
        return self._extents[value.index] if isinstance(value, Value) else STEP

    def source(self, name, number):
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

    def size(self):
        """Return the number of elements of the parameter."""
        return Value(self, self._once(("size",)))

    def taken(self):
        """Return 1.0 if the step stores what a condition guards, else 0.0, for counters alone."""
        return Value(self, self._once(("taken",)))

    def _once(self, line):
        return self.code.index(line) if line in self.code else self._line(line)

    def reduce(self, op, over, value):
        """Append a reduction; return its value, or the value itself if there is nothing to reduce over.

        Parameters
        ----------
        op : str
            ``"sum"``, ``"max"`` or ``"min"``.
        over : str
            ``"tensor"``: over the elements of each parameter. ``"step"``: over all elements of all parameters.
        value : Node or float

        Returns
        -------
        Value
        """
        line = self.operand(value)
        if self._extents[line] <= (TENSOR if over == "tensor" else STEP):
            return value
        return Value(self, self._line(("reduce", op, over, line)))

    def only_if(self, value):
        """Append a condition: where it is 0 or NaN, the step stores nothing."""
        line = self.operand(value)
        if self._extents[line] > STEP:
            raise TraceError(
                "step.only_if takes one number for the whole step, such as be.finite(step.norm(grad)); this value varies with the parameter. "
                "Reduce it over all parameters: step.min(x), step.sum(x)"
            )
        self._line(("only_if", line))

    def apply(self, op, args):
        """Append a primitive; return its value."""
        operands = [self.operand(arg) for arg in args]
        line = self._line((op, *operands))
        if all(operand in self._known for operand in operands):
            self._known[line] = evaluate(op, *(self._known[operand] for operand in operands))
            return Number(self, line, self._known[line])
        return Value(self, line)

    def store(self, number, value):
        """Append the assignment of `value`, a node or a number, to slot `number`."""
        place = self.assigned[number] = self.assigned.get(number, 0) + 1
        if self.amended == (number, place):
            value = self.amend(value)
        try:
            line = self.operand(value)
        except RecursionError:
            raise too_deep() from None
        if self._extents[line] > self.slot_extents[number]:
            extents = "one number for the whole step", "one number for each parameter", "one for each element"
            raise TraceError(
                f"{self.names[number]} holds {extents[self.slot_extents[number]]}, and the value assigned to it is {extents[self._extents[line]]}: "
                "reduce it first (be.sum, be.mean, be.norm, or step.sum and so on)"
            )
        self._line(("store", number, line))
        self._current[number] = len(self.code) - 1
        self.stores += 1

    def load(self, number):
        """Return the line of the current value of slot `number`, emitting its load where it is the first use."""
        line = self._current[number]
        if line is None:
            line = self._current[number] = self._line(("load", number))
        return line

    def operand(self, arg):
        """Return the line of `arg`, a node or a number, after a look at whether it is fresh."""
        if isinstance(arg, Value):
            if arg.tracer is not self:
                raise TraceError(f"the expression holds {arg!r} of another step: build expressions inside the rule, at every step")
            if arg.seen != self.stores:
                if type(arg) is Slot:
                    arg.index = self.load(arg.number)
                elif type(arg) is Value:
                    self._check_fresh(arg.index)
                arg.seen = self.stores
            return arg.index
        if isinstance(arg, Node):
            return self.leaf(arg)
        self.numbers.append(arg if type(arg) is float else as_number(arg, (Value,)))
        line = self._line(("number", len(self.numbers) - 1))
        self._known[line] = self.numbers[-1]
        return line

    def _line(self, line):
        op = line[0]
        if op in ("load", "store"):
            extent = self.slot_extents[line[1]]
        elif op in ("size", "reduce"):
            extent = STEP if line[2:3] == ("step",) else TENSOR
        else:
            extent = max((self._extents[operand] for operand in operands_of(line)), default=STEP)
        self.code.append(line)
        self._extents.append(extent)
        return len(self.code) - 1

    def leaf(self, node):
        """Return the line of a node that is no value of the rule. A rule has its slots and nothing else."""
        raise TraceError(
            f"a rule reads its slots ({', '.join(self.names)}) and numbers; {node!r} is neither. "
            "A tensor that a rule needs can be one of its states: name it in state_names."
        )

    def _check_fresh(self, index):
        """Check that no slot that the value at `index` was computed from has been assigned since."""
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
                        f"an expression built from {name} is used after {name} was assigned: it would not be clear which value it means. "
                        f"Build the expression after {name}[:] = ..., or assign it before."
                    )
            else:
                stack.extend(operands_of(self.code[here]))
