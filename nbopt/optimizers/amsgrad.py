"""AMSGrad."""

from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class AMSGrad(MomentOptimizer):
    """Adam that divides by the largest mean square so far, so that a rare large gradient is not forgotten.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g;       M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * g^2;     u = max(u, v)
        p = p - lr * M / (sqrt(u / (1 - beta_2^t)) + epsilon)

    References
    ----------
    S. J. Reddi, S. Kale, S. Kumar, "On the Convergence of Adam and Beyond", ICLR 2018, arXiv:1904.09237;
    formula and defaults of PyTorch's Adam(amsgrad=True).
    """

    state_names = ("mean", "mean_square", "largest")

    epsilon = hyper(doc="Keeps the division finite. It stands beside the corrected root, as in PyTorch.")

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot, largest: Slot) -> None:
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        first, root = self.corrections(step)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        largest[:] = be.maximum(largest, mean_square)
        param[:] = param - step.lr * root / first * mean / (be.sqrt(largest) + self.epsilon * root)
