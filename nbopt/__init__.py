"""nbopt: neon's optimizers, and your own, as fused Numba kernels over arrays that you already have."""

import importlib
from typing import Any

from nbopt import backends, errors, optimizers
from nbopt.arrays.tensor import Tensor
from nbopt.backends import available_backends, gen_backend, get_backend, set_backend, use_backend
from nbopt.checkpoints.file import load, save
from nbopt.inspection import compile, explain
from nbopt.interface.backend import Backend
from nbopt.language.words import class_for
from nbopt.naming import NervanaObject
from nbopt.optimizers import (
    ADOPT,
    ASGD,
    CAME,
    LAMB,
    LARS,
    MARS,
    SM3,
    AdaBelief,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    AdaMax,
    AdaMuon,
    AdamW,
    Adan,
    AdEMAMix,
    AMSGrad,
    DAdaptAdam,
    GradientDescentMomentum,
    Lion,
    MultiOptimizer,
    Muon,
    NAdam,
    NorMuon,
    Optimizer,
    Prodigy,
    RAdam,
    RMSProp,
    Rprop,
    ScheduleFreeAdamW,
    ScheduleFreeRAdam,
    ScheduleFreeSGD,
    ShiftAdaMax,
    StableAdamW,
    State,
    Tiger,
    Yogi,
    get_param_list,
)
from nbopt.optimizers.step import Expr, Slot, Step
from nbopt.parameters import Parameters
from nbopt.schedules import ExpSchedule, PolySchedule, PowerSchedule, Schedule, ShiftSchedule, StepSchedule
from nbopt.version import __version__

__all__ = [
    "ADOPT",
    "ASGD",
    "CAME",
    "LAMB",
    "LARS",
    "MARS",
    "SM3",
    "AMSGrad",
    "AdEMAMix",
    "AdaBelief",
    "AdaMax",
    "AdaMuon",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adan",
    "Backend",
    "DAdaptAdam",
    "ExpSchedule",
    "Expr",
    "GradientDescentMomentum",
    "Lion",
    "MultiOptimizer",
    "Muon",
    "NAdam",
    "NervanaObject",
    "NorMuon",
    "Optimizer",
    "Parameters",
    "PolySchedule",
    "PowerSchedule",
    "Prodigy",
    "RAdam",
    "RMSProp",
    "Rprop",
    "Schedule",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "ShiftAdaMax",
    "ShiftSchedule",
    "Slot",
    "StableAdamW",
    "State",
    "Step",
    "StepSchedule",
    "Tensor",
    "Tiger",
    "Yogi",
    "__version__",
    "available_backends",
    "backends",
    "compile",
    "errors",
    "explain",
    "gen_backend",
    "get_backend",
    "get_param_list",
    "load",
    "optimizers",
    "save",
    "set_backend",
    "use_backend",
]


def __dir__() -> list[str]:
    return [*__all__]


def __getattr__(name: str) -> Any:
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
    hint = class_for(name, __all__, "nbopt")
    if name == "optim":
        hint = ": write nbopt.torch, which has the classes of torch.optim"
    raise AttributeError(f"module 'nbopt' has no attribute {name!r}{hint}", name=name)
