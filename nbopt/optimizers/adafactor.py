"""Adafactor."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.factored import factored, inverse_roots
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import CAUTIOUS, decayed
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr, Slot, Step


class Adafactor(Optimizer):
    """Steps along the gradient over the root of a mean square, kept for rows and columns alone.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips, ``b = t^beta_2_decay`` and ``e1,
    e2`` the epsilons, for two axes or more::

        r = r + b * (mean of g^2 in each row - r)
        c = c + b * (mean of g^2 in each column - c)
        v = r * c / max(mean of r, e1)
        u = g / sqrt(max(v, e1^2))
        a = max(e2, rms(p)) * min(lr, 1 / sqrt(t))
        p = p - (a * u / max(1, rms(u) / clip_threshold) + lr * wdecay * p)

    ``rms`` is the root of the mean square of one parameter. With fewer axes ``v = v + b * (g^2 - v)``.
    The last two axes are those of a matrix, and axes before them a batch.

    References
    ----------
    N. Shazeer, M. Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv:1804.04235,
    2018; formula and defaults of PyTorch's Adafactor, whose first epsilon is by default that of the
    parameter's dtype. Here it is float32's.
    """

    state_names = ("row", "column", "mean_square")

    learning_rate = hyper(0.01, doc="A step's length over the parameter's root mean square, at most.")
    beta_2_decay = hyper(
        -0.8, checks.non_positive, "How fast means become slow. -1 is a plain mean of all.",
        torch="beta2_decay",
    )  # fmt: skip
    epsilon_1 = hyper(
        2.0**-23, checks.non_negative, "The least root mean square, in the gradient's unit.", torch="eps"
    )
    epsilon_2 = hyper(1e-3, checks.non_negative, "The least root mean square of a parameter.", torch="eps")
    clip_threshold = hyper(
        1.0, checks.one_or_more, "The largest root mean square of a step, over the rate.", torch="d"
    )
    wdecay = hyper(0.0, checks.non_negative, "Weight decay, as in `AdamW`.", torch="weight_decay")

    cautious = CAUTIOUS

    arguments = (*Optimizer.arguments, "cautious")

    def states(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Declare the states: one number for each row and each column, or for each element of a vector."""
        if len(shape) < 2:
            return {"mean_square": State()}
        # Matrices of one element, as in most convolutions of a ResNet, have as many rows as elements.
        kept = (State(), State()) if shape[-2:] == (1, 1) else factored(shape)
        return dict(zip(self.state_names, kept))

    def rule(self, step: Step, param: Slot, grad: Expr, *states: Slot) -> None:
        """One step; see the class."""
        be, square, size = self.be, self.be.square(grad), self.be.sqrt(param.size)
        share, row, column = step.t**self.beta_2_decay, states[0], states[-1]
        rate = be.maximum(be.norm(param) / size, self.epsilon_2) * be.minimum(step.lr, 1.0 / be.sqrt(step.t))
        whole = row.axes == column.axes
        for state, axis in zip(states, (-1, -2)):
            state[:] = state + share * ((square if whole else be.mean(square, axis=axis)) - state)
        if whole:
            value = column if param.ndim < 2 else column * (row / be.maximum(row, self.epsilon_1))
            update = grad / be.sqrt(be.maximum(value, be.square(self.epsilon_1)))
        else:
            of_row, of_column = inverse_roots(be, row, column, self.epsilon_1)
            factor, most = of_row * of_column, 1.0 / self.epsilon_1
            # Bounded before anything is multiplied, since 0 times infinity would be no number.
            update = grad * be.where(factor > most, most, factor)
        excess = be.maximum(be.norm(update) / (size * self.clip_threshold), 1.0)
        param[:] = decayed(param, rate / excess * self.cautious_update(update, grad), step.lr * self.wdecay)
