"""Optimizers for PyTorch, run by nbopt's engine.

``nbopt`` itself never imports PyTorch: only this package does.
"""

from nbopt.torch.decay import decay_groups
from nbopt.torch.family.adadelta import Adadelta
from nbopt.torch.family.adagrad import Adagrad
from nbopt.torch.family.adam import Adam, AdamW
from nbopt.torch.family.adamax import Adamax
from nbopt.torch.family.asgd import ASGD
from nbopt.torch.family.nadam import NAdam
from nbopt.torch.family.radam import RAdam
from nbopt.torch.family.rmsprop import RMSprop
from nbopt.torch.family.rprop import Rprop
from nbopt.torch.family.sgd import SGD
from nbopt.torch.optimizer import Optimizer

__all__ = [
    "ASGD", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Optimizer", "RAdam", "RMSprop",
    "Rprop", "decay_groups",
]  # fmt: skip
