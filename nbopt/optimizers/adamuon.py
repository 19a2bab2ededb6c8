"""AdaMuon."""

from nbopt import checks
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.matrix import MatrixOptimizer, orthogonal
from nbopt.optimizers.modifiers import decayed
from nbopt.optimizers.step import Expr, Slot, Step


class AdaMuon(MatrixOptimizer):
    """Muon whose steps are divided by the root of a mean square of each element, as in Adam.

    In call ``t``, counted from 1, with ``orth`` the orthogonalisation of `Muon`::

        m = m + (1 - momentum_coef) * (g - m)
        u = orth(m)                  (signs=True: of the signs of m; nesterov=True: looking ahead, as in Muon)
        v = beta_2 * v + (1 - beta_2) * u^2;     V = v / (1 - beta_2^t)
        w = u / (sqrt(V) + epsilon)
        p = p - (lr * .2 * (rows * columns)^.5 * w / (|w| + epsilon) + lr * wdecay * p)

    ``|w|`` is the Frobenius norm of one matrix.

    Notes
    -----
    The defaults are those of the paper's first version and of pytorch_optimizer's AdaMuon, which flattens
    parameters with more than two axes: flatten=True. Later versions of the paper orthogonalise signs, and
    their one momentum is the decay of both means::

        AdaMuon(signs=True, momentum_coef=0.95, beta_2=0.95, epsilon=1e-8)

    They don't divide ``v`` by ``1 - beta_2^t``; ``|w|`` takes that out again, but for what epsilon is beside
    the roots. Their momentum is ``m / (1 - momentum_coef)``, which has the same signs. Their authors' code
    has ``nesterov=True`` and ``wdecay=0.01`` as well.

    References
    ----------
    C. Si, D. Zhang, W. Shen, "AdaMuon: Adaptive Muon Optimizer", arXiv:2507.11005, 2025, algorithm 1;
    https://github.com/Chongjie-Si/AdaMuon.
    """

    state_names = ("momentum", "mean_square")

    momentum_coef = hyper(0.9)
    beta_2 = hyper(0.95, checks.below_one, "Decay of the mean squares.")
    epsilon = hyper(1e-10, checks.non_negative, "Keeps the divisions finite.", torch="eps")
    signs = hyper(False, checks.boolean, "Whether to orthogonalise the signs of the mean.")
    nesterov = hyper(False, checks.boolean, "Whether to look ahead along the mean of gradients.")

    def rule(self, step: Step, param: Slot, grad: Expr, momentum: Slot, mean_square: Slot) -> None:
        """One step; see the class."""
        be, b2, keep = self.be, self.beta_2, self.momentum_coef
        momentum[:] = momentum + (1.0 - keep) * (grad - momentum)
        look = grad + keep * (momentum - grad) if self.nesterov else momentum
        update = orthogonal(self, param, be.sgn(look) if self.signs else look)
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(update)
        scaled = update / (be.sqrt(mean_square / (1.0 - b2**step.t)) + self.epsilon)
        rows, columns = self.sides(param)
        many, long = self.lengths(param)
        length = 0.2 * be.sqrt(many * long) / (be.norm(scaled, axis=rows + columns) + self.epsilon)
        param[:] = decayed(param, step.lr * length * scaled, step.lr * self.wdecay)
