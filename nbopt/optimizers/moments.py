"""What the descendants of Adam share."""

from typing import Any

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.step import Step


class MomentOptimizer(Optimizer):
    """Base of optimizers that divide a running mean of gradients by a running measure of their size.

    Its arguments are Adam's.

    In the formulas of its subclasses ``g`` is the gradient after its clips, by norm too, as after PyTorch's
    ``clip_grad_norm_``: so the clip shows in the states. (In neon's Adam the factor ``s`` scales the step.)
    """

    learning_rate = hyper(1e-3)
    beta_1 = hyper(0.9, checks.below_one, "Decay of the running mean of gradients.", torch="betas")
    beta_2 = hyper(0.999, checks.below_one, "Decay of the running mean of their squares.", torch="betas")
    epsilon = hyper(1e-8, checks.non_negative, "Keeps the division finite.", torch="eps")

    def corrections(self, step: Step) -> tuple[Any, Any]:
        """Return ``1 - beta_1^t`` and ``sqrt(1 - beta_2^t)``.

        Running means that began at 0 are too small by these factors after `t` steps. The rules put both into
        their numbers, where they cost the kernel nothing: with these as ``first`` and ``root``, ``(m / first)
        / (sqrt(v) / root + epsilon)`` is ``root / first * m / (sqrt(v) + epsilon * root)``.
        """
        return 1.0 - self.beta_1**step.t, self.be.sqrt(1.0 - self.beta_2**step.t)
