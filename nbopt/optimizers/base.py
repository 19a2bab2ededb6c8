"""Optimizer: everything that the optimizers have in common, and what users subclass."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from nbopt import checks
from nbopt.arrays.tensor import Tensor
from nbopt.backends import get_backend
from nbopt.checkpoints import state as checkpoint
from nbopt.errors import ArgumentError, StateError, TraceError
from nbopt.interface.backend import Backend
from nbopt.interface.update import Update
from nbopt.language.expressions import Operand
from nbopt.language.stages import ELEMENT, STEP
from nbopt.language.trace import NeedsAxesError, Tracer
from nbopt.layers import (
    Layer,
    as_gradient,
    as_layers,
    check_distinct,
    get_param_list,
    read,
    rows_with_gradients,
    warn_of_lost_states,
)
from nbopt.naming import Described
from nbopt.optimizers.constructor import checked
from nbopt.optimizers.declared import Declared
from nbopt.optimizers.further import put_aside, put_back
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.states import EMA, State, check_effect, checked_columns, place_in, storage_name
from nbopt.optimizers.steady import Steady
from nbopt.optimizers.step import Expr, Slot, Step
from nbopt.optimizers.tracing import Options, Traces
from nbopt.schedules import Schedule

#: The arguments that clip, in the order that most constructors have.
CLIPS = ("gradient_clip_norm", "gradient_clip_value", "param_clip_value")


class _Kept:
    """What an optimizer keeps from step to step, and leaves out of copies.

    Attributes
    ----------
    plans : list
        The backend's, see `nbopt.interface.update.Update`.
    traces : Traces
    trace : Trace or None
        That of the last step.
    steady : Steady or None
        What finds the last step again.
    by_axes : bool
        Whether the rule has turned out to depend on the parameters' number of axes.
    shapes : tuple or None
        What `Optimizer._kinds` has found last: the parameters' serial numbers, their sizes, their places by
        shape, and the rest by these.
    declared : dict
        Names of states -> what `Optimizer.declared_states` returns.
    told_of_lost_states : bool
        Whether there was a warning, see `warn_of_lost_states`.
    listed : tuple or None
        A `MultiOptimizer`'s last parameters: their serial numbers and sizes.
    """

    def __init__(self) -> None:
        self.plans: list[Any] = []
        self.traces = Traces()
        self.by_axes = False
        self.shapes: Any = None
        self.declared: dict[Any, Any] = {}
        self.trace: Any = None
        self.steady: Any = None
        self.listed: Any = None
        self.told_of_lost_states = False


def _of_any_states(rule: Callable[..., None]) -> Any:
    """Return a rule, of which type checkers know nothing: those of subclasses have states of their own."""
    return rule


class Optimizer(Declared, Described):
    """Base class of optimizers. A subclass is a rule over its slots.

    >>> class SignMomentum(Optimizer):
    ...     state_names = ("momentum",)
    ...
    ...     def __init__(self, learning_rate=1e-3, decay=0.9, name=None):
    ...         super().__init__(name=name)
    ...         self.learning_rate, self.decay = learning_rate, decay
    ...
    ...     def rule(self, step, param, grad, momentum):
    ...         momentum[:] = self.decay * momentum + (1 - self.decay) * grad
    ...         param[:] = param - step.lr * self.be.sgn(momentum)

    Parameters
    ----------
    name : str, optional
    state_dtype : dtype, optional
        The dtype of new states. Without it: float64 for float64 parameters, else float32.

    Attributes
    ----------
    state_names : tuple of str
        The states of one parameter, in the order of the rule's arguments.
    t : int
        How many times `optimize` was called, with parameters to update.
    schedule, learning_rate, gradient_clip_norm, gradient_clip_value, param_clip_value, stochastic_round
        Read at every step; None or 0 turns a clip off. Values that make no sense raise ArgumentError when
        they are assigned. A number may be an array or tensor without dimensions, of any library: what it is
        when it is assigned counts.
    loss_scale : float, or array or Tensor of one element
        What the loss was multiplied by: gradients are divided by it before anything else. One on a device is
        never read by the host. Not part of the description.
    skip_nonfinite : bool
        Leave all parameters and states as they are in a call where the norm of the gradients (of
        ``optimize``'s layers together) is infinite or NaN, without the host reading anything back. The norm
        is summed in float32, so a finite gradient beyond about 1e19 counts as well. `t` counts the call, the
        schedule goes on, and `skipped` tells how many there were. In a `MultiOptimizer` the optimizers that
        have it are skipped together. Not part of the description.
    pure : bool
        Whether the rule depends on nothing but its arguments and what it reads from ``self``. A class whose
        rule depends on something else (a global, a clock) says ``pure = False``: then the rule is run at
        every step, with plain numbers.
    checks : dict
        Hyper-parameter -> one of the functions in `nbopt.checks`.
    aside : dict of str to str
        States that there are only as long as something else stands in place of the parameter -> what to do
        before a step.
    """

    state_names: tuple[str, ...] = ()
    loss_scale: Any = 1.0
    skip_nonfinite: Any = False
    t = 0
    pure = True
    aside: dict[str, str] = {
        "parameter": (
            "`with optimizer.ema(layers)` has put means in place of the parameters: take the step after it"
        )
    }
    #: Whether each parameter has its own count of steps: `nbopt.torch` says so.
    counts_each = False

    stochastic_round = hyper(
        False, checks.rounding, "How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`."
    )
    learning_rate = hyper(None, checks.non_negative, "What the schedule starts from.", torch="lr")
    gradient_clip_norm = hyper(
        None, checks.optional(checks.non_negative), "Bound of the norm of all gradients. None or 0: none."
    )
    gradient_clip_value = hyper(
        None, checks.optional(checks.finite), "Bound of each gradient. None or 0: none."
    )
    param_clip_value = hyper(
        None, checks.optional(checks.finite), "Bound of each new parameter. None or 0: none."
    )
    name = hyper(None, takes="str, optional", doc="A name for messages.")
    schedule = hyper(None, checks.schedule, "Of the learning rate. Constant without one.", instead=Schedule)
    ema_decay = hyper(
        None, checks.optional(checks.below_one),
        "Decay of a running mean of the parameters, a state of its own that `ema` puts in their place. "
        "None or 0: no mean.",
    )  # fmt: skip
    state_dtype = hyper(None, takes="dtype, optional", doc="The dtype of new states.")

    checks: dict[str, Any] = {
        "loss_scale": checks.loss_scale,
        "skip_nonfinite": checks.boolean,
        "t": checks.count,
    }
    arguments: tuple[Any, ...] = (
        "stochastic_round",
        "learning_rate",
        ...,
        *CLIPS,
        "name",
        "*",
        "schedule",
        "ema_decay",
        "state_dtype",
    )

    def __init__(self, name: str | None = None, state_dtype: Any = None) -> None:
        super().__init__(name=name)
        self.state_dtype = None if state_dtype is None else storage_name(get_backend(), state_dtype)

    def __init_subclass__(cls, symbolic: bool = False, **options: Any) -> None:
        super().__init_subclass__(symbolic=symbolic, **options)
        if symbolic:
            return
        names = cls.state_names
        if isinstance(names, str) or not all(isinstance(name, str) and name.isidentifier() for name in names):
            raise ArgumentError(
                f'{cls.__name__}.state_names must be a tuple of identifiers, like ("momentum",); not '
                f"{names!r}"
            )
        if inspect.isfunction(cls.__dict__.get("__init__")):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def _check_together(self) -> None:
        """Check what holds between hyper-parameters, at the end of a constructor. A subclass says what."""

    @_of_any_states
    def rule(self, step: Step, param: Slot, grad: Expr, *states: Slot) -> None:
        """State one step as mathematics. Subclasses define it.

        Parameters
        ----------
        step : Step
        param : Slot
            The parameter: read it, and assign its new value by ``param[:] = ...``.
        grad : Expr
            The gradient, divided by ``be.bsz`` and the loss scale, and clipped by ``gradient_clip_value``. It
            is scaled by the norm clip, too, unless the rule reads ``step.scale``.
        *states : Slot
            One for each name in `state_names`, to read and to assign.

        Raises
        ------
        TraceError
            In the base class, if a subclass defines `optimize` in its place, and something asks for a rule.
        """
        if self.has_own_optimize:
            raise TraceError(
                f"{self.classnm} has an optimize of its own and no rule, so its step is no program that "
                "could be known before it runs: each of its assignments is a kernel of its own. "
                "nbopt.explain and nbopt.compile need a rule(self, step, param, grad, ...)"
            )
        raise NotImplementedError(
            f"{self.classnm} defines neither rule(self, step, param, grad, ...) nor optimize(self, "
            "layer_list, epoch)"
        )

    def states_in_use(self) -> tuple[str, ...]:
        """Return the names of the states that the rule takes now.

        Returns
        -------
        tuple of str
            `state_names`, unless a subclass needs fewer at times.
        """
        return self.state_names

    def states(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Declare the states beside a parameter of some shape.

        A subclass overrides it where `state_names` does not say enough.

        Parameters
        ----------
        shape : tuple of int
            The parameter's.

        Returns
        -------
        dict of str to State
            In the order of the rule's arguments.
        """
        return dict.fromkeys(self.states_in_use(), State())

    def declared_states(self, shape: tuple[int, ...] = ()) -> tuple[tuple[str, State], ...]:
        """Return the states that the rule takes now.

        Parameters
        ----------
        shape : tuple of int
            The parameter's.

        Returns
        -------
        tuple of (str, State)
        """
        last = (EMA,) if self.ema_decay else ()
        if type(self).states is not Optimizer.states:
            return (*self.states(shape).items(), *last)
        names, kept = (*self.states_in_use(), *last), self._cache().declared
        found = kept.get(names)
        if found is None:
            found = kept[names] = (*((name, State()) for name in self.states_in_use()), *last)
        return found

    def every_state(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Return the states that may stand beside a parameter of some shape, whatever the hyper-parameters.

        Parameters
        ----------
        shape : tuple of int

        Returns
        -------
        dict of str to State
        """
        aside = dict([EMA, *((name, State()) for name in self.aside)])
        if type(self).states is Optimizer.states:
            return {**dict.fromkeys(self.state_names, State()), **aside}
        return {
            **{name: state for name, state in self.states(shape).items() if state.axes != "step"},
            **aside,
        }

    @property
    def step_states(self) -> dict[str, Tensor]:
        """Dict of str to Tensor : the states that are one number for all parameters.

        On a device, reading one waits for the steps so far.
        """
        return self.__dict__.setdefault("_step_states", {})

    @step_states.setter
    def step_states(self, states: Any) -> None:
        self.__dict__["_step_states"] = states

    def step_numbers(self) -> dict[str, Any]:
        """Return the same as floats, which waits for a device.

        Returns
        -------
        dict of str to float
        """
        return {name: float(_value(value)) for name, value in self.step_states.items()}

    def _step_state(self, be: Backend, name: str, state: State, rate: float | None) -> Tensor:
        """Return the tensor of a state that is one number for the whole step.

        If there is none, it begins here.
        """
        kept = self.step_states
        tensor = kept.get(name)
        if not isinstance(tensor, Tensor) or tensor.be is not be:
            value = state.beginning(rate) if tensor is None else _value(tensor)
            tensor = kept[name] = be.array([value], state.dtype or "float64", name)
        return tensor

    def optimize(self, layer_list: Iterable[Layer], epoch: int) -> None:
        """Update the parameters of all layers, in place, by one step.

        Parameters
        ----------
        layer_list : list
            Layers, see `get_param_list`. An empty list, or one without any gradient, changes nothing at all.
        epoch : int
            From 0; schedules depend on it.

        Raises
        ------
        nbopt.errors.NboptError
            One of its subclasses. Nothing has changed then.
        """
        layers, kept = layer_list if type(layer_list) is list else as_layers(layer_list), self._cache()
        if kept.steady is not None and kept.steady.step(self, layers, epoch):
            return
        be, kept.steady = get_backend(), None
        updates = self.updates(be, layers, epoch)
        if updates:
            run = be.update(*updates)
            if type(self).updates is Optimizer.updates and type(self).update_of is Optimizer.update_of:
                kept.steady = Steady.after(be, layers, updates, run, kept.trace)

    def updates(self, be: Backend, layer_list: Iterable[Layer], epoch: int) -> list[Update]:
        """Return the step over these layers, without running it or changing anything.

        Parameters
        ----------
        be : Backend
        layer_list : list
        epoch : int
            As for `optimize`.

        Returns
        -------
        list of Update
        """
        layers = as_layers(layer_list)
        params = get_param_list(layers)
        if not params:
            return []
        try:
            return self._updates(be, layers, params, epoch)
        except NeedsAxesError:
            self.trace_by_axes()
            return self._updates(be, layers, params, epoch)

    def _updates(self, be: Backend, layers: list[Any], params: list[Any], epoch: int) -> list[Update]:
        """Return the step over some entries.

        It is one update, or one for each kind of parameter that the rule is traced for.
        """
        if not self.by_axes():
            update = self._update(be, layers, params, epoch, None, True)
            if update.key is None:  # some are plain arrays, or have no gradient
                sizes, rows = rows_with_gradients(params)
                if len(rows) < len(params):
                    if not rows:
                        return []
                    update = self._update(be, layers, [params[row] for row in rows], epoch, None, True)
                    update.listing = sizes, rows
            return [update]
        sizes, kinds = self._kinds(params)
        found: list[Update] = []
        for kind, own in kinds:
            try:
                update = self._update(be, layers, [params[row] for row in own], epoch, kind, not found)
            except (StateError, TraceError) as error:
                called = place_in(layers, params[own[0]][1]) or f"parameter {own[0]}"
                raise type(error)(
                    f"the rule of {self.classnm}, for {called} with {kind[0]} axes: {error}"
                ) from None
            update.listing, update.set = (sizes, own), id(self)
            found.append(update)
        return found

    def by_axes(self) -> bool:
        """Return whether the rule is traced for each number of axes that parameters have.

        Returns
        -------
        bool
        """
        return type(self).states is not Optimizer.states or self._cache().by_axes

    def trace_by_axes(self) -> None:
        """Note that the rule depends on the parameters' number of axes."""
        self._cache().by_axes = True

    def _kinds(self, params: list[Any]) -> tuple[list[int], Any]:
        """Return the sizes of all parameters, and the kinds of those that have gradients.

        A kind is what the trace depends on.

        Returns
        -------
        list of int
        list of ((int, tuple of (str, State)), list of int)
            The number of axes and the declared states; the places of the parameters.
        """
        cache = self._cache()
        try:
            serials = [None if grad is None else param.serial for (param, grad), _ in params]
        except (AttributeError, TypeError, ValueError):  # plain arrays, or malformed
            serials = None
        if serials is None or cache.shapes is None or cache.shapes[0] != serials:
            sizes, rows = rows_with_gradients(params)
            shapes: dict[tuple[Any, ...], list[int]] = {}
            for row in rows:
                shapes.setdefault(tuple(getattr(params[row][0][0], "shape", ())), []).append(row)
            cache.shapes = serials, sizes, shapes, None, None
        _, sizes, shapes, known, kinds = cache.shapes
        declared = [self.declared_states(shape) for shape in shapes]  # hyper-parameters may matter
        if declared != known:
            found: dict[tuple[Any, ...], list[int]] = {}
            for (shape, rows), states in zip(shapes.items(), declared):
                found.setdefault((len(shape), states), []).extend(rows)
            kinds = [(kind, sorted(rows)) for kind, rows in found.items()]
            cache.shapes = (*cache.shapes[:3], declared, kinds)
        return sizes, kinds

    def _update(
        self, be: Backend, layers: list[Any], params: list[Any], epoch: int, kind: Any, counts: bool
    ) -> Update:
        """Return the update over some entries.

        Parameters
        ----------
        kind : tuple or None
            As `_kind` returns it, if the rule depends on it.
        counts : bool
            Whether it is what counts the step.
        """
        made: list[tuple[list[Tensor], list[Tensor]]] = []

        def columns(update: Update) -> list[list[Any]]:
            check_distinct(layers)
            place = lambda number, states: place_in(layers, states) or f"parameter {number}"  # noqa: E731
            found = checked_columns(self, trace, be, params, made, place)
            check_effect(self, trace, bool(made))
            if made:
                new = {id(states): tensors for states, tensors in made}
                update.list_tensors(_flat([(pair, new.get(id(states), states)) for pair, states in params]))
                cache = self._cache()
                cache.told_of_lost_states = cache.told_of_lost_states or warn_of_lost_states(layers)
            return found

        def commit() -> None:
            for states, new in made:
                states.extend(new)

        update = self.update_of(_flat(params), columns, commit, epoch, be.bsz, kind, counts)
        trace = self.trace_in_use()
        return update

    @property
    def skipped(self) -> int:
        """Int : how many calls `skip_nonfinite` has skipped.

        On a device, reading it waits for the steps so far. Can be set.
        """
        counter = self.__dict__.get("_skipped", 0)
        return int(counter.get()[0]) if isinstance(counter, Tensor) else counter

    @skipped.setter
    def skipped(self, count: int) -> None:
        self._skipped = checks.count("skipped", count)

    @property
    def skipped_tensor(self) -> Tensor:
        """Tensor : `skipped` as one float64 of the current backend.

        Use it in expressions that must not make the host wait.
        """
        be, counter = self._backend(), self.__dict__.get("_skipped")
        if not isinstance(counter, Tensor) or counter.be is not be:
            counter = self._skipped = be.array([self.skipped], "float64")
        return counter

    def _backend(self) -> Backend:
        """Return the current backend, or the own one that an adapter has given this optimizer."""
        return get_backend() if self.be is None else self.be

    def _divisor(self, bsz: int) -> tuple[float, Any]:
        """Return what the host knows that gradients are divided by, and the loss scale if it is a tensor."""
        scale = self.loss_scale
        if type(scale) is float:
            return bsz * scale, None
        # Wrapped anew at each step: PyTorch can exchange the memory under the same object.
        return float(bsz), read(self._backend(), scale, "the loss scale")

    def options(self, states: Any = None, loss_scale: bool = False, ndim: int | None = None) -> Any:
        """Return what the base class puts around the rule now.

        Parameters
        ----------
        states : tuple of (str, State), optional
            What `declared_states` returns, which is asked without it.
        loss_scale : bool
            Whether the loss scale is in memory.
        ndim : int, optional
            How many axes the parameters have, if the rule depends on it.

        Returns
        -------
        Options
        """
        if states is None:
            states = self.declared_states()
        clips = bool(self.gradient_clip_norm)
        return Options(states, clips, self.skip_nonfinite, loss_scale, self.counts_each, ndim)

    def shared_numbers(self, be: Backend, options: Any, rate: Any) -> list[Tensor]:
        """Return the optimizer's own numbers that a step reads and stores in memory.

        Parameters
        ----------
        be : Backend
        options : Options
        rate : float or None
            The learning rate, with which a state may begin.

        Returns
        -------
        list of Tensor
            Each of one element: of the last ones of `Options.shared`.
        """
        found = [self.skipped_tensor] if options.skips else []
        states = [(name, state) for name, state in options.states if state.axes == "step"]
        return found + [self._step_state(be, name, state, rate) for name, state in states]

    def update_of(
        self,
        tensors: Any,
        columns: Callable[[Update], list[list[Any]]],
        commit: Callable[[], object],
        epoch: int,
        bsz: int,
        kind: Any = None,
        counts: bool = True,
    ) -> Update:
        """Return one step as an `Update`, without running it or changing anything.

        Adapters to other libraries are made of this.

        Parameters
        ----------
        tensors, columns, commit
            See `Update`.
        epoch : int
        bsz : int
            The batch size by which gradients are divided.
        kind : (int, tuple of (str, State)), optional
            The number of axes of the parameters, and the states beside them, if the rule depends on these.
        counts : bool
            Whether it is the update that counts the step, of several for one.

        Returns
        -------
        Update

        Raises
        ------
        nbopt.errors.NboptError
            One of its subclasses, where the rule or a hyper-parameter makes no sense.
        """
        if type(epoch) is not int or epoch < 0:
            epoch = checks.unwrapped(epoch)
            checks.epoch("epoch", epoch)
        divisor, loss_scale = self._divisor(bsz)
        kept, be = self._cache(), self._backend()
        ndim, states = kind or (None, self.declared_states())
        options, rate = self.options(states, loss_scale is not None, ndim), self._rate(epoch)
        kept.trace, numbers = kept.traces.of(self, options, rate, divisor, epoch)
        shared = [] if loss_scale is None else [loss_scale]
        shared += self.shared_numbers(be, options, rate)

        def committed() -> Any:
            if not counts:
                return commit()
            # Without the checks of what users assign, which take longer.
            object.__setattr__(self, "t", self.t + 1)
            commit()

        trace = kept.trace
        program, recut = trace.program, trace.recut
        if not counts:
            program, recut = trace.recut(counts=False), functools.partial(trace.recut, counts=False)
        return Update(
            program, numbers, tensors, columns, committed, kept.plans, self.stochastic_round, shared, recut
        )

    @classmethod
    def rebuilt(cls, description: dict[str, Any]) -> Optimizer:
        """Return the optimizer that a description is of, whichever class it names.

        Parameters
        ----------
        description : dict
            As `get_description` returns it.

        Returns
        -------
        Optimizer
        """
        return Optimizer.gen_class(description)

    def members(self) -> dict[str, Optimizer] | None:
        """Return the optimizers inside of this one, by their keys.

        Returns
        -------
        dict
            Empty, but for a `MultiOptimizer`.
        """
        return {}

    def optimizer_of(self, layer: Any) -> Optimizer | None:
        """Return the optimizer that updates a layer.

        Parameters
        ----------
        layer : object

        Returns
        -------
        Optimizer
            This one, but for a `MultiOptimizer`.
        """
        return self

    @property
    def has_own_optimize(self) -> bool:
        """Bool : whether its class overrides `optimize`, so that no rule says what a step does."""
        return type(self).optimize is not Optimizer.optimize

    def trace_in_use(self) -> Any:
        """Return the trace of the last step that was prepared, see `nbopt.optimizers.tracing`.

        Returns
        -------
        Trace or None
        """
        return self._cache().trace

    def _rate(self, epoch: int) -> float | None:
        """Return the learning rate of an epoch; None if the optimizer has none."""
        rate = self.learning_rate
        if rate is not None and self.schedule is not None:
            try:
                rate = self.schedule.get_learning_rate(rate, epoch)
            except OverflowError:  # what Python's floats raise for some results that are too large
                rate = math.inf
            if type(rate) is not float or not 0.0 <= rate < math.inf:
                rate = checks.non_negative(f"the rate of {self.schedule!r} at epoch {epoch}", rate)
        return rate

    def state_dict(self, layers: Iterable[Layer]) -> dict[str, Any]:
        """Return everything that the next step depends on, but for the gradients, as plain values and copies.

        Parameters
        ----------
        layers : list
            All layers that the optimizer trains, as for `optimize`. Nothing is changed.

        Returns
        -------
        dict
            - ``"version"``: int, of this format
            - ``"optimizer"``: its description, see `get_description`: the class and the hyper-parameters
            - ``"optimizers"``: for itself, and each optimizer inside of a `MultiOptimizer` once, ``{"path":
              the keys that lead to it, "type": its class, "t": its steps so far, "skipped": how many of them
              were skipped}``
            - ``"rng"``: the state of stochastic rounding, see `Backend.rng_get_state`
            - ``"layers"``: ``{"name": str or None, "parameters": [...]}`` for each, and for each parameter
              ``{"name": str or None, "values": numpy.ndarray, "states": [...]}``, and for each state
              ``{"name": str or None, "rounding": bool or int, "values": numpy.ndarray}``

            Names that were not chosen by the user are None. Not in it is what a program sets up before it
            trains: the batch size, the roundings of the parameters, attributes of the optimizer that are no
            arguments of its constructor.

        Raises
        ------
        CheckpointError
            If a hyper-parameter is no plain value, so that it can't be described.
        """
        return checkpoint.state_dict(self, layers)

    def load_state_dict(
        self, state: dict[str, Any], layers: Iterable[Layer], hyperparameters: bool = True
    ) -> None:
        """Put back what `state_dict` has returned.

        Given the same gradients, the next step gives the same bits as it did there.

        Parameters, and states that are there already, are overwritten in place, in whatever memory and layout
        they are; other states are made anew. The state of stochastic rounding is the current backend's, and
        so that of everything that it runs.

        Parameters
        ----------
        state : dict
            It is not changed, and shares no memory with what it is loaded into.
        layers : list
            Layers of the same number, names, shapes and dtypes, in the same order, on this or another
            backend.
        hyperparameters : bool
            Whether the optimizer's hyper-parameters become those of the state, too (all that its constructor
            takes, but for the name). Schedules are built anew. False keeps what the optimizer has now.

        Raises
        ------
        CheckpointError
            If the state is not one of this optimizer and these layers. The message says what differs.
        nbopt.errors.NboptError
            If the layers are malformed, or their memory can't be written. Nothing has changed, whatever is
            raised.

        Notes
        -----
        While it is at work it holds a copy of what it overwrites in the host's memory, to be able to put it
        back.
        """
        checkpoint.load_state_dict(self, state, layers, hyperparameters)

    @contextmanager
    def ema(self, layers: Iterable[Layer]) -> Iterator[None]:
        """Have running means in place of the parameters for a while.

        Evaluate with them, or save them for use.

        Parameters
        ----------
        layers : list
            Those that it trains. What it has not trained with an `ema_decay` stays as it is.

        Yields
        ------
        None
            Afterwards the parameters have their bits again. A step in between is an error.
        """

        def rule(param: Slot, mean: Slot) -> None:
            param[:] = mean

        put_aside(self, "parameter", layers, rule, EMA[0])
        try:
            yield
        finally:
            put_back(self, "parameter", layers)

    def clip_value(self, v: Operand, abs_bound: Any = None) -> Any:
        """Clip the elements of a value to ``[-|abs_bound|, |abs_bound|]``.

        Parameters
        ----------
        v : Tensor or expression
        abs_bound : float, optional

        Returns
        -------
        expression
            `v` itself where `abs_bound` is None or 0.
        """
        if not abs_bound:
            return v
        return self._backend().clip(v, -abs(abs_bound), abs(abs_bound))

    def clip_gradient_norm(self, param_list: Any, clip_norm: Any) -> Any:
        """Return the factor that clips the norm of all gradients together.

        Parameters
        ----------
        param_list : list of ((W, dW), states)
            As `get_param_list` returns.
        clip_norm : float or None
            The norm to clip to; None and 0 turn clipping off.

        Returns
        -------
        float
            ``clip_norm / max(||gradients|| / be.bsz, clip_norm)``, at most 1; 1.0 where clipping is off.
        """
        clip_norm = checks.optional(checks.non_negative)("clip_norm", clip_norm)
        if not clip_norm or not param_list:
            return 1.0
        be = get_backend()
        divisor, scale = self._divisor(be.bsz)
        factor = be.zeros(1, "float64")
        tracer = Tracer(("grad", "factor", "scale"), (ELEMENT, STEP, STEP))
        grad, result, loss_scale = tracer.slots()
        by = tracer.source("divisor", divisor) * (1.0 if scale is None else loss_scale)
        norm = be.sqrt(tracer.reduce("sum", "step", grad * grad)) / by
        result[:] = clip_norm / be.maximum(norm, clip_norm)
        program, numbers = tracer.program()
        grads = [be.wrap(as_gradient(be, grad, param)) for (param, grad), _ in param_list if grad is not None]
        given, _ = numbers.function()(tracer.numbers, divisor=divisor)
        update = Update(
            program,
            given,
            None,
            lambda update: [grads],
            plans=[],
            shared=[factor, factor if scale is None else scale],
        )
        be.prepare([update])(0)
        return float(factor.get()[0])

    def _cache(self) -> Any:
        # Made here and not in __init__, so that a subclass that forgets super().__init__() still works.
        found = self.__dict__.get("_kept")
        if found is None:
            found = self.__dict__["_kept"] = _Kept()
        return found

    def __getstate__(self) -> dict[str, Any]:
        # An adapter gives its own copies of optimizers a backend of their own.
        state = {key: value for key, value in self.__dict__.items() if key not in ("_kept", "be")}
        # copy.copy would share the tensors.
        if "_skipped" in state:
            state["_skipped"] = self.skipped
        if "_step_states" in state:
            state["_step_states"] = self.step_numbers()
        return state


def _value(tensor: Tensor) -> Any:
    """Return the number in a tensor of one element, or a number as it is."""
    return float(tensor.get()[0]) if isinstance(tensor, Tensor) else tensor


def _flat(params: list[Any]) -> Any:
    """Return a function that iterates over all tensors: param, grad of each entry, then the states of each.

    None where the entries are malformed.
    """
    try:
        pairs, states = zip(*params)
    except (TypeError, ValueError):
        return None
    return lambda: chain(chain.from_iterable(pairs), chain.from_iterable(states))


def decayed(param: Expr, change: Operand, decay: Operand) -> Expr:
    """Return ``param - (change + decay * param)``: a parameter after its change and its weight decay.

    A factor ``1 - decay`` would be rounded to a multiple of 2^-24 in float32, and a decay of 1e-8 would be
    lost.

    Parameters
    ----------
    param, change : Node
    decay : float
        The learning rate times the weight decay.

    Returns
    -------
    Node
    """
    return param - (change + decay * param)
