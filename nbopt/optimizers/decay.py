"""What optimizers share that can decay weights in two ways."""

from nbopt import checks
from nbopt.language.expressions import Operand
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.modifiers import decayed
from nbopt.optimizers.step import Expr, Slot


class DecayOptimizer(Optimizer):
    """Base of optimizers whose weight decay is decoupled from the gradient, or added to it."""

    wdecay = hyper(0.0, checks.non_negative, "Weight decay.", torch="weight_decay")
    decoupled = hyper(
        True, checks.boolean, torch="weight_decouple",
        doc="Whether the parameter shrinks by lr * wdecay, apart from the gradient. Else wdecay * p is added "
        "to the gradient.",
    )  # fmt: skip

    def with_decay(self, param: Slot, grad: Expr) -> Expr:
        """Return the gradient with its share of weight decay, which is none where that is decoupled."""
        return grad if self.decoupled or not self.wdecay else grad + self.wdecay * param

    def decayed(self, param: Slot, change: Operand, rate: Operand) -> Expr:
        """Return the parameter after its change, and after its weight decay where that is decoupled."""
        return (
            decayed(param, change, rate * self.wdecay) if self.decoupled and self.wdecay else param - change
        )
