"""ASGD."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import decayed
from nbopt.optimizers.step import Expr, Slot, Step


class ASGD(Optimizer):
    """Stochastic gradient descent that also keeps the average of its parameters.

    After a long run the average is the better answer.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        eta = lr / (1 + lambd * lr * (t - 1))^alpha
        p = p - (eta * g + lambd * eta * p)
        a = a + (p - a) / max(1, t - 1 - t0)

    The average is the state ``average``: ``layer.states[0][0].get()`` is that of a layer's first parameter.

    References
    ----------
    B. T. Polyak, A. B. Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on
    Control and Optimization 30, 1992; formula and defaults of PyTorch's ASGD.
    """

    state_names = ("average",)

    learning_rate = hyper(0.01)
    lambd = hyper(1e-4, checks.non_negative, "Weight decay, and with it how fast the learning rate falls.")
    alpha = hyper(0.75, checks.fraction, "The power by which it falls.")
    t0 = hyper(
        1e6, checks.non_negative,
        "The average begins after this many calls. Until then it is the parameter. "
        "An element of it that is 0 has not begun either.",
    )  # fmt: skip

    def rule(self, step: Step, param: Slot, grad: Expr, average: Slot) -> None:
        """One step; see the class."""
        before = step.t - 1
        eta = step.lr / (1.0 + self.lambd * step.lr * before) ** self.alpha
        share = 1.0 / self.be.maximum(1.0, before - self.t0)
        param[:] = decayed(param, eta * grad, self.lambd * eta)
        # Not by step.t: a layer may join after t0, and zeros must not count in its average.
        start = self.be.where(average == 0.0, param, average)
        average[:] = share * param + (1.0 - share) * start
