"""AdaBelief."""

from nbopt import checks
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Slot, Step


class AdaBelief(MomentOptimizer):
    """Adam that divides by how far gradients stray from their mean, in place of how large they are.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        m = beta_1 * m + (1 - beta_1) * g;                           M = m / (1 - beta_1^t)
        v = beta_2 * v + (1 - beta_2) * (g - m)^2 + epsilon_root;    V = v / (1 - beta_2^t)
        p = p - lr * M / (sqrt(V) + epsilon)

    References
    ----------
    J. Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", NeurIPS
    2020, arXiv:2010.07468; formula and defaults of optax's adabelief, with the learning rate of the authors'
    code, which optax leaves to its user.
    """

    state_names = ("mean", "variance")

    epsilon = hyper(1e-16, doc="Keeps the division finite. It stands beside the corrected root, as in optax.")
    epsilon_root = hyper(1e-16, checks.non_negative, "Added to ``v`` at every step, and so kept in it.")

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, variance: Slot) -> None:
        """One step; see the class."""
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        first, root = self.corrections(step)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        variance[:] = b2 * variance + (1.0 - b2) * be.square(grad - mean) + self.epsilon_root
        param[:] = param - step.lr * root / first * mean / (be.sqrt(variance) + self.epsilon * root)
