"""Checks of hyper-parameters.

Each takes a name and a value. It returns the value that is kept, and raises ArgumentError if the value makes
no sense. Its attribute ``type`` says in a word what it takes, for documentation.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from nbopt.arrays.tensor import Tensor, normalise_rounding
from nbopt.errors import ArgumentError


class Check(Protocol):
    """A check of a hyper-parameter; see the module."""

    type: str

    def __call__(self, name: str, value: Any, /) -> Any:
        """Return the value that is kept."""


def unwrapped(value: Any) -> Any:
    """Return the number in an array or tensor without dimensions, else `value` itself.

    The array may be NumPy's, PyTorch's, JAX's or another's.
    """
    if isinstance(value, numbers.Real) or getattr(value, "shape", None) != ():
        return value
    return value.get().item() if isinstance(value, Tensor) else value.item()


def _takes(text: str) -> Callable[[Any], Check]:
    """Return a decorator that notes on a check what it takes."""

    def noted(check: Any) -> Check:
        check.type = text
        return check

    return noted


def _check(condition: Callable[[Any], bool], allowed: str, kind: type = float) -> Check:
    text = allowed.replace("a finite number", "float").replace("a number", "float").replace("an int", "int")

    @_takes(text)
    def check(name: str, value: Any) -> Any:
        value = unwrapped(value)
        if isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)):
            try:
                # One type from here on: NumPy's scalars, say, would pull the host's arithmetic down to their
                # own precision.
                number = kind(value)
            except (OverflowError, ValueError):
                number = math.nan
            if number == value and condition(number):
                return number
        raise ArgumentError(f"{name} must be {allowed}, not {value!r}")

    return check


non_negative = _check(lambda x: 0 <= x < math.inf, "a finite number from 0 on")
non_positive = _check(lambda x: -math.inf < x <= 0, "a finite number up to 0")
positive = _check(lambda x: 0 < x < math.inf, "a finite number above 0")
fraction = _check(lambda x: 0 <= x <= 1, "a number from 0 to 1")
inside = _check(lambda x: 0 < x < 1, "a number between 0 and 1")
below_one = _check(lambda x: 0 <= x < 1, "a number from 0 to below 1")
one_or_more = _check(lambda x: 1 <= x < math.inf, "a finite number from 1 on")
finite = _check(math.isfinite, "a finite number")
count = _check(lambda x: 0 <= x < 2**63, "an int from 0 on", int)
positive_int = _check(lambda x: x >= 1, "an int from 1 on", int)
epoch = _check(lambda x: 0 <= x < math.inf, "a number from 0 on")


def optional(check: Check) -> Check:
    """Return `check`, with None allowed too."""
    takes = f"{getattr(check, 'type', 'object')}, optional"
    return _takes(takes)(lambda name, value: value if value is None else check(name, value))


@_takes("Schedule, optional")
def schedule(name: str, value: Any) -> Any:
    """Check a schedule: an object with a method get_learning_rate, or None."""
    if value is not None and (
        isinstance(value, type) or not callable(getattr(value, "get_learning_rate", None))
    ):
        raise ArgumentError(
            f"{name} must be a schedule, such as nbopt.Schedule(10, 0.5), or None; not {value!r}"
        )
    return value


@_takes("bool or int")
def rounding(name: str, value: Any) -> bool | int:
    """Check a stochastic_round setting and return its normal form."""
    try:
        return normalise_rounding(value)
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from None


@_takes("float, or array or Tensor of one element")
def loss_scale(name: str, value: Any) -> Any:
    """Check a loss scale: a number, or an array or tensor of one element, which may be on a device."""
    if isinstance(value, (numbers.Real, type(None))):
        return positive(name, value)
    if math.prod(getattr(value, "shape", (0,))) != 1:
        raise ArgumentError(
            f"{name} must be a number above 0, or an array or tensor of one element, not {value!r}"
        )
    return value


@_takes("bool")
def boolean(name: str, value: Any) -> bool:
    """Check a flag and return it as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{name} must be True or False, not {value!r}")
    return bool(value)


@_takes("dtype")
def storage(name: str, value: Any) -> str:
    """Check a dtype in which elements may be stored, of any library, and return its name."""
    try:
        found = str(value).rpartition(".")[2] if type(value).__module__ == "torch" else np.dtype(value).name
    except TypeError:
        found = str(value)
    if found not in ("float64", "float32", "float16", "bfloat16"):
        raise ArgumentError(
            f'{name} must be a dtype, "float64", "float32", "float16" or "bfloat16"; not {value!r}'
        )
    return found


def one_of(*allowed: Any) -> Check:
    """Return a check that takes some values and no others."""
    words = " or ".join(map(repr, allowed))

    kinds = {type(one).__name__: None for one in allowed if one is not None}

    @_takes(" or ".join(kinds) + ", optional" * (None in allowed))
    def check(name: str, value: Any) -> Any:
        if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
            raise ArgumentError(f"{name} must be {words}, not {value!r}")
        return value

    return check
