"""The look at a constructor's call that tells PyTorch's words, and positions that mean something else here, from what was meant."""

import difflib
import functools
import inspect
import numbers

import numpy as np

from nbopt.errors import ArgumentError, UnknownArgumentError
from nbopt.language.words import ARGUMENTS, ELSEWHERE

_FIRST = ("stochastic_round", "learning_rate")


def checked(init):
    """Return a constructor that looks at its call first, and that has the signature and the documentation of `init`.

    Parameters
    ----------
    init : function
        The ``__init__`` of a class of optimizers.

    Returns
    -------
    function
        It raises ArgumentError for a number as neon's first argument, `stochastic_round`, and for a model's parameters, and
        UnknownArgumentError for a name that `init` does not take.
    """
    kinds = inspect.Parameter
    parameters = list(inspect.signature(init).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    takes_all = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
    called = init.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(init)
    def constructor(self, *args, **kwargs):
        if args and parameters and parameters[0].name in _FIRST and _of_user(self) is constructor:
            _check_first(called, names, args[0])
        unknown = [] if takes_all else [name for name in kwargs if name not in names]
        if unknown:
            raise UnknownArgumentError(f"{called} takes no {', '.join(unknown)}. {_advice(called, names, unknown)}")
        init(self, *args, **kwargs)

    # An attribute, so that classes can be asked without their signatures.
    constructor.forwards = bool(parameters) and parameters[0].kind is kinds.VAR_POSITIONAL  # type: ignore[attr-defined]
    return constructor


def _of_user(optimizer):
    """Return the constructor that the user's arguments go to. It may pass them on to others, which get what is right, in any way."""
    inits = (cls.__dict__["__init__"] for cls in type(optimizer).__mro__ if "__init__" in cls.__dict__)
    return next(init for init in inits if not getattr(init, "forwards", False))


def _check_first(called, names, value):
    if inspect.isgenerator(value) or isinstance(value, (list, tuple, dict)) or hasattr(value, "parameters"):
        raise ArgumentError(f"{called} takes no parameters of a model. {_for_torch(called)}")
    if names[0] == "stochastic_round" and isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)):
        meant = "learning_rate" if "learning_rate" in names else next(name for name in names if name != "stochastic_round")
        bits = f", or {called}(stochastic_round={value!r}) to keep {value!r} bits" if isinstance(value, (int, np.integer)) else ""
        raise ArgumentError(f"the first argument of {called} is stochastic_round, as in neon, not {value!r}. Write {called}({meant}={value!r}){bits}")


def _for_torch(called):
    return (
        f"For PyTorch write nbopt.torch.Optimizer(model.parameters(), nbopt.{called}(...)); "
        "otherwise optimizer.optimize(layers, epoch) takes the layers at each step"
    )


def _advice(called, names, unknown):
    found = []
    for name in unknown:
        own = ARGUMENTS.get(name)
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


def like(name, known):
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
    own = ARGUMENTS.get(name, ())
    if own and set(own) <= set(known):
        return own
    return difflib.get_close_matches(name, [word for word in known if len(word) > 3], 1, 0.85)
