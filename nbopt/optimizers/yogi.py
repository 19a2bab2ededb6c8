"""Yogi."""

from nbopt import checks
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class Yogi(MomentOptimizer):
    """Adam whose mean square moves by at most a fixed part of the squared gradient.

    It grows no faster than it shrinks.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g;                           M = m / (1 - beta_1^t)
        v = v - (1 - beta_2) * sign(v - g^2) * g^2;                  V = v / (1 - beta_2^t)
        p = p - lr * M / (sqrt(V) + epsilon)

    References
    ----------
    M. Zaheer et al., "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018; formula and defaults of
    optax's yogi, with the learning rate of TensorFlow Addons' Yogi, ten times Adam's, which optax leaves to
    its user. The mean starts at 0, as in the paper; optax starts it at initial_accumulator_value too.
    """

    state_names = ("mean", "mean_square")

    learning_rate = hyper(1e-2)
    beta_2 = hyper(doc="How slowly the mean square moves.")
    epsilon = hyper(1e-3, doc="Keeps the division finite. It stands beside the corrected root, as in optax.")
    initial_accumulator_value = hyper(
        1e-6, checks.non_negative, "What ``v`` starts from. An element of it that is 0 has not started yet."
    )

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot) -> None:
        """One step; see the class."""
        be, b1 = self.be, self.beta_1
        first, root = self.corrections(step)
        square = be.square(grad)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        # Not by step.t: a layer may join later.
        start = be.where(mean_square == 0.0, self.initial_accumulator_value, mean_square)
        mean_square[:] = start - (1.0 - self.beta_2) * be.sgn(start - square) * square
        param[:] = param - step.lr * root / first * mean / (be.sqrt(mean_square) + self.epsilon * root)
