"""SGD."""

from typing import Any

import torch

from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import Kept


class SGDRule(TorchRule):
    """PyTorch's SGD. The first gradient of a parameter becomes its buffer as it is, whatever the dampening.

    PyTorch keeps no count of steps for it. So with dampening the count stands beside the states.
    """

    kept = (Kept("momentum_buffer", when="momentum"),)
    words = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    momentum: Any = 0.0
    dampening: Any = 0.0
    nesterov: Any = False

    @property
    def counts_each(self):  # type: ignore[override]
        """Bool : whether a parameter's first step is another one than the later ones."""
        return bool(self.dampening and self.momentum)

    def formula(self, step, param, grad, buffer=None):
        """One step; see the class."""
        grad = self.slope(param, grad)
        if buffer is not None:
            share = self.be.where(step.t > 1.0, 1.0 - self.dampening, 1.0) if self.counts_each else 1.0
            buffer[:] = self.momentum * buffer + share * grad
            grad = grad + self.momentum * buffer if self.nesterov else buffer
        param[:] = param - step.lr * grad


class SGD(DropIn, torch.optim.SGD):
    """`torch.optim.SGD`, run by nbopt: stochastic gradient descent, with momentum or without.

    With ``g`` the gradient, negated to maximize, plus ``weight_decay * p``::

        b = momentum * b + (1 - dampening) * g            (the first time b = g)
        p = p - lr * b                                    (nesterov: p = p - lr * (g + momentum * b))

    References
    ----------
    Formula, arguments, group keys and states of `torch.optim.SGD`.
    """

    made_of = SGDRule
