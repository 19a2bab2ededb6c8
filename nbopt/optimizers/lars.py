"""LARS."""

from nbopt import checks
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.step import Expr, Slot, Step
from nbopt.optimizers.velocity import VelocityOptimizer


class LARS(VelocityOptimizer):
    """Gradient descent with momentum, and a rate of its own for each matrix.

    The rate is in proportion to the norm of the matrix over that of its gradient.

    With ``g`` the gradient after its clips, for a parameter of two axes or more::

        g = trust_coefficient * |p| / (|g| + wdecay * |p|) * (g + wdecay * p)

    where ``|p|`` and ``|g|`` are norms of one parameter, and the ratio is 1 where either is 0. Then for all
    parameters::

        v = momentum_coef * v + (1 - dampening) * g
        p = p - lr * v

    With Nesterov's momentum ``p - lr * (g + momentum_coef * v)``, without momentum ``p - lr * g``.

    References
    ----------
    Y. You, I. Gitman, B. Ginsburg, "Large Batch Training of Convolutional Networks", arXiv:1708.03888, 2017;
    formula and defaults of pytorch_optimizer's LARS.
    """

    learning_rate = hyper(1e-3)
    momentum_coef = hyper(
        0.9, checks.below_one, "How much of the velocity is kept. 0 needs no state.", torch="momentum"
    )
    wdecay = hyper(
        0.0,
        checks.non_negative,
        "Weight decay of parameters of two axes or more, added to the gradient.",
        torch="weight_decay",
    )
    dampening = hyper(0.0, checks.below_one, "How much of the gradient the velocity leaves out.")
    trust_coefficient = hyper(
        1e-3, checks.non_negative, "The length of a step over the parameter's, at a learning rate of 1."
    )
    nesterov = hyper(False, checks.boolean, "Nesterov's momentum. It needs a momentum_coef.")

    def rule(self, step: Step, param: Slot, grad: Expr, velocity: Slot | None = None) -> None:
        """One step; see the class."""
        be, momentum = self.be, self.momentum_coef
        if param.ndim > 1:
            own = be.norm(param)
            length = be.norm(grad) + self.wdecay * own
            ratio = be.where(be.minimum(own, length) > 0.0, self.trust_coefficient * own / length, 1.0)
            grad = ratio * (grad + self.wdecay * param)
        if velocity is not None:
            velocity[:] = momentum * velocity + (1.0 - self.dampening) * grad
            grad = grad + momentum * velocity if self.nesterov else velocity
        param[:] = param - step.lr * grad
