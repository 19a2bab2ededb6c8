"""Stochastic gradient descent with momentum."""

from nbopt import checks
from nbopt.optimizers.base import CLIPS, MODIFIERS
from nbopt.optimizers.hyper import REQUIRED, hyper
from nbopt.optimizers.modifiers import decayed
from nbopt.optimizers.step import Expr, Slot, Step
from nbopt.optimizers.velocity import VelocityOptimizer


class GradientDescentMomentum(VelocityOptimizer):
    """Stochastic gradient descent with momentum, Nesterov's too.

    With ``G = s * g + wdecay * p``::

        v = momentum_coef * v - lr * G
        p = p + v                                    (nesterov: p = p + momentum_coef * v - lr * G)

    and without momentum ``p = p - (lr * s * g + lr * wdecay * p)``.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in deep
    learning", ICML 2013; formula and defaults of neon's GradientDescentMomentum.
    """

    learning_rate = hyper(REQUIRED)
    momentum_coef = hyper(
        REQUIRED, checks.non_negative, "How much of the velocity is kept. 0 needs no state.", torch="momentum"
    )
    wdecay = hyper(0.0, checks.non_negative, "Weight decay, added to the gradient.", torch="weight_decay")
    nesterov = hyper(
        False, checks.boolean, "Nesterov's momentum, as in Sutskever et al. (2013). It needs a momentum_coef."
    )

    arguments = (
        "learning_rate", "momentum_coef", "stochastic_round", "wdecay", *CLIPS, "name", "schedule",
        "nesterov", "*", *MODIFIERS, "state_dtype",
    )  # fmt: skip

    def rule(self, step: Step, param: Slot, grad: Expr, velocity: Slot | None = None) -> None:
        """One step; see the class."""
        lr, momentum = step.lr, self.momentum_coef
        if velocity is None:
            param[:] = decayed(param, lr * step.scale * grad, lr * self.wdecay)
        else:
            descent = lr * (step.scale * grad + self.wdecay * param)
            velocity[:] = momentum * velocity - descent
            param[:] = param + (momentum * velocity - descent if self.nesterov else velocity)
