"""RMSprop."""

from typing import Any

import torch

from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, Kept


class RMSpropRule(TorchRule):
    """PyTorch's RMSprop."""

    kept = (
        STEP,
        Kept("square_avg"),
        Kept("momentum_buffer", when="momentum"),
        Kept("grad_avg", when="centered"),
    )
    words = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize")
    alpha: Any = 0.99
    eps: Any = 1e-8
    momentum: Any = 0.0
    centered: Any = False

    def formula(self, step, param, grad, square, *others):
        """One step; see the class."""
        be, alpha = self.be, self.alpha
        grad = self.slope(param, grad)
        square[:] = alpha * square + (1.0 - alpha) * be.square(grad)
        spread = square
        if self.centered:
            mean = others[-1]
            mean[:] = alpha * mean + (1.0 - alpha) * grad
            spread = be.maximum(square - be.square(mean), 0.0)  # rounding can make it negative
        change = grad / (be.sqrt(spread) + self.eps)
        if self.momentum:
            buffer = others[0]
            buffer[:] = self.momentum * buffer + change
            change = buffer
        param[:] = param - step.lr * change


class RMSprop(DropIn, torch.optim.RMSprop):
    """`torch.optim.RMSprop`, run by nbopt: each step divided by a running root mean square of its gradients.

    With ``g`` the gradient, negated to maximize, plus ``weight_decay * p``::

        v = alpha * v + (1 - alpha) * g^2
        p = p - lr * g / (sqrt(v) + eps)   (momentum: b = momentum * b + g / (sqrt(v) + eps); p = p - lr * b)

    If it is centered, the square of the gradients' running mean is taken off ``v`` in the root.

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", COURSERA Neural Networks for Machine Learning, 2012;
    formula, arguments, group keys and states of `torch.optim.RMSprop`.
    """

    made_of = RMSpropRule
