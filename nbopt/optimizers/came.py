"""CAME."""

from nbopt import checks
from nbopt.optimizers.decay import DecayOptimizer
from nbopt.optimizers.factored import divided, factored
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr, Slot, Step


class CAME(DecayOptimizer):
    """Adafactor with a mean of its steps, which is trusted less where steps have differed from it.

    With ``g`` the gradient after its clips, for two axes or more::

        r, c = running means of g^2 + epsilon_1 in each row and each column, with decay beta_2
        u = g / sqrt(r / (mean of r) * c)
        u = u / max(1, rms(u) / clip_threshold)                        (the root mean square of one parameter)
        m = beta_1 * m + (1 - beta_1) * u
        R, C = running means of (u - m)^2 + epsilon_2 in each row and each column, with decay beta_3
        p = p - (lr * m / sqrt(R / (mean of R) * C) + lr * wdecay * p)

    With fewer axes there is a mean square of each element, and ``p = p - (lr * m + lr * wdecay * p)``.
    With decoupled=False, ``wdecay * p`` is added to ``g`` instead.

    References
    ----------
    Y. Luo et al., "CAME: Confidence-guided Adaptive Memory Efficient Optimization", arXiv:2307.02047, 2023;
    formula and defaults of pytorch_optimizer's CAME.
    """

    state_names = ("mean", "row", "column", "residual_row", "residual_column", "mean_square")
    arguments = (
        "stochastic_round",
        "learning_rate",
        ...,
        "wdecay",
        "decoupled",
        *DecayOptimizer.arguments[3:],
    )

    learning_rate = hyper(2e-4)
    beta_1 = hyper(0.9, checks.below_one, "Decay of the running mean of steps.", torch="betas")
    beta_2 = hyper(0.999, checks.below_one, "Decay of the mean squares.", torch="betas")
    beta_3 = hyper(
        0.9999, checks.below_one, "Decay of the mean squares of what steps differ by.", torch="betas"
    )
    epsilon_1 = hyper(1e-30, checks.non_negative, "Added to squares of gradients.", torch="eps1")
    epsilon_2 = hyper(1e-16, checks.non_negative, "Added to squares of differences.", torch="eps2")
    clip_threshold = hyper(
        1.0, checks.positive, "The largest root mean square of a step before its mean is taken."
    )

    def states(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Declare the states: a mean, and mean squares.

        There are two mean squares for each row and each column, or one for each element of a vector.
        """
        if len(shape) < 2:
            return {"mean": State(), "mean_square": State()}
        return dict(zip(self.state_names, (State(), *factored(shape), *factored(shape))))

    def rule(self, step: Step, param: Slot, grad: Expr, mean: Slot, *states: Slot) -> None:
        """One step; see the class."""
        be, b1 = self.be, self.beta_1
        grad = self.with_decay(param, grad)
        update = divided(be, grad, be.square(grad) + self.epsilon_1, self.beta_2, *states[:2])
        excess = be.norm(update) / (be.sqrt(param.size) * self.clip_threshold)
        update = update * (1.0 / be.maximum(excess, 1.0))
        mean[:] = b1 * mean + (1.0 - b1) * update
        change: Expr = mean
        if states[2:]:
            apart = be.square(update - mean) + self.epsilon_2
            change = divided(be, mean, apart, self.beta_3, *states[2:])
        param[:] = self.decayed(param, step.lr * change, step.lr)
