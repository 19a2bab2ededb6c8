"""The optimizers, also available as ``nbopt.RMSProp`` and so on."""

from nbopt.layers import get_param_list
from nbopt.optimizers.adabelief import AdaBelief
from nbopt.optimizers.adadelta import Adadelta
from nbopt.optimizers.adagrad import Adagrad
from nbopt.optimizers.adam import Adam
from nbopt.optimizers.adamax import AdaMax
from nbopt.optimizers.adamw import AdamW
from nbopt.optimizers.amsgrad import AMSGrad
from nbopt.optimizers.asgd import ASGD
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.lion import Lion
from nbopt.optimizers.momentum import GradientDescentMomentum
from nbopt.optimizers.multi import MultiOptimizer
from nbopt.optimizers.nadam import NAdam
from nbopt.optimizers.radam import RAdam
from nbopt.optimizers.rmsprop import RMSProp
from nbopt.optimizers.rprop import Rprop
from nbopt.optimizers.shift_adamax import ShiftAdaMax
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Step
from nbopt.optimizers.yogi import Yogi

__all__ = [
    "ASGD",
    "AMSGrad",
    "AdaBelief",
    "AdaMax",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "GradientDescentMomentum",
    "Lion",
    "MultiOptimizer",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSProp",
    "Rprop",
    "ShiftAdaMax",
    "State",
    "Step",
    "Yogi",
    "get_param_list",
]
