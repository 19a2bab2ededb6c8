"""Tiger."""

from nbopt import checks
from nbopt.optimizers.decay import DecayOptimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.step import Expr, Slot, Step


class Tiger(DecayOptimizer):
    """Steps of one size along the sign of a running mean of gradients.

    With ``g`` the gradient after its clips::

        m = beta * m + (1 - beta) * g
        p = p - (lr * sign(m) + lr * wdecay * p)

    With decoupled=False, ``wdecay * p`` is added to ``g`` instead.

    References
    ----------
    J. Su, "Tiger: A Tight-fisted Optimizer", https://github.com/bojone/tiger, 2023; formula and defaults of
    pytorch_optimizer's Tiger.
    """

    state_names = ("mean",)
    arguments = ("stochastic_round", "learning_rate", "beta", ..., *DecayOptimizer.arguments[3:])

    learning_rate = hyper(
        1e-3, doc="Every element moves by this much, so it is a third to a tenth of what suits AdamW."
    )
    beta = hyper(0.965, checks.below_one, "Decay of the running mean.")
    wdecay = hyper(0.01)

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot) -> None:
        """One step; see the class."""
        mean[:] = self.beta * mean + (1.0 - self.beta) * self.with_decay(param, grad)
        param[:] = self.decayed(param, step.lr * self.be.sgn(mean), step.lr)
