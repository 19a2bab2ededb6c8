"""ShiftAdaMax."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.schedules import Schedule


class ShiftAdaMax(Optimizer):
    """AdaMax with its multiplications replaced by shifts, for networks of binary weights.

    ::

        l = lr / (1 - beta_1^(epoch + 1))
        m = beta_1 * m + (1 - beta_1) * g
        v = max(beta_2 * v, abs(g));  iv = 1 / (v + epsilon)
        p = clip(p - shift(shift(m, iv), l), -1, 1)

    where ``shift(a, b)`` is ``a * sign(b) * 2^k`` and k the integer nearest to log2|b|.

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
    beta_1, beta_2 : float
        Decay of the mean (from 0 to below 1) and of the largest magnitude (from 0 to 1).
    epsilon : float
        Keeps the division finite.
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    name : str
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    M. Courbariaux et al., "Binarized Neural Networks", arXiv:1602.02830, 2016, algorithm 4; formula and defaults of neon's ShiftAdaMax.
    """

    state_names = ("mean", "largest", "inverse")
    checks = {**Optimizer.checks, "beta_1": checks.below_one, "beta_2": checks.fraction, "epsilon": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=2e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        schedule=None,
        name="ShiftAdaMax",
        *,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.stochastic_round = stochastic_round
        self.learning_rate, self.beta_1, self.beta_2, self.epsilon = learning_rate, beta_1, beta_2, epsilon
        self.schedule = schedule or Schedule()

    def rule(self, step, param, grad, mean, largest, inverse):
        """One step; see the class."""
        be = self.be
        rate = step.lr / (1.0 - self.beta_1 ** (step.epoch + 1))
        mean[:] = self.beta_1 * mean + (1.0 - self.beta_1) * grad
        largest[:] = be.maximum(self.beta_2 * largest, be.absolute(grad))
        # Not read back from the state: float16 has no 1 / epsilon, and rounds it to infinity.
        new = 1.0 / (largest + self.epsilon)
        inverse[:] = new
        param[:] = be.clip(param - be.shift(be.shift(mean, new), rate), -1.0, 1.0)
