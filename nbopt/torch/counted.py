"""Dictionaries that count their changes: ``optimizer.state`` of the PyTorch adapter.

One comparison a step sees any change.
"""

import itertools
from collections import defaultdict

_stamps = itertools.count(1)


def _counting(name):
    """Return a dictionary's method that leaves a new stamp."""

    def method(self, *args, **options):
        self.stamp[0] = next(_stamps)
        return getattr(dict, name)(self, *args, **options)

    method.__name__ = name
    return method


class CountedStates(dict):
    """The states of one parameter, by their names. Copies and pickles of it are plain dictionaries.

    Attributes
    ----------
    stamp : list of one int
        Another number after each change; that of the `CountedState` which it stands in.
    """

    def __init__(self, stamp, states):
        super().__init__(states)
        self.stamp = stamp

    def __reduce__(self):
        """Become a plain dictionary."""
        return dict, (dict(self),)

    def __ior__(self, other):  # type: ignore[misc]
        self.update(other)
        return self


class CountedState(defaultdict):
    """Parameter -> its `CountedStates`. Copies and pickles of it are PyTorch's ``defaultdict(dict)``.

    Attributes
    ----------
    stamp : list of one int
        Another number after each change of this dictionary and of those in it. No two of these dictionaries
        ever have the same.
    """

    def __init__(self, states):
        super().__init__(dict)
        self.stamp = [next(_stamps)]
        self.update(states)

    def __setitem__(self, key, value):
        self.stamp[0] = next(_stamps)
        if isinstance(value, dict) and getattr(value, "stamp", None) is not self.stamp:
            value = CountedStates(self.stamp, value)
        super().__setitem__(key, value)

    def __missing__(self, key):
        self[key] = {}
        return self[key]

    def update(self, *args, **options):
        """Take over the entries of another dictionary."""
        for key, value in dict(*args, **options).items():
            self[key] = value

    def setdefault(self, key, default=None):
        """Return the entry, which is `default` if there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def copy(self):
        """Return a plain copy."""
        return defaultdict(
            dict,
            {key: dict(value) if isinstance(value, CountedStates) else value for key, value in self.items()},
        )

    __copy__ = copy

    def __reduce__(self):
        """Become PyTorch's kind of dictionary."""
        return defaultdict, (dict, dict(self))

    def __ior__(self, other):  # type: ignore[misc]
        self.update(other)
        return self


for _name in ("__delitem__", "clear", "pop", "popitem"):
    setattr(CountedState, _name, _counting(_name))
for _name in ("__setitem__", "__delitem__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(CountedStates, _name, _counting(_name))
