"""RMSProp."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.schedules import Schedule


class RMSProp(Optimizer):
    """Gradient descent with each step divided by a running root mean square of its gradients.

    ::

        r = decay_rate * r + (1 - decay_rate) * g^2
        p = p - s * g * lr / (sqrt(r + epsilon) + epsilon)

    Centered, the division is by a running standard deviation; with momentum, the steps are added up in a velocity::

        a = decay_rate * a + (1 - decay_rate) * g;  replace r above by max(r - a^2, 0)
        v = momentum_coef * v + s * g / (sqrt(r + epsilon) + epsilon)
        p = p - lr * v

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    decay_rate : float
        Of the running mean square, from 0 to 1.
    learning_rate : float
    epsilon : float
        Keeps the division finite; inside the root and beside it, as in neon. (PyTorch's RMSprop has it beside the root alone.)
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    centered : bool
        Whether the mean's square is taken off the mean square. (Not in neon, nor is momentum_coef.)
    momentum_coef : float
        From 0 on. 0 needs no velocity. This and `centered` decide which states are kept, so they stay as they are after the first step.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", COURSERA Neural Networks for Machine Learning, 2012; formula and defaults of neon's
    RMSProp. A. Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, 2013, for centered and momentum_coef, which
    are as in PyTorch's RMSprop but for epsilon.
    """

    state_names = ("mean_square", "mean", "velocity")
    checks = {
        **Optimizer.checks, "decay_rate": checks.fraction, "epsilon": checks.non_negative,
        "centered": checks.boolean, "momentum_coef": checks.non_negative,
    }  # fmt: skip

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
        centered=False,
        momentum_coef=0.0,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.stochastic_round = stochastic_round
        self.decay_rate, self.learning_rate, self.epsilon = decay_rate, learning_rate, epsilon
        self.gradient_clip_norm, self.gradient_clip_value, self.param_clip_value = gradient_clip_norm, gradient_clip_value, param_clip_value
        self.schedule = schedule or Schedule()
        self.centered, self.momentum_coef = centered, momentum_coef

    def states_in_use(self):
        """Return the states that the rule takes: the mean where it is centered, the velocity where it has momentum."""
        mean_square, mean, velocity = self.state_names
        return (mean_square, *(mean,) * bool(self.centered), *(velocity,) * bool(self.momentum_coef))

    def rule(self, step, param, grad, mean_square, *others):
        """One step; see the class."""
        be, decay, epsilon = self.be, self.decay_rate, self.epsilon
        mean_square[:] = decay * mean_square + (1.0 - decay) * be.square(grad)
        spread = mean_square
        if self.centered:
            mean = others[0]
            mean[:] = decay * mean + (1.0 - decay) * grad
            spread = be.maximum(mean_square - be.square(mean), 0.0)  # rounding can make it negative
        if self.momentum_coef:
            velocity = others[-1]
            velocity[:] = self.momentum_coef * velocity + step.scale * grad / (be.sqrt(spread + epsilon) + epsilon)
            new = param - step.lr * velocity
        else:
            new = param - step.scale * grad * step.lr / (be.sqrt(spread + epsilon) + epsilon)
        param[:] = self.clip_value(new, self.param_clip_value)
