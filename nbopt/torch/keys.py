"""The keys of a group of parameters in PyTorch.

A key means a hyper-parameter, in nbopt's words or in PyTorch's.
"""

import functools
import warnings

from nbopt import optimizers
from nbopt.errors import ArgumentError
from nbopt.naming import NervanaObject, constructor_arguments
from nbopt.optimizers.hyper import torch_words

# Keys beside the hyper-parameters: ours, PyTorch's, and what a scheduler wants to find when it goes on from
# an earlier run.
COUNTERS = ("t", "epoch")
OTHERS = {"params", "param_names", "initial_lr", "optimizer", *COUNTERS}

# PyTorch's word -> nbopt's words for the same. A group's learning rate is called "lr" and nothing else.
WORDS = {word: names for word, names in torch_words().items() if word != "lr"}
# PyTorch's words for what few rules or none have. PyTorch's own groups have them too, turned off.
_FURTHER = {"dampening", "nesterov", "maximize", "amsgrad", "centered", "lr_decay"}

# Keys that would do nothing -> what to type.
_ELSEWHERE = {
    "learning_rate": 'a group\'s learning rate is called "lr": write group["lr"] = ...',
    "schedule": (
        'a schedule belongs to the optimizer of the group: {"params": ..., "optimizer": '
        "nbopt.RMSProp(schedule=...)}"
    ),
    "loss_scale": "the loss scale belongs to the whole optimizer: write optimizer.loss_scale = ...",
    "skip_nonfinite": "skipping belongs to the whole optimizer: write optimizer.skip_nonfinite = ...",
}


class NotSet(int):
    """The epoch of a group that nobody has set: 0, and known to be no user's."""


NOT_SET = NotSet(0)


@functools.cache
def _meaningful():
    """Return the keys that mean something to some optimizer of nbopt's or of PyTorch's."""
    found = {*WORDS, *_FURTHER}
    for name in optimizers.__all__:
        kind = getattr(optimizers, name)
        if isinstance(kind, type) and issubclass(kind, optimizers.Optimizer):
            found.update(constructor_arguments(kind))
    return found - {"name", "optimizer_mapping", *_ELSEWHERE}


