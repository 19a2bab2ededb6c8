"""From an optimizer's rule to a program.

The rule is run once, over symbols. What it was built from is remembered. A trace is used again as long as
what the rule read from ``self`` is the same, numbers aside, and its tests of numbers have the same outcomes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from nbopt.errors import TraceError
from nbopt.language.expressions import Node, apply_named
from nbopt.language.lines import ELEMENT, STEP, TENSOR, needed_of
from nbopt.language.program import Program
from nbopt.language.trace import Tracer, tracing
from nbopt.optimizers.called import called
from nbopt.optimizers.states import EMA, Mirror
from nbopt.optimizers.step import Step
from nbopt.optimizers.symbolic import KeepsSomethingError, Reader, symbolic

if TYPE_CHECKING:
    from nbopt.optimizers.base import Optimizer

#: Traces that are kept for one optimizer: tests that take turns find theirs again.
_MOST_TRACES = 16
#: Traces in a row that served one step each, after which there is a warning.
_TOO_OFTEN = 8
#: The numbers of the modifiers' assignments: that of one changes no random bits of others.
_MEAN, _MIRROR = 2**16, 2**16 + 1


class Options(NamedTuple):
    """What the base class puts around a rule. Another choice is another trace.

    Attributes
    ----------
    states : tuple of (str, State)
        The states that the rule takes, in its order.
    clips : bool
        Whether the norm of the gradients is clipped.
    skips : bool
        Whether steps are skipped whose gradients are not finite: then there is a slot ``skipped``. With this
        or with `clips` there is a slot ``grad_norm``.
    loss_scale : bool
        Whether the loss scale is in memory: then there is a slot ``loss_scale``.
    counts : bool
        Whether each parameter has its own count of steps, in a slot ``step``.
    ndim : int or None
        How many axes the parameters have, if the rule depends on it.
    on_device : bool
        Whether the count of steps is in memory: then there is a slot ``step_t``.
    rate : bool
        Whether the learning rate is: then there is a slot ``step_lr``.
    dtype : numpy.dtype or None
        The parameters' dtype, if the rule depends on it or on the number of axes.
    """

    states: tuple[Any, ...]
    clips: bool
    skips: bool
    loss_scale: bool
    counts: bool = False
    ndim: int | None = None
    on_device: bool = False
    rate: bool = False
    dtype: Any = None

    def columns(self) -> dict[str, int]:
        """Return the slots of each parameter, by their names: what each varies with."""
        states = {name: state.extent(self.ndim) for name, state in self.states if state.axes != "step"}
        return {"param": ELEMENT, "grad": ELEMENT, **states, **({"step": TENSOR} if self.counts else {})}

    def shared(self) -> tuple[str, ...]:
        """Return the names of the slots that are one number for the whole step."""
        states = tuple(name for name, state in self.states if state.axes == "step")
        norm = ("grad_norm",) * (self.clips or self.skips)
        given = ("loss_scale",) * self.loss_scale + ("step_lr",) * self.rate
        return given + ("step_t",) * self.on_device + ("skipped",) * self.skips + norm + states


class Trace:
    """A rule's program, and what it is good for.

    Attributes
    ----------
    program : Program
    tracer : Tracer
        Whose code it is.
    options : Options
    rate : float or None
        The learning rate of the last step.
    reusable : bool
        Whether another step may find it.
    sums_norm : bool
        Whether a step sums the norm of the gradients, and stores it in the slot ``grad_norm``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        options: Options,
        rate: float | None,
        divisor: float,
        epoch: int,
        impure: bool,
    ) -> None:
        given = rate, divisor, epoch
        tracer, reader, unscaled, last, self.sums_norm = self._run(optimizer, options, given, impure)
        if unscaled or last:  # only the whole rule tells
            tracer, reader, _, _, self.sums_norm = self._run(
                optimizer, options, given, impure, unscaled, last
            )
        self.rule, self.options, self.tracer = type(optimizer).rule, options, tracer
        self.program, scalars = tracer.program()
        self.reusable = reader.reusable and not impure
        self._found = tuple(found for _, _, found in tracer.tests)
        self._own, self._scalars, self._function = _getter(scalars.own), scalars, scalars.function()
        self._guard_names = tuple(reader.guards)
        self._guarded, self._guards = tuple(reader.guards.values()), _getter(reader.guards)
        self._recut: dict[tuple[Any, ...], Program] = {}

    @staticmethod
    def _run(
        optimizer: Optimizer,
        options: Options,
        given: tuple[float | None, float, int],
        impure: bool,
        scaled: bool = False,
        last: int = 0,
    ) -> Any:
        """Run the rule over symbols.

        Parameters
        ----------
        given : tuple[Any, ...]
            The learning rate, the divisor and the epoch.
        impure : bool
            Whether the rule gets plain numbers.
        scaled : bool
            Whether the rule's gradient is scaled by the norm clip.
        last : int
            Which assignment to the parameter stores a modified value; 0: none.

        Returns
        -------
        tracer : Tracer
        reader : Reader
        unscaled : bool
            Whether the rule's gradient is still to be scaled, since the rule did not ask for the scale.
        last : int
            How many assignments to the parameter there are, if the last of them is to be modified; else 0.
        sums_norm : bool
            See the class.
        """
        rate, divisor, epoch = given
        columns, shared = options.columns(), options.shared()
        extents = (*columns.values(), *(STEP,) * len(shared))
        tracer = Tracer((*columns, *shared), extents, options.ndim, options.dtype)
        reader = Reader(tracer, optimizer)
        known: dict[str, Any] = {}
        if not options.on_device:
            known["t"] = known["number"] = optimizer.t + 1
        known["epoch"] = epoch
        if rate is not None and not options.rate:
            known["lr"] = rate
        if not impure:
            known = {
                name: tracer.source("t" if name == "number" else name, number)
                for name, number in known.items()
            }
        slots = dict(zip(tracer.names, tracer.slots()))
        if options.on_device:
            known["t"] = known["number"] = slots["step_t"] + 1.0
        if options.rate:
            known["lr"] = slots["step_lr"]
        if options.counts:
            known["t"] = slots["step"] + 1.0
        # Asked for by few rules, so no line is made of it before.
        given_scale = optimizer.loss_scale
        known["loss_scale"] = lambda: (
            slots["loss_scale"]
            if options.loss_scale
            else given_scale
            if impure
            else tracer.source("self.loss_scale", given_scale)
        )
        raw, own = slots["grad"], optimizer if impure else symbolic(optimizer, reader)
        by: Node = tracer.source("divisor", divisor)
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
            grad = own.modified_gradient(slots["param"], raw / by)
            step = Step(tracer, known, scale)
            if options.skips:
                step.only_if(apply_named("finite", norm))
            modifies = own.modifies_param()
            tracer.amended = (0, last)
            tracer.amend = lambda value: own.modified_param(known.get("lr"), slots["param"], value)
            averages = EMA in options.states and bool(optimizer.ema_decay)
            mirrored = [slots[name] for name, state in options.states if type(state) is Mirror]
            param = slots["param"]
            states = [
                one[0]
                for one in options.states
                if type(one[1]) is not Mirror and not (averages and one == EMA)
            ]
            names = ["step", "param", "grad", *states]
            slotted = param, scale * grad if scaled else grad, *map(slots.get, states)
            returned = called(own.rule, names, step, *slotted)
            stores = tracer.stores
            if averages:  # of what is stored, in the parameter's own dtype
                mean = slots[EMA[0]]
                share = 1.0 - tracer.source("self.ema_decay", optimizer.ema_decay)
                tracer.store(mean.number, mean + share * (param - mean), _MEAN)
            for slot in mirrored:
                tracer.store(slot.number, param, _MIRROR)
            if options.skips:
                slots["skipped"][:] = slots["skipped"] + (1.0 - tracer.taken())
            sums_norm = (options.clips or options.skips) and norm.index in needed_of(tracer.code)
            if sums_norm:  # `taken` makes it one that skipped steps store, too
                slots["grad_norm"][:] = apply_named("where", tracer.taken(), norm, norm)
            if options.counts:
                slots["step"][:] = slots["step"] + tracer.taken()
            if options.on_device:  # skipped steps count, as on the host
                slots["step_t"][:] = slots["step_t"] + apply_named("where", tracer.taken(), 1.0, 1.0)
        finally:
            tracing.active = False
            tracer.amend = None  # it knows the tracer, and would make a circle
        if returned is not None:
            raise TraceError(
                f"the rule of {optimizer.classnm} returns a value, which nobody takes: its assignments are "
                "all that it does. In place of return ..., write param[:] = ..."
            )
        if not stores:
            raise TraceError(
                f"the rule of {optimizer.classnm} assigns nothing. A plain = only gives a value another "
                "name; write param[:] = ..."
            )
        return (
            tracer,
            reader,
            options.clips and not step.scale_was_read,
            modifies * tracer.assigned.get(0, 0),
            sums_norm,
        )

    def guard(self) -> str:
        """Return in words what the trace depends on.

        Returns
        -------
        str
        """
        named = {**self.options._asdict(), "states": tuple(name for name, _ in self.options.states)}
        if self.options.dtype is not None:
            named["dtype"] = self.options.dtype.name
        options = [
            f"{name} = {value!r}"
            for name, value in named.items()
            if name not in ("counts", "ndim", "on_device", "rate", "dtype") or value not in (False, None)
        ]
        attributes = [f"self.{name} = {value!r}" for name, value in zip(self._guard_names, self._guarded)]
        tests = [f"a test of a number is {found!r}" for found in self._found]
        return ", ".join([*options, *attributes, *tests])

    def reads(self, line: tuple[Any, ...]) -> bool:
        """Return whether the numbers that the host gives are computed from a line, such as a source.

        Parameters
        ----------
        line : tuple

        Returns
        -------
        bool
        """
        return line in self._scalars.code

    def recut(self, guard: int | None = None, waits: Sequence[int] = (), counts: bool = True) -> Program:
        """Return the program that waits for others, see `nbopt.interface.update.Update`.

        Of several for one call, all but the one that counts the step leave out what is stored for the whole
        step.
        """
        key = guard, tuple(waits), counts
        if key not in self._recut:
            program = self.tracer.program(guard, waits)[0]
            self._recut[key] = program if counts else program.without_shared_stores()
        return self._recut[key]

    def numbers(
        self,
        optimizer: Optimizer,
        options: Options,
        rate: float | None,
        divisor: float,
        epoch: int,
        fresh: bool = False,
    ) -> list[float] | None:
        """Return the numbers that the host gives in this step, or None if the step needs another trace.

        A fresh trace never does.
        """
        if options != self.options or self._guards(optimizer) != self._guarded:
            return None
        self.rate = rate
        try:
            # What is in memory is no number that the host gives.
            t = 0 if options.on_device else optimizer.__dict__.get("_t", 0) + 1
            lr = None if options.rate else rate
            given = self.tracer.numbers, lr, t, epoch, divisor, *self._own(optimizer)
            try:
                values, found = self._function(*given)
            except ArithmeticError:
                values, found = self._scalars.exactly(*given)
        except (AttributeError, TypeError, ValueError):  # an attribute is no number any more
            return None
        return values if fresh or found == self._found else None


