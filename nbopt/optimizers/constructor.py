"""Constructors of optimizers: how they are made from declarations, and how they look at their calls.

The look tells PyTorch's words, and positions that mean something else here, from what was meant.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import linecache
import numbers
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from nbopt.errors import ArgumentError, UnknownArgumentError
from nbopt.language.words import ARGUMENTS, ELSEWHERE
from nbopt.naming import constructor_arguments
from nbopt.optimizers.hyper import REQUIRED, torch_words

_FIRST = ("stochastic_round", "learning_rate")


def made(cls: Any, order: list[str]) -> Any:
    """Return a constructor that sets all hyper-parameters of a class, in the order of its arguments.

    Parameters
    ----------
    cls : type
    order : list of str
        The arguments. ``"*"`` comes before those that are passed by name only.

    Returns
    -------
    function
        Its text is what one would write, and debuggers find it. It hands arguments on to the next constructor
        that was written, usually that of `Optimizer`, and sets the others as attributes.
    """
    last = cls
    for base in cls.__mro__[1:]:
        init = vars(base).get("__init__")
        if init is not None and not getattr(init, "is_made", False):
            break
        last = base
    text = _text(cls.hypers, order, constructor_arguments(base))
    file = f"<constructor of {cls.__module__}.{cls.__qualname__}>"
    linecache.cache[file] = len(text), None, text.splitlines(True), file
    space: dict[str, Any] = {
        "_last": last,
        "_default": SimpleNamespace(**{name: hyper.default for name, hyper in cls.hypers.items()}),
        "_instead": SimpleNamespace(**{name: hyper.instead for name, hyper in cls.hypers.items()}),
    }
    exec(compile(text, file, "exec"), space)
    init = space["__init__"]
    init.__module__, init.__qualname__, init.is_made = cls.__module__, f"{cls.__qualname__}.__init__", True
    return init


def _text(hypers: dict[str, Any], order: list[str], handed_on: Any) -> str:
    """Return the text of a constructor.

    That of a class with one hyper-parameter would be::

        def __init__(self, decay=_default.decay, name=_default.name):
            super(_last, self).__init__(name=name)
            self.decay = decay
            self._check_together()
    """
    names = [name for name in order if name != "*"]
    optional = [name for name in names if hypers[name].default is not REQUIRED]
    taken = [f"{name}=_default.{name}" if name in optional else name for name in order]
    lines = [
        f"def __init__({', '.join(['self', *taken])}):",
        f"super(_last, self).__init__({', '.join(f'{name}={name}' for name in names if name in handed_on)})",
    ]
    for name in names:
        if name not in handed_on:
            lines.append(f"self.{name} = {name}" + (f" or _instead.{name}()" if hypers[name].instead else ""))
    return "\n    ".join([*lines, "self._check_together()"]) + "\n"


def checked(init: Callable[..., None]) -> Any:
    """Return a constructor that looks at its call first.

    It has the signature and the documentation of `init`.

    Parameters
    ----------
    init : function
        The ``__init__`` of a class of optimizers.

    Returns
    -------
    function
        It raises ArgumentError for a number as neon's first argument, `stochastic_round`, and for a model's
        parameters, and UnknownArgumentError for a name that `init` does not take.
    """
    kinds = inspect.Parameter
    parameters = list(inspect.signature(init).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    takes_all = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
    called = init.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(init)
    def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
        if args and parameters and parameters[0].name in _FIRST and _of_user(self) is constructor:
            _check_first(called, names, args[0])
        unknown = [] if takes_all else [name for name in kwargs if name not in names]
        if unknown:
            raise UnknownArgumentError(
                f"{called} takes no {', '.join(unknown)}. {_advice(called, names, unknown)}"
            )
        init(self, *args, **kwargs)

    # An attribute, so that classes can be asked without their signatures.
    constructor.forwards = bool(parameters) and parameters[0].kind is kinds.VAR_POSITIONAL  # type: ignore[attr-defined]
    return constructor


def _of_user(optimizer: Any) -> Any:
    """Return the constructor that the user's arguments go to.

    It may pass them on to others, which get what is right, in any way.
    """
    inits = (cls.__dict__["__init__"] for cls in type(optimizer).__mro__ if "__init__" in cls.__dict__)
    return next(init for init in inits if not getattr(init, "forwards", False))


def _check_first(called: str, names: Sequence[str], value: Any) -> None:
    if inspect.isgenerator(value) or isinstance(value, (list, tuple, dict)) or hasattr(value, "parameters"):
        raise ArgumentError(f"{called} takes no parameters of a model. {_for_torch(called)}")
    if (
        names[0] == "stochastic_round"
        and isinstance(value, numbers.Real)
        and not isinstance(value, (bool, np.bool_))
    ):
        meant = (
            "learning_rate"
            if "learning_rate" in names
            else next(name for name in names if name != "stochastic_round")
        )
        bits = (
            f", or {called}(stochastic_round={value!r}) to keep {value!r} bits"
            if isinstance(value, (int, np.integer))
            else ""
        )
        raise ArgumentError(
            f"the first argument of {called} is stochastic_round, as in neon, not {value!r}. Write "
            f"{called}({meant}={value!r}){bits}"
        )


def _for_torch(called: str) -> str:
    return (
        f"For PyTorch write nbopt.torch.Optimizer(model.parameters(), nbopt.{called}(...)); "
        "otherwise optimizer.optimize(layers, epoch) takes the layers at each step"
    )


def _meaning(name: str) -> tuple[str, ...]:
    """Return the hyper-parameters that another library's word stands for."""
    return ARGUMENTS.get(name) or torch_words().get(name, ())


def _advice(called: str, names: Sequence[str], unknown: Iterable[str]) -> str:
    found = []
    for name in unknown:
        own = _meaning(name)
        close = difflib.get_close_matches(name, names, 1)
        if name == "params":
            found.append(f"{_for_torch(called)}.")
        elif own and set(own) <= set(names):
            found.append(f"Write {' and '.join(f'{word}=' for word in own)} in place of {name}=.")
        elif name in ELSEWHERE:
            found.append(f"{ELSEWHERE[name]}.")
        elif close:
            found.append(f"Write {close[0]}= in place of {name}=.")
    return " ".join([*found, f"Its arguments are {', '.join(names)}"])


def like(name: str, known: Iterable[str]) -> Sequence[str]:
    """Return the hyper-parameters that an attribute of another name may be meant for.

    Parameters
    ----------
    name : str
    known : collection of str
        The hyper-parameters that there are.

    Returns
    -------
    sequence of str
        Empty if the name is far from all of them.
    """
    own = _meaning(name)
    if own and set(own) <= set(known):
        return own
    return difflib.get_close_matches(name, [word for word in known if len(word) > 3], 1, 0.85)
