"""What optimizers share that find their learning rate."""

from nbopt import checks
from nbopt.optimizers.decay import DecayOptimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.step import Expr, Step


class AdaptedOptimizer(DecayOptimizer, MomentOptimizer):
    """Base of optimizers that estimate how far the parameters have to go.

    The estimate ``d`` multiplies the learning rate.

    ``optimizer.step_states["d"]`` is the estimate. It belongs to all parameters together.
    """

    scope = "optimizer"
    feeds: tuple[str, ...] = (
        "learning_rate",
        "schedule",
        "beta_1",
        "beta_2",
        "bias_correction",
        "d0",
        "growth_rate",
    )

    learning_rate = hyper(
        1.0, doc="A factor of the rate that is found. Let it be 1, or a schedule that begins there."
    )
    epsilon = hyper(doc="Keeps the division finite. It stands beside the uncorrected root.")
    bias_correction = hyper(
        False, checks.boolean, torch="use_bias_correction",
        doc="Whether steps are corrected for means that began at 0.",
    )  # fmt: skip
    d0 = hyper(1e-6, checks.positive, "The first estimate. Too small is safe.")
    growth_rate = hyper(
        None,
        checks.optional(checks.one_or_more),
        "The largest factor by which the estimate may grow in one step. None: any.",
    )

    def rate(self, step: Step, d: Expr) -> Expr:
        """Return the length of a step."""
        rate = d * step.lr
        # By the number of the step, not by a parameter's own: the sums are over all parameters.
        if self.bias_correction:
            rate = rate * self.be.sqrt(1.0 - self.beta_2**step.number) / (1.0 - self.beta_1**step.number)
        return rate

    def bounded(self, estimate: Expr, d: Expr) -> Expr:
        """Return the estimate, which may be ``growth_rate * d`` at most."""
        return self.be.minimum(estimate, self.growth_rate * d) if self.growth_rate else estimate
