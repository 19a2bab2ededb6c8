"""ScheduleFreeSGD."""

from nbopt import checks
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.schedulefree import WARMUP, ScheduleFreeOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class ScheduleFreeSGD(ScheduleFreeOptimizer):
    """Gradient descent that averages parameters in place of a schedule and of momentum.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips, ``z = p`` at first, and ``L`` the
    largest ``l`` so far::

        l = lr * min(t / warmup, 1)
        u = g + wdecay * p
        w = t^average_power * L^weight_lr_power;       c = w / (sum of all w)
        z = z - l * u
        p = (1 - c) * (p - (1 - momentum_coef) * l * u) + c * z

    Call ``optimizer.eval(layers)`` before the parameters are used or saved for use, and
    ``optimizer.train(layers)`` before the next step.

    References
    ----------
    A. Defazio et al., "The Road Less Scheduled", arXiv:2405.15682, 2024; formula and defaults of
    schedulefree's SGDScheduleFree.
    """

    momentum_name = "momentum_coef"

    learning_rate = hyper(1.0, doc="It may be larger than with a schedule.")
    momentum_coef = hyper(
        0.9, checks.inside, "How near to the average gradients are taken.", torch="momentum"
    )
    warmup = WARMUP

    def rule(self, step: Step, param: Slot, grad: Expr, fast: Slot, lr_max: Slot, weight_sum: Slot) -> None:
        """One step; see the class."""
        rate = self.warmed(step, self.warmup)
        self.move(step, param, grad, rate, self.momentum_coef, fast, lr_max, weight_sum)
