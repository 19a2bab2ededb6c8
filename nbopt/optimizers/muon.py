"""Muon."""

from nbopt import checks
from nbopt.language.matrices import ADJUSTMENTS
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.matrix import MatrixOptimizer, lengths_of_parts, orthogonal
from nbopt.optimizers.modifiers import decayed
from nbopt.optimizers.step import Expr, Slot, Step


class Muon(MatrixOptimizer):
    """Steps along the running mean of gradients, made orthogonal: singular values become about 1.

    With ``g`` the gradient after its clips, ``orth`` the orthogonalisation (`be.orthogonalize`) and ``a`` the
    factor of `adjust_lr_fn`::

        m = m + (1 - momentum_coef) * (g - m)
        u = orth(g + momentum_coef * (m - g))            (nesterov=False: orth(m))
        p = p - (lr * a * u + lr * wdecay * p)

    Singular values come out between 0.67 and 1.21 if they are at least .002 of the Frobenius norm, and are
    smaller below. On a CPU the products are in the arithmetic of the update, float32 or float64, and
    are within 1e-3 of the exact steps. On a GPU they are in bfloat16, as in PyTorch, and within some 5% of
    them.

    Notes
    -----
    A step takes as much memory besides as all matrices of one shape (transposed ones among them), or the
    bytes of `workspace` if these are fewer, or one parameter if that is larger. The optimizer keeps it. The
    products take up to twice as much, which is freed after each step: two matrices on the CPU, two batches
    on a GPU.
    Where a norm over the step comes after the matrices, as in rules of one's own, or `skip_nonfinite` without
    a norm clip, what is kept is a copy of all matrices.

    References
    ----------
    K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon; J. Liu et al., "Muon is Scalable for LLM Training",
    arXiv:2502.16982, 2025; formula and defaults of PyTorch's Muon.
    """

    state_names = ("momentum",)

    learning_rate = hyper(1e-3)
    wdecay = hyper(0.1)
    nesterov = hyper(True, checks.boolean, "Whether to look ahead along the mean.")
    epsilon = hyper(1e-7, checks.non_negative, "The least norm that matrices are divided by.", torch="eps")
    adjust_lr_fn = hyper(
        None,
        checks.one_of(None, *ADJUSTMENTS),
        '"original", as None, steps ``max(1, rows / columns)^.5`` times as long; "match_rms_adamw" '
        "``.2 max(rows, columns)^.5`` times.",
    )
    heads = hyper(
        1, checks.positive_int, "Blocks that each matrix, or part, is cut into; each is orthogonalised."
    )
    split = hyper(
        None,
        lengths_of_parts,
        "Lengths of parts that each matrix is cut into, such as joint queries, keys and values.",
    )
    axis = hyper(-2, checks.one_of(-2, -1), "What `heads` and `split` cut: -2 rows, -1 columns.")

    def rule(self, step: Step, param: Slot, grad: Expr, momentum: Slot) -> None:
        """One step; see the class."""
        keep = self.momentum_coef
        momentum[:] = momentum + (1.0 - keep) * (grad - momentum)
        update = orthogonal(
            self,
            param,
            grad + keep * (momentum - grad) if self.nesterov else momentum,
            epsilon=self.epsilon,
            adjust=self.adjust_lr_fn or "original",
            heads=self.heads,
            split=self.split or (),
            axis=self.axis,
        )
        param[:] = decayed(param, step.lr * update, step.lr * self.wdecay)
