"""Lion."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import CAUTIOUS, decayed
from nbopt.optimizers.step import Expr, Slot, Step


class Lion(Optimizer):
    """Steps of one size along the sign of a mixture of momentum and gradient.

    With ``g`` the gradient after its clips::

        c = beta_1 * m + (1 - beta_1) * g
        p = p - (lr * sign(c) + lr * wdecay * p)
        m = beta_2 * m + (1 - beta_2) * g

    References
    ----------
    X. Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, 2023; formula and
    defaults of optax's lion, with the learning rate of the authors' code, which optax leaves to its user.
    """

    state_names = ("momentum",)

    learning_rate = hyper(
        1e-4, doc="Every element moves by this much, so it is a third to a tenth of what suits AdamW."
    )
    beta_1 = hyper(0.9, checks.below_one, "The momentum's share of the direction.", torch="betas")
    beta_2 = hyper(0.99, checks.below_one, "The momentum's decay.", torch="betas")
    wdecay = hyper(
        1e-3, checks.non_negative, torch="weight_decay",
        doc="Weight decay, decoupled from the gradient as in `AdamW`.",
    )  # fmt: skip

    cautious = CAUTIOUS

    arguments = (*Optimizer.arguments, "cautious")

    def rule(self, step: Step, param: Slot, grad: Expr, momentum: Slot) -> None:
        """One step; see the class."""
        direction = self.be.sgn(self.beta_1 * momentum + (1.0 - self.beta_1) * grad)
        param[:] = decayed(param, step.lr * self.cautious_update(direction, grad), step.lr * self.wdecay)
        momentum[:] = self.beta_2 * momentum + (1.0 - self.beta_2) * grad
