"""From an optimizer's rule to a program: the rule is run once, over symbols, and what it was built from is remembered.

Each attribute that the rule reads from ``self`` is a source or a guard. A number is a source: it stands in the scalar code by its name, so that
another value traces nothing. Anything else is a guard: the trace is used again as long as it is equal to what it was. So are the outcomes of
the tests that the rule makes of numbers.
"""

import numbers
import types
import warnings
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from nbopt.errors import MissingError, TraceError
from nbopt.language.expressions import apply_named
from nbopt.language.stages import ELEMENT, STEP, Program
from nbopt.language.trace import Tracer, Value, tracing

#: Traces that are kept for one optimizer: tests that take turns find theirs again.
_MOST_TRACES = 8
#: Traces in a row that served one step each, after which there is a warning.
_TOO_OFTEN = 8


class Step:
    """What a rule knows about the step that it belongs to.

    Attributes
    ----------
    lr : Number
        The scheduled learning rate. To ask for it in an optimizer without a `learning_rate` is an error.
    t, number : Number
        The number of this call, from 1.
    epoch : Number
        The epoch as passed to ``optimize``.
    """

    __slots__ = ("_given", "_scale", "_tracer", "scale_was_read")
    lr: Any
    t: Any
    number: Any
    epoch: Any

    def __init__(self, tracer, given, scale):
        self._tracer, self._given, self._scale = tracer, given, scale
        self.scale_was_read = False

    @property
    def scale(self):
        """Float or Value : the norm-clip factor, 1.0 if clipping is off.

        A rule that reads it applies it itself; in any other rule `grad` is scaled already.
        """
        self.scale_was_read = True
        return self._scale

    def sum(self, x):
        """Return the sum over all elements of all parameters.

        Parameters
        ----------
        x : Node
            Of a value that varies with the parameter only, the sum over all parameters.

        Returns
        -------
        Value
        """
        return self._tracer.reduce("sum", "step", x)

    def max(self, x):
        """Return the largest value of all parameters; NaN if any is NaN.

        Parameters
        ----------
        x : Node

        Returns
        -------
        Value
        """
        return self._tracer.reduce("max", "step", x)

    def min(self, x):
        """Return the smallest value of all parameters; NaN if any is NaN.

        Parameters
        ----------
        x : Node

        Returns
        -------
        Value
        """
        return self._tracer.reduce("min", "step", x)

    def mean(self, x):
        """Return the mean over all elements of all parameters.

        Parameters
        ----------
        x : Node
            Of a value that varies with the parameter only, the mean over all parameters.

        Returns
        -------
        Value
        """
        if self._tracer.extent(x) == STEP:
            return x
        size = self._tracer.size()
        return self.sum(x) / self.sum(size if self._tracer.extent(x) == ELEMENT else size / size)

    def norm(self, x):
        """Return the Euclidean norm over all elements of all parameters.

        Parameters
        ----------
        x : Node

        Returns
        -------
        Value
        """
        return apply_named("sqrt", self.sum(apply_named("square", x)))

    def only_if(self, condition):
        """Store nothing in this step where the condition is 0 or NaN: no parameter, no state.

        All optimizers of a call that have a condition store together or not at all.

        Parameters
        ----------
        condition : Node or float
            One number for the whole step, such as ``be.finite(step.norm(grad))``.

        Raises
        ------
        TraceError
            If it varies with the parameter.
        """
        self._tracer.only_if(condition)

    def __getattr__(self, name):
        if name in self._given:
            return self._given[name]
        if name == "lr":
            raise MissingError(
                "step.lr is the learning rate of the optimizer, and this one has none. In its constructor, write "
                "self.learning_rate = learning_rate (an attribute of another name is not step.lr)"
            )
        raise MissingError(f"a step has no attribute {name!r}: it has lr, t, number, epoch and scale. Other numbers are attributes of the optimizer")


class Options(NamedTuple):
    """What the base class puts around a rule. Another choice is another trace.

    Attributes
    ----------
    states : tuple of str
        The states that the rule takes.
    clips : bool
        Whether the norm of the gradients is clipped.
    skips : bool
        Whether steps are skipped whose gradients are not finite: then there is a slot ``skipped``.
    loss_scale : bool
        Whether the loss scale is in memory: then there is a slot ``loss_scale``.
    """

    states: tuple
    clips: bool
    skips: bool
    loss_scale: bool

    def shared(self):
        """Return the names of the slots that are one number for the whole step."""
        return ("loss_scale",) * self.loss_scale + ("skipped",) * self.skips