class GroupKeys:
    """What the keys of a group mean to its optimizer.

    One value may stand in a group twice, under nbopt's word and under PyTorch's. The optimizer's own
    attribute says which of them has been written since they were read last.

    Attributes
    ----------
    values : dict
        Key of nbopt's -> the value that the constructor was given.
    words : dict
        PyTorch's word -> the keys that it stands for.
    """

    def __init__(self, optimizer):
        try:
            found = optimizer.get_description(skip=["name", "schedule"])["config"]
        except AttributeError as error:
            raise ArgumentError(
                f"{error}: keep each argument of the optimizer's constructor as an attribute of the same name"
            ) from None
        taken = sorted(found.keys() & OTHERS)
        if taken:
            raise ArgumentError(
                f"{optimizer.classnm}'s constructor has arguments that mean something else in groups: rename "
                f"{', '.join(taken)}"
            )
        found = {
            key: value
            for key, value in found.items()
            if not isinstance(getattr(optimizer, key), NervanaObject)
        }
        self._classnm = optimizer.classnm
        self._attributes = {"lr" if key == "learning_rate" else key: key for key in found}
        self.values = {key: found[attribute] for key, attribute in self._attributes.items()}
        self.values.setdefault("lr", 1.0)  # PyTorch's schedulers want one in every group
        self.words = {
            word: keys for word, keys in WORDS.items() if word not in found and found.keys() >= set(keys)
        }

    def completed(self, group, values=None):
        """Return a group's entries, with the constructor's values for what the group doesn't say.

        Each stands under both words if there are two.

        Parameters
        ----------
        group : dict
            It is not changed.
        values : dict, optional
            Others than the constructor's.

        Raises
        ------
        ArgumentError
            If the group says two things of one hyper-parameter.
        """
        found = {**self.values, **(values or {}), **group}
        for word, keys in self.words.items():
            if word in group:
                for key, part in zip(keys, self._parts(word, group[word])):
                    if key in group and not _same(group[key], part):
                        raise ArgumentError(_both(key, group[key], word, group[word]))
                    found[key] = part
            found[word] = self._joined(word, found)
        return found

    def watched(self, group):
        """Return the keys that have to be read at every step.

        They are the optimizer's, and those, if present, that ask for what it has not.

        Raises
        ------
        ArgumentError
            If a key stands in the wrong place.
        """
        own = [*self.values, *self.words]
        for key in group.keys() - own:
            if key in _ELSEWHERE:
                raise ArgumentError(f"a group's {key!r} does nothing: {_ELSEWHERE[key]}")
        foreign = (_meaningful() & group.keys()) - {*own, self._classnm.lower()}
        given = ["optimizer"] if "optimizer" in group else []
        return ["params", "epoch", *given, *own, *sorted(foreign)]

    def set(self, optimizer, found, convert):
        """Set an optimizer's hyper-parameters from a group's entries.

        Parameters
        ----------
        optimizer : nbopt.Optimizer
            Not changed if an error is raised.
        found : dict
            The entries. Where they have two words for one value, both show it afterwards.
        convert : callable
            ``convert(key, value)`` returns what the optimizer takes.

        Raises
        ------
        ArgumentError
            If a value makes no sense, or the group asks for what the rule has not.
        """
        before = dict(optimizer.__dict__)
        try:
            for word, keys in self.words.items():
                for key, part in zip(keys, self._parts(word, found[word])):
                    last = getattr(optimizer, self._attributes[key])
                    if not _same(part, last):
                        if not _same(found[key], last) and not _same(found[key], part):
                            raise ArgumentError(_both(key, found[key], word, found[word]))
                        found[key] = part
            for key, value in found.items():
                if key in self._attributes:
                    setattr(optimizer, self._attributes[key], convert(key, value))
                elif key in _meaningful() and key not in self.words and not _is_off(value):
                    known = ", ".join(self.values)
                    raise ArgumentError(
                        f"a group of {self._classnm} has no {key}; its hyper-parameters are {known}. Take "
                        f"{key}={value!r} out of the group"
                    )
        except BaseException:
            optimizer.__dict__.update(before)
            raise
        for word in self.words:
            found[word] = self._joined(word, found)

    def rate_is_unused(self, group):
        """Return whether a group asks for a learning rate of an optimizer that has none."""
        return "lr" not in self._attributes and not _same(group["lr"], 1.0)

    def _parts(self, word, value):
        """Return the values that a word of PyTorch's stands for, in the order of the keys."""
        count = len(self.words[word])
        if count == 1:
            return [value]
        try:
            parts = [*value]
        except TypeError:
            parts = []
        if len(parts) != count:
            raise ArgumentError(
                f"a group's {word!r} must be {count} numbers, such as (0.9, 0.999), not {value!r}"
            )
        return parts

    def _joined(self, word, found):
        """Return the value of a word of PyTorch's from those of nbopt's keys."""
        values = tuple(found[key] for key in self.words[word])
        return values if len(values) > 1 else values[0]


def warn_once(warned, message):
    """Warn, unless the set `warned` has the message, and note it there."""
    if message not in warned:
        warned.add(message)
        warnings.warn(message, stacklevel=3)


def warn_of_misspelt(warned, group, known):
    """Warn of keys that are kept, as PyTorch keeps them, but look like ones that mean something."""
    for key in group.keys() - set(known):
        meant = next((word for word in known if len(word) > 3 and one_letter_apart(key, word)), None)
        if meant:
            warn_once(warned, f"a group's {key!r} means nothing here; did you mean {meant!r}?")


def one_letter_apart(first, second):
    """Return whether two words differ by one letter: another one, one more, one less, or two exchanged."""
    if first == second or abs(len(first) - len(second)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
    a, b = first[start:], second[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def _both(key, value, word, other):
    return (
        f"a group says {key}={value!r} and {word}={other!r}, which are two words for the same: give one of "
        "them"
    )


def _same(first, second):
    return first is second or bool(first == second)


def _is_off(value):
    return value is None or (isinstance(value, (bool, int, float)) and not value)
