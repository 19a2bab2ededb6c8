"""AdaBelief."""

from nbopt import checks
from nbopt.optimizers.moments import MomentOptimizer


class AdaBelief(MomentOptimizer):
    """Adam that divides by how far gradients stray from their mean, in place of how large they are.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g;                           M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * (g - m)^2 + epsilon_root;    V = v / (1 - beta_2^t)
        p = p - lr * M / (sqrt(V) + epsilon)

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
    beta_1, beta_2 : float
        Decay of the two running means, from 0 to below 1.
    epsilon : float
        Keeps the division finite. It stands beside the corrected root, as in optax.
    epsilon_root : float
        Added to ``v`` at every step, and so kept in it.
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    J. Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", NeurIPS 2020, arXiv:2010.07468; formula
    and defaults of optax's adabelief, with the learning rate of the authors' code, which optax leaves to its user.
    """

    state_names = ("mean", "variance")
    checks = {**MomentOptimizer.checks, "epsilon_root": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-16,
        epsilon_root=1e-16,
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
        self.epsilon_root = epsilon_root

    def rule(self, step, param, grad, mean, variance):
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        first, root = self.corrections(step)
        grad = step.scale * grad
        mean[:] = b1 * mean + (1.0 - b1) * grad
        variance[:] = b2 * variance + (1.0 - b2) * be.square(grad - mean) + self.epsilon_root
        new = param - step.lr * root / first * mean / (be.sqrt(variance) + self.epsilon * root)
        param[:] = self.clip_value(new, self.param_clip_value)
