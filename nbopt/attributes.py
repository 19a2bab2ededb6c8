"""Attributes that refuse a value which would do nothing."""

from __future__ import annotations

from typing import Any

from nbopt.errors import ArgumentError


class Misspelt:
    """An attribute that nobody can have: another one was meant.

    Parameters
    ----------
    meant : str
        The attribute that there is.
    typed : str
        What to write to set it, such as ``"be.bsz = 64"``.
    error : type, optional
        What is raised if it is set.
    """

    def __init__(self, meant: str, typed: str, error: type[Exception] = ArgumentError) -> None:
        self.meant, self.typed, self.error = meant, typed, error

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, one: Any, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__} has no attribute {self.name!r}: it has {self.meant}")

    def __set__(self, one: Any, value: Any) -> None:
        called = self.typed.partition(".")[0]
        raise self.error(f"{called}.{self.name} = ... would do nothing: write {self.typed}")


class Constant:
    """An attribute of a backend that its constructor sets for good: nothing looks at a later value."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, backend: Any, owner: type) -> Any:
        return self if backend is None else backend.__dict__[self.name]

    def __set__(self, backend: Any, value: Any) -> None:
        if self.name in backend.__dict__:
            raise ArgumentError(
                f"{self.name} is chosen when a backend is made: write nbopt.gen_backend({backend.name!r}, "
                f"{self.name}={value!r})"
            )
        backend.__dict__[self.name] = value
