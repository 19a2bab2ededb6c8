"""NAdam."""

from nbopt import checks
from nbopt.optimizers.moments import MomentOptimizer


class NAdam(MomentOptimizer):
    """Adam with Nesterov's momentum: the step looks ahead along the mean.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips, ``mu_t = beta_1 * (1 - 0.96^(t * momentum_decay) / 2)`` and ``P_t`` the
    product of ``mu_1`` to ``mu_t``::

        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g^2
        M = mu_(t+1) * m / (1 - P_(t+1)) + (1 - mu_t) * g / (1 - P_t)
        p = p - lr * M / (sqrt(v / (1 - beta_2^t)) + epsilon)

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
    beta_1, beta_2 : float
        Decay of the two running means, from 0 to below 1.
    epsilon : float
        Keeps the division finite. It stands beside the corrected root, as in PyTorch.
    momentum_decay : float
        How fast the momentum ``mu_t`` grows from half of beta_1 to beta_1.
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    T. Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 Workshop; formula and defaults of PyTorch's NAdam.
    """

    state_names = ("mean", "mean_square")
    pure = False  # the product of the momenta goes on from step to step
    checks = {**MomentOptimizer.checks, "momentum_decay": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=2e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        momentum_decay=4e-3,
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
        self.momentum_decay = momentum_decay

    def _momentum(self, t):
        return self.beta_1 * (1.0 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def _product(self, t):
        """Return the product of ``mu_1`` to ``mu_t``: always the same multiplications in turn, going on from those of the last call."""
        key = self.beta_1, self.momentum_decay
        known, count, product = self.__dict__.get("_products", (key, 0, 1.0))
        if known != key or count > t:
            count, product = 0, 1.0
        while count < t and product > 2.0**-54:  # from there on 1 - product is 1
            count += 1
            product *= self._momentum(count)
        self._products = key, count, product
        return product

    def rule(self, step, param, grad, mean, mean_square):
        """One step; see the class."""
        be, b1, b2, t = self.be, self.beta_1, self.beta_2, step.t
        _, root = self.corrections(step)
        grad, rate, product, ahead = step.scale * grad, step.lr * root, self._product(t), self._momentum(t + 1)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        nesterov = rate * ahead / (1.0 - product * ahead) * mean + rate * (1.0 - self._momentum(t)) / (1.0 - product) * grad
        new = param - nesterov / (be.sqrt(mean_square) + self.epsilon * root)
        param[:] = self.clip_value(new, self.param_clip_value)
