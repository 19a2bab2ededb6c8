"""Prodigy."""

import warnings

from nbopt import checks
from nbopt.optimizers.adapted import AdaptedOptimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr, Slot, Step


class Prodigy(AdaptedOptimizer):
    """Adam that finds its learning rate by how far the parameters have come from where they began.

    With ``g`` the gradient after its clips, ``q`` the parameter's first value, ``d = x = d0`` at first, and
    sums over all parameters::

        l = d * lr                      (bias_correction: * sqrt(1 - beta_2^t) / (1 - beta_1^t))
        n = beta_3 * n + d / d0 * l * sum(g * (q - p))
        m = beta_1 * m + (1 - beta_1) * d * g
        v = beta_2 * v + (1 - beta_2) * d^2 * g^2
        s = beta_3 * s + d / d0 * l * g (safeguard_warmup: d / d0 * d * g)
        e = d_coef * n / sum(|s|)
        x = max(x, e)
        d = min(x, growth_rate * d)     (while d = d0: min(x, growth_rate * max(d, e)))
        p = p - (l * m / (sqrt(v) + d * epsilon) + l * wdecay * p)

    With decoupled=False, ``wdecay * p`` is added to ``g`` instead. While all gradients are 0, nothing moves.

    References
    ----------
    K. Mishchenko, A. Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", arXiv:2306.06101,
    2023; formula and defaults of prodigyopt's Prodigy. (There a step whose learning rate is 0 leaves the
    states as they are.)
    """

    state_names = ("mean", "mean_square", "total", "start")
    feeds = (*AdaptedOptimizer.feeds, "d_coef", "beta_3", "safeguard_warmup")

    d_coef = hyper(1.0, checks.positive, "A factor of the estimate: 0.5 and 2 are worth a try.")
    beta_3 = hyper(
        None, checks.optional(checks.below_one),
        "Decay of the sums that find the rate. None: the root of beta_2.",
    )  # fmt: skip
    safeguard_warmup = hyper(
        False, checks.boolean,
        "Whether the learning rate is left out of the sum: for schedules that begin near 0.",
    )  # fmt: skip

    def _check_together(self) -> None:
        """Warn of a rate that is meant for another optimizer."""
        if self.learning_rate and not 0.1 <= self.learning_rate <= 10.0:
            rate = f"learning_rate={self.learning_rate} is a factor of that: it should be near 1"
            warnings.warn(f"Prodigy finds its learning rate, and {rate}", stacklevel=4)

    def states(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Declare the states: four for each element; the estimate, its bound and its numerator for all."""
        *zero, start = self.state_names
        own, first = {**dict.fromkeys(zero, State()), start: State(init="param")}, State("step", self.d0)
        return {**own, "d": first, "d_max": first, "numerator": State("step")}

    def rule(
        self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot, total: Slot, start: Slot,
        d: Slot, d_max: Slot, numerator: Slot,
    ) -> None:  # fmt: skip
        """One step; see the class."""
        be, b1, b2, rate = self.be, self.beta_1, self.beta_2, self.rate(step, d)
        b3, grad = be.sqrt(b2) if self.beta_3 is None else self.beta_3, self.with_decay(param, grad)
        numerator[:] = b3 * numerator + d / self.d0 * rate * step.sum(grad * (start - param))
        mean[:] = b1 * mean + (1.0 - b1) * d * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(d) * be.square(grad)
        total[:] = b3 * total + d / self.d0 * (d if self.safeguard_warmup else rate) * grad
        length = step.sum(be.absolute(total))
        estimate = be.where(length > 0.0, self.d_coef * numerator / length, d)
        d_max[:] = be.maximum(d_max, estimate)
        new = self.bounded(d_max, be.where(d == self.d0, be.maximum(d, estimate), d))
        change = rate * mean / (be.sqrt(mean_square) + new * self.epsilon)
        param[:] = self.decayed(param, change, be.where(length > 0.0, rate, 0.0))
        d[:] = new
