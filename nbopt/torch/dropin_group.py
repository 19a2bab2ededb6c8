"""DropInGroup: a group of parameters with the keys of PyTorch's own optimizers, or of another package's."""

import copy
import functools
from typing import Any

import torch

from nbopt import checks
from nbopt.errors import ArgumentError, StateError
from nbopt.optimizers import Optimizer
from nbopt.optimizers.states import storage_name
from nbopt.torch.group import Group, lost
from nbopt.torch.masters import MASTER
from nbopt.torch.rule import TorchRule
from nbopt.torch.saving import check_states
from nbopt.torch.states import STEP, Kept
from nbopt.torch.words import torchs_word

#: What the whole optimizer has beside PyTorch's arguments -> check.
EXTRAS: dict[str, Any] = {
    "stochastic_round": checks.rounding,
    "state_dtype": lambda name, value: value,
    "cautious": checks.boolean,
    **{name: Optimizer.checks[name] for name in ("gradient_clip_norm", "ema_decay", "centralize",
    "adaptive_clip", "param_decay")},
}  # fmt: skip
#: Those of them that a group may have, too.
_OF_GROUPS = tuple(name for name in EXTRAS if name != "state_dtype")


class DropInGroup(Group):
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
        """Return the keys that have to be read at every step."""
        further = ("differentiable", "capturable", *_OF_GROUPS)
        known = (*self.optimizer.words, *self.optimizer.step_names(), *further)
        for key in self.group.keys() - set(known):
            word = torchs_word(key)
            if word in known:
                raise ArgumentError(f"a group's {key!r} does nothing: write {word!r}")
        for word in self.optimizer.words:
            if word in self.whole.defaults and word not in self.group:
                raise lost(word, self.optimizer)
        return ["params", *(word for word in known if word in self.group)]

    def take(self, found):
        """Set the rule's hyper-parameters, and its numbers, from the group's."""
        rule, whole = self.optimizer, self.whole
        if found.get("differentiable"):
            text = "nbopt's steps are no part of PyTorch's graph: use torch.optim for differentiable=True"
            # Both at once are an error of PyTorch's, too.
            raise RuntimeError(f"{text}, without fused") if self.group.get("fused") else ArgumentError(text)
        rule.capturable = bool(found.get("capturable") or whole.capturable)
        for name in _OF_GROUPS:
            value = found.get(name, getattr(whole, name))
            if name != "cautious" or hasattr(rule, name):
                setattr(rule, name, value)
        rule.state_dtype = (
            whole.state_dtype
            if whole.state_dtype in (None, "param")
            else storage_name(rule.be, whole.state_dtype)
        )
        for word in rule.words:
            if word in found:
                parts = rule.parts_of(word)
                given: Any = found[word]
                if word == "lr" and rule.capturable and _is_on_gpu(given):
                    rule.learning_rate = given
                    continue
                if len(parts) == 1:
                    values = (given,)
                else:
                    values = tuple(given) if isinstance(given, (tuple, list, torch.Tensor)) else ()
                if len(values) != len(parts):
                    raise ArgumentError(
                        f"a group's {word!r} must be {len(parts)} numbers, not {found[word]!r}"
                    )
                for name, value in zip(parts, values):
                    if isinstance(value, str) and isinstance(getattr(rule, name), float):
                        raise ArgumentError(f"a group's {word!r} must be a number, not {value!r}")
                    try:
                        setattr(rule, name, rule.converted(word, _number(word, value)))
                    except ArgumentError as error:
                        raise ArgumentError(str(error).replace(name, f"a group's {word!r}", 1)) from None
        for name in rule.step_names():
            if name in found:
                rule.take_step_state(name, found[name])
        rule.masters = whole.master_weights
        rule.settle(found)

    def read(self):
        """Set what has changed in the group's dictionary."""
        super().read()
        rule = self.optimizer
        if rule.counter and self.group.get(rule.counter) is not self.shown_count():
            rule.t = self.group.get(rule.counter, 0)

    def go_on_with(self, group):
        """Take a group of a state dict, which may be older than some of the keys."""
        for word in self.optimizer.words:
            if word in self.whole.defaults:
                group.setdefault(word, self.whole.defaults[word])
        super().go_on_with(group)

    def stepped(self):
        """Show the count of steps, and the numbers that the rule keeps."""
        rule = self.optimizer
        if rule.counter:
            self.group[rule.counter] = self.shown_count()
        self.group.update(rule.shown)

    def saved(self, group):
        """Return the group as a state dict has it: numbers in place of tensors."""
        rule, numbers = self.optimizer, {}
        if rule.counter:
            numbers[rule.counter] = int(group[rule.counter])
        return {**group, **numbers, **{name: value.item() for name, value in rule.shown.items()}}

    def _stays(self, value):
        return super()._stays(value) or any(value is one for one in self.optimizer.shown.values())

    def kept(self, kind=None):
        """Return the states that there are now."""
        return self.optimizer.kept_now(kind)

    def counts(self, params, new):
        """Return the parameters' counts of steps where they are no states."""
        rule = self.optimizer
        if not rule.counts_each or STEP in self.kept():
            return []
        # A parameter whose states were there before, as after a load, has made a step.
        self._forget_counts()
        for param, added in zip(params, new):
            kept = self._counts.get(param)
            if added or kept is None:
                kept = torch.full((), 0.0 if added else 1.0, dtype=torch.float32, device=param.device)
            self._counts[param] = kept
        return [self._counts[param] for param in params]

    def _forget_counts(self):
        of_group = {*map(id, self.group["params"])}
        self._counts = {param: kept for param, kept in self._counts.items() if id(param) in of_group}

    def forget(self):
        """Look at everything afresh in the next step."""
        super().forget()
        if self._counts:
            self._forget_counts()

    def check_saved(self, saved, states):
        """Raise where a saved group, or its states, are of something else."""
        rule = self.optimizer
        lacks = sorted({*rule.words} & self.whole.defaults.keys() - saved.keys())
        foreign = sorted(saved.keys() & _all_words() - {*rule.words, *self.whole.defaults})
        # The states tell, unless there may be none. Packages have keys that are none here.
        if lacks and foreign and all(one.when for one in rule.every_kept(())):
            raise StateError(
                f"the state dict is not of {type(self.whole).__name__}: a group of it has "
                f"{', '.join(foreign)}, and no {', '.join(lacks)}. Load it into the optimizer that it was "
                "made by"
            )
        # Packages count from the first step on.
        if rule.counter and rule.counter not in saved and any(map(states.get, saved["params"])):
            raise StateError(
                f"the state dict is not of {type(self.whole).__name__}: a group of it has no "
                f"{rule.counter}. Load it into the optimizer that it was made by"
            )
        for index, param in zip(saved["params"], self.group["params"]):
            shape, found = tuple(param.shape), states.get(index, {})
            if isinstance(found, dict):
                found = {name: rule.adapted(name, value, param) for name, value in found.items()}
            shapes = {one.name: one.stored(shape) for one in rule.every_kept(shape) if not one.single}
            check_states(index, found, {**shapes, MASTER.name: shape})
            needed = {one.name for one in rule.every_kept(shape) if not one.when}
            missing = sorted(needed - found.keys())
            if missing and any(isinstance(value, torch.Tensor) for value in found.values()):
                raise StateError(
                    f"the state dict is not of {type(self.whole).__name__}: parameter {index} has the states "
                    f"{', '.join(map(str, found))}, and no {', '.join(missing)}"
                )

    def completed(self, saved):
        """Return a saved group; raise where it makes no sense."""
        full = {**{key: value for key, value in self.whole.defaults.items() if key not in saved}, **saved}
        trial = copy.deepcopy(self.optimizer)
        vars(trial)["be"] = self.optimizer.be
        DropInGroup({**full, "params": self.group["params"]}, trial, self.whole).read()
        return {**saved}

    def loaded(self, saved, params, states, masters=False):
        """Return new states from those of a state dict."""
        adapted = [
            {name: self.optimizer.adapted(name, value, param) for name, value in found.items()}
            for param, found in zip(params, states)
        ]
        return super().loaded(saved, params, adapted, masters)

    def known(self):
        """Return all states that the rule may take."""
        every: dict[str, Kept] = {}
        for shape in {tuple(param.shape): None for param in self.group["params"]}:
            every.update({one.name: one for one in self.optimizer.every_kept(shape)})
        return [*every.values()]


@functools.cache
def _all_words():
    """Return the keys of groups that some class for PyTorch reads."""
    kinds = [TorchRule]
    for kind in kinds:  # it grows
        kinds += kind.__subclasses__()
    return frozenset(word for kind in kinds for word in kind.words)


def _is_on_gpu(value):
    return isinstance(value, torch.Tensor) and value.is_cuda and value.numel() == 1


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