def _getter(names: Sequence[str]) -> Callable[[Any], Any]:
    """Return a function from an object to the tuple of its attributes of these names."""
    names = tuple(names)
    if len(names) > 1:
        return attrgetter(*names)
    return (lambda owner: (getattr(owner, names[0]),)) if names else (lambda owner: ())


class Traces:
    """The traces of one optimizer's rule, the latest first."""

    def __init__(self) -> None:
        self._kept: list[Trace] = []
        self._in_a_row = 0
        self._keeps_something = False

    def of(
        self, optimizer: Optimizer, options: Options, rate: float | None, divisor: float, epoch: int
    ) -> tuple[Trace, list[float] | None]:
        """Return the trace of this step, and the numbers that the host gives.

        Parameters
        ----------
        optimizer : Optimizer
        options : Options
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
                numbers = (
                    trace.numbers(optimizer, options, rate, divisor, epoch) if trace.rule is rule else None
                )
                if numbers is not None:
                    self._in_a_row = 0
                    return trace, numbers
        try:
            trace = Trace(optimizer, options, rate, divisor, epoch, impure)
        except KeepsSomethingError:
            self._keeps_something = True
            trace = Trace(optimizer, options, rate, divisor, epoch, True)
        if trace.reusable:
            self._kept.insert(0, trace)
            del self._kept[_MOST_TRACES:]
            self._in_a_row += 1
            if self._in_a_row == _TOO_OFTEN:
                warnings.warn(
                    f"the rule of {optimizer.classnm} is traced anew at every step, which takes long: it "
                    "makes a Python number of something that changes, by float(x), math.sqrt(x) or x % 2. "
                    "Write be.sqrt(x), be.where(x > 5, a, b) and the like, with be = self.be",
                    RuntimeWarning,
                    stacklevel=6,
                )
        return trace, trace.numbers(optimizer, options, rate, divisor, epoch, fresh=True)
