"""The optimizers, also available as ``nbopt.RMSProp`` and so on."""

from nbopt.layers import get_param_list
from nbopt.optimizers.adabelief import AdaBelief
from nbopt.optimizers.adadelta import Adadelta
from nbopt.optimizers.adafactor import Adafactor
from nbopt.optimizers.adagrad import Adagrad
from nbopt.optimizers.adam import Adam
from nbopt.optimizers.adamax import AdaMax
from nbopt.optimizers.adamuon import AdaMuon
from nbopt.optimizers.adamw import AdamW
from nbopt.optimizers.adan import Adan
from nbopt.optimizers.ademamix import AdEMAMix
from nbopt.optimizers.adopt import ADOPT
from nbopt.optimizers.amsgrad import AMSGrad
from nbopt.optimizers.asgd import ASGD
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.came import CAME
from nbopt.optimizers.dadaptadam import DAdaptAdam
from nbopt.optimizers.lamb import LAMB
from nbopt.optimizers.lars import LARS
from nbopt.optimizers.lion import Lion
from nbopt.optimizers.mars import MARS
from nbopt.optimizers.momentum import GradientDescentMomentum
from nbopt.optimizers.multi import MultiOptimizer
from nbopt.optimizers.muon import Muon
from nbopt.optimizers.nadam import NAdam
from nbopt.optimizers.normuon import NorMuon
from nbopt.optimizers.prodigy import Prodigy
from nbopt.optimizers.radam import RAdam
from nbopt.optimizers.rmsprop import RMSProp
from nbopt.optimizers.rprop import Rprop
from nbopt.optimizers.schedulefreeadamw import ScheduleFreeAdamW
from nbopt.optimizers.schedulefreeradam import ScheduleFreeRAdam
from nbopt.optimizers.schedulefreesgd import ScheduleFreeSGD
from nbopt.optimizers.shift_adamax import ShiftAdaMax
from nbopt.optimizers.sm3 import SM3
from nbopt.optimizers.stableadamw import StableAdamW
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Step
from nbopt.optimizers.tiger import Tiger
from nbopt.optimizers.yogi import Yogi

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
    "DAdaptAdam",
    "GradientDescentMomentum",
    "Lion",
    "MultiOptimizer",
    "Muon",
    "NAdam",
    "NorMuon",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSProp",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "ShiftAdaMax",
    "StableAdamW",
    "State",
    "Step",
    "Tiger",
    "Yogi",
    "get_param_list",
]
