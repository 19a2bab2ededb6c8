"""Step: what a rule knows about the step that it belongs to."""

from typing import TYPE_CHECKING, Any

from nbopt.errors import MissingError
from nbopt.language.expressions import Node as Expr  # as users call it
from nbopt.language.expressions import Operand, apply_named
from nbopt.language.lines import ELEMENT, STEP
from nbopt.language.trace import Tracer
from nbopt.language.values import Slot

__all__ = ["Expr", "Slot", "Step"]


class Step:
    """What a rule knows about the step that it belongs to.

    Attributes
    ----------
    lr : Number
        The scheduled learning rate. To ask for it in an optimizer without a `learning_rate` is an error.
    t, number : Number
        The number of this call, from 1.
    epoch : Number
        The epoch as passed to ``optimize``.
    """

    __slots__ = ("_given", "_scale", "_tracer", "scale_was_read")
    lr: Expr
    t: Expr
    number: Expr
    epoch: Expr

    def __init__(self, tracer: Tracer, given: dict[str, Any], scale: Any) -> None:
        self._tracer, self._given, self._scale = tracer, given, scale
        self.scale_was_read = False

    @property
    def scale(self) -> Any:
        """The norm-clip factor, 1.0 if clipping is off.

        A rule that reads it applies it itself; in any other rule `grad` is scaled already.
        """
        self.scale_was_read = True
        return self._scale

    @property
    def loss_scale(self) -> Any:
        """What the loss was multiplied by. `grad` is divided by it already."""
        return self._given["loss_scale"]()

    def sum(self, x: Operand) -> Expr:
        """Return the sum over all elements of all parameters.

        Parameters
        ----------
        x : Expr
            Of a value that varies with the parameter only, the sum over all parameters.

        Returns
        -------
        Value
        """
        return self._tracer.reduce("sum", "step", x)

    def max(self, x: Operand) -> Expr:
        """Return the largest value of all parameters; NaN if any is NaN.

        Parameters
        ----------
        x : Expr

        Returns
        -------
        Value
        """
        return self._tracer.reduce("max", "step", x)

    def min(self, x: Operand) -> Expr:
        """Return the smallest value of all parameters; NaN if any is NaN.

        Parameters
        ----------
        x : Expr

        Returns
        -------
        Value
        """
        return self._tracer.reduce("min", "step", x)

    def mean(self, x: Operand) -> Expr:
        """Return the mean over all elements of all parameters.

        Parameters
        ----------
        x : Expr
            Of a value that varies with the parameter only, the mean over all parameters.

        Returns
        -------
        Value
        """
        if self._tracer.extent(x) == STEP:
            return x  # type: ignore[return-value]  # a number, if it is one
        size = self._tracer.size()
        count = self.sum(size if self._tracer.extent(x) == ELEMENT else size / size)
        return self.sum(x) / apply_named("maximum", count, 1.0)

    def norm(self, x: Operand) -> Expr:
        """Return the Euclidean norm over all elements of all parameters.

        Parameters
        ----------
        x : Expr

        Returns
        -------
        Value
        """
        return apply_named("sqrt", self.sum(apply_named("square", x)))

    def only_if(self, condition: Operand) -> None:
        """Store nothing in this step where the condition is 0 or NaN: no parameter, no state.

        All optimizers of a call that have a condition store together or not at all.

        Parameters
        ----------
        condition : Expr or float
            One number for the whole step, such as ``be.finite(step.norm(grad))``.

        Raises
        ------
        TraceError
            If it varies with the parameter.
        """
        self._tracer.only_if(condition)

    def __repr__(self) -> str:
        return f"<step with {', '.join(self._given)}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            if name in self._given:
                return self._given[name]
            if name == "lr":
                raise MissingError(
                    "step.lr is the learning rate of the optimizer, and this one has none. In its "
                    "constructor, write self.learning_rate = learning_rate (an attribute of another name is "
                    "not step.lr)"
                )
            raise MissingError(
                f"a step has no attribute {name!r}: it has lr, t, number, epoch and scale. Other numbers are "
                "attributes of the optimizer"
            )
