"""What the Schedule-Free optimizers share."""

from collections.abc import Iterable

from nbopt import checks
from nbopt.language.expressions import Operand
from nbopt.layers import Layer
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.further import put_aside, put_back
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr, Slot, Step

#: What those that grow their rate declare.
WARMUP = hyper(
    None,
    checks.optional(checks.non_negative),
    "In how many steps the rate grows. None or 0: at once.",
    torch="warmup_steps",
)


class ScheduleFreeOptimizer(Optimizer):
    """Base of optimizers that average parameters in place of a schedule.

    With ``u`` what a subclass makes of the gradient, ``z = p`` at first, and ``l`` the learning rate of the
    step::

        w = t^average_power * (largest l so far)^weight_lr_power
        c = w / (sum of all w)                         (0 where that is 0)
        z = z - l * u
        p = (1 - c) * (p - (1 - beta) * l * u) + c * z

    Gradients are taken at ``p``. What a run is good for is the average ``x = p + (1 - 1 / beta) * (z - p)``:
    `eval` puts it in place of the parameters, and `train` puts them back.
    """

    state_names: tuple[str, ...] = ("fast",)
    momentum_name = ""
    arguments = (
        "stochastic_round",
        "learning_rate",
        ...,
        "wdecay",
        "average_power",
        "weight_lr_power",
        *Optimizer.arguments[3:],
    )
    aside = {
        **Optimizer.aside,
        "training": (
            "optimizer.eval(layers) has put averages in place of the parameters: write "
            "optimizer.train(layers) before the next step"
        ),
    }

    wdecay = hyper(0.0, checks.non_negative, "Weight decay, added to ``u``.", torch="weight_decay")
    average_power = hyper(
        0.0, checks.non_negative, "How much more the average takes of late steps.", torch="r"
    )
    weight_lr_power = hyper(
        2.0, checks.non_negative, "How much less it takes of steps whose learning rate is small."
    )

    def states(self, shape: tuple[int, ...]) -> dict[str, State]:
        """Declare the states: the point of the fast steps, a subclass's own, and two numbers for all."""
        fast, *others = self.state_names
        own = {fast: State(init="param"), **dict.fromkeys(others, State())}
        return {**own, "lr_max": State("step"), "weight_sum": State("step")}

    def warmed(self, step: Step, warmup: float | None) -> Expr:
        """Return the learning rate, which grows through so many steps."""
        return step.lr * self.be.minimum(step.number / warmup, 1.0) if warmup else step.lr

    def move(
        self,
        step: Step,
        param: Slot,
        change: Expr,
        rate: Operand,
        beta: float,
        fast: Slot,
        lr_max: Slot,
        weight_sum: Slot,
    ) -> None:
        """Take the step that all of them share."""
        be = self.be
        change = change + self.wdecay * param
        lr_max[:] = be.maximum(lr_max, rate)
        weight = step.number**self.average_power * (
            be.square(lr_max) if self.weight_lr_power == 2.0 else lr_max**self.weight_lr_power
        )
        weight_sum[:] = weight_sum + weight
        share = be.where(weight_sum > 0.0, weight / weight_sum, 0.0)
        fast[:] = fast - rate * change
        param[:] = param + share * (fast - param) - (1.0 - share) * (1.0 - beta) * rate * change

    def eval(self, layers: Iterable[Layer]) -> None:
        """Put averages in place of the parameters, for evaluation.

        A copy of the parameters is kept until `train`.

        Parameters
        ----------
        layers : list
            Those that it trains. What it has not trained yet stays as it is, and so do parameters that are
            averages already.
        """
        beta = getattr(self, self.momentum_name)

        def rule(param: Slot, fast: Slot) -> None:
            param[:] = param + (1.0 - 1.0 / beta) * (fast - param)

        put_aside(self, "training", layers, rule, "fast")

    def train(self, layers: Iterable[Layer]) -> None:
        """Put the parameters back, to the bit, so that steps go on as if `eval` had not been called.

        Parameters
        ----------
        layers : list
            As for `eval`. Parameters that are no averages stay as they are.
        """
        put_back(self, "training", layers)
