"""What the base class may do around any rule: to its gradient, and to the parameter that it stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nbopt import checks
from nbopt.arrays.tensor import Tensor
from nbopt.language.expressions import Operand
from nbopt.layers import Layer, get_param_list
from nbopt.optimizers.further import put_aside, put_back
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.states import EMA
from nbopt.optimizers.step import Expr, Slot

#: The declaration of ``cautious``, for classes whose rule calls `Modifiers.cautious_update`.
CAUTIOUS = hyper(
    False, checks.boolean,
    "Whether elements of a step that go against the gradient are left out, see `cautious_update`.",
)  # fmt: skip

#: A parameter whose norm is below this is taken to have it, so that adaptive clips let zeros grow.
_LEAST_NORM = 1e-3


class Modifiers:
    """The part of `Optimizer` that modifies rules. Each modifier is off unless its hyper-parameter is set.

    A gradient is divided by batch size and loss scale, then centralized, then clipped adaptively, then
    clipped by value, then scaled by the norm clip. A stored parameter decays, then is clipped. Means and
    mirrors of parameters see what was stored.
    """

    clip_value: Any
    _backend: Any
    centralize: Any
    adaptive_clip: Any
    gradient_clip_value: Any
    param_decay: Any
    param_clip_value: Any

    def modified_gradient(self, param: Slot, grad: Expr) -> Expr:
        """Return the gradient that a rule gets, but for the norm clip.

        Parameters
        ----------
        param : Slot
        grad : Value
            Divided by the batch size and the loss scale.

        Returns
        -------
        Value

        Notes
        -----
        Centralized gradients: H. Yong et al., "Gradient Centralization", arXiv:2004.01461, 2020. Adaptive
        clips: A. Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization",
        arXiv:2102.06171, 2021. A unit of a parameter of two axes or more is an index of its first axis; else
        all of it is one.
        """
        be = self._backend()
        if self.centralize and param.ndim > 1:
            grad = grad - be.mean(grad, axis=_all_but_first(param))
        if self.adaptive_clip:
            axis = _all_but_first(param) if param.ndim > 1 else None
            own, length = be.norm(param, axis=axis), be.norm(grad, axis=axis)
            bound = self.adaptive_clip * be.maximum(own, _LEAST_NORM)
            grad = grad * be.where(length > bound, bound / length, 1.0)
        return self.clip_value(grad, self.gradient_clip_value)

    def modified_param(self, rate: Any, param: Slot, value: Expr) -> Expr:
        """Return what the last assignment to the parameter stores.

        Parameters
        ----------
        rate : Value or float, optional
            The learning rate. None: the optimizer has none, and weights decay by `param_decay` itself.
        param : Slot
            The parameter before.
        value : Value
            What the rule assigns.

        Returns
        -------
        Value
        """
        if self.param_decay:
            value = value - (self.param_decay if rate is None else rate * self.param_decay) * param
        return self.clip_value(value, self.param_clip_value)

    def modifies_param(self) -> bool:
        """Return whether `modified_param` changes anything.

        Returns
        -------
        bool
        """
        return bool(self.param_decay) or bool(self.param_clip_value)

    def cautious_update(self, update: Expr, grad: Expr) -> Expr:
        """Return an update without the elements that would move against the gradient.

        It does so if ``cautious`` is True. A rule calls it where its update is ready, and declares
        ``cautious``.

        Parameters
        ----------
        update : Value
            What is subtracted from the parameter, up to a positive factor.
        grad : Value

        Returns
        -------
        Value
            `update` itself where the optimizer has no ``cautious`` or where that is False. Else elements
            whose ``update * grad`` is not positive are 0, and the others are larger: times the number of all
            elements over one more than the number of those that are kept.

        Notes
        -----
        K. Liang et al., "Cautious Optimizers: Improving Training with One Line of Code", arXiv:2411.16085,
        2024; formula of pytorch_optimizer's.
        """
        if not getattr(self, "cautious", False):
            return update
        be = self._backend()
        size = update.tracer.size()  # type: ignore[attr-defined]  # which is a traced value's
        kept = be.greater(update * grad, 0.0)
        return update * kept * (size / (be.sum(kept) + 1.0))

    @contextmanager
    def ema(self, layers: Iterable[Layer]) -> Iterator[None]:
        """Have running means in place of the parameters for a while.

        Evaluate with them, or save them for use.

        Parameters
        ----------
        layers : list
            Those that it trains. What it has not trained with an `ema_decay` stays as it is.

        Yields
        ------
        None
            Afterwards the parameters have their bits again. A step in between is an error.
        """

        def rule(param: Slot, mean: Slot) -> None:
            param[:] = mean

        put_aside(self, "parameter", layers, rule, EMA[0])  # type: ignore[arg-type]
        try:
            yield
        finally:
            put_back(self, "parameter", layers)  # type: ignore[arg-type]

    def mirrors(self, layers: Iterable[Layer]) -> list[Tensor | None]:
        """Return the copies of parameters that steps with a `mirror_dtype` keep.

        A step writes them in the same pass as the parameters. They are rounded to nearest, or stochastically
        where 16-bit states are, see `stochastic_round`. A step that is skipped leaves them, too.

        Parameters
        ----------
        layers : list
            Those that it trains.

        Returns
        -------
        list of Tensor or None
            One for each parameter, in the order of the layers; None before its first step. Each is the last
            one of the parameter's states. Another tensor may take its place there:
            ``layer.states[0][-1] = be.wrap(array)``.
        """
        found: list[Tensor | None] = []
        for _, states in get_param_list(layers):
            named = [state for state in states if str(getattr(state, "name", "")).endswith(".mirror")]
            found.append(named[0] if named else None)
        return found


def _all_but_first(param: Slot) -> tuple[int, ...]:
    return tuple(range(1, param.ndim))


def decayed(param: Expr, change: Operand, decay: Operand) -> Expr:
    """Return ``param - (change + decay * param)``: a parameter after its change and its weight decay.

    A factor ``1 - decay`` would be rounded to a multiple of 2^-24 in float32, and a decay of 1e-8 would be
    lost.

    Parameters
    ----------
    param, change : Node
    decay : float
        The learning rate times the weight decay.

    Returns
    -------
    Node
    """
    return param - (change + decay * param)
