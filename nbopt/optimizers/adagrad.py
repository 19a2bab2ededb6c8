"""Adagrad."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.step import Expr, Slot, Step


class Adagrad(Optimizer):
    """Gradient descent with each step divided by the root of the sum of all squared gradients so far.

    ::

        G = G + g^2
        p = p - s * g * lr / sqrt(G + epsilon)

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", JMLR 12, 2011; formula and defaults of neon's Adagrad.
    """

    state_names = ("sum_of_squares",)

    learning_rate = hyper(0.01)
    epsilon = hyper(1e-6, checks.non_negative, "Keeps the division finite.", torch="eps")
    schedule = hyper(doc="Of the learning rate. Constant without one. (Not in neon.)")

    def rule(self, step: Step, param: Slot, grad: Expr, sum_of_squares: Slot) -> None:
        """One step; see the class."""
        be = self.be
        sum_of_squares[:] = sum_of_squares + be.square(grad)
        param[:] = param - step.scale * grad * step.lr / be.sqrt(sum_of_squares + self.epsilon)
