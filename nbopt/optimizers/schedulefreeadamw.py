"""ScheduleFreeAdamW."""

from nbopt import checks
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.schedulefree import WARMUP, ScheduleFreeOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class ScheduleFreeAdamW(ScheduleFreeOptimizer):
    """AdamW that averages parameters in place of a schedule and of a mean of gradients.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips, ``z = p`` at first, and ``L`` the
    largest ``l`` so far::

        l = lr * min(t / warmup, 1)
        v = beta_2 * v + (1 - beta_2) * g^2
        u = g / (sqrt(v / (1 - beta_2^t)) + epsilon) + wdecay * p
        w = t^average_power * L^weight_lr_power;       c = w / (sum of all w)
        z = z - l * u
        p = (1 - c) * (p - (1 - beta_1) * l * u) + c * z

    Call ``optimizer.eval(layers)`` before the parameters are used or saved for use, and
    ``optimizer.train(layers)`` before the next step.

    References
    ----------
    A. Defazio et al., "The Road Less Scheduled", arXiv:2405.15682, 2024; formula and defaults of
    schedulefree's AdamWScheduleFree.
    """

    state_names = ("fast", "mean_square")
    momentum_name = "beta_1"

    learning_rate = hyper(2.5e-3, doc="It may be larger than AdamW's.")
    beta_1 = hyper(0.9, checks.inside, "How near to the average gradients are taken.", torch="betas")
    beta_2 = hyper(0.999, checks.below_one, "Decay of the running mean square.", torch="betas")
    epsilon = hyper(
        1e-8,
        checks.non_negative,
        "Keeps the division finite. It stands beside the corrected root.",
        torch="eps",
    )
    warmup = WARMUP

    def rule(
        self,
        step: Step,
        param: Slot,
        grad: Expr,
        fast: Slot,
        mean_square: Slot,
        lr_max: Slot,
        weight_sum: Slot,
    ) -> None:
        """One step; see the class."""
        be, b2 = self.be, self.beta_2
        rate = self.warmed(step, self.warmup)
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        change = grad / (be.sqrt(mean_square / (1.0 - b2**step.number)) + self.epsilon)
        self.move(step, param, change, rate, self.beta_1, fast, lr_max, weight_sum)
