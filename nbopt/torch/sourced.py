"""SourcedRule: nbopt's own rules in the words of the PyTorch package that they are from."""

import inspect
from typing import Any

import torch

from nbopt import checks
from nbopt.errors import UnknownArgumentError
from nbopt.optimizers.states import EMA
from nbopt.torch.masters import MIRROR
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, kept_of


class SourcedRule(TorchRule):
    """Base of rules that are one of nbopt's, with another package's words. The next base is nbopt's class.

    Attributes
    ----------
    given : dict
        The package's arguments and their defaults, in its order.
    further : tuple of str
        Keys of a group that are no arguments.
    meant : dict of str to str
        An argument -> the hyper-parameter that it is, where no declaration says so.
    notes : dict of str to str
        Documentation of arguments that are no hyper-parameters.
    checked : dict of str to callable
        The checks of these.
    renamed : dict of str to str
        nbopt's name of a state -> the package's.
    squeezed : bool
        Whether states of slices lack the axes along which they don't vary.
    source : str
        The package's class.
    """

    given: dict[str, Any] = {}
    further: tuple[str, ...] = ()
    meant: dict[str, str] = {}
    notes: dict[str, str] = {"maximize": "Whether to ascend."}
    renamed: dict[str, str] = {}
    squeezed = False
    source = ""
    checked: dict[str, Any] = {"maximize": checks.boolean}
    counter = "step"
    parts: dict[str, tuple[str, ...]] = {}

    def __init_subclass__(cls, symbolic: bool = False, **options: Any) -> None:
        super().__init_subclass__(symbolic=symbolic, **options)
        if symbolic:
            return
        native: Any = cls.__mro__[cls.__mro__.index(TorchRule) + 1]
        cls.state_names, cls.checks = native.state_names, {**native.checks, **cls.checked}
        cls.words = (*cls.given, *cls.further)
        cls.parts = {word: cls._parts(native, word) for word in cls.words}
        for word, parts in cls.parts.items():
            if parts == (word,) and not hasattr(cls, word):
                setattr(cls, word, cls.given[word])

    @classmethod
    def _parts(cls, native, word):
        if word == "lr":
            return ("learning_rate",)
        found = tuple(name for name, declared in native.hypers.items() if declared.torch == word)
        return (cls.meant[word],) if word in cls.meant else found or (word,)

    def parts_of(self, word):
        """Return the attributes that a group's key stands for."""
        return self.parts[word]

    def converted(self, word, value):
        """Return what the attribute gets of a group's value. Its own check knows of None."""
        return value

    @classmethod
    def parameters(cls):
        """Return the arguments of the class for PyTorch."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        given = [inspect.Parameter(word, kind, default=default) for word, default in cls.given.items()]
        return [*(inspect.Parameter(name, kind) for name in ("self", "params")), *given]

    @classmethod
    def documentation(cls):
        """Return the documentation of these arguments."""
        lines = ["params : iterable", "    As `torch.optim.Optimizer` takes them."]
        for word in cls.given:
            parts = cls.parts[word]
            docs = [cls.hypers[part].doc for part in parts if part in cls.hypers]
            lines += [f"{word}", f"    {cls.notes.get(word) or ' '.join(docs)}"]
        return "\n    ".join(lines)

    @classmethod
    def defaults_of(cls, given):
        """Return the keys of a group and their defaults.

        Parameters
        ----------
        given : dict
            The arguments.
        """
        return {**given, **({cls.counter: 0} if cls.counter else {}), **cls().first_numbers(given)}

    def first_numbers(self, given):
        """Return what a group shows of the states that are one number, before there are any."""
        return {name: given.get("d0", 0.0) if name in ("d", "d_max") else 0.0 for name in self.step_names()}

    def called(self, name):
        """Return the package's name of a state."""
        return self.renamed.get(name, name)

    def states_in_use(self):
        """Return the names of the states that the rule takes now, as nbopt calls them."""
        return super(TorchRule, self).states_in_use()

    def declared_states(self, shape=()):
        """Return the states that the rule takes now."""
        found = super(TorchRule, self).declared_states(shape)
        own = found[:-1] if found[-1:] == (EMA,) else found
        return self.with_further(tuple((self.called(name), state) for name, state in own))

    def _stated(self, states):
        own = [
            kept_of(name, state)._replace(squeezed=self.squeezed)
            for name, state in states
            if state.axes != "step" and (name, state) != MIRROR
        ]
        return [*([STEP] if self.counts_each else []), *own]

    def kept_now(self, kind=None):
        """Return the states that there are now."""
        return self._stated(self.declared_states() if kind is None else kind[1])

    def every_kept(self, shape):
        """Return the states that a parameter of some shape may have."""
        names, own = super(TorchRule, self).every_state(shape), dict(self.declared_states(shape))
        found = self._stated((self.called(name), state) for name, state in names.items())
        return [one if one.name in own or one is STEP else one._replace(when="-") for one in found]

    def step_names(self):
        """Return the names of the states that are one number for the group, which are keys of it."""
        states = super(TorchRule, self).declared_states((1, 1))
        return tuple(self.called(name) for name, state in states if state.axes == "step")

    @property
    def shown(self):
        """Dict of str to torch.Tensor : these states, as the group shows them. Steps write into them."""
        return self.__dict__.setdefault("_shown", {})

    def take_step_state(self, name, value):
        """Go on from a number that a group has for one of these states, if it is not the one shown."""
        known = self.shown.get(name)
        if value is not known and known is not None and self.capturable:
            known.fill_(float(value))  # a graph knows this memory
        elif value is not known:
            self.shown.pop(name, None)
            self.step_states[name] = float(value)  # type: ignore[assignment]

    def share_step_states(self, other):
        """Have the states that are one number in common with another rule."""
        super().share_step_states(other)
        self.__dict__["_shown"] = other.shown

    def _step_state(self, be, name, state, rate):
        if name == "found_inf":
            return super()._step_state(be, name, state, rate)
        kept = self.step_states
        if name not in self.shown:
            value = kept.get(name)
            start = float(state.beginning(rate)) if value is None else value
            device = "cpu" if be.name != "cuda" else torch.device("cuda", be.device_id)
            self.shown[name] = torch.full((), start, dtype=torch.float64, device=device)
            kept[name] = be.wrap(self.shown[name].view(1))
        return kept[name]

    def formula(self, step, param, grad, *states):
        """One step of nbopt's rule."""
        super(TorchRule, self).rule(step, param, self.slope(param, grad), *states)

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name != "_shown"}


class Arguments(torch.optim.Optimizer):
    """The constructor of a class whose arguments are those of a package."""

    made_of: type[SourcedRule]

    def __init__(self, params, *args, **kwargs):
        rule, called = self.made_of, type(self).__name__
        unknown = [name for name in kwargs if name not in rule.given]
        if unknown or len(args) > len(rule.given):
            wrong = f"no {', '.join(unknown)}" if unknown else f"{len(rule.given)} arguments, not {len(args)}"
            raise UnknownArgumentError(f"{called} takes {wrong}. Its arguments are {', '.join(rule.given)}")
        twice = [name for name in [*rule.given][: len(args)] if name in kwargs]
        if twice:
            raise UnknownArgumentError(f"{called} is given {', '.join(twice)} twice")
        given = {**rule.given, **dict(zip(rule.given, args)), **kwargs}
        super().__init__(params, rule.defaults_of(given))
