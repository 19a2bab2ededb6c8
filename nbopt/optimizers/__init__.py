"""The optimizers, also available as ``nbopt.RMSProp`` and so on."""

from nbopt.optimizers.adadelta import Adadelta
from nbopt.optimizers.adagrad import Adagrad
from nbopt.optimizers.adam import Adam
from nbopt.optimizers.base import Optimizer, Step, get_param_list
from nbopt.optimizers.momentum import GradientDescentMomentum
from nbopt.optimizers.multi import MultiOptimizer
from nbopt.optimizers.rmsprop import RMSProp
from nbopt.optimizers.shift_adamax import ShiftAdaMax

__all__ = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "GradientDescentMomentum",
    "MultiOptimizer",
    "Optimizer",
    "RMSProp",
    "ShiftAdaMax",
    "Step",
    "get_param_list",
]
