"""AdEMAMix."""

from nbopt import checks
from nbopt.optimizers.decay import DecayOptimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import CAUTIOUS
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class AdEMAMix(DecayOptimizer, MomentOptimizer):
    """AdamW with a second, very slow mean of gradients beside the first one.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips and ``f = min(t / warmup, 1)``, or
    1 without a warmup::

        a = f * alpha
        b = exp(1 / ((1 - f) / ln(beta_1) + f / ln(beta_3)))
        m = beta_1 * m + (1 - beta_1) * g;       M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * g^2;     V = v / (1 - beta_2^t)
        s = b * s + (1 - b) * g
        p = p - (lr * (M + a * s) / (sqrt(V) + epsilon) + lr * wdecay * p)

    With decoupled=False, ``wdecay * p`` is added to ``g`` instead.

    References
    ----------
    M. Pagliardini, P. Ablin, D. Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", arXiv:2409.03137,
    2024; formula and defaults of pytorch_optimizer's AdEMAMix, but that weight decay is decoupled, as in the
    paper.
    """

    state_names = ("mean", "mean_square", "slow_mean")

    learning_rate = hyper(1e-3)
    epsilon = hyper(doc="Keeps the division finite. It stands beside the corrected root.")
    beta_3 = hyper(0.9999, checks.below_one, "Decay of the slow mean.", torch="betas")
    alpha = hyper(5.0, checks.non_negative, "The slow mean's weight over the fast one's.")
    warmup = hyper(
        None, checks.optional(checks.positive), torch="t_alpha_beta3",
        doc="How many steps the slow mean's weight and decay need to alpha and beta_3. None or 0: none.",
    )  # fmt: skip
    wdecay = hyper(doc="Weight decay.")

    cautious = CAUTIOUS

    arguments = (*DecayOptimizer.arguments, "cautious")

    def rule(
        self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot, slow_mean: Slot
    ) -> None:
        """One step; see the class."""
        be, b1, b2, b3, alpha = self.be, self.beta_1, self.beta_2, self.beta_3, self.alpha
        first, root = self.corrections(step)
        grad = self.with_decay(param, grad)
        if self.warmup:
            share = be.minimum(step.t / self.warmup, 1.0)
            alpha, b3 = share * alpha, be.exp(1.0 / ((1.0 - share) / be.log(b1) + share / be.log(b3)))
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        slow_mean[:] = b3 * slow_mean + (1.0 - b3) * grad
        mixed = self.cautious_update(mean, grad) / first + alpha * slow_mean
        change = step.lr * mixed / (be.sqrt(mean_square) / root + self.epsilon)
        param[:] = self.decayed(param, change, step.lr)
