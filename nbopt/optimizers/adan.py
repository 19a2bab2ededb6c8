"""Adan."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import decayed
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr, Slot, Step


class Adan(Optimizer):
    """Adam with Nesterov's momentum, by a running mean of the differences of successive gradients.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips and ``h`` that of the step before
    (``g`` in a parameter's first step)::

        m = beta_1 * m + (1 - beta_1) * g;                             M = m / (1 - beta_1^t)
        d = beta_2 * d + (1 - beta_2) * (g - h);                       D = d / (1 - beta_2^t)
        v = beta_3 * v + (1 - beta_3) * (g + beta_2 * (g - h))^2;      V = v / (1 - beta_3^t)
        p = (p - lr * (M + beta_2 * D) / (sqrt(V) + epsilon)) / (1 + lr * wdecay)

    and with decoupled=True ``p = p - (lr * (M + beta_2 * D) / (sqrt(V) + epsilon) + lr * wdecay * p)``.

    References
    ----------
    X. Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
    arXiv:2208.06677, 2022; formula and defaults of pytorch_optimizer's Adan. Its max_grad_norm is
    gradient_clip_norm here, but that it adds epsilon to the norm.
    """

    state_names = ("mean", "mean_difference", "mean_square", "last_grad", "begun")

    learning_rate = hyper(1e-3)
    beta_1 = hyper(0.98, checks.below_one, "Decay of the running mean of gradients.", torch="betas")
    beta_2 = hyper(
        0.92, checks.below_one, torch="betas",
        doc="Decay of the running mean of their differences, and their weight.",
    )  # fmt: skip
    beta_3 = hyper(0.99, checks.below_one, "Decay of the running mean square.", torch="betas")
    epsilon = hyper(
        1e-8, checks.non_negative, torch="eps",
        doc="Keeps the division finite. It stands beside the corrected root.",
    )  # fmt: skip
    wdecay = hyper(0.0, checks.non_negative, "Weight decay, apart from the gradient.", torch="weight_decay")
    decoupled = hyper(
        False,
        checks.boolean,
        "Whether weights decay as in `AdamW`, or by a division after the step.",
        torch="weight_decouple",
    )

    def states(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Declare the states: four for each element, and for each parameter whether it has had a step."""
        *names, begun = self.state_names
        return {**dict.fromkeys(names, State()), begun: State(axes=())}

    def rule(
        self,
        step: Step,
        param: Slot,
        grad: Expr,
        mean: Slot,
        mean_difference: Slot,
        mean_square: Slot,
        last_grad: Slot,
        begun: Slot,
    ) -> None:
        """One step; see the class."""
        be, b1, b2, b3 = self.be, self.beta_1, self.beta_2, self.beta_3
        difference = be.where(begun, grad - last_grad, 0.0)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_difference[:] = b2 * mean_difference + (1.0 - b2) * difference
        mean_square[:] = b3 * mean_square + (1.0 - b3) * be.square(grad + b2 * difference)
        ahead = mean / (1.0 - b1**step.t) + b2 / (1.0 - b2**step.t) * mean_difference
        change = step.lr * ahead / (be.sqrt(mean_square) / be.sqrt(1.0 - b3**step.t) + self.epsilon)
        decay = step.lr * self.wdecay
        param[:] = decayed(param, change, decay) if self.decoupled else (param - change) / (1.0 + decay)
        last_grad[:] = grad
        begun[:] = 1.0
