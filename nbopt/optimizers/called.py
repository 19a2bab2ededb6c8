"""Calls of methods that users write: an error says how the method has to be written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from nbopt.errors import TraceError

_OF_RULES = ("step", "param", "grad")


def called(method: Callable[..., Any], names: Sequence[str], *args: Any) -> Any:
    """Return what a method of a user's class returns.

    Parameters
    ----------
    method : bound method
    names : sequence of str
        What the arguments are called in its documentation.
    *args

    Raises
    ------
    TraceError
        If it does not take so many arguments. (Any other error is the method's own.)
    """
    try:
        return method(*args)
    except TypeError:
        signature = inspect.signature(method)
        try:
            signature.bind(*args)
        except TypeError:
            raise TraceError(_advice(method, names, [*signature.parameters])) from None
        raise


def _advice(method: Any, names: Sequence[str], takes: list[str]) -> str:
    owner, name = type(method.__self__).__name__, method.__name__
    if (*takes[:3],) == _OF_RULES == (*names[:3],) and len(takes) > len(names):
        states = ", ".join(f'"{state}"' for state in takes[3:])
        return (
            f"the rule of {owner} takes {', '.join(takes[len(names) :])}, and the class declares no such "
            f"state. Write in the class: state_names = ({states},)"
        )
    return (
        f"{owner}.{name} takes ({', '.join(['self', *takes])}). Write def {name}"
        f"({', '.join(['self', *names])}):"
    )
