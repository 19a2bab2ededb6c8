"""Yogi."""

from nbopt import checks
from nbopt.optimizers.moments import MomentOptimizer


class Yogi(MomentOptimizer):
    """Adam whose mean square moves by at most a fixed part of the squared gradient, so that it grows no faster than it shrinks.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g;                           M = m / (1 - beta_1^t)
        v = v - (1 - beta_2) * sign(v - g^2) * g^2;                  V = v / (1 - beta_2^t)
        p = p - lr * M / (sqrt(V) + epsilon)

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
    beta_1, beta_2 : float
        Decay of the mean, and how slowly the mean square moves; from 0 to below 1.
    epsilon : float
        Keeps the division finite. It stands beside the corrected root, as in optax.
    initial_accumulator_value : float
        What ``v`` starts from. An element of ``v`` that is 0 has not started yet.
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    M. Zaheer et al., "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018; formula and defaults of optax's yogi, with the
    learning rate of TensorFlow Addons' Yogi, ten times Adam's, which optax leaves to its user. The mean starts at 0, as in the paper; optax
    starts it at initial_accumulator_value too.
    """

    state_names = ("mean", "mean_square")
    checks = {**MomentOptimizer.checks, "initial_accumulator_value": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=1e-2,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-3,
        initial_accumulator_value=1e-6,
        gradient_clip_norm=None,
        gradient_clip_value=None,
        param_clip_value=None,
        name=None,
        *,
        schedule=None,
        state_dtype=None,
    ):
        clips = gradient_clip_norm, gradient_clip_value, param_clip_value
        super().__init__(stochastic_round, learning_rate, beta_1, beta_2, epsilon, *clips, name, schedule=schedule, state_dtype=state_dtype)
        self.initial_accumulator_value = initial_accumulator_value

    def rule(self, step, param, grad, mean, mean_square):
        """One step; see the class."""
        be, b1 = self.be, self.beta_1
        first, root = self.corrections(step)
        grad = step.scale * grad
        square = be.square(grad)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        # Not by step.t: a layer may join later.
        start = be.where(mean_square == 0.0, self.initial_accumulator_value, mean_square)
        mean_square[:] = start - (1.0 - self.beta_2) * be.sgn(start - square) * square
        new = param - step.lr * root / first * mean / (be.sqrt(mean_square) + self.epsilon * root)
        param[:] = self.clip_value(new, self.param_clip_value)
