"""MARS."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import CAUTIOUS, decayed
from nbopt.optimizers.step import Expr, Slot, Step


class MARS(Optimizer):
    """AdamW of gradients that are corrected by their change since the step before.

    That lessens their noise. Vectors get AdamW itself.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips and ``h`` that of the step before,
    which is 0 at first::

        c = g + gamma * beta_1 / (1 - beta_1) * (g - h)
        c = c / max(1, |c|)                                           (|c| is the norm of one parameter)
        m = beta_1 * m + (1 - beta_1) * c;       M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * c^2
        p = p - (lr * M / ((sqrt(v + 1e-15) + epsilon) / sqrt(1 - beta_2^t)) + lr * wdecay * p)

    A parameter of one axis or none has ``c = g`` and the numbers with ``_1d``, unless optimize_1d is True.

    References
    ----------
    H. Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training Large Models",
    arXiv:2411.10438, 2024; formula and defaults of pytorch_optimizer's MARS with mars_type="adamw". Its
    weight_decouple=False changes ``h`` and nothing else, so there is none here.
    """

    state_names = ("mean", "mean_square", "last_grad")

    learning_rate = hyper(3e-3)
    beta_1 = hyper(0.95, checks.below_one, "Decay of the running mean.", torch="betas")
    beta_2 = hyper(0.99, checks.below_one, "Decay of the running mean square.", torch="betas")
    epsilon = hyper(
        1e-8,
        checks.non_negative,
        "Keeps the division finite. It stands beside the uncorrected root.",
        torch="eps",
    )
    wdecay = hyper(0.0, checks.non_negative, "Weight decay, as in `AdamW`.", torch="weight_decay")
    gamma = hyper(0.025, checks.non_negative, "How much gradients are corrected.")
    optimize_1d = hyper(
        False, checks.boolean, "Whether parameters of one axis or none are treated as others are."
    )
    rate_1d = hyper(1.0, checks.non_negative, "Their learning rate over that of the others.")
    beta_1_1d = hyper(0.9, checks.below_one, "Their beta_1.", torch="betas_1d")
    beta_2_1d = hyper(0.95, checks.below_one, "Their beta_2.", torch="betas_1d")
    wdecay_1d = hyper(0.1, checks.non_negative, "Their weight decay.", torch="weight_decay_1d")

    cautious = CAUTIOUS

    arguments = (*Optimizer.arguments, "cautious")

    def rule(
        self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot, last_grad: Slot
    ) -> None:
        """One step; see the class."""
        be, b1, b2, rate, decay, used = self.be, self.beta_1, self.beta_2, step.lr, self.wdecay, grad
        if param.ndim > 1 or self.optimize_1d:
            used = grad + self.gamma * b1 / (1.0 - b1) * (grad - last_grad)
            used = used / be.maximum(be.norm(used), 1.0)
        else:
            b1, b2, rate, decay = self.beta_1_1d, self.beta_2_1d, self.rate_1d * step.lr, self.wdecay_1d
        mean[:] = b1 * mean + (1.0 - b1) * used
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(used)
        divisor = (
            (be.sqrt(mean_square + 1e-15) + self.epsilon) / be.sqrt(1.0 - b2**step.t) * (1.0 - b1**step.t)
        )
        param[:] = decayed(param, rate * self.cautious_update(mean, grad) / divisor, rate * decay)
        last_grad[:] = grad
