"""What an optimizer keeps from step to step: its states, and what was found out about its rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbopt import checks
from nbopt.arrays.tensor import Tensor
from nbopt.errors import ArgumentError
from nbopt.interface.backend import Backend
from nbopt.optimizers.called import called
from nbopt.optimizers.states import EMA, State, mirror
from nbopt.optimizers.tracing import Traces

if TYPE_CHECKING:
    from nbopt.optimizers.base import Optimizer


class Kept:
    """What an optimizer keeps from step to step, and leaves out of copies.

    Attributes
    ----------
    plans : list
        The backend's, see `nbopt.interface.update.Update`.
    captures : list
        The backend's, likewise.
    traces : Traces
    trace : Trace or None
        That of the last step.
    steady : Steady or None
        What finds the last step again.
    by_axes : bool
        Whether the rule has turned out to depend on the parameters' number of axes.
    shapes : tuple or None
        What `Steps._kinds` has found last: the parameters' serial numbers, their sizes, their places by
        shape, and the rest by these.
    declared : dict
        Names of states -> what `KeepsStates.declared_states` returns.
    norm : Tensor or None
        The slot of the norm of the gradients, see `nbopt.optimizers.norm`.
    sums_norm : bool
        Whether the last call has stored one.
    told_of_lost_states : bool
        Whether there was a warning, see `warn_of_lost_states`.
    listed : tuple or None
        A `MultiOptimizer`'s last parameters: their serial numbers and sizes.
    """

    def __init__(self) -> None:
        self.plans: list[Any] = []
        self.captures: list[Any] = []
        self.traces = Traces()
        self.by_axes = False
        self.shapes: Any = None
        self.declared: dict[Any, Any] = {}
        self.trace: Any = None
        self.steady: Any = None
        self.listed: Any = None
        self.norm: Any = None
        self.sums_norm = False
        self.told_of_lost_states = False


class KeepsStates:
    """The part of `Optimizer` that says which states there are."""

    state_names: tuple[str, ...] = ()
    aside: dict[str, str] = {}
    ema_decay: Any
    mirror_dtype: Any
    skip_nonfinite: Any
    capturable: Any
    _backend: Any
    _skipped: Any

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
        last = self.further_states() if self.ema_decay or self.mirror_dtype else ()
        if type(self).states is not KeepsStates.states:
            return (*self._declared(shape).items(), *last)
        names, kept = (*self.states_in_use(), *last), self._cache().declared
        found = kept.get(names)
        if found is None:
            found = kept[names] = (*((name, State()) for name in self.states_in_use()), *last)
        return found

    def _declared(self, shape: tuple[int, ...]) -> dict[str, State]:
        found: dict[str, State] = called(self.states, ["shape"], shape)
        return found

    def further_states(self) -> tuple[tuple[str, State], ...]:
        """Return the states that are no rule's own: those of modifiers.

        Returns
        -------
        tuple of (str, State)
        """
        found = (EMA,) if self.ema_decay else ()
        return (*found, mirror(self.mirror_dtype)) if self.mirror_dtype else found

    def every_state(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Return the states that may stand beside a parameter of some shape, whatever the hyper-parameters.

        Parameters
        ----------
        shape : tuple of int

        Returns
        -------
        dict of str to State
        """
        aside = dict([EMA, mirror(self.mirror_dtype), *((name, State()) for name in self.aside)])
        if type(self).states is KeepsStates.states:
            return {**dict.fromkeys(self.state_names, State()), **aside}
        return {
            **{name: state for name, state in self._declared(shape).items() if state.axes != "step"},
            **aside,
        }

    @property
    def step_states(self) -> dict[str, Tensor]:
        """The states that are one number for all parameters.

        On a device, reading one waits for the steps so far.
        """
        return self.__dict__.setdefault("_step_states", {})

    @step_states.setter
    def step_states(self, states: Any) -> None:
        known = self.__dict__.get("_step_states", {}) if self.capturable else {}
        for name, value in states.items():
            tensor = known.get(name)
            if isinstance(tensor, Tensor) and not isinstance(value, Tensor):
                tensor.set([value])  # a graph knows this memory
                states[name] = tensor
        self.__dict__["_step_states"] = states

    def step_numbers(self) -> dict[str, Any]:
        """Return the same as floats, which waits for a device.

        Returns
        -------
        dict of str to float
        """
        return {name: float(value_of(value)) for name, value in self.step_states.items()}

    def _step_state(self, be: Backend, name: str, state: State, rate: float | None) -> Tensor:
        """Return the tensor of a state that is one number for the whole step.

        If there is none, it begins here.
        """
        kept = self.step_states
        tensor = kept.get(name)
        if not isinstance(tensor, Tensor) or tensor.be is not be:
            value = state.beginning(rate) if tensor is None else value_of(tensor)
            tensor = kept[name] = be.array([value], state.dtype or "float64", name)
        return tensor

    @property
    def skipped(self) -> int:
        """How many calls `skip_nonfinite` has skipped.

        On a device, reading it waits for the steps so far. Can be set.
        """
        counter = self.__dict__.get("_skipped", 0)
        return int(counter.get()[0]) if isinstance(counter, Tensor) else counter

    @skipped.setter
    def skipped(self, count: int) -> None:
        count, known = checks.count("skipped", count), self.__dict__.get("_skipped")
        if isinstance(known, Tensor) and self.capturable:
            known.set([count])  # a graph knows this memory
        else:
            self._skipped = count

    @property
    def skipped_tensor(self) -> Tensor:
        """The count in `skipped` as one float64 of the current backend.

        Use it in expressions that must not make the host wait.
        """
        be, counter = self._backend(), self.__dict__.get("_skipped")
        if not isinstance(counter, Tensor) or counter.be is not be:
            counter = self._skipped = be.array([self.skipped], "float64")
        return counter

    def share_step_states(self, other: KeepsStates) -> None:
        """Have the states that are one number in common with another optimizer.

        Parameters
        ----------
        other : Optimizer
            Of the same class.
        """
        self.step_states = other.step_states
        if self.skip_nonfinite and other.skip_nonfinite:
            self._skipped = other.skipped_tensor

    def _cache(self) -> Any:
        # Made here and not in __init__, so that a subclass that forgets super().__init__() still works.
        found = self.__dict__.get("_kept")
        if found is None:
            found = self.__dict__["_kept"] = Kept()
        return found


def value_of(tensor: Any) -> Any:
    """Return the number in a tensor of one element, or a number as it is."""
    return float(tensor.get()[0]) if isinstance(tensor, Tensor) else tensor


def check_agreed(first: Optimizer, other: Optimizer) -> None:
    """Raise where optimizers that share a state of the step differ in what it depends on.

    Parameters
    ----------
    first, other : Optimizer
        Of one class, whose ``feeds`` names these hyper-parameters.

    Raises
    ------
    ArgumentError
    """
    for name in first.feeds if other is not first else ():
        one, two = (getattr(optimizer, name) for optimizer in (first, other))
        if one != two:
            raise ArgumentError(
                f"all groups of {first.classnm} have one estimate of the rate, so they must agree on {name}, "
                f"and it is {one!r} and {two!r}: give them one value. A group that is to rest has no "
                "gradients"
            )
