"""Adadelta."""

from nbopt import checks
from nbopt.optimizers.base import MODIFIERS, Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.step import Expr, Slot, Step


class Adadelta(Optimizer):
    """Gradient descent without a learning rate: steps are scaled by the ratio of two running mean squares.

    ::

        a = decay * a + (1 - decay) * g^2
        u = sqrt((b + epsilon) / (a + epsilon)) * g
        b = decay * b + (1 - decay) * u^2
        p = p - u

    References
    ----------
    M. D. Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, 2012; formula and defaults of
    neon's Adadelta.
    """

    state_names = ("mean_square_gradient", "mean_square_update", "last_update")

    decay = hyper(0.95, checks.fraction, "Decay of both running mean squares.", torch="rho")
    epsilon = hyper(1e-6, checks.non_negative, "Starts the first steps, keeps divisions finite.", torch="eps")
    gradient_clip_value = hyper(doc="Bound of each gradient. None or 0: none. (Not in neon.)")

    arguments = (
        "stochastic_round", "decay", "epsilon", "param_clip_value", "name",
        "*", "gradient_clip_value", *MODIFIERS, "state_dtype",
    )  # fmt: skip

    def rule(
        self,
        step: Step,
        param: Slot,
        grad: Expr,
        mean_square_gradient: Slot,
        mean_square_update: Slot,
        last_update: Slot,
    ) -> None:
        """One step; see the class."""
        be, decay, epsilon = self.be, self.decay, self.epsilon
        mean_square_gradient[:] = decay * mean_square_gradient + (1.0 - decay) * be.square(grad)
        last_update[:] = be.sqrt((mean_square_update + epsilon) / (mean_square_gradient + epsilon)) * grad
        mean_square_update[:] = decay * mean_square_update + (1.0 - decay) * be.square(last_update)
        param[:] = param - last_update
