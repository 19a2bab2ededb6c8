"""NorMuon."""

from nbopt import checks
from nbopt.language.matrices import ADJUSTMENTS
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.matrix import MatrixOptimizer, orthogonal
from nbopt.optimizers.modifiers import decayed
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr, Slot, Step


class NorMuon(MatrixOptimizer):
    """Muon whose steps are divided by the root of a mean square of each row: all neurons move alike.

    With ``u`` the orthogonal matrix of `Muon`::

        v = v + (1 - beta_2) * (mean of u^2 in each row - v)
        w = u / (sqrt(v) + epsilon)
        p = p - (lr * |u| / (|w| + epsilon) * max(1, rows / columns)^.5 * w + lr * wdecay * p)

    ``|u|`` is the Frobenius norm of one matrix. With ``adjust_lr_fn="match_rms_adamw"`` the length of the
    step is ``.2 (rows * columns)^.5`` in place of ``|u| max(1, rows / columns)^.5``.

    Notes
    -----
    The defaults are those of the authors' code and of pytorch_optimizer's NorMuon, which flattens parameters
    with more than two axes: flatten=True. (The authors' code takes the mean squares and norms of a kernel's
    last axes.) The paper's algorithm is ``NorMuon(nesterov=False, adjust_lr_fn="match_rms_adamw")``. It has
    no epsilon beside ``|w|``, which is less than 1e-10 of that.

    References
    ----------
    Z. Li et al., "NorMuon: Making Muon more efficient and scalable", arXiv:2510.05491, 2025, algorithm 1;
    https://github.com/zichongli5/NorMuon.
    """

    state_names = ("momentum", "row")

    beta_2 = hyper(0.95, checks.below_one, "Decay of the mean squares of rows.")
    nesterov = hyper(True, checks.boolean, "Whether to look ahead along the mean of gradients.")
    epsilon = hyper(1e-10, checks.non_negative, "Keeps the divisions finite.", torch="eps")
    adjust_lr_fn = hyper(None, checks.one_of(None, *ADJUSTMENTS), 'How long steps are; None is "original".')

    def states(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Declare the states: a mean of gradients, and a mean square of each row."""
        axes = range(1) if self.flatten else range(len(shape) - 1)
        return {"momentum": State(), "row": State(axes=tuple(axes))}

    def rule(self, step: Step, param: Slot, grad: Expr, momentum: Slot, row: Slot) -> None:
        """One step; see the class."""
        be, keep = self.be, self.momentum_coef
        momentum[:] = momentum + (1.0 - keep) * (grad - momentum)
        look = grad + keep * (momentum - grad) if self.nesterov else momentum
        update = orthogonal(self, param, look)
        rows, columns = self.sides(param)
        row[:] = row + (1.0 - self.beta_2) * (be.mean(be.square(update), axis=columns) - row)
        scaled = update / (be.sqrt(row) + self.epsilon)
        many, long = self.lengths(param)
        if self.adjust_lr_fn == "match_rms_adamw":
            length = 0.2 * be.sqrt(many * long)
        else:
            length = be.norm(update, axis=rows + columns) * be.sqrt(be.maximum(1.0, many / long))
        length = length / (be.norm(scaled, axis=rows + columns) + self.epsilon)
        param[:] = decayed(param, step.lr * length * scaled, step.lr * self.wdecay)
