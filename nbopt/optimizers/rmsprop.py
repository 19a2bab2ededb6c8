"""RMSProp."""

from nbopt import checks
from nbopt.optimizers.base import CLIPS, MODIFIERS, Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.step import Expr, Slot, Step


class RMSProp(Optimizer):
    """Gradient descent with each step divided by a running root mean square of its gradients.

    ::

        r = decay_rate * r + (1 - decay_rate) * g^2
        p = p - s * g * lr / (sqrt(r + epsilon) + epsilon)

    Centered, the division is by a running standard deviation; with momentum, the steps are added up in a
    velocity::

        a = decay_rate * a + (1 - decay_rate) * g;  replace r above by max(r - a^2, 0)
        v = momentum_coef * v + s * g / (sqrt(r + epsilon) + epsilon)
        p = p - lr * v

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", COURSERA Neural Networks for Machine Learning, 2012;
    formula and defaults of neon's RMSProp. A. Graves, "Generating Sequences With Recurrent Neural Networks",
    arXiv:1308.0850, 2013, for centered and momentum_coef, which are as in PyTorch's RMSprop but for epsilon.
    """

    state_names = ("mean_square", "mean", "velocity")

    decay_rate = hyper(0.95, checks.fraction, "Decay of the running mean square.", torch="alpha")
    learning_rate = hyper(2e-3)
    epsilon = hyper(
        1e-6, checks.non_negative, torch="eps",
        doc="Keeps the division finite. It stands inside the root and beside it, as in neon. "
        "(PyTorch's RMSprop has it beside the root alone.)",
    )  # fmt: skip
    centered = hyper(
        False, checks.boolean, "Whether the mean's square is taken off the mean square. (Not in neon.)"
    )
    momentum_coef = hyper(
        0.0, checks.non_negative, torch="momentum",
        doc="How much of the velocity is kept. 0 needs none. (Not in neon.) This and `centered` decide which "
        "states there are, so they stay as they are after the first step.",
    )  # fmt: skip

    arguments = (
        "stochastic_round", "decay_rate", "learning_rate", "epsilon", *CLIPS, "name", "schedule",
        "*", "centered", "momentum_coef", *MODIFIERS, "state_dtype",
    )  # fmt: skip

    def states_in_use(self) -> tuple[str, ...]:
        """Return the states that the rule takes.

        There is a mean if it is centered, and a velocity if it has momentum.
        """
        mean_square, mean, velocity = self.state_names
        return (mean_square, *(mean,) * bool(self.centered), *(velocity,) * bool(self.momentum_coef))

    def rule(self, step: Step, param: Slot, grad: Expr, mean_square: Slot, *others: Slot) -> None:
        """One step; see the class."""
        be, decay, epsilon = self.be, self.decay_rate, self.epsilon
        mean_square[:] = decay * mean_square + (1.0 - decay) * be.square(grad)
        spread: Expr = mean_square
        if self.centered:
            mean = others[0]
            mean[:] = decay * mean + (1.0 - decay) * grad
            spread = be.maximum(mean_square - be.square(mean), 0.0)  # rounding can make it negative
        if self.momentum_coef:
            velocity = others[-1]
            velocity[:] = self.momentum_coef * velocity + step.scale * grad / (
                be.sqrt(spread + epsilon) + epsilon
            )
            param[:] = param - step.lr * velocity
        else:
            param[:] = param - step.scale * grad * step.lr / (be.sqrt(spread + epsilon) + epsilon)
