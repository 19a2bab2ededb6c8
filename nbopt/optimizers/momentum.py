"""Stochastic gradient descent with momentum."""

from nbopt import checks
from nbopt.errors import ArgumentError
from nbopt.optimizers.base import Optimizer, decayed
from nbopt.schedules import Schedule


class GradientDescentMomentum(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's too.

    With ``G = s * g + wdecay * p``::

        v = momentum_coef * v - lr * G
        p = p + v                                    (nesterov: p = p + momentum_coef * v - lr * G)

    and without momentum ``p = p - (lr * s * g + lr * wdecay * p)``.

    Parameters
    ----------
    learning_rate : float
    momentum_coef : float
        From 0 on. 0 needs no state.
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    wdecay : float
        Weight decay, added to the gradient.
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    nesterov : bool
        Nesterov's momentum, as in Sutskever et al. (2013), with momentum_coef above 0.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013;
    formula and defaults of neon's GradientDescentMomentum.
    """

    state_names = ("velocity",)
    checks = {**Optimizer.checks, "momentum_coef": checks.non_negative, "wdecay": checks.non_negative, "nesterov": checks.boolean}

    def __init__(
        self,
        learning_rate,
        momentum_coef,
        stochastic_round=False,
        wdecay=0.0,
        gradient_clip_norm=None,
        gradient_clip_value=None,
        param_clip_value=None,
        name=None,
        schedule=None,
        nesterov=False,
        *,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.learning_rate, self.momentum_coef, self.wdecay = learning_rate, momentum_coef, wdecay
        self.stochastic_round = stochastic_round
        self.gradient_clip_norm, self.gradient_clip_value, self.param_clip_value = gradient_clip_norm, gradient_clip_value, param_clip_value
        self.schedule = schedule or Schedule()
        self.nesterov = nesterov
        self._check_nesterov()

    def _check_nesterov(self):
        if self.nesterov and self.momentum_coef == 0:
            raise ArgumentError("nesterov=True needs a momentum_coef above 0; without momentum there is nothing to look ahead along")

    def states_in_use(self):
        """Return the states that the rule takes now: none without momentum."""
        self._check_nesterov()
        return self.state_names if self.momentum_coef else ()

    def rule(self, step, param, grad, velocity=None):
        """One step; see the class."""
        lr, momentum = step.lr, self.momentum_coef
        if velocity is None:
            new = decayed(param, lr * step.scale * grad, lr * self.wdecay)
        else:
            descent = lr * (step.scale * grad + self.wdecay * param)
            velocity[:] = momentum * velocity - descent
            new = param + (momentum * velocity - descent if self.nesterov else velocity)
        param[:] = self.clip_value(new, self.param_clip_value)
