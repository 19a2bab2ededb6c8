"""Adam."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.schedules import Schedule


class Adam(Optimizer):
    """Gradient descent along a running mean of gradients, divided by the root of a running mean of their squares.

    In call ``t``, counted from 1::

        l = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t)
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g^2
        p = p - s * l * m / (sqrt(v) + epsilon)

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
    beta_1, beta_2 : float
        Decay of the two running means, from 0 to below 1.
    epsilon : float
        Keeps the division finite. It stands beside the uncorrected root, as in neon and in the paper's section 2 (PyTorch corrects the root first).
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str
    schedule : Schedule, optional
        Of the learning rate. Constant without one. (Not in neon.)
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, 2014; formula and defaults of neon's Adam.
    """

    state_names = ("mean", "mean_square")
    checks = {**Optimizer.checks, "beta_1": checks.below_one, "beta_2": checks.below_one, "epsilon": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        gradient_clip_norm=None,
        gradient_clip_value=None,
        param_clip_value=None,
        name="adam",
        *,
        schedule=None,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.stochastic_round = stochastic_round
        self.learning_rate, self.beta_1, self.beta_2, self.epsilon = learning_rate, beta_1, beta_2, epsilon
        self.gradient_clip_norm, self.gradient_clip_value, self.param_clip_value = gradient_clip_norm, gradient_clip_value, param_clip_value
        self.schedule = schedule or Schedule()

    def rule(self, step, param, grad, mean, mean_square):
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        rate = step.lr * be.sqrt(1.0 - b2**step.t) / (1.0 - b1**step.t)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        new = param - step.scale * rate * mean / (be.sqrt(mean_square) + self.epsilon)
        param[:] = self.clip_value(new, self.param_clip_value)
