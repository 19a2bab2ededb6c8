"""Adadelta."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer


class Adadelta(Optimizer):
    """Gradient descent without a learning rate: steps are scaled by the ratio of two running mean squares.

    ::

        a = decay * a + (1 - decay) * g^2
        u = sqrt((b + epsilon) / (a + epsilon)) * g
        b = decay * b + (1 - decay) * u^2
        p = p - u

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    decay : float
        Of both running mean squares, from 0 to 1.
    epsilon : float
        Starts the first steps and keeps the division finite.
    param_clip_value : float, optional
        Bound of each new parameter. None or 0: none.
    name : str, optional
    gradient_clip_value : float, optional
        Bound of each gradient. None or 0: none. (Not in neon.)
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    M. D. Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, 2012; formula and defaults of neon's Adadelta.
    """

    state_names = ("mean_square_gradient", "mean_square_update", "last_update")
    checks = {**Optimizer.checks, "decay": checks.fraction, "epsilon": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        decay=0.95,
        epsilon=1e-6,
        param_clip_value=None,
        name=None,
        *,
        gradient_clip_value=None,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.stochastic_round = stochastic_round
        self.decay, self.epsilon = decay, epsilon
        self.gradient_clip_value, self.param_clip_value = gradient_clip_value, param_clip_value

    def rule(self, step, param, grad, mean_square_gradient, mean_square_update, last_update):
        """One step; see the class."""
        be, decay, epsilon = self.be, self.decay, self.epsilon
        mean_square_gradient[:] = decay * mean_square_gradient + (1.0 - decay) * be.square(grad)
        last_update[:] = be.sqrt((mean_square_update + epsilon) / (mean_square_gradient + epsilon)) * grad
        mean_square_update[:] = decay * mean_square_update + (1.0 - decay) * be.square(last_update)
        param[:] = self.clip_value(param - last_update, self.param_clip_value)
