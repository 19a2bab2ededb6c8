"""DropIn: PyTorch's own optimizers, with their step run by nbopt.

Each class derives from PyTorch's of the same name. So its arguments, their defaults and checks, the keys of
its groups, and what it does with older state dicts are those of the PyTorch that is installed. What this
package adds is the step, the states, and a few arguments.
"""

import copy
import inspect
from typing import Any

import torch

from nbopt import checks
from nbopt.errors import ArgumentError, DtypeError, StateError
from nbopt.interface.backend import Backend
from nbopt.optimizers.states import storage_name
from nbopt.torch.group import Group, listed
from nbopt.torch.rule import PARTS, TorchRule
from nbopt.torch.saving import check_states
from nbopt.torch.seeds import seed_for
from nbopt.torch.states import STEP, Kept
from nbopt.torch.stepper import Stepper

#: What the whole optimizer has beside PyTorch's arguments -> check.
_EXTRAS: dict[str, Any] = {
    "stochastic_round": checks.rounding,
    "state_dtype": lambda name, value: value,
    "gradient_clip_norm": checks.optional(checks.non_negative),
}
_STORED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_ADDED = """

    Parameters
    ----------
    *args, **kwargs
        Those of `torch.optim.{name}`. `foreach`, `fused` and `capturable` are taken and change nothing: each
        step is fused.
    stochastic_round : bool or int
        How parameters, and states of 16 bits, are rounded; see `nbopt.Optimizer`.
    state_dtype : dtype, optional
        That of new states. Without it they have 32 bits for parameters of 16, else the parameter's.
        ``"param"``: always the parameter's.
    gradient_clip_norm : float, optional
        The largest norm of all gradients together. Larger ones are scaled down in the step itself.
    skip_nonfinite : bool
        Whether a step whose gradients are not finite stores nothing. The host does not wait for the answer.
    seed : int, optional
        Of stochastic rounding, see `nbopt.torch.Optimizer`.
    backend : str or Backend, optional
        What runs the steps; by the first parameter's device without it.
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
    _step_supports_amp_scaling = True

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
        given = list(inspect.signature(model["__init__"]).parameters.values())
        constructor.__signature__ = inspect.Signature([*given, *extras])  # type: ignore[attr-defined]
        constructor.__name__, constructor.__qualname__ = "__init__", f"{cls.__qualname__}.__init__"
        cls.__init__ = constructor  # type: ignore[method-assign]
        whole = inspect.cleandoc(cls.__doc__ or "")
        text, _, references = whole.partition("\n\nReferences\n")
        cls.__doc__ = (
            f"{text}\n\n{inspect.cleandoc(_ADDED.format(name=cls.__name__))}\n\nReferences\n{references}"
        )

    def __init__(
        self,
        *args,
        stochastic_round=False,
        state_dtype=None,
        gradient_clip_norm=None,
        skip_nonfinite=False,
        seed=None,
        backend=None,
        **kwargs,
    ):
        self.stochastic_round, self.state_dtype, self.gradient_clip_norm = (
            stochastic_round,
            state_dtype,
            gradient_clip_norm,
        )
        rule = self.made_of()
        rule.skip_nonfinite = skip_nonfinite
        if seed is not None and isinstance(backend, Backend):
            raise ArgumentError("seed= goes with a backend's name; a backend that exists already has a seed")
        self._begin(rule, backend, seed_for(seed))
        super().__init__(*args, **kwargs)
        self._begun()

    def _begun(self):
        early = bool(self.state)  # Adagrad's constructor makes the states
        super()._begun()
        for own in self._groups if early else ():
            params = own.group["params"]
            self.state.update(zip(params, own.new_states(params, {})))

    def __setattr__(self, name, value):
        if name in _EXTRAS:
            value = _EXTRAS[name](name, value)
            for own in self.__dict__.get("_groups", ()):
                own.read_again()
        super().__setattr__(name, value)

    def add_param_group(self, param_group):
        """Add a group of parameters; see `torch.optim.Optimizer.add_param_group`.

        Parameters
        ----------
        param_group : dict
            It becomes an entry of `param_groups` itself, and gets what it does not say. If an error is
            raised, it stays as it was.
        """
        self._add(param_group, super().add_param_group)

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
        scale, found_inf = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
        if scale is None and found_inf is None:
            return super().step(closure)
        given = self.loss_scale
        try:
            if scale is not None:
                self.loss_scale = scale if given == 1.0 else scale * given
            self._guard(found_inf)
            return super().step(closure)
        finally:
            self.loss_scale = given
            self._guard(None)

    def _guard(self, found_inf):
        """Leave the coming steps out if this tensor is not 0. The host doesn't look at it."""
        for own in self._owned():
            own.optimizer.found_inf, own.optimizer.guarded = found_inf, found_inf is not None

    def _group_of(self, group):
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
        rule = self.made_of()
        self._equip(rule, group["params"])
        own = _DropInGroup(group, rule, self)
        own.read()
        return own

    def _group_again(self, group, optimizer):
        return _DropInGroup(group, optimizer, self)

    def _taken_along(self):
        return {name: getattr(self, name) for name in _EXTRAS}


