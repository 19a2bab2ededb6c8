"""nbopt: neon's optimizers, and your own, as fused Numba kernels over your arrays."""

import importlib
from typing import TYPE_CHECKING, Any

from nbopt import backends, errors, optimizers
from nbopt.arrays.tensor import Tensor
from nbopt.backends import available_backends, gen_backend, get_backend, set_backend, use_backend
from nbopt.interface.backend import Backend
from nbopt.naming import NervanaObject
from nbopt.parameters import Parameters
from nbopt.schedules import ExpSchedule, PolySchedule, PowerSchedule, Schedule, ShiftSchedule, StepSchedule
from nbopt.version import __version__

if TYPE_CHECKING:
    from nbopt.checkpoints.file import load, save
    from nbopt.inspection import compile, explain
    from nbopt.optimizers import *  # noqa: F403
    from nbopt.optimizers.step import Expr, Slot

#: Public name -> the module that has it, and is imported when the name is asked for. The optimizers are found
#: in their package.
_HOMES = {
    "Expr": "optimizers.step",
    "Slot": "optimizers.step",
    "compile": "inspection",
    "explain": "inspection",
    "load": "checkpoints.file",
    "save": "checkpoints.file",
}

__all__ = [
    "Backend",
    "ExpSchedule",
    "Expr",
    "NervanaObject",
    "Parameters",
    "PolySchedule",
    "PowerSchedule",
    "Schedule",
    "ShiftSchedule",
    "Slot",
    "StepSchedule",
    "Tensor",
    "__version__",
    "available_backends",
    "backends",
    "compile",
    "errors",
    "explain",
    "gen_backend",
    "get_backend",
    "load",
    "optimizers",
    "save",
    "set_backend",
    "use_backend",
]
__all__ += optimizers.__all__


def __dir__() -> list[str]:
    return [*__all__]


def __getattr__(name: str) -> Any:
    if name in _HOMES or name in optimizers.__all__:
        home = f"nbopt.{_HOMES.get(name, 'optimizers')}"
        found = globals()[name] = getattr(importlib.import_module(home), name)
        return found
    # Importing nbopt does not import PyTorch, and so neither does dir(nbopt).
    if name == "torch":
        try:
            return importlib.import_module("nbopt.torch")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ImportError(
                'nbopt.torch needs PyTorch. Type: pip install "nbopt[torch]"', name="torch"
            ) from None
    from nbopt.language.words import class_for

    hint = class_for(name, __all__, "nbopt")
    if name == "optim":
        hint = ": write nbopt.torch, which has the classes of torch.optim"
    raise AttributeError(f"module 'nbopt' has no attribute {name!r}{hint}", name=name)
