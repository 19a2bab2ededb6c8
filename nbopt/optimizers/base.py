"""Optimizer: everything that the optimizers have in common, and what users subclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbopt import checks
from nbopt.backends import get_backend
from nbopt.errors import ArgumentError, TraceError
from nbopt.language.words import METHODS
from nbopt.naming import Described
from nbopt.optimizers.clipping import Clips
from nbopt.optimizers.constructor import checked
from nbopt.optimizers.counting import Counts
from nbopt.optimizers.declared import Declared
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import Modifiers
from nbopt.optimizers.saved import Saved
from nbopt.optimizers.states import storage_name
from nbopt.optimizers.step import Expr, Slot, Step
from nbopt.optimizers.stepping import Steps
from nbopt.schedules import Schedule

#: The arguments that clip, in the order that most constructors have.
CLIPS = ("gradient_clip_norm", "gradient_clip_value", "param_clip_value")
#: The arguments of what any rule may have.
MODIFIERS = ("ema_decay", "centralize", "adaptive_clip", "param_decay", "mirror_dtype")


def _of_any_states(rule: Callable[..., None]) -> Any:
    """Return a rule, of which type checkers know nothing: those of subclasses have states of their own."""
    return rule


class Optimizer(Steps, Counts, Modifiers, Clips, Saved, Declared, Described):
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
    capturable : bool
        Whether steps may be captured into a CUDA graph. Then `t` and the count that random bits depend on
        live on the GPU, also in steps that no graph replays, and a learning rate that is assigned as an array
        or Tensor of one element is read there at each step. Elsewhere it changes nothing. Not part of the
        description.
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
    grad_norm : float or None
        The norm of the last call's gradients, if it needed one, see `nbopt.optimizers.norm`.
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
    capturable: Any = False
    pure = True
    aside: dict[str, str] = {
        "parameter": (
            "`with optimizer.ema(layers)` has put means in place of the parameters: take the step after it"
        )
    }
    #: What a state of the whole step belongs to: the "set" of parameters of one call or group, or the
    #: "optimizer": then all groups of a PyTorch optimizer share it, and agree on the hyper-parameters that
    #: `feeds` names.
    scope = "set"
    feeds: tuple[str, ...] = ()
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
    centralize = hyper(
        False, checks.boolean,
        "Whether gradients of two axes or more lose their mean over all axes but the first.",
    )  # fmt: skip
    adaptive_clip = hyper(
        None, checks.optional(checks.non_negative),
        "Bound of the gradient's norm over the parameter's, for each index of the first axis. "
        "None or 0: none.",
    )  # fmt: skip
    param_decay = hyper(
        None, checks.optional(checks.non_negative),
        "Weight decay apart from the gradient, for rules that have none: lr * param_decay * p is subtracted.",
    )  # fmt: skip
    mirror_dtype = hyper(
        None, checks.optional(checks.storage),
        "The dtype of a copy of each new parameter, a state of its own that `mirrors` gives. None: no copy.",
    )  # fmt: skip
    state_dtype = hyper(None, takes="dtype, optional", doc="The dtype of new states.")

    checks: dict[str, Any] = {
        "loss_scale": checks.loss_scale,
        "skip_nonfinite": checks.boolean,
        "capturable": checks.boolean,
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
        *MODIFIERS,
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

    if not TYPE_CHECKING:  # it would have every attribute

        def __getattr__(self, name):
            if name in METHODS:
                kind = type(self).__name__
                raise AttributeError(f"{kind!r} object has no attribute {name!r}: {METHODS[name]}", name=name)
            return object.__getattribute__(self, name)  # raises the error of before

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
        """Whether its class overrides `optimize`, so that no rule says what a step does."""
        return type(self).optimize is not Optimizer.optimize
