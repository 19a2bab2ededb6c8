"""SM3."""

import functools

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr, Slot, Step


class SM3(Optimizer):
    """Adagrad whose sums of squares are kept for each row and each column alone.

    Each is the largest of the sums of its elements. With more axes, there is one for each index along each
    axis.

    With ``g`` the gradient after its clips, and one state ``a_k`` for each axis ``k``::

        v = min of the a_k + g^2             (beta above 0: beta * min of the a_k + (1 - beta) * g^2)
        a_k = max of v over all axes but k   (beta above 0: or a_k, if that is larger)
        m = momentum_coef * m + (1 - momentum_coef) * g / sqrt(v + epsilon)
        p = p - lr * m

    References
    ----------
    R. Anil et al., "Memory-Efficient Adaptive Optimization", arXiv:1901.11150, 2019; formula and defaults of
    pytorch_optimizer's SM3.
    """

    state_names = ("momentum", "largest")

    learning_rate = hyper(0.1)
    momentum_coef = hyper(
        0.0, checks.below_one, "Decay of the running mean of steps. 0 needs no state.", torch="momentum"
    )
    beta = hyper(0.0, checks.fraction, "Decay of the squares. 0: they are summed.")
    epsilon = hyper(1e-30, checks.non_negative, "Keeps the division finite.", torch="eps")

    def states(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Declare the states: a momentum if there is one, and one along each axis."""
        momentum, largest = self.state_names
        along = {f"{largest}_{axis}": State(axes=(axis,)) for axis in range(len(shape))} or {largest: State()}
        return {momentum: State(), **along} if self.momentum_coef else along

    def rule(self, step: Step, param: Slot, grad: Expr, *states: Slot) -> None:
        """One step; see the class."""
        be, beta, skip = self.be, self.beta, bool(self.momentum_coef)
        momentum, largest = states[:skip], states[skip:]
        least: Expr = functools.reduce(be.minimum, largest)  # type: ignore[arg-type]
        square = beta * least + (1.0 - beta) * be.square(grad) if beta else least + be.square(grad)
        new = [self._largest(square, axis, param.ndim) for axis in range(len(largest))]
        new = [be.maximum(old, value) if beta else value for old, value in zip(largest, new)]
        change = grad / be.sqrt(square + self.epsilon)
        for change_mean in momentum:
            change_mean[:] = self.momentum_coef * change_mean + (1.0 - self.momentum_coef) * change
            change = change_mean
        param[:] = param - step.lr * change
        for state, value in zip(largest, new):
            state[:] = value

    def _largest(self, square: Expr, axis: int | None, ndim: int) -> Expr:
        """Return the largest value over all axes but one."""
        others = tuple(other for other in range(ndim) if other != axis)
        return self.be.max(square, axis=others) if others else square
