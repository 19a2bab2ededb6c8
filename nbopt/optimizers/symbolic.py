"""What a rule gets as ``self`` while it is traced: the optimizer, with symbols in place of its numbers.

Each attribute that the rule reads is a source or a guard. A number is a source: it stands in the scalar code
by its name, so that another value traces nothing. Anything else is a guard: the trace is used again as long
as it is equal to what it was.
"""

from __future__ import annotations

import numbers
import types
from typing import Any, NoReturn

import numpy as np

from nbopt.language.trace import Tracer
from nbopt.language.values import Value


class Reader:
    """What a rule reads from ``self`` while it is traced.

    Attributes
    ----------
    guards : dict
        The attributes that are no numbers and can be compared, with their values.
    reusable : bool
        Whether the trace depends on nothing else.
    """

    def __init__(self, tracer: Tracer, optimizer: Any) -> None:
        self.tracer, self.optimizer = tracer, optimizer
        self.guards: dict[Any, Any] = {}
        self.reusable = True

    def read(self, name: str, value: Any) -> Any:
        """Return what the rule gets in place of an attribute's value."""
        if name == "be" or isinstance(value, Value):
            return value
        if isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)):
            return self.tracer.source(f"self.{name}", value)
        if name not in self.optimizer.__dict__ and callable(value):
            return value  # a method
        if _comparable(value):
            self.guards[name] = value
        else:
            self.reusable = False
        return value


def _comparable(value: Any) -> bool:
    """Return whether an equal value, at another time, means the same to a rule."""
    if type(value) in (tuple, frozenset):
        return all(map(_comparable, value))
    return value is None or isinstance(value, (bool, np.bool_, int, float, str, bytes, type, np.dtype))


class KeepsSomethingError(Exception):
    """A rule sets an attribute, so it has to be run at every step, with plain numbers."""


def _symbolic_getattribute(self: Any, name: str) -> Any:
    value = object.__getattribute__(self, name)
    if name[:2] == "__":
        return value
    return object.__getattribute__(self, "_reader_").read(name, value)


def _symbolic_setattr(self: Any, name: str, value: Any) -> NoReturn:
    raise KeepsSomethingError


def symbolic(optimizer: Any, reader: Reader) -> Any:
    """Return what a rule gets as ``self``.

    It is an instance of the same class, with the same attributes. All reads of them go through `reader`.
    """
    own = type(optimizer)
    found = own.__dict__.get("_symbolic_")  # kept by the class, so that both can end
    if found is None:
        contents = {
            "__slots__": ("_reader_",),
            "__getattribute__": _symbolic_getattribute,
            "__setattr__": _symbolic_setattr,
            **{name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")},
        }
        found = types.new_class(
            own.__name__, (own,), {"symbolic": True}, lambda space: space.update(contents)
        )
        own._symbolic_ = found
    new: Any = object.__new__(found)
    object.__setattr__(new, "__dict__", optimizer.__dict__)
    object.__setattr__(new, "_reader_", reader)
    return new