class _DropInGroup(Group):
    """A group with PyTorch's keys.

    Attributes
    ----------
    whole : DropIn
        Whose attributes hold where the group does not say anything.
    """

    def __init__(self, group, optimizer, whole):
        super().__init__(group, optimizer, whole._warned)
        self.whole = whole
        self._counts: dict = {}

    def watched(self):
        known = (*self.optimizer.words, "differentiable", "stochastic_round", "gradient_clip_norm")
        return ["params", *(word for word in known if word in self.group or word in self.whole.defaults)]

    def take(self, found):
        rule, whole = self.optimizer, self.whole
        if found.get("differentiable"):
            raise ArgumentError(
                "nbopt's steps are no part of PyTorch's graph: use torch.optim for differentiable=True"
            )
        rule.stochastic_round = found.get("stochastic_round", whole.stochastic_round)
        rule.gradient_clip_norm = found.get("gradient_clip_norm", whole.gradient_clip_norm)
        rule.state_dtype = (
            whole.state_dtype
            if whole.state_dtype in (None, "param")
            else storage_name(rule.be, whole.state_dtype)
        )
        for word in rule.words:
            if word in found:
                parts = PARTS.get(word, (word,))
                values = (found[word],) if len(parts) == 1 else tuple(found[word])
                if len(values) != len(parts):
                    raise ArgumentError(
                        f"a group's {word!r} must be {len(parts)} numbers, not {found[word]!r}"
                    )
                for name, value in zip(parts, values):
                    setattr(rule, name, _number(word, value))

    def kept(self):
        return self.optimizer.kept_now()

    def counts(self, params, new):
        rule = self.optimizer
        if not rule.counts_each or STEP in rule.kept:
            return []
        # A parameter whose states were there before, as after a load, has made a step.
        known, self._counts = self._counts, {}
        for param, added in zip(params, new):
            kept = known.get(param)
            if added or kept is None:
                kept = torch.full((), 0.0 if added else 1.0, dtype=torch.float32, device=param.device)
            self._counts[param] = kept
        return [*self._counts.values()]

    def set_of_updates(self):
        rule = self.optimizer
        return id(self.whole) if rule.gradient_clip_norm or rule.skip_nonfinite else None

    def check_saved(self, saved, states):
        every: tuple[Kept, ...] = self.optimizer.kept
        names = [one.name for one in every if not one.single]
        for index, param in zip(saved["params"], self.group["params"]):
            check_states(index, states.get(index, {}), dict.fromkeys(names, tuple(param.shape)))
        needed = {one.name for one in every if not one.when}
        for index in saved["params"]:
            found = states.get(index, {})
            missing = sorted(needed - found.keys())
            if missing and any(isinstance(value, torch.Tensor) for value in found.values()):
                raise StateError(
                    f"the state dict is not of {type(self.whole).__name__}: parameter {index} has the states "
                    f"{', '.join(map(str, found))}, and no {', '.join(missing)}"
                )

    def completed(self, saved):
        full = {**{key: value for key, value in self.whole.defaults.items() if key not in saved}, **saved}
        trial = copy.deepcopy(self.optimizer)
        trial.be = self.optimizer.be
        _DropInGroup({**full, "params": self.group["params"]}, trial, self.whole).read()
        return {**saved}

    def known(self):
        return self.optimizer.kept


def _number(word, value):
    """Return a group's value as a Python number. PyTorch takes tensors of one element."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ArgumentError(
                f"a group's {word!r} must be a number, or a tensor of one element, not one of shape "
                f"{tuple(value.shape)}"
            )
        return value.item()
    return value
