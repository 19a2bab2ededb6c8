"""RMSProp."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.schedules import Schedule


class RMSProp(Optimizer):
    """Gradient descent with each step divided by a running root mean square of its gradients.

    ::

        r = decay_rate * r + (1 - decay_rate) * g^2
        p = p - s * g * lr / (sqrt(r + epsilon) + epsilon)

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    decay_rate : float
        Of the running mean square, from 0 to 1.
    learning_rate : float
    epsilon : float
        Keeps the division finite; inside the root and beside it, as in neon.
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", COURSERA Neural Networks for Machine Learning, 2012; formula and defaults of neon's
    RMSProp.
    """

    state_names = ("mean_square",)
    _pure_rule = True
    checks = {**Optimizer.checks, "decay_rate": checks.fraction, "epsilon": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        decay_rate=0.95,
        learning_rate=2e-3,
        epsilon=1e-6,
        gradient_clip_norm=None,
        gradient_clip_value=None,
        param_clip_value=None,
        name=None,
        schedule=None,
        *,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.stochastic_round = stochastic_round
        self.decay_rate, self.learning_rate, self.epsilon = decay_rate, learning_rate, epsilon
        self.gradient_clip_norm, self.gradient_clip_value, self.param_clip_value = gradient_clip_norm, gradient_clip_value, param_clip_value
        self.schedule = schedule or Schedule()

    def rule(self, step, param, grad, mean_square):
        """One step; see the class."""
        be, decay, epsilon = self.be, self.decay_rate, self.epsilon
        mean_square[:] = decay * mean_square + (1.0 - decay) * be.square(grad)
        new = param - step.scale * grad * step.lr / (be.sqrt(mean_square + epsilon) + epsilon)
        param[:] = self.clip_value(new, self.param_clip_value)
