"""Steady: a step over one group that is the one before it, with other numbers and gradients elsewhere.

It looks at all that may have changed, as any step does, and leaves out what follows from that.
"""

from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch

from nbopt.optimizers import Optimizer
from nbopt.torch.shards import local, local_grads

_grad, _pointer = attrgetter("grad"), torch.Tensor.data_ptr


class Steady:
    """What was found when a step was last looked at as a whole.

    Attributes
    ----------
    share : Share
        What the step was over.
    trace : Trace
    run : callable
        What `nbopt.Backend.update` has returned.
    shared : list of Tensor
        The rule's own numbers that the step reads in memory.
    stochastic_round : bool or int
        The rule's.
    count : int
        How many parameters the group had.
    key : list of int
        The serial numbers of the tensors, as the share had them.
    """

    __slots__ = ("count", "key", "run", "share", "shared", "stochastic_round", "trace")

    def __init__(self, share, trace, update, run):
        self.share, self.trace, self.run, self.key = share, trace, run, update.key
        self.shared, self.stochastic_round = list(update.shared), update.stochastic_round
        self.count = len(share.own.group["params"])

    @classmethod
    def after(cls, whole, updates, run):
        """Return what the step just run can be found again by, or None if it can't.

        Parameters
        ----------
        whole : Stepper
        updates : list of Update
        run : callable

        Returns
        -------
        Steady or None
        """
        owned, be = whole._groups, whole._backend
        if len(updates) != 1 or len(owned) != 1 or not hasattr(run, "again") or be.captures:
            return None
        own, update = owned[0], updates[0]
        rule, share = own.optimizer, own.shares.get((None, None))
        if share is None or not share.settled or len(own.shares) > 1 or share.others:
            return None
        trace = rule.trace_in_use()
        special = type(rule).update_of is not Optimizer.update_of or rule.scope == "optimizer"
        if special or not trace.reusable or trace.sums_norm or trace.options.loss_scale:
            return None
        return cls(share, trace, update, run) if len(share.seen[1]) == len(own.group["params"]) else None

    def step(self, whole):
        """Run the step again, with the numbers and gradients of now.

        Parameters
        ----------
        whole : Stepper

        Returns
        -------
        bool
            False, and nothing has changed, if it has to be looked at as a whole.
        """
        share, be = self.share, whole._backend
        own = share.own
        owners, rule, epoch = own.group["params"], own.optimizer, own.epoch()
        if len(owners) != self.count or share._key is not self.key or whole._pieces is not None:
            return False
        numbers = self._numbers(be, rule, epoch)
        if numbers is None:
            return False
        grads, params = (
            (local_grads(owners), local(owners)) if own.sharded else ([*map(_grad, owners)], owners)
        )
        try:
            pointers = [*map(_pointer, grads)]
        except (TypeError, RuntimeError):  # some are None, or sparse
            return False
        if not share.is_same(params, grads, pointers, whole.state.stamp[0]):
            return False

        def commit():
            attributes = rule.__dict__
            attributes["_t"] = attributes.get("_t", 0) + 1
            own.stepped()
            torch.autograd.graph.increment_version(owners)

        return be.repeat(self.run, numbers, commit, np.array(pointers, np.int64))

    def _numbers(self, be: Any, rule, epoch):
        """Return the numbers that the host gives now, or None if the step needs another trace."""
        trace, rate = self.trace, rule.learning_rate
        if type(epoch) is not int or epoch < 0 or type(rule.loss_scale) is not float:
            return None
        if type(rate) is not float and rate is not None:
            return None
        if trace.rule is not type(rule).rule or "rule" in rule.__dict__:
            return None
        if rule.stochastic_round is not self.stochastic_round:
            return None
        rate, options = rule._rate(epoch), rule.options()
        if self.shared and not all(map(is_, self.shared, rule.shared_numbers(be, options, rate))):
            return None
        return trace.numbers(rule, options, rate, rule.loss_scale, epoch)
