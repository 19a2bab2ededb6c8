"""RAdam."""

from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class RAdam(MomentOptimizer):
    """Adam that does not divide until it has seen enough gradients.

    For some time after that it makes its steps smaller.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g;       M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * g^2
        n = 2 / (1 - beta_2) - 1;                n_t = n - 2 * t * beta_2^t / (1 - beta_2^t)
        r_t = sqrt((n_t - 4) * (n_t - 2) * n / ((n - 4) * (n - 2) * n_t))
        n_t > 5:  p = p - lr * M * r_t * sqrt(1 - beta_2^t) / (sqrt(v) + epsilon)
        else:     p = p - lr * M

    References
    ----------
    L. Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020, arXiv:1908.03265;
    formula and defaults of PyTorch's RAdam.
    """

    state_names = ("mean", "mean_square")

    epsilon = hyper(
        doc=(
            "Keeps the division finite. It stands beside the uncorrected root, as in PyTorch's RAdam and in "
            "`Adam`."
        )
    )

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot) -> None:
        """One step; see the class."""
        be, b1, b2, t = self.be, self.beta_1, self.beta_2, step.t
        first, root = self.corrections(step)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        most = 2.0 / (1.0 - b2) - 1.0
        # The length of a plain average that would be as certain as the running one.
        length = most - 2.0 * t * b2**t / (1.0 - b2**t)
        certain = length > 5.0
        square = (length - 4.0) * (length - 2.0) * most / ((most - 4.0) * (most - 2.0) * length)
        rectified = be.sqrt(be.where(certain, square, 0.0)) * root
        factor = be.where(certain, rectified / (be.sqrt(mean_square) + self.epsilon), 1.0)
        param[:] = param - step.lr / first * mean * factor
