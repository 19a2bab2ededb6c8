"""RAdam."""

from typing import Any

import torch

from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, Kept


class RAdamRule(TorchRule):
    """PyTorch's RAdam."""

    kept = (STEP, Kept("exp_avg"), Kept("exp_avg_sq"))
    words = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize")
    beta_1: Any = 0.9
    beta_2: Any = 0.999
    eps: Any = 1e-8

    def formula(self, step, param, grad, mean, mean_square):
        """One step; see the class."""
        be, b1, b2, t = self.be, self.beta_1, self.beta_2, step.t
        second = 1.0 - b2**t
        grad = self.slope(param, grad)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        most = 2.0 / (1.0 - b2) - 1.0
        # The length of a plain average that would be as certain as the running one.
        length = most - 2.0 * t * b2**t / second
        square = (length - 4.0) * (length - 2.0) * most / ((most - 4.0) * (most - 2.0) * length)
        certain = length > 5.0
        rectified = be.sqrt(be.where(certain, square, 0.0) * second)
        factor = be.where(certain, rectified / (be.sqrt(mean_square) + self.eps), 1.0)
        param[:] = self.moved(step, param, step.lr / (1.0 - b1**t) * mean * factor)


class RAdam(DropIn, torch.optim.RAdam):
    """`torch.optim.RAdam`, run by nbopt.

    It is Adam that does not divide while a parameter has seen too few gradients.

    With ``g`` the gradient as in `Adam`::

        m = beta_1 * m + (1 - beta_1) * g;       M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * g^2
        n = 2 / (1 - beta_2) - 1;                n_t = n - 2 * t * beta_2^t / (1 - beta_2^t)
        r_t = sqrt((n_t - 4) * (n_t - 2) * n / ((n - 4) * (n - 2) * n_t))
        n_t > 5:  p = p - lr * M * r_t * sqrt(1 - beta_2^t) / (sqrt(v) + eps)
        else:     p = p - lr * M

    References
    ----------
    L. Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020, arXiv:1908.03265;
    formula, arguments, group keys and states of `torch.optim.RAdam`.
    """

    made_of = RAdamRule
