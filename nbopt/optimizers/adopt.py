"""ADOPT."""

from typing import Any

from nbopt import checks
from nbopt.optimizers.decay import DecayOptimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class ADOPT(DecayOptimizer, MomentOptimizer):
    """Adam that divides each gradient by a mean square of the gradients before it.

    It converges with every beta_2.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        c = g / max(sqrt(v), epsilon), clipped to t^clip_exponent   (t = 1: 0)
        m = beta_1 * m + (1 - beta_1) * c
        v = beta_2 * v + (1 - beta_2) * g^2                         (t = 1: g^2)
        p = p - (lr * m + lr * wdecay * p)

    With decoupled=False, ``wdecay * p`` is added to ``g`` instead.

    References
    ----------
    S. Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any beta_2 with the Optimal Rate",
    arXiv:2411.02853, 2024; formula and defaults of pytorch_optimizer's ADOPT, but that weight decay is
    decoupled. Its clip_lambda can be any function; here it is a power. (In the paper, ``t`` is 1 for the
    second gradient.)
    """

    state_names = ("mean", "mean_square")

    learning_rate = hyper(1e-3)
    beta_2 = hyper(0.9999)
    epsilon = hyper(1e-6, doc="The least divisor.")
    wdecay = hyper(doc="Weight decay.")
    clip_exponent = hyper(
        0.25,
        checks.optional(checks.non_negative),
        "Which power of t bounds the divided gradients. None: no bound.",
    )

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot) -> None:
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        begun = be.minimum(step.t - 1.0, 1.0)  # 0 in the first step, then 1
        grad = self.with_decay(param, grad)
        divided = grad / be.maximum(be.sqrt(mean_square), self.epsilon)
        bound = self._bound(step)
        if bound is not None:
            divided = be.clip(divided, -bound, bound)
        mean[:] = b1 * mean + (1.0 - b1) * begun * divided
        mean_square[:] = b2 * mean_square + (1.0 - b2 * begun) * be.square(grad)
        param[:] = self.decayed(param, step.lr * mean, step.lr)

    def _bound(self, step: Step) -> Any:
        """Return the bound of divided gradients in this step, if there is one."""
        return None if self.clip_exponent is None else step.t**self.clip_exponent
