"""Adadelta."""

from typing import Any

import torch

from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, Kept


class AdadeltaRule(TorchRule):
    """PyTorch's Adadelta."""

    kept = (STEP, Kept("square_avg"), Kept("acc_delta"))
    words = ("lr", "rho", "eps", "weight_decay", "maximize")
    rho: Any = 0.9
    eps: Any = 1e-6

    def formula(self, step, param, grad, square, deltas):
        """One step; see the class."""
        be, rho, eps = self.be, self.rho, self.eps
        grad = self.slope(param, grad)
        square[:] = rho * square + (1.0 - rho) * be.square(grad)
        inverse = 1.0 / be.sqrt(square + eps)
        if self.weight_decay:
            # The gradient is built from the parameter, so the parameter is stored last. The change is found
            # again from the new mean of its squares, rho * old + (1 - rho) * (old + eps) * share: both terms
            # are positive, so nothing is cancelled.
            share = be.square(grad * inverse)
            deltas[:] = rho * deltas + (1.0 - rho) * (deltas + eps) * share
            before = (deltas + rho * eps) / be.maximum(rho + (1.0 - rho) * share, 1e-30)
            param[:] = param - step.lr * be.sqrt(before) * inverse * grad
        else:
            change = be.sqrt(deltas + eps) * inverse * grad
            param[:] = param - step.lr * change
            deltas[:] = rho * deltas + (1.0 - rho) * be.square(change)


class Adadelta(DropIn, torch.optim.Adadelta):
    """`torch.optim.Adadelta`, run by nbopt.

    Each step is as large as the steps before it, in units of its gradients.

    With ``g`` the gradient, negated to maximize, plus ``weight_decay * p``::

        a = rho * a + (1 - rho) * g^2
        d = sqrt(b + eps) / sqrt(a + eps) * g
        b = rho * b + (1 - rho) * d^2
        p = p - lr * d

    References
    ----------
    M. D. Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, 2012; formula, arguments,
    group keys and states of `torch.optim.Adadelta`.
    """

    made_of = AdadeltaRule
