"""Adagrad."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.schedules import Schedule


class Adagrad(Optimizer):
    """Gradient descent with each step divided by the root of the sum of all squared gradients so far.

    ::

        G = G + g^2
        p = p - s * g * lr / sqrt(G + epsilon)

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
    epsilon : float
        Keeps the division finite.
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one. (Not in neon.)
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 12, 2011; formula
    and defaults of neon's Adagrad.
    """

    state_names = ("sum_of_squares",)
    checks = {**Optimizer.checks, "epsilon": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=0.01,
        epsilon=1e-6,
        gradient_clip_norm=None,
        gradient_clip_value=None,
        param_clip_value=None,
        name=None,
        *,
        schedule=None,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.stochastic_round = stochastic_round
        self.learning_rate, self.epsilon = learning_rate, epsilon
        self.gradient_clip_norm, self.gradient_clip_value, self.param_clip_value = gradient_clip_norm, gradient_clip_value, param_clip_value
        self.schedule = schedule or Schedule()

    def rule(self, step, param, grad, sum_of_squares):
        """One step; see the class."""
        be = self.be
        sum_of_squares[:] = sum_of_squares + be.square(grad)
        new = param - step.scale * grad * step.lr / be.sqrt(sum_of_squares + self.epsilon)
        param[:] = self.clip_value(new, self.param_clip_value)
