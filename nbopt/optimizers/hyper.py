"""Declarations of hyper-parameters.

Each is declared once, as an attribute of an optimizer's class::

    class Lion(Optimizer):
        learning_rate = hyper(1e-4)
        beta_1 = hyper(0.9, checks.below_one, "The momentum's share of the direction.", torch="betas")

`nbopt.optimizers.declared` makes the rest from that: the constructor, the checks of what is assigned, and the
docstring's parameters. Descriptions and checkpoints follow the constructor. `nbopt.torch` takes PyTorch's
words from here. The base class declares what optimizers share.

Editors and type checkers don't run code, so they can't see a constructor that is made. They read
``nbopt/optimizers/__init__.pyi``, which has the same signatures. ``tests/test_signatures.py`` compares both,
and writes that file. ``typing.dataclass_transform`` would need no file, but it puts the arguments of base
classes first, and neon has an optimizer's own between them.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple


class _Mark(enum.Enum):
    REQUIRED = "the constructor needs it"
    OPEN = "taken from the declaration of a base class"


#: The default of an argument without one.
REQUIRED: Any = _Mark.REQUIRED
_OPEN: Any = _Mark.OPEN

#: PyTorch's word -> the hyper-parameters that it stands for: in the library's classes, and in those of users.
_TORCH: dict[str, tuple[str, ...]] = {}
_OF_USERS: dict[str, tuple[str, ...]] = {}


class Hyper(NamedTuple):
    """The declaration of a hyper-parameter. Make it by `hyper`, which has the attributes' meaning."""

    default: Any
    check: Any
    doc: str
    torch: str
    takes: str
    instead: Any

    def over(self, inherited: Hyper) -> Hyper:
        """Return the declaration, with what it does not say taken from another one."""
        return Hyper(*(other if own is _OPEN else own for own, other in zip(self, inherited)))

    @property
    def type(self) -> str:
        """What it takes, as documentation says it. The check knows."""
        return self.takes or getattr(self.check, "type", "")


#: What a first declaration does not say.
FIRST = Hyper(REQUIRED, None, "", "", "", None)


def hyper(
    default: Any = _OPEN,
    check: Any = _OPEN,
    doc: Any = _OPEN,
    *,
    torch: Any = _OPEN,
    takes: Any = _OPEN,
    instead: Any = _OPEN,
) -> Any:
    """Declare a hyper-parameter, in the body of a class.

    What is not given stays as a base class has declared it.

    Parameters
    ----------
    default : object
        REQUIRED if the constructor needs the argument, as it does if a first declaration has no default.
    check : callable
        One of the functions in `nbopt.checks`, or another one like them. Without it, values stay as they are.
    doc : str
        Documentation, in a line or a few.
    torch : str
        PyTorch's word. If several have the same, they are its parts, in the order of their declaration.
    takes : str
        What the argument may be, if there is no check that says so.
    instead : callable
        Makes the object that the attribute gets in place of None.

    Returns
    -------
    Hyper
        Type checkers take it for Any, since instances have a value in its place.
    """
    return Hyper(default, check, doc, torch, takes, instead)


def torch_words() -> dict[str, tuple[str, ...]]:
    """Return PyTorch's words, with the hyper-parameters that each stands for.

    All of the library's classes are imported for that, since they declare them.

    Returns
    -------
    dict
        In the order of the words. One that several classes have means what it does in the library, and
        there the fewest hyper-parameters.
    """
    from nbopt import optimizers

    optimizers.every()
    return dict(sorted({**_OF_USERS, **_TORCH}.items()))


def note_words(hypers: dict[str, Hyper], module: str) -> None:
    """Note PyTorch's words for the hyper-parameters of a class.

    Parameters
    ----------
    hypers : dict of str to Hyper
    module : str
        The class's.
    """
    table = _TORCH if module.startswith("nbopt.") else _OF_USERS
    found: dict[str, tuple[str, ...]] = {}
    for name, declaration in hypers.items():
        if declaration.torch:
            found[declaration.torch] = (*found.get(declaration.torch, ()), name)
    for word, names in found.items():
        table[word] = min(table.get(word, names), names, key=len)
