"""Optimizers for PyTorch, run by nbopt's engine.

``nbopt`` itself never imports PyTorch: only this package does.
"""

from nbopt.language.words import class_for
from nbopt.torch.decay import decay_groups
from nbopt.torch.family.adadelta import Adadelta
from nbopt.torch.family.adagrad import Adagrad
from nbopt.torch.family.adam import Adam, AdamW
from nbopt.torch.family.adamax import Adamax
from nbopt.torch.family.adams import ADOPT, MARS, Adan, AdEMAMix, StableAdamW
from nbopt.torch.family.adapted import DAdaptAdam, Prodigy
from nbopt.torch.family.asgd import ASGD
from nbopt.torch.family.factored import CAME, SM3, Adafactor
from nbopt.torch.family.large_batches import LAMB, LARS
from nbopt.torch.family.muon import Muon
from nbopt.torch.family.nadam import NAdam
from nbopt.torch.family.radam import RAdam
from nbopt.torch.family.rmsprop import RMSprop
from nbopt.torch.family.rprop import Rprop
from nbopt.torch.family.schedulefree import ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD
from nbopt.torch.family.sgd import SGD
from nbopt.torch.family.signs import AdaBelief, Lion, Tiger, Yogi
from nbopt.torch.matrices import muon_groups
from nbopt.torch.offload import Offload
from nbopt.torch.optimizer import Optimizer

__all__ = [
    "ADOPT", "ASGD", "CAME", "LAMB", "LARS", "MARS", "SGD", "SM3", "AdEMAMix", "AdaBelief", "Adadelta",
    "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Adan", "DAdaptAdam", "Lion", "Muon", "NAdam",
    "Offload", "Optimizer", "Prodigy", "RAdam", "RMSprop", "Rprop", "ScheduleFreeAdamW", "ScheduleFreeRAdam",
    "ScheduleFreeSGD", "StableAdamW", "Tiger", "Yogi", "decay_groups", "muon_groups",
]  # fmt: skip


def __getattr__(name):
    hint = class_for(name, __all__, "nbopt.torch")
    raise AttributeError(f"module 'nbopt.torch' has no attribute {name!r}{hint}", name=name)
