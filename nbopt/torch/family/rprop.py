"""Rprop."""

from typing import Any

import torch

from nbopt.torch.dropin import DropIn
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import STEP, Kept


class RpropRule(TorchRule):
    """PyTorch's Rprop."""

    kept = (STEP, Kept("prev"), Kept("step_size", start="lr"))
    words = ("lr", "etas", "step_sizes", "maximize")
    eta_minus: Any = 0.5
    eta_plus: Any = 1.2
    size_min: Any = 1e-6
    size_max: Any = 50.0

    def formula(self, step, param, grad, before, size):
        """One step; see the class."""
        be, grad = self.be, self.slope(param, grad)
        agreement = grad * before
        factor = be.where(agreement > 0.0, self.eta_plus, be.where(agreement < 0.0, self.eta_minus, 1.0))
        size[:] = be.minimum(be.maximum(size * factor, self.size_min), self.size_max)
        grad = be.where(agreement < 0.0, 0.0, grad)
        param[:] = param - be.sgn(grad) * size
        before[:] = grad


class Rprop(DropIn, torch.optim.Rprop):
    """`torch.optim.Rprop`, run by nbopt.

    It steps along the gradient's sign. Each element finds the size of its steps for itself.

    With ``g`` the gradient, negated to maximize, ``d`` that of the step before, and ``size`` the learning
    rate at first::

        g * d > 0:  size = size * eta_plus
        g * d < 0:  size = size * eta_minus;  g = 0
        size = min(max(size, size_min), size_max);  d = g
        p = p - sign(g) * size

    References
    ----------
    M. Riedmiller, H. Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP
    Algorithm", IEEE International Conference on Neural Networks, 1993; formula, arguments, group keys and
    states of `torch.optim.Rprop`.
    """

    made_of = RpropRule
