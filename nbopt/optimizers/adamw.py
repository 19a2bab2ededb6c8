"""AdamW."""

from nbopt import checks
from nbopt.optimizers.base import decayed
from nbopt.optimizers.moments import MomentOptimizer


class AdamW(MomentOptimizer):
    """Adam with its weight decay apart from the gradient: weights decay in proportion to the learning rate alone.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g;       M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * g^2;     V = v / (1 - beta_2^t)
        p = p - (lr * M / (sqrt(V) + epsilon) + lr * wdecay * p)

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
    beta_1, beta_2 : float
        Decay of the two running means, from 0 to below 1.
    epsilon : float
        Keeps the division finite. It stands beside the corrected root, as in PyTorch; in `Adam` beside the uncorrected one, where the same
        number counts for more in the first steps (30 times in the first).
    wdecay : float
        Weight decay, decoupled from the gradient. (In `GradientDescentMomentum` it is a part of the gradient.)
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, 2017; formula and defaults of PyTorch's AdamW.
    """

    state_names = ("mean", "mean_square")
    checks = {**MomentOptimizer.checks, "wdecay": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        wdecay=0.01,
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
        self.wdecay = wdecay

    def rule(self, step, param, grad, mean, mean_square):
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        first, root = self.corrections(step)
        grad = step.scale * grad
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        change = step.lr * root / first * mean / (be.sqrt(mean_square) + self.epsilon * root)
        param[:] = self.clip_value(decayed(param, change, step.lr * self.wdecay), self.param_clip_value)
