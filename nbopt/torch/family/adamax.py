"""Adamax."""

from typing import Any

import torch

from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, Kept


class AdamaxRule(TorchRule):
    """PyTorch's Adamax."""

    kept = (STEP, Kept("exp_avg"), Kept("exp_inf"))
    words = ("lr", "betas", "eps", "weight_decay", "maximize")
    beta_1: Any = 0.9
    beta_2: Any = 0.999
    eps: Any = 1e-8

    def formula(self, step, param, grad, mean, largest):
        """One step; see the class."""
        be, b1 = self.be, self.beta_1
        grad = self.slope(param, grad)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        largest[:] = be.maximum(self.beta_2 * largest, be.absolute(grad) + self.eps)
        # It is eps at least, unless a state of 16 bits has rounded it to 0.
        param[:] = param - step.lr / (1.0 - b1**step.t) * mean / be.maximum(largest, self.eps)


class Adamax(DropIn, torch.optim.Adamax):
    """`torch.optim.Adamax`, run by nbopt.

    It is Adam that divides by a decaying maximum of the gradients' magnitudes.

    With ``g`` the gradient, negated to maximize, plus ``weight_decay * p``::

        m = beta_1 * m + (1 - beta_1) * g
        u = max(beta_2 * u, abs(g) + eps)
        p = p - lr / (1 - beta_1^t) * m / u

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, 2014, section 7.1;
    formula, arguments, group keys and states of `torch.optim.Adamax`.
    """

    made_of = AdamaxRule
