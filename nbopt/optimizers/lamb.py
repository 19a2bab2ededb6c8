"""LAMB."""

from nbopt import checks
from nbopt.optimizers.decay import DecayOptimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import CAUTIOUS
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class LAMB(DecayOptimizer, MomentOptimizer):
    """Adam whose step is as long for each parameter as the parameter itself, times the learning rate.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g              (grad_averaging=False: + g)
        v = beta_2 * v + (1 - beta_2) * g^2
        u = m / (sqrt(v) + epsilon)                    (decoupled=False: + wdecay * p)
        q = p - lr * wdecay * p                        (decoupled=False: p)
        p = q - lr / (1 - beta_1^t) * min(|q|, 10) / (|u| + epsilon) * u

    ``|q|`` and ``|u|`` are norms of one parameter. Where either is 0, the ratio is 1.

    References
    ----------
    Y. You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    arXiv:1904.00962, 2019; formula and defaults of pytorch_optimizer's Lamb. Its max_grad_norm with
    pre_norm=True is gradient_clip_norm here, but that it adds epsilon to the norm.
    """

    state_names = ("mean", "mean_square")

    learning_rate = hyper(1e-3)
    epsilon = hyper(1e-6, doc="Keeps the divisions finite. It stands beside the uncorrected root.")
    wdecay = hyper(doc="Weight decay.")
    grad_averaging = hyper(
        True, checks.boolean, "Whether the mean is one of gradients, or a sum in which old ones fade."
    )

    cautious = CAUTIOUS

    arguments = (*DecayOptimizer.arguments, "cautious")

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot) -> None:
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        mean[:] = b1 * mean + ((1.0 - b1) * grad if self.grad_averaging else grad)
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        update = self.cautious_update(mean / (be.sqrt(mean_square) + self.epsilon), grad)
        update = self.with_decay(param, update)
        kept = self.decayed(param, 0.0, step.lr)
        own, length = be.minimum(be.norm(kept), 10.0), be.norm(update)
        ratio = be.where(be.minimum(own, length) > 0.0, own / (length + self.epsilon), 1.0)
        param[:] = kept - step.lr / (1.0 - b1**step.t) * ratio * update
