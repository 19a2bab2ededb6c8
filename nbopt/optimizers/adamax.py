"""AdaMax."""

from nbopt.optimizers.moments import MomentOptimizer


class AdaMax(MomentOptimizer):
    """Adam that divides by a decaying maximum of the gradients' magnitudes in place of a root mean square.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g
        u = max(beta_2 * u, abs(g) + epsilon)
        p = p - lr / (1 - beta_1^t) * m / u

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
    beta_1, beta_2 : float
        Decay of the mean and of the largest magnitude, from 0 to below 1.
    epsilon : float
        Keeps the division finite. It is added to the magnitude, as in PyTorch; the paper has none.
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, 2014, section 7.1; formula and defaults of PyTorch's
    Adamax.
    """

    state_names = ("mean", "largest")

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=2e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
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

    def rule(self, step, param, grad, mean, largest):
        """One step; see the class."""
        be, b1, epsilon = self.be, self.beta_1, self.epsilon
        first, _ = self.corrections(step)
        grad = step.scale * grad
        mean[:] = b1 * mean + (1.0 - b1) * grad
        largest[:] = be.maximum(self.beta_2 * largest, be.absolute(grad) + epsilon)
        # It is epsilon at least, unless a 16-bit state has rounded it to 0.
        new = param - step.lr / first * mean / be.maximum(largest, epsilon)
        param[:] = self.clip_value(new, self.param_clip_value)
