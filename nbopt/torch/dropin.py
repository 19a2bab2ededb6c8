"""DropIn: PyTorch's own optimizers, with their step run by nbopt.

Each class derives from PyTorch's of the same name. So its arguments, their defaults and checks, the keys of
its groups, and what it does with older state dicts are those of the PyTorch that is installed. What this
package adds is the step, the states, and a few arguments.
"""

import inspect
import warnings
from typing import Any

import torch

from nbopt.errors import ArgumentError, DtypeError
from nbopt.interface.backend import Backend
from nbopt.optimizers import Optimizer
from nbopt.torch.dropin_group import EXTRAS, DropInGroup
from nbopt.torch.group import check_group, listed
from nbopt.torch.hooks import hooked
from nbopt.torch.rule import TorchRule
from nbopt.torch.seeds import seed_for
from nbopt.torch.stepper import Stepper
from nbopt.torch.words import checked, torchs_word

_STORED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

#: Attributes of which each group has its own, so that one of the optimizer's would do nothing.
_OF_GROUPS = {"lr", "learning_rate", "weight_decay", "wdecay", "betas", "momentum", "eps"}

_PYTORCHS = """*args, **kwargs
        Those of `torch.optim.{name}`. `foreach` and `fused` are taken and change nothing: each step is
        fused."""
_ADDED = """

    Parameters
    ----------
    {own}
    stochastic_round : bool or int
        How parameters, and states of 16 bits, are rounded; see `nbopt.Optimizer`.
    state_dtype : dtype, optional
        That of new states. Without it they have 32 bits for parameters of 16, else the parameter's.
        ``"param"``: always the parameter's.
    gradient_clip_norm : float, optional
        The largest norm of all gradients together. Larger ones are scaled down in the step itself.
        `grad_norm` has the norm of the last step.
    ema_decay : float, optional
        Decay of a running mean of the parameters, a state that `ema` puts in their place.
    centralize : bool
        Whether gradients of two axes or more lose their mean over all axes but the first.
    adaptive_clip : float, optional
        Bound of a gradient's norm over its parameter's, for each index of the first axis.
    param_decay : float, optional
        Weight decay apart from the gradient, for rules that have none.
    cautious : bool
        Whether elements of a step that go against the gradient are left out, in rules that know how.
    skip_nonfinite : bool
        Whether a step whose gradients are not finite stores nothing. The host does not wait for the answer.
    master_weights : bool
        Whether each parameter of 16 bits has a master in float32, the state ``"master_param"``. Steps update
        the master, and round it to the parameter in the same pass. A master begins as the parameter, and
        takes over what else is written there (``model.load_state_dict``, ``param.copy_``); but not what is
        written through ``param.data``.
    capturable : bool
        Whether steps may be captured into a CUDA graph. PyTorch's own argument, where it has one.
    seed : int, optional
        Of stochastic rounding, see `nbopt.torch.Optimizer`.
    backend : str or Backend, optional
        What runs the steps; by each parameter's device without it.
"""


