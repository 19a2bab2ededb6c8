"""Declarations of hyper-parameters.

Each is declared once, as an attribute of an optimizer's class::

    class Lion(Optimizer):
        learning_rate = hyper(1e-4)
        beta_1 = hyper(0.9, checks.below_one, "The momentum's share of the direction.", torch="betas")

`nbopt.optimizers.declared` makes the rest of it: the constructor, the checks of what is assigned, and the docstring's parameters. Descriptions
and checkpoints follow the constructor, and `nbopt.torch` takes PyTorch's words from here. The base class declares what optimizers share.

Editors and type checkers run nothing, so they don't see a constructor that is made. They read ``nbopt/optimizers/__init__.pyi`` in place of
the package, with the same signatures. ``tests/test_signatures.py`` holds both together, and writes that file. ``typing.dataclass_transform``
would need no file, but it puts arguments of base classes first, and neon has an optimizer's own between them.
"""

import dataclasses
import enum
from typing import Any


class _Mark(enum.Enum):
    REQUIRED = "the constructor needs it"
    OPEN = "taken from the declaration of a base class"


#: The default of an argument without one.
REQUIRED: Any = _Mark.REQUIRED
_OPEN: Any = _Mark.OPEN

#: PyTorch's word -> the hyper-parameters that it stands for, in the words of the first class that declared them.
TORCH: dict[str, tuple[str, ...]] = {}


@dataclasses.dataclass(frozen=True)
class Hyper:
    """The declaration of a hyper-parameter. Make it by `hyper`, which has the attributes' meaning."""

    default: Any
    check: Any
    doc: str
    torch: str
    takes: str
    instead: Any

    def over(self, inherited):
        """Return the declaration, with what it does not say taken from another one."""
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(inherited, **{name: value for name, value in said.items() if value is not _OPEN})

    @property
    def type(self):
        """Str : what it takes, as documentation has it. The check knows."""
        return self.takes or getattr(self.check, "type", "")


#: What a first declaration does not say.
FIRST = Hyper(REQUIRED, None, "", "", "", None)


def hyper(default=_OPEN, check=_OPEN, doc=_OPEN, *, torch=_OPEN, takes=_OPEN, instead=_OPEN) -> Any:
    """Declare a hyper-parameter, in the body of a class. What is not given stays as a base class has declared it.

    Parameters
    ----------
    default : object
        REQUIRED, or left out of a first declaration: the constructor needs the argument.
    check : callable
        One of the functions in `nbopt.checks`, or another one like them. Without it, values stay as they are.
    doc : str
        Documentation, in a line or a few.
    torch : str
        PyTorch's word. If several have the same, they are its parts, in the order of their declaration.
    takes : str
        What the argument may be, if there is no check that says so.
    instead : callable
        Makes what stands for None.

    Returns
    -------
    Hyper
        The type checkers' Any, as instances have a value in its place.
    """
    return Hyper(default, check, doc, torch, takes, instead)


def note_words(hypers):
    """Note PyTorch's words for the hyper-parameters of a class. Those that are known keep their meaning.

    Parameters
    ----------
    hypers : dict of str to Hyper
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, declaration in hypers.items():
        if declaration.torch:
            found[declaration.torch] = (*found.get(declaration.torch, ()), name)
    for word, names in found.items():
        TORCH.setdefault(word, names)
