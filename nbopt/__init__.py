"""nbopt: neon's optimizers, and your own, as fused Numba kernels over arrays that you already have."""

from nbopt import backends, errors, optimizers
from nbopt.backend import Backend
from nbopt.backends import available_backends, gen_backend, get_backend, set_backend, use_backend
from nbopt.base import NervanaObject
from nbopt.checkpoint_file import load, save
from nbopt.inspection import compile, explain
from nbopt.optimizers import (
    ASGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    AdaMax,
    AdamW,
    AMSGrad,
    GradientDescentMomentum,
    Lion,
    MultiOptimizer,
    NAdam,
    Optimizer,
    RAdam,
    RMSProp,
    Rprop,
    ShiftAdaMax,
    Yogi,
    get_param_list,
)
from nbopt.parameters import Parameters
from nbopt.schedules import ExpSchedule, PolySchedule, PowerSchedule, Schedule, ShiftSchedule, StepSchedule
from nbopt.tensor import Tensor
from nbopt.version import __version__

__all__ = [
    "ASGD",
    "AMSGrad",
    "AdaBelief",
    "AdaMax",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Backend",
    "ExpSchedule",
    "GradientDescentMomentum",
    "Lion",
    "MultiOptimizer",
    "NAdam",
    "NervanaObject",
    "Optimizer",
    "Parameters",
    "PolySchedule",
    "PowerSchedule",
    "RAdam",
    "RMSProp",
    "Rprop",
    "Schedule",
    "ShiftAdaMax",
    "ShiftSchedule",
    "StepSchedule",
    "Tensor",
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
