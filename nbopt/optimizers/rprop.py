"""Rprop."""

from nbopt import checks
from nbopt.errors import ArgumentError
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.step import Expr, Slot, Step


class Rprop(Optimizer):
    """Steps along the gradient's sign, of a size that each element finds for itself.

    For gradients of the whole data set, not of batches.

    With ``d`` the direction of the last step, 0 at first, and ``size`` the learning rate at first::

        sign(g) * d > 0:  size = size * eta_plus;   d = sign(g)
        sign(g) * d < 0:  size = size * eta_minus;  d = 0
        else:                                       d = sign(g)
        size = min(max(size, step_min), step_max)
        p = p - d * size

    References
    ----------
    M. Riedmiller, H. Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP
    Algorithm", IEEE International Conference on Neural Networks, 1993; formula and defaults of PyTorch's
    Rprop, which leaves out the paper's way back after a change of sign.
    """

    state_names = ("direction", "size")

    learning_rate = hyper(
        0.01,
        doc=(
            "The first step of each element. A ``size`` of 0 has not started yet. Later changes of the rate "
            "matter to none that has."
        ),
    )
    eta_minus = hyper(0.5, checks.below_one, "Factor of the size where the sign has changed.", torch="etas")
    eta_plus = hyper(1.2, checks.one_or_more, "Factor of the size where it has not.", torch="etas")
    step_min = hyper(
        1e-6, checks.positive, torch="step_sizes",
        doc="The least size of a step. A 16-bit state must be able to hold it.",
    )  # fmt: skip
    step_max = hyper(50.0, checks.positive, "The largest size of a step.", torch="step_sizes")
    gradient_clip_norm = hyper(doc="Taken as everywhere; it changes no sign, and so nothing here.")
    gradient_clip_value = hyper(doc="Taken as everywhere; it changes no sign, and so nothing here.")

    def rule(self, step: Step, param: Slot, grad: Expr, direction: Slot, size: Slot) -> None:
        """One step; see the class."""
        be, sign = self.be, self.be.sgn(grad)
        if self.step_min > self.step_max:
            raise ArgumentError(
                f"step_min must be at most step_max, and they are {self.step_min} and {self.step_max}"
            )
        agreement = sign * direction
        factor = be.where(agreement > 0.0, self.eta_plus, be.where(agreement < 0.0, self.eta_minus, 1.0))
        # Not by step.t: a layer may join later.
        size[:] = be.clip(be.where(size == 0.0, step.lr, size) * factor, self.step_min, self.step_max)
        direction[:] = be.where(agreement < 0.0, 0.0, sign)
        param[:] = param - direction * size
