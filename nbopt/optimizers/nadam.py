"""NAdam."""

from typing import Any

from nbopt import checks
from nbopt.arrays.tensor import Tensor
from nbopt.interface.backend import Backend
from nbopt.interface.update import Update
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.moments import MomentOptimizer
from nbopt.optimizers.states import EMA, State
from nbopt.optimizers.step import Expr, Slot, Step


class NAdam(MomentOptimizer):
    """Adam with Nesterov's momentum: the step looks ahead along the mean.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips, ``mu_t = beta_1 * (1 - 0.96^(t *
    momentum_decay) / 2)`` and ``P_t`` the product of ``mu_1`` to ``mu_t``::

        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g^2
        M = mu_(t+1) * m / (1 - P_(t+1)) + (1 - mu_t) * g / (1 - P_t)
        p = p - lr * M / (sqrt(v / (1 - beta_2^t)) + epsilon)

    References
    ----------
    T. Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 Workshop; formula and defaults of
    PyTorch's NAdam.
    """

    state_names = ("mean", "mean_square")

    learning_rate = hyper(2e-3)
    epsilon = hyper(doc="Keeps the division finite. It stands beside the corrected root, as in PyTorch.")
    momentum_decay = hyper(
        4e-3, checks.non_negative, "How fast the momentum ``mu_t`` grows from half of beta_1 to beta_1."
    )

    def _momentum(self, t: Any) -> Any:
        return self.beta_1 * (1.0 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def _product(self, t: int) -> float:
        """Return the product of ``mu_1`` to ``mu_t``.

        The multiplications are always the same ones, in turn. They go on from the last call's.
        """
        key = self.beta_1, self.momentum_decay
        known, count, product = self.__dict__.get("_products", (key, 0, 1.0))
        if known != key or count > t:
            count, product = 0, 1.0
        while count < t and product > 2.0**-54:  # from there on 1 - product is 1
            count += 1
            product *= self._momentum(count)
        self._products = key, count, product
        return product

    def update_of(self, *args: Any) -> Update:
        """Return one step as an `Update`, see `Optimizer.update_of`.

        The product of the momenta is a number that the rule reads.
        """
        if not self._keeps_product():
            self._product_now = self._product(self.t + 1)
        return super().update_of(*args)

    def _keeps_product(self) -> bool:
        """Return whether the product is a state, since the host does not know which step it is."""
        return self.counts_each or self.counts_on_device(self._backend())

    def declared_states(self, shape: tuple[int, ...] = ()) -> tuple[tuple[str, State], ...]:
        """Return the states that the rule takes now.

        The product is one of them if each parameter has its own count of steps, or if the count is on a
        device.
        """
        found = super().declared_states(shape)
        if not self._keeps_product():
            return found
        last = (EMA,) if self.ema_decay else ()
        axes: Any = () if self.counts_each else "step"
        return (*found[: len(found) - len(last)], ("product", State(axes, 1.0, "float64")), *last)

    def _step_state(self, be: Backend, name: str, state: State, rate: float | None) -> Tensor:
        """Return the product, which goes on from the steps that the host has counted."""
        if name == "product" and name not in self.step_states:
            self.step_states[name] = self._product(self.t)  # type: ignore[assignment]
        return super()._step_state(be, name, state, rate)

    def rule(
        self, step: Step, param: Slot, grad: Expr, mean: Slot, mean_square: Slot, product: Any = None
    ) -> None:
        """One step; see the class."""
        be, b1, b2, t = self.be, self.beta_1, self.beta_2, step.t
        _, root = self.corrections(step)
        rate, ahead = step.lr * root, self._momentum(t + 1)
        if product is None:
            product = self._product_now
        else:
            product[:] = product * self._momentum(t)
        mean[:] = b1 * mean + (1.0 - b1) * grad
        mean_square[:] = b2 * mean_square + (1.0 - b2) * be.square(grad)
        nesterov = (
            rate * ahead / (1.0 - product * ahead) * mean
            + rate * (1.0 - self._momentum(t)) / (1.0 - product) * grad
        )
        param[:] = param - nesterov / (be.sqrt(mean_square) + self.epsilon * root)
