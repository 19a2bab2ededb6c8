"""Steady: a step that is the one before it with other numbers, found again without a look at any tensor."""

from __future__ import annotations

from functools import partial
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

from nbopt.arrays.tensor import Tensor
from nbopt.interface.backend import Backend
from nbopt.interface.update import Update
from nbopt.naming import NervanaObject
from nbopt.parameters import Parameters

if TYPE_CHECKING:
    from nbopt.optimizers.base import Optimizer
    from nbopt.optimizers.tracing import Trace

#: A number that a layer of `nbopt.Parameters` changes whenever one of its tensors is another.
_serials = attrgetter("changes.serial")


class Steady:
    """What a step depends on besides its numbers, as it was when the step was last looked at as a whole.

    It keeps neither layers nor tensors alive: layers are known by their serial numbers, which no other
    layer of the process has had.

    Attributes
    ----------
    be : Backend
    layers : list of int
        The layers' serial numbers.
    trace : Trace
    shared : list of Tensor
        The optimizer's own numbers that the step reads in memory.
    stochastic_round : bool or int
        The optimizer's.
    roundings : int
        How many tensors had got another rounding so far.
    run : callable
        What `Backend.prepare` has returned, with the method ``again``.
    """

    __slots__ = ("be", "layers", "roundings", "run", "shared", "stochastic_round", "trace")

    def __init__(self, be: Backend, layers: list[int], trace: Trace, update: Update, run: Any) -> None:
        self.be, self.layers, self.trace, self.run = be, layers, trace, run
        self.shared, self.stochastic_round = list(update.shared), update.stochastic_round
        self.roundings = Tensor.roundings_set

    @classmethod
    def after(
        cls, be: Backend, layers: list[Any], updates: list[Update], run: Any, trace: Trace
    ) -> Steady | None:
        """Return what the step just run can be found again by, or None if it can't.

        Parameters
        ----------
        be : Backend
        layers : list
        updates : list of Update
        run : callable
        trace : Trace
            Of the step.

        Returns
        -------
        Steady or None
        """
        if len(updates) != 1 or not trace.reusable or not hasattr(run, "again"):
            return None
        update = updates[0]
        # What is in memory of a user's is wrapped anew in each step, and some rows may be left out.
        options = trace.options
        if options.loss_scale or options.rate or update.listing is not None or update.key is None:
            return None
        if not all(type(layer).get_params is Parameters.get_params for layer in layers):
            return None
        serials = [*map(_serials, layers)]
        if None in serials:  # what a gradient was copied to holds the values of that step only
            return None
        return cls(be, serials, trace, update, run)

    def step(self, optimizer: Optimizer, layers: list[Any], epoch: int) -> bool:
        """Run the step again, with the numbers of now.

        Parameters
        ----------
        optimizer : Optimizer
        layers : list
        epoch : int

        Returns
        -------
        bool
            False, and nothing has changed, if anything but numbers may be another.
        """
        be, trace = NervanaObject.be, self.trace
        try:
            same = [*map(_serials, layers)] == self.layers
        except (AttributeError, TypeError):
            return False
        if not (same and be is self.be and type(epoch) is int and epoch >= 0):
            return False
        if trace.rule is not type(optimizer).rule or "rule" in optimizer.__dict__:
            return False
        # True and 1 differ, and small ints are unique.
        if optimizer.stochastic_round is not self.stochastic_round or Tensor.roundings_set != self.roundings:
            return False
        on_device, scale = optimizer.capturable and be.captures, optimizer.loss_scale
        if on_device is not trace.options.on_device or type(scale) is not float:
            return False
        rate = optimizer.learning_rate
        if type(rate) is not float and rate is not None:
            return False
        rate, options = optimizer._rate(epoch), optimizer.options(on_device=on_device)
        if self.shared and not all(map(is_, self.shared, optimizer.shared_numbers(be, options, rate))):
            return False
        numbers = trace.numbers(optimizer, options, rate, be.bsz * scale, epoch)
        if numbers is None:
            return False
        if on_device:
            optimizer.check_frozen(trace)
            if optimizer._cache().captures:  # the backend tells of what graphs don't know
                return False
            return be.repeat(self.run, numbers, _nothing)
        attributes = optimizer.__dict__
        commit = partial(attributes.__setitem__, "_t", attributes.get("_t", 0) + 1)
        return be.repeat(self.run, numbers, commit)


def _nothing() -> None:
    """Commit nothing: the device counts."""
