"""DAdaptAdam."""

from nbopt.optimizers.adapted import AdaptedOptimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr, Slot, Step


class DAdaptAdam(AdaptedOptimizer):
    """Adam that finds its learning rate by itself, from a lower bound of the distance to the solution.

    With ``g`` the gradient after its clips, ``d = d0`` at first, ``b = sqrt(beta_2)``, and sums over all
    parameters::

        l = d * lr                      (bias_correction: * sqrt(1 - beta_2^t) / (1 - beta_1^t))
        n = b * n + (1 - b) * l * sum(g * s / (sqrt(v) + epsilon))
        m = beta_1 * m + (1 - beta_1) * l * g
        v = beta_2 * v + (1 - beta_2) * g^2
        s = b * s + (1 - b) * l * g
        p = p - (m / (sqrt(v) + epsilon) + l * wdecay * p)
        d = max(d, min(n / ((1 - b) * sum(|s|)), growth_rate * d))

    With decoupled=False, ``wdecay * p`` is added to ``g`` instead.

    References
    ----------
    A. Defazio, K. Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", arXiv:2301.07733, 2023; formula
    and defaults of pytorch_optimizer's DAdaptAdam, but that weight decay is decoupled. (There, weights don't
    decay as long as all gradients are 0.)
    """

    state_names = ("mean", "mean_square", "total")

    learning_rate = hyper(doc="A factor of the rate that is found. Let it be 1, or a schedule.")

    def states(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Declare the states: three for each element, and for all the estimate and its numerator."""
        return {
            **dict.fromkeys(self.state_names, State()),
            "d": State("step", self.d0),
            "numerator": State("step"),
        }

    def rule(
        self,
        step: Step,
        param: Slot,
        grad: Expr,
        mean: Slot,
        mean_square: Slot,
        total: Slot,
        d: Slot,
        numerator: Slot,
    ) -> None:
        """One step; see the class."""
        be, b1, b2, rate = self.be, self.beta_1, self.beta_2, self.rate(step, d)
        b3, grad = be.sqrt(b2), self.with_decay(param, grad)
        correlation = step.sum(grad * (total / (be.sqrt(mean_square) + self.epsilon)))
        numerator[:] = b3 * numerator + (1.0 - b3) * rate * correlation
        mean[:] = b1 * mean + (1.0 - b1) * rate * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        total[:] = b3 * total + (1.0 - b3) * rate * grad
        length = step.sum(be.absolute(total))
        param[:] = self.decayed(param, mean / (be.sqrt(mean_square) + self.epsilon), rate)
        estimate = be.where((length > 0.0) * (step.lr > 0.0), numerator / ((1.0 - b3) * length), d)
        d[:] = be.maximum(d, self.bounded(estimate, d))
