"""Adam and AdamW."""

from typing import Any

import torch

from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, Kept


class AdamRule(TorchRule):
    """PyTorch's Adam."""

    kept = (STEP, Kept("exp_avg"), Kept("exp_avg_sq"), Kept("max_exp_avg_sq", when="amsgrad"))
    words = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")
    beta_1: Any = 0.9
    beta_2: Any = 0.999
    eps: Any = 1e-8
    amsgrad: Any = False
    cautious: Any = False

    def formula(self, step, param, grad, mean, mean_square, largest=None):
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        first, root = 1.0 - b1**step.t, be.sqrt(1.0 - b2**step.t)
        grad = self.slope(param, grad)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        spread = mean_square
        if largest is not None:
            largest[:] = be.maximum(largest, mean_square)
            spread = largest
        change = (
            step.lr * root / first * self.cautious_update(mean, grad) / (be.sqrt(spread) + self.eps * root)
        )
        param[:] = self.moved(step, param, change)


class AdamWRule(AdamRule):
    """PyTorch's AdamW."""

    decoupled_weight_decay: Any = True  # older versions of PyTorch have no such key


class Adam(DropIn, torch.optim.Adam):
    """`torch.optim.Adam`, run by nbopt.

    With ``g`` the gradient, negated to maximize, plus ``weight_decay * p``, and ``t`` the parameter's own
    count of steps::

        m = beta_1 * m + (1 - beta_1) * g;       M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * g^2;     V = v / (1 - beta_2^t)   (amsgrad: of the largest v so far)
        p = p - lr * M / (sqrt(V) + eps)

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, 2014; formula,
    arguments, group keys and states of `torch.optim.Adam`.
    """

    made_of = AdamRule


class AdamW(DropIn, torch.optim.AdamW):
    """`torch.optim.AdamW`, run by nbopt: Adam with the weight decay apart from the gradient.

    As `Adam`, but that the decay is no part of ``g``::

        p = p - (lr * M / (sqrt(V) + eps) + lr * weight_decay * p)

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, 2017; formula,
    arguments, group keys and states of `torch.optim.AdamW`.
    """

    made_of = AdamWRule
