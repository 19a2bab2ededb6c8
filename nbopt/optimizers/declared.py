"""What a class of optimizers gets from the declarations of its hyper-parameters."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any

from nbopt.errors import ArgumentError, NboptError
from nbopt.language.words import ELSEWHERE
from nbopt.naming import constructor_arguments
from nbopt.optimizers import constructor
from nbopt.optimizers.hyper import FIRST, REQUIRED, Hyper, note_words

#: The longest line of documentation.
_WIDTH = 110
#: The sections of a docstring that come after its parameters.
_LATER = ("Attributes", "Notes", "References", "Examples")


class Declared:
    """Base of `Optimizer`: checks what is assigned, and gives subclasses a constructor and its documentation.

    Attributes
    ----------
    hypers : dict of str to Hyper
        All declarations, those of base classes first. In their place the class has the defaults.
    arguments : tuple[Any, ...]
        The constructor's arguments in their order. ``...`` stands for the class's own that it does not name.
        ``"*"`` comes before those that are passed by name only.
    checks : dict
        Hyper-parameter -> check.
    """

    hypers: dict[str, Hyper] = {}
    arguments: tuple[Any, ...] = ()
    checks: dict[str, Any] = {}
    _root: Any = None

    def __init_subclass__(cls, symbolic: bool = False, **options: Any) -> None:
        super().__init_subclass__(symbolic=symbolic, **options)  # type: ignore[call-arg]
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Hyper)}
        if not own:
            return
        _declare(cls, own)
        if "__init__" not in vars(cls):
            order = _order(cls)
            cls.__init__ = constructor.made(cls, order)  # type: ignore[method-assign]
            if cls.__doc__:
                cls.__doc__ = _documented(
                    cls.__doc__, [(name, cls.hypers[name]) for name in order if name != "*"]
                )

    def __setattr__(self, name: str, value: Any) -> None:
        check = self.checks.get(name)
        if check is None and name not in self.__dict__ and not name.startswith("_"):
            self._check_new_name(name, value, sys._getframe(1))
        if check is not None and not self.stays_in_memory(name, value):
            value = check(name, value)
        object.__setattr__(self, name, value)

    def stays_in_memory(self, name: str, value: Any) -> bool:
        """Return whether a value of a hyper-parameter is an array that each step reads, and so is kept.

        Parameters
        ----------
        name : str
        value : object

        Returns
        -------
        bool
        """
        return False

    def _check_new_name(self, name: str, value: Any, frame: Any) -> None:
        """Refuse to make an attribute that looks like a hyper-parameter by another name.

        The methods of an optimizer may make any. A backend, and a value in place of a method, are refused
        as well: nothing would look at them.
        """
        if name == "be":
            raise ArgumentError(
                "optimizer.be = ... would do nothing: all objects use one backend. Write "
                "nbopt.set_backend(backend)"
            )
        found = getattr(type(self), name, None)  # a hyper-parameter may be a function, too
        if inspect.isfunction(found) and found.__qualname__.endswith(f".{name}") and not callable(value):
            raise ArgumentError(
                f"{name} is a method of {type(self).__name__}, so setting it to {value!r} would only hide it"
            )
        arguments = () if hasattr(type(self), name) else constructor_arguments(type(self))
        if name in arguments or hasattr(type(self), name):
            return
        known = constructor.like(name, {*self.checks, *arguments} - {"name"})
        if not known and name not in ELSEWHERE:
            return
        allowed = {**self.checks, **self._root.checks}  # those of a MultiOptimizer allow nothing
        if len(known) == 1 and known[0] in allowed:
            try:
                allowed[known[0]](known[0], value)
            except NboptError:
                return  # no value of that hyper-parameter: a list of learning rates, say
        while frame is not None:
            first = frame.f_code.co_varnames[: frame.f_code.co_argcount][:1]
            if first and frame.f_locals.get(first[0]) is self:
                return
            frame = frame.f_back
        write = " and ".join(f"optimizer.{word} = ..." for word in known)
        advice = (
            f"Write {write}, or give an attribute of your own a name that is less like it"
            if known
            else ELSEWHERE[name]
        )
        raise ArgumentError(f"{type(self).__name__} has no {name}, so setting it would do nothing. {advice}")


def _declare(cls: Any, own: dict[str, Hyper]) -> None:
    """Enter a class's own declarations, and leave their defaults in their place."""
    inherited: dict[str, Hyper] = {}
    table: dict[str, Any] = {}
    for base in reversed(cls.__bases__):
        inherited |= getattr(base, "hypers", {})
        table |= getattr(base, "checks", {})
    if cls._root is None:
        cls._root = cls
    own = {name: declaration.over(inherited.get(name, FIRST)) for name, declaration in own.items()}
    cls.hypers = {**inherited, **own}
    checks = {name: declaration.check for name, declaration in own.items() if declaration.check}
    cls.checks = {**vars(cls).get("checks", table), **checks}
    for name, declaration in own.items():
        if declaration.default is REQUIRED:
            delattr(cls, name)
        else:
            setattr(cls, name, declaration.default)
    note_words(cls.hypers, cls.__module__)


def _order(cls: Any) -> list[str]:
    """Return the names of the constructor's arguments, with ``"*"`` among them."""
    own = [name for name in cls.hypers if name not in cls.arguments and name not in cls._root.hypers]
    order = [name for entry in cls.arguments for name in (own if entry is ... else [entry])]
    unknown = [name for name in order if name not in {*cls.hypers, "*"}]
    missing = [name for name in own if name not in order]
    if unknown or missing:
        raise ArgumentError(
            f"{cls.__name__}.arguments must name each hyper-parameter, or have ... for those that it doesn't "
            "name. "
            + (f"Not declared: {', '.join(unknown)}" if unknown else f"Missing: {', '.join(missing)}")
        )
    return order


def _documented(docstring: str, hypers: list[tuple[str, Hyper]]) -> str:
    """Return a class's docstring with a section for its hyper-parameters, unless it has one."""
    whole = inspect.cleandoc(docstring)
    if "\nParameters\n---" in whole:
        return whole
    lines = ["Parameters", "----------"]
    for name, declaration in hypers:
        lines.append(f"{name} : {declaration.type}" if declaration.type else name)
        # Most are short. To wrap them as well takes milliseconds at each import.
        text = declaration.doc
        lines += [
            f"    {line}" for line in ([text] if len(text) <= _WIDTH else textwrap.wrap(text, _WIDTH)) if line
        ]
    section = "\n".join(lines)
    places = [place for place in (whole.find(f"\n{title}\n---") for title in _LATER) if place >= 0]
    place = min(places, default=len(whole))
    return f"{whole[:place].rstrip()}\n\n{section}\n{whole[place:]}"