class DropIn(Stepper):
    """Base of the classes that take the place of PyTorch's.

    A group may have the keys ``"stochastic_round"`` and ``"gradient_clip_norm"``. They hold in place of the
    optimizer's. The norm is that of all groups with a bound together.

    Attributes
    ----------
    made_of : type
        The class's rule, a `TorchRule`.
    """

    made_of: type[TorchRule]
    _asks_to_capture = False  # whether PyTorch's class does
    _settable = (*Stepper._settable, *EXTRAS)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "made_of" not in vars(cls):
            return
        kinds, model = inspect.Parameter, vars(cls.__bases__[-1])

        def constructor(self, *args, **kwargs):
            DropIn.__init__(self, *args, **kwargs)

        extras = [
            p for p in inspect.signature(DropIn.__init__).parameters.values() if p.kind is kinds.KEYWORD_ONLY
        ]
        given = cls.made_of.parameters() or [*inspect.signature(model["__init__"]).parameters.values()]
        cls._asks_to_capture = "capturable" in {argument.name for argument in given}
        if not cls._asks_to_capture:
            extras.append(kinds("capturable", kinds.KEYWORD_ONLY, default=False))
        constructor.__signature__ = inspect.Signature([*given, *extras])  # type: ignore[attr-defined]
        constructor.__name__, constructor.__qualname__ = "__init__", f"{cls.__qualname__}.__init__"
        cls.__init__ = checked(constructor)  # type: ignore[method-assign]
        whole = inspect.cleandoc(cls.__doc__ or "")
        text, _, references = whole.partition("\n\nReferences\n")
        own = cls.made_of.documentation() or _PYTORCHS.format(name=cls.__name__)
        added = inspect.cleandoc(_ADDED.format(own=own))
        cls.__doc__ = f"{text}\n\n{added}\n\nReferences\n{references}"

    def __init__(
        self,
        *args,
        stochastic_round=False,
        state_dtype=None,
        gradient_clip_norm=None,
        ema_decay=None,
        centralize=False,
        adaptive_clip=None,
        param_decay=None,
        cautious=False,
        skip_nonfinite=False,
        master_weights=False,
        seed=None,
        backend=None,
        **kwargs,
    ):
        self.stochastic_round, self.state_dtype, self.gradient_clip_norm = (
            stochastic_round,
            state_dtype,
            gradient_clip_norm,
        )
        self.ema_decay, self.centralize, self.adaptive_clip = ema_decay, centralize, adaptive_clip
        self.param_decay, self.cautious = param_decay, cautious
        rule = self.made_of()
        rule.skip_nonfinite = skip_nonfinite
        if seed is not None and isinstance(backend, Backend):
            raise ArgumentError("seed= goes with a backend's name; a backend that exists already has a seed")
        self._begin(rule, backend, seed_for(seed), master_weights)
        if not self._asks_to_capture:
            check = Optimizer.checks["capturable"]
            self._capturable = check("capturable", kwargs.pop("capturable", False))
        super().__init__(*args, **kwargs)
        self._begun()

    def _begun(self):
        early = bool(self.state)  # Adagrad's constructor makes the states
        super()._begun()
        for own in self._groups if early else ():
            params = own.group["params"]
            self.state.update(zip(params, own.new_states(params, {})))

    def __setattr__(self, name, value):
        if name in EXTRAS:
            value = EXTRAS[name](name, value)
            if name == "cautious" and value and not hasattr(self.made_of, name):
                raise ArgumentError(f"{type(self).__name__} has no cautious updates: leave out cautious=True")
            for own in self.__dict__.get("_groups", ()):
                own.read_again()
        elif name in _OF_GROUPS and "defaults" in self.__dict__ and "made_of" in vars(type(self)):
            key = torchs_word(name) or name
            warnings.warn(
                f"optimizer.{name} = ... does nothing, since each group has its own: write "
                f'for group in optimizer.param_groups: group["{key}"] = ...',
                stacklevel=2,
            )
        elif not name.startswith("_") and "defaults" in self.__dict__ and not hasattr(self, name):
            self._check_attribute(name, value)
        super().__setattr__(name, value)

    @property
    def _step_supports_amp_scaling(self):
        """Whether a GradScaler leaves the unscaling to the step: its numbers are on one device."""
        return len(self._backends) < 2

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, supports):
        """Take what PyTorch's constructors say of fused=True, which changes nothing here."""

    def add_param_group(self, param_group):
        """Add a group of parameters; see `torch.optim.Optimizer.add_param_group`.

        Parameters
        ----------
        param_group : dict
            It becomes an entry of `param_groups` itself, and gets what it does not say. If an error is
            raised, it stays as it was.
        """
        self._add(param_group, super().add_param_group)

    @hooked
    def step(self, closure=None):
        """Update all parameters that have gradients, in place; see `torch.optim.Optimizer.step`.

        `torch.amp.GradScaler` sets the attributes ``grad_scale`` and ``found_inf``. Gradients are divided by
        the one. If the other is not 0, everything stays as it is.

        Parameters
        ----------
        closure : callable, optional
            Computes the gradients and returns the loss.

        Returns
        -------
        The closure's loss, or None.
        """
        attributes = self.__dict__
        scale, found_inf = attributes.get("grad_scale"), attributes.get("found_inf")
        if scale is None and found_inf is None:
            return self._stepped(closure)
        given = self.loss_scale
        try:
            if scale is not None:
                self.loss_scale = scale if given == 1.0 else scale * given
            self._guard(found_inf)
            return self._stepped(closure)
        finally:
            self.loss_scale = given
            self._guard(None)

    def _settle_counts(self, owned):
        if not self._backend.captures and any(own.group.get("capturable") for own in owned):
            raise ArgumentError(
                "capturable=True is for parameters on a GPU, as in PyTorch, and these are on "
                f"{', '.join(map(str, self._backends))}: leave it out, or move the model first"
            )
        super()._settle_counts(owned)

    def _guard(self, found_inf):
        """Leave the coming steps out if this tensor is not 0. The host doesn't look at it."""
        for own in self._owned():
            own.optimizer.found_inf, own.optimizer.guarded = found_inf, found_inf is not None

    def _group_of(self, group):
        check_group(group)
        for key, default in self.defaults.items():
            group.setdefault(key, default)
        group["params"] = listed(group["params"])
        for param in group["params"]:
            if param.dtype not in _STORED:
                advice = (
                    "view a complex parameter as torch.view_as_real(param)"
                    if param.dtype.is_complex
                    else "convert it: param.float()"
                )
                raise DtypeError(
                    f"parameters are float64, float32, float16 or bfloat16, not {param.dtype}: {advice}"
                )
        rule = self.rule_of(group)
        self._equip(rule, group["params"])
        own = DropInGroup(group, rule, self)
        own.read()
        return own

    def rule_of(self, group):
        """Return a new rule for a group that is about to be added, or raise."""
        return self.made_of()

    def _group_again(self, group, optimizer):
        return DropInGroup(group, optimizer, self)

    def _taken_along(self):
        return {name: getattr(self, name) for name in EXTRAS}