class Reader:
    """What a rule reads from ``self`` while it is traced.

    Attributes
    ----------
    sources : set of str
        The attributes that are numbers.
    guards : dict
        Other attributes that can be compared, with their values.
    reusable : bool
        Whether the trace depends on nothing else.
    """

    def __init__(self, tracer, optimizer):
        self.tracer, self.optimizer = tracer, optimizer
        self.sources: set[str] = set()
        self.guards: dict = {}
        self.reusable = True

    def read(self, name, value):
        """Return what the rule gets in place of an attribute's value."""
        if name == "be" or isinstance(value, Value):
            return value
        if isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)):
            self.sources.add(name)
            return self.tracer.source(f"self.{name}", value)
        if name not in self.optimizer.__dict__ and callable(value):
            return value  # a method
        if _comparable(value):
            self.guards[name] = value
        else:
            self.reusable = False
        return value


def _comparable(value):
    """Return whether an equal value, at another time, means the same to a rule."""
    if type(value) in (tuple, frozenset):
        return all(map(_comparable, value))
    return value is None or isinstance(value, (bool, np.bool_, int, float, str, bytes, type, np.dtype))


class _KeepsSomethingError(Exception):
    """A rule sets an attribute, so it has to be run at every step, with plain numbers."""


def _symbolic_getattribute(self, name):
    value = object.__getattribute__(self, name)
    if name[:2] == "__":
        return value
    return object.__getattribute__(self, "_reader_").read(name, value)


def _symbolic_setattr(self, name, value):
    raise _KeepsSomethingError


_symbolic_classes: dict[type, type] = {}


def _symbolic(optimizer, reader):
    """Return what a rule gets as ``self``: an instance of the same class, with the same attributes, whose reads go through `reader`."""
    own = type(optimizer)
    found = _symbolic_classes.get(own)
    if found is None:
        contents = {
            "__slots__": ("_reader_",), "__getattribute__": _symbolic_getattribute, "__setattr__": _symbolic_setattr,
            "__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__,
        }  # fmt: skip
        found = _symbolic_classes[own] = types.new_class(own.__name__, (own,), {"symbolic": True}, lambda space: space.update(contents))
    new: Any = object.__new__(found)
    object.__setattr__(new, "__dict__", optimizer.__dict__)
    object.__setattr__(new, "_reader_", reader)
    return new


class Trace:
    """A rule's program, and what it is good for.

    Attributes
    ----------
    program : Program
    tracer : Tracer
        Whose code it is.
    options : Options
    reusable : bool
        Whether another step may find it.
    """

    def __init__(self, optimizer, options, rate, divisor, epoch, impure):
        options, given = Options(*options), (rate, divisor, epoch)
        tracer, reader, unscaled, last = self._run(optimizer, options, given, impure)
        if unscaled or last:  # only the whole rule tells
            tracer, reader, _, _ = self._run(optimizer, options, given, impure, unscaled, last)
        self.rule, self.options, self.tracer = type(optimizer).rule, options, tracer
        self.program, scalars = tracer.program()
        self.reusable = reader.reusable and not impure
        self._found = tuple(found for _, _, found in tracer.tests)
        self._own, self._scalars, self._function = _getter(scalars.own), scalars, scalars.function()
        self._guard_names = tuple(reader.guards)
        self._guarded, self._guards = tuple(reader.guards.values()), _getter(reader.guards)
        self._recut: dict[int, Program] = {}

    @staticmethod
    def _run(optimizer, options, given, impure, scaled=False, last=0):
        """Run the rule over symbols.

        Parameters
        ----------
        given : tuple
            The learning rate, the divisor and the epoch.
        impure : bool
            Whether the rule gets plain numbers.
        scaled : bool
            Whether the rule's gradient is scaled by the norm clip.
        last : int
            Which assignment to the parameter stores a clipped value; 0: none.

        Returns
        -------
        tracer : Tracer
        reader : Reader
        unscaled : bool
            Whether the rule's gradient is still to be scaled, since the rule did not ask for the scale.
        last : int
            How many assignments to the parameter there are, if the last of them is to be clipped; else 0.
        """
        rate, divisor, epoch = given
        names, shared = ("param", "grad", *options.states), options.shared()
        tracer = Tracer((*names, *shared), (ELEMENT,) * len(names) + (STEP,) * len(shared))
        reader = Reader(tracer, optimizer)
        known = {"t": optimizer.t + 1, "number": optimizer.t + 1, "epoch": epoch}
        if rate is not None:
            known["lr"] = rate
        if not impure:
            known = {name: tracer.source("t" if name == "number" else name, number) for name, number in known.items()}
        slots = dict(zip(tracer.names, tracer.slots()))
        raw, own = slots["grad"], optimizer if impure else _symbolic(optimizer, reader)
        by = tracer.source("divisor", divisor)
        if options.loss_scale:
            by = by * slots["loss_scale"]
        scale: Any = 1.0
        tracing.active = True
        try:
            if options.clips or options.skips:
                norm = apply_named("sqrt", tracer.reduce("sum", "step", raw * raw)) / by
            if options.clips:
                bound = tracer.source("self.gradient_clip_norm", optimizer.gradient_clip_norm)
                scale = bound / apply_named("maximum", norm, bound)
            grad = own.clip_value(raw / by, own.gradient_clip_value)
            step = Step(tracer, known, scale)
            if options.skips:
                step.only_if(apply_named("finite", norm))
            bound = own.param_clip_value
            clips_param = bool(bound)
            tracer.amended, tracer.amend = (0, last), lambda value: own.clip_value(value, bound)
            param, states = slots["param"], [slots[name] for name in options.states]
            returned = own.rule(step, param, scale * grad if scaled else grad, *states)
            stores = tracer.stores
            if options.skips:
                slots["skipped"][:] = slots["skipped"] + (1.0 - tracer.taken())
        finally:
            tracing.active = False
        if returned is not None:
            raise TraceError(
                f"the rule of {optimizer.classnm} returns a value, which nobody takes: its assignments are all that it does. "
                "In place of return ..., write param[:] = ..."
            )
        if not stores:
            raise TraceError(f"the rule of {optimizer.classnm} assigns nothing. A plain = only gives a value another name; write param[:] = ...")
        tracer.amend = None  # it knows the tracer, and would make a circle
        return tracer, reader, options.clips and not step.scale_was_read, clips_param * tracer.assigned.get(0, 0)

    def guard(self):
        """Return in words what the trace depends on.

        Returns
        -------
        str
        """
        options = [f"{name} = {value!r}" for name, value in self.options._asdict().items()]
        attributes = [f"self.{name} = {value!r}" for name, value in zip(self._guard_names, self._guarded)]
        tests = [f"a test of a number is {found!r}" for found in self._found]
        return ", ".join([*options, *attributes, *tests])

    def recut(self, guard):
        """Return the program whose guarded stores wait until a level."""
        if guard not in self._recut:
            self._recut[guard] = self.tracer.program(guard)[0]
        return self._recut[guard]

    def numbers(self, optimizer, options, rate, divisor, epoch, fresh=False):
        """Return the numbers that the host gives in this step, or None if the step needs another trace, which a fresh one never does."""
        if options != self.options or self._guards(optimizer) != self._guarded:
            return None
        try:
            given = self.tracer.numbers, rate, optimizer.t + 1, epoch, divisor, *self._own(optimizer)
            try:
                values, found = self._function(*given)
            except ArithmeticError:
                values, found = self._scalars.exactly(*given)
        except (TypeError, ValueError):  # an attribute is no number any more
            return None
        return values if fresh or found == self._found else None


