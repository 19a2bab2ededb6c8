"""Adam."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import CAUTIOUS
from nbopt.optimizers.step import Expr, Slot, Step


class Adam(Optimizer):
    """Gradient descent along a running mean of gradients, in units of their running root mean square.

    In call ``t``, counted from 1::

        l = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t)
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g^2
        p = p - s * l * m / (sqrt(v) + epsilon)

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, 2014; formula and
    defaults of neon's Adam.
    """

    state_names = ("mean", "mean_square")

    learning_rate = hyper(1e-3)
    beta_1 = hyper(0.9, checks.below_one, "Decay of the running mean of gradients.", torch="betas")
    beta_2 = hyper(0.999, checks.below_one, "Decay of the running mean of their squares.", torch="betas")
    epsilon = hyper(
        1e-8, checks.non_negative, torch="eps",
        doc="Keeps the division finite. It stands beside the uncorrected root, as in neon and in section 2 "
        "of the paper. (PyTorch corrects the root first.)",
    )  # fmt: skip
    name = hyper("adam")
    schedule = hyper(doc="Of the learning rate. Constant without one. (Not in neon.)")

    cautious = CAUTIOUS

    arguments = (*Optimizer.arguments, "cautious")

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot) -> None:
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        rate = step.lr * be.sqrt(1.0 - b2**step.t) / (1.0 - b1**step.t)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        change = step.scale * rate * self.cautious_update(mean, grad)
        param[:] = param - change / (be.sqrt(mean_square) + self.epsilon)
