"""NAdam."""

from typing import Any

import torch

from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, Kept


class NAdamRule(TorchRule):
    """PyTorch's NAdam. The product of the momenta is a float32 number of the parameter, as in PyTorch."""

    kept = (STEP, Kept("mu_product", start=1.0, single="float32"), Kept("exp_avg"), Kept("exp_avg_sq"))
    words = ("lr", "betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay", "maximize")
    beta_1: Any = 0.9
    beta_2: Any = 0.999
    eps: Any = 1e-8
    momentum_decay: Any = 4e-3

    def momentum(self, t):
        """Return the momentum of the parameter's step `t`."""
        return self.beta_1 * (1.0 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def formula(self, step, param, grad, product, mean, mean_square):
        """One step; see the class."""
        be, b1, b2, t = self.be, self.beta_1, self.beta_2, step.t
        root, now, ahead = be.sqrt(1.0 - b2**t), self.momentum(t), self.momentum(t + 1.0)
        grad = self.slope(param, grad)
        product[:] = product * in_float32(now)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        rate = step.lr * root
        change = rate * ahead / (1.0 - product * ahead) * mean + rate * (1.0 - now) / (1.0 - product) * grad
        param[:] = self.moved(step, param, change / (be.sqrt(mean_square) + self.eps * root))


def in_float32(x):
    """Return a float64 number, rounded to the 24 bits of float32.

    PyTorch multiplies float32 numbers by such ones.

    T. J. Dekker, "A floating-point technique for extending the available precision", Numerische Mathematik
    18, 1971.
    """
    scaled = x * (2.0**29 + 1.0)
    return scaled - (scaled - x)


class NAdam(DropIn, torch.optim.NAdam):
    """`torch.optim.NAdam`, run by nbopt: Adam with Nesterov's momentum.

    With ``g`` the gradient as in `Adam`, ``mu_t = beta_1 * (1 - 0.96^(t * momentum_decay) / 2)``, and ``P_t``
    the product of ``mu_1`` to ``mu_t``::

        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g^2
        M = mu_(t+1) * m / (1 - P_(t+1)) + (1 - mu_t) * g / (1 - P_t)
        p = p - lr * M / (sqrt(v / (1 - beta_2^t)) + eps)

    References
    ----------
    T. Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 Workshop; formula, arguments, group keys
    and states of `torch.optim.NAdam`.
    """

    made_of = NAdamRule
