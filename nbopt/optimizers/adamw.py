"""AdamW."""

from nbopt import checks
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import CAUTIOUS, decayed
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class AdamW(MomentOptimizer):
    """Adam with decoupled weight decay: weights shrink by the learning rate times `wdecay`.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g;       M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * g^2;     V = v / (1 - beta_2^t)
        p = p - (lr * M / (sqrt(V) + epsilon) + lr * wdecay * p)

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, 2017; formula and
    defaults of PyTorch's AdamW.
    """

    state_names = ("mean", "mean_square")

    epsilon = hyper(
        doc=(
            "Keeps the division finite. It stands beside the corrected root, as in PyTorch. In `Adam` it "
            "stands beside the uncorrected one, where the same number counts for more in the first steps (30 "
            "times in the first)."
        )
    )
    wdecay = hyper(
        0.01, checks.non_negative, torch="weight_decay",
        doc="Weight decay, decoupled from the gradient. (`GradientDescentMomentum` adds it to the gradient.)",
    )  # fmt: skip

    cautious = CAUTIOUS

    arguments = (*MomentOptimizer.arguments, "cautious")

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot) -> None:
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        first, root = self.corrections(step)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        change = (
            step.lr
            * root
            / first
            * self.cautious_update(mean, grad)
            / (be.sqrt(mean_square) + self.epsilon * root)
        )
        param[:] = decayed(param, change, step.lr * self.wdecay)
