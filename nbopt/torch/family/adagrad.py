"""Adagrad."""

from typing import Any

import torch

from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, Kept


class AdagradRule(TorchRule):
    """PyTorch's Adagrad. Its states are there from the constructor on."""

    kept = (STEP, Kept("sum", start="initial_accumulator_value"))
    words = ("lr", "lr_decay", "eps", "weight_decay", "maximize")
    eps: Any = 1e-10
    lr_decay: Any = 0.0

    def formula(self, step, param, grad, total):
        """One step; see the class."""
        be, grad = self.be, self.slope(param, grad)
        rate = step.lr / (1.0 + (step.t - 1.0) * self.lr_decay)
        total[:] = total + be.square(grad)
        param[:] = param - rate * grad / (be.sqrt(total) + self.eps)


class Adagrad(DropIn, torch.optim.Adagrad):
    """`torch.optim.Adagrad`, run by nbopt: each step divided by the root of the sum of squares so far.

    With ``g`` the gradient, negated to maximize, plus ``weight_decay * p``::

        G = G + g^2                                       (at first initial_accumulator_value)
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(G) + eps)

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", JMLR 12, 2011; formula, arguments, group keys and states of `torch.optim.Adagrad`.
    """

    made_of = AdagradRule

    def share_memory(self):
        """Move the sums to shared memory; see `torch.optim.Adagrad.share_memory`."""
        super().share_memory()
        self._forget()  # they have other addresses under the same objects
