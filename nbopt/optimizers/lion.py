"""Lion."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer, decayed
from nbopt.schedules import Schedule


class Lion(Optimizer):
    """Steps of one size along the sign of a mixture of momentum and gradient.

    With ``g`` the gradient after its clips::

        c = beta_1 * m + (1 - beta_1) * g
        p = p - (lr * sign(c) + lr * wdecay * p)
        m = beta_2 * m + (1 - beta_2) * g

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
        Every element moves by this much, so it is a third to a tenth of what suits AdamW.
    beta_1, beta_2 : float
        The momentum's share of the direction, and its decay; from 0 to below 1.
    wdecay : float
        Weight decay, decoupled from the gradient as in `AdamW`.
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    X. Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, 2023; formula and defaults of optax's lion, with
    the learning rate of the authors' code, which optax leaves to its user.
    """

    state_names = ("momentum",)
    checks = {**Optimizer.checks, "beta_1": checks.below_one, "beta_2": checks.below_one, "wdecay": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=1e-4,
        beta_1=0.9,
        beta_2=0.99,
        wdecay=1e-3,
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
        self.learning_rate, self.beta_1, self.beta_2, self.wdecay = learning_rate, beta_1, beta_2, wdecay
        self.gradient_clip_norm, self.gradient_clip_value, self.param_clip_value = gradient_clip_norm, gradient_clip_value, param_clip_value
        self.schedule = schedule or Schedule()

    def rule(self, step, param, grad, momentum):
        """One step; see the class."""
        grad = step.scale * grad
        direction = self.be.sgn(self.beta_1 * momentum + (1.0 - self.beta_1) * grad)
        new = decayed(param, step.lr * direction, step.lr * self.wdecay)
        param[:] = self.clip_value(new, self.param_clip_value)
        momentum[:] = self.beta_2 * momentum + (1.0 - self.beta_2) * grad
