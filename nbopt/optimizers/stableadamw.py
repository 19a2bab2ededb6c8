"""StableAdamW."""

from nbopt.optimizers.decay import DecayOptimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class StableAdamW(DecayOptimizer, MomentOptimizer):
    """AdamW whose steps are shorter where gradients have just become larger.

    Their running mean square is then too small for them. Each parameter has its own factor.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips and ``b(beta) = beta * (1 -
    beta^(t-1)) / (1 - beta^t)``::

        m = b(beta_1) * m + (1 - b(beta_1)) * g
        v = b(beta_2) * v + (1 - b(beta_2)) * g^2
        l = lr / max(1, sqrt(mean of g^2 / max(v, epsilon^2)))         (a mean over one parameter)
        p = p - (l * m / (sqrt(v) + epsilon) + l * wdecay * p)

    With decoupled=False, ``wdecay * p`` is added to ``g`` instead.

    References
    ----------
    M. Wortsman et al., "Stable and low-precision training for large-scale vision-language models",
    arXiv:2304.13013, 2023; formula and defaults of pytorch_optimizer's StableAdamW, without its Kahan sums.
    (16-bit parameters train with `stochastic_round`.)
    """

    state_names = ("mean", "mean_square")

    learning_rate = hyper(1e-3)
    beta_2 = hyper(0.99)
    epsilon = hyper(doc="Keeps the divisions finite.")
    wdecay = hyper(0.01)

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot) -> None:
        """One step; see the class."""
        be = self.be
        b1, b2 = ((b**step.t - b) / (b**step.t - 1.0) for b in (self.beta_1, self.beta_2))
        grad = self.with_decay(param, grad)
        square = be.square(grad)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * square
        excess = be.sqrt(be.mean(square / be.maximum(mean_square, be.square(self.epsilon))))
        rate = step.lr / be.maximum(excess, 1.0)
        param[:] = self.decayed(param, rate * mean / (be.sqrt(mean_square) + self.epsilon), rate)
