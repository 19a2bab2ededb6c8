"""ScheduleFreeRAdam."""

from nbopt import checks
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.schedulefree import ScheduleFreeOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class ScheduleFreeRAdam(ScheduleFreeOptimizer):
    """`ScheduleFreeAdamW` whose learning rate is rectified as in `RAdam`, so that it needs no warmup.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips, ``z = p`` at first, and ``L`` the
    largest ``l`` so far::

        n = 2 / (1 - beta_2) - 1;                      n_t = n - 2 * t * beta_2^t / (1 - beta_2^t)
        l = lr * sqrt((n_t - 4) * (n_t - 2) * n / ((n - 4) * (n - 2) * n_t))
        v = beta_2 * v + (1 - beta_2) * g^2
        u = g / (sqrt(v / (1 - beta_2^t)) + epsilon) + wdecay * p
        w = t^average_power * L^weight_lr_power;       c = w / (sum of all w)
        z = z - l * u
        p = (1 - c) * (p - (1 - beta_1) * l * u) + c * z

    While ``n_t`` is at most 4, ``u = g + wdecay * p``, and ``l`` is 0, or lr with silent_sgd_phase=False.

    References
    ----------
    A. Defazio et al., "The Road Less Scheduled", arXiv:2405.15682, 2024; formula and defaults of
    schedulefree's RAdamScheduleFree.
    """

    state_names = ("fast", "mean_square")
    momentum_name = "beta_1"

    learning_rate = hyper(2.5e-3, doc="It may be larger than RAdam's.")
    beta_1 = hyper(0.9, checks.inside, "How near to the average gradients are taken.", torch="betas")
    beta_2 = hyper(0.999, checks.below_one, "Decay of the running mean square.", torch="betas")
    epsilon = hyper(
        1e-8,
        checks.non_negative,
        "Keeps the division finite. It stands beside the corrected root.",
        torch="eps",
    )
    silent_sgd_phase = hyper(
        True, checks.boolean, "Whether the first steps, in which nothing is known of ``v``, are left out."
    )

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
        shrunk = b2**step.number
        longest = 2.0 / (1.0 - b2) - 1.0
        length = longest - 2.0 * step.number * shrunk / (1.0 - shrunk)
        known = length > 4.0
        rectified = be.sqrt(
            (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        )
        rate = step.lr * be.where(known, rectified, 0.0 if self.silent_sgd_phase else 1.0)
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        change = grad / be.where(known, be.sqrt(mean_square / (1.0 - shrunk)) + self.epsilon, 1.0)
        self.move(step, param, change, rate, self.beta_1, fast, lr_max, weight_sum)
