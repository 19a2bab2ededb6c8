"""AdaMax."""

from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class AdaMax(MomentOptimizer):
    """Adam that divides by a decaying maximum of the gradients' magnitudes in place of a root mean square.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g
        u = max(beta_2 * u, abs(g) + epsilon)
        p = p - lr / (1 - beta_1^t) * m / u

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, 2014, section 7.1;
    formula and defaults of PyTorch's Adamax.
    """

    state_names = ("mean", "largest")

    learning_rate = hyper(2e-3)
    beta_2 = hyper(doc="Decay of the largest magnitude.")
    epsilon = hyper(
        doc="Keeps the division finite. It is added to the magnitude, as in PyTorch. The paper has none."
    )

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, largest: Slot) -> None:
        """One step; see the class."""
        be, b1, epsilon = self.be, self.beta_1, self.epsilon
        first, _ = self.corrections(step)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        largest[:] = be.maximum(self.beta_2 * largest, be.absolute(grad) + epsilon)
        # It is epsilon at least, unless a 16-bit state has rounded it to 0.
        param[:] = param - step.lr / first * mean / be.maximum(largest, epsilon)
