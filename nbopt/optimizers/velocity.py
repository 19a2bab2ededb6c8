"""What optimizers share that keep a velocity if they have momentum."""

from typing import Any

from nbopt.errors import ArgumentError
from nbopt.optimizers.base import Optimizer


class VelocityOptimizer(Optimizer):
    """Base of optimizers with the state ``velocity``, unless momentum_coef is 0.

    Subclasses declare `momentum_coef` and `nesterov`.
    """

    state_names = ("velocity",)
    momentum_coef: Any
    nesterov: Any

    def _check_together(self) -> None:
        """Refuse to look ahead without momentum."""
        if self.nesterov and self.momentum_coef == 0:
            raise ArgumentError(
                "nesterov=True needs a momentum_coef above 0; without momentum there is nothing to look "
                "ahead along"
            )

    def states_in_use(self) -> tuple[str, ...]:
        """Return the states that the rule takes now: none without momentum."""
        self._check_together()
        return self.state_names if self.momentum_coef else ()
