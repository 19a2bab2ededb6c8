"""What the descendants of Adam share."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.schedules import Schedule


class MomentOptimizer(Optimizer):
    """Base of optimizers that divide a running mean of gradients by a running measure of their size. Its arguments are Adam's.

    In the formulas of its subclasses ``g`` is the gradient after its clips, by norm too, as after PyTorch's ``clip_grad_norm_``: so the clip
    shows in the states. (In neon's Adam the factor ``s`` scales the step.)
    """

    checks = {**Optimizer.checks, "beta_1": checks.below_one, "beta_2": checks.below_one, "epsilon": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        gradient_clip_norm=None,
        gradient_clip_value=None,
        param_clip_value=None,
        name=None,
        *,
        schedule=None,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.stochastic_round = stochastic_round
        self.learning_rate, self.beta_1, self.beta_2, self.epsilon = learning_rate, beta_1, beta_2, epsilon
        self.gradient_clip_norm, self.gradient_clip_value, self.param_clip_value = gradient_clip_norm, gradient_clip_value, param_clip_value
        self.schedule = schedule or Schedule()

    def corrections(self, step):
        """Return ``1 - beta_1^t`` and ``sqrt(1 - beta_2^t)``, by which running means that began at 0 are too small after `t` steps.

        The rules put both into their numbers, where they cost the kernel nothing: with these as ``first`` and ``root``,
        ``(m / first) / (sqrt(v) / root + epsilon)`` is ``root / first * m / (sqrt(v) + epsilon * root)``.
        """
        return 1.0 - self.beta_1**step.t, self.be.sqrt(1.0 - self.beta_2**step.t)
