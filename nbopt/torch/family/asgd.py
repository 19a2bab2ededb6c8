"""ASGD."""

from typing import Any

import torch

from nbopt.optimizers.modifiers import decayed
from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, Kept


class ASGDRule(TorchRule):
    """PyTorch's ASGD. A step uses the ``eta`` and ``mu`` that the step before it has stored, in float32."""

    kept = (
        STEP,
        Kept("eta", start="lr", single="float32"),
        Kept("mu", start=1.0, single="float32"),
        Kept("ax"),
    )
    words = ("lr", "lambd", "alpha", "t0", "weight_decay", "maximize")
    lambd: Any = 1e-4
    alpha: Any = 0.75
    t0: Any = 1e6

    def formula(self, step, param, grad, eta, mu, average):
        """One step; see the class."""
        be, grad = self.be, self.slope(param, grad)
        param[:] = decayed(param, eta * grad, self.lambd * eta)
        average[:] = be.where(mu == 1.0, param, average + (param - average) * mu)
        eta[:] = step.lr / (1.0 + self.lambd * step.lr * step.t) ** self.alpha
        mu[:] = 1.0 / be.maximum(1.0, step.t - self.t0)


class ASGD(DropIn, torch.optim.ASGD):
    """`torch.optim.ASGD`, run by nbopt: gradient descent that also keeps the average of its parameters.

    With ``g`` the gradient, negated to maximize, plus ``weight_decay * p``, ``eta`` the learning rate and
    ``mu`` 1 at first::

        p = p - (eta * g + lambd * eta * p)
        ax = ax + mu * (p - ax)
        eta = lr / (1 + lambd * lr * t)^alpha;   mu = 1 / max(1, t - t0)

    References
    ----------
    B. T. Polyak, A. B. Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on
    Control and Optimization 30, 1992; formula, arguments, group keys and states of `torch.optim.ASGD`.
    """

    made_of = ASGDRule