def _getter(names):
    """Return a function from an object to the tuple of its attributes of these names."""
    names = tuple(names)
    if len(names) > 1:
        return attrgetter(*names)
    return (lambda owner: (getattr(owner, names[0]),)) if names else (lambda owner: ())


class Traces:
    """The traces of one optimizer's rule, the latest first."""

    def __init__(self):
        self._kept: list[Trace] = []
        self._in_a_row = 0
        self._keeps_something = False

    def of(self, optimizer, options, rate, divisor, epoch):
        """Return the trace of this step, and the numbers that the host gives.

        Parameters
        ----------
        optimizer : Optimizer
        options : tuple
            Those of `Options`.
        rate : float or None
            The learning rate.
        divisor : float
            What gradients are divided by, besides a loss scale in memory.
        epoch : int

        Returns
        -------
        Trace
        list of float

        Raises
        ------
        NboptError
            One of its subclasses, if the rule makes no sense.
        """
        rule = type(optimizer).rule
        # A function in the instance's dictionary knows another ``self``.
        impure = not optimizer.pure or self._keeps_something or "rule" in optimizer.__dict__
        if not impure:
            for trace in self._kept:
                numbers = trace.numbers(optimizer, options, rate, divisor, epoch) if trace.rule is rule else None
                if numbers is not None:
                    self._in_a_row = 0
                    return trace, numbers
        try:
            trace = Trace(optimizer, options, rate, divisor, epoch, impure)
        except _KeepsSomethingError:
            self._keeps_something = True
            trace = Trace(optimizer, options, rate, divisor, epoch, True)
        if trace.reusable:
            self._kept.insert(0, trace)
            del self._kept[_MOST_TRACES:]
            self._in_a_row += 1
            if self._in_a_row == _TOO_OFTEN:
                warnings.warn(
                    f"the rule of {optimizer.classnm} is traced anew at every step, which takes long: it makes a Python number of something that "
                    "changes, by float(x), math.sqrt(x) or x % 2. Write be.sqrt(x), be.where(x > 5, a, b) and the like, with be = self.be",
                    RuntimeWarning,
                    stacklevel=6,
                )
        return trace, trace.numbers(optimizer, options, rate, divisor, epoch, fresh=True)
