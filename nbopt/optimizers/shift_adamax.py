"""ShiftAdaMax."""

from nbopt import checks
from nbopt.optimizers.base import MODIFIERS, Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.step import Expr, Slot, Step


class ShiftAdaMax(Optimizer):
    """AdaMax with its multiplications replaced by shifts, for networks of binary weights.

    ::

        l = lr / (1 - beta_1^(epoch + 1))
        m = beta_1 * m + (1 - beta_1) * g
        v = max(beta_2 * v, abs(g));  iv = 1 / (v + epsilon)
        p = clip(p - shift(shift(m, iv), l), -1, 1)

    where ``shift(a, b)`` is ``a * sign(b) * 2^k`` and k the integer nearest to log2|b|.

    References
    ----------
    M. Courbariaux et al., "Binarized Neural Networks", arXiv:1602.02830, 2016, algorithm 4; formula and
    defaults of neon's ShiftAdaMax.
    """

    state_names = ("mean", "largest", "inverse")

    learning_rate = hyper(2e-3)
    beta_1 = hyper(0.9, checks.below_one, "Decay of the mean.", torch="betas")
    beta_2 = hyper(0.999, checks.fraction, "Decay of the largest magnitude.", torch="betas")
    epsilon = hyper(1e-8, checks.non_negative, "Keeps the division finite.", torch="eps")
    name = hyper("ShiftAdaMax")

    arguments = (
        "stochastic_round",
        "learning_rate",
        ...,
        "schedule",
        "name",
        "*",
        *MODIFIERS,
        "state_dtype",
    )

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, largest: Slot, inverse: Slot) -> None:
        """One step; see the class."""
        be = self.be
        rate = step.lr / (1.0 - self.beta_1 ** (step.epoch + 1))
        mean[:] = self.beta_1 * mean + (1.0 - self.beta_1) * grad
        largest[:] = be.maximum(self.beta_2 * largest, be.absolute(grad))
        # Not read back from the state: float16 has no 1 / epsilon, and rounds it to infinity.
        new = 1.0 / (largest + self.epsilon)
        inverse[:] = new
        param[:] = be.clip(param - be.shift(be.shift(mean, new), rate), -1.0, 1.0)
