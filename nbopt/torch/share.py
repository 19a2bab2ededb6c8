"""The parameters that one update is over, as a step sees them.

Which tensors do they have, where are these, and what of that is new?
"""

from itertools import chain
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch

from nbopt.errors import ArgumentError
from nbopt.layers import wrapped
from nbopt.optimizers.states import check_effect, checked_columns
from nbopt.torch.devices import check_apart
from nbopt.torch.kinds import kinds_of, likeness
from nbopt.torch.masters import MASTER, MIRROR, refresh, versions_of
from nbopt.torch.shards import check_rule, check_shards, local

_serial = attrgetter("serial")
_pointer, _is_negative, _resolved = torch.Tensor.data_ptr, torch.Tensor.is_neg, torch.Tensor.resolve_neg

# Attributes that depend on what has gradients.
_OF_ROWS = (
    "seen", "_alike", "_tensors", "_states", "_steps", "_names", "_held", "_stamp", "_key", "_listing",
    "_masters",
)  # fmt: skip
_MOST_TURNS = 8


class Share:
    """Those parameters of a group that have gradients; if the rule is traced by axes, those of one kind.

    Attributes
    ----------
    own : Group
        The group.
    kind : tuple or None
        The number of axes of the parameters, and the states beside them, if the rule is traced by axes or
        some parameters of the group have masters.
    piece : int or None
        Of a step that is run piece by piece, which one. There may be many, so each keeps its own plans.
    device : torch.device or None
        Where the parameters are, if the optimizer has several devices. Each keeps its own plans as well.
    mirrors : bool
        Whether the parameters have masters, whose mirrors they are.
    seen : list or None
        Everything about the tensors, and their addresses, that the last step depended on; but the gradients'
        addresses, which PyTorch exchanges at every step.
    settled : bool
        Whether the last step found everything as the one before it.
    others : dict of tuple of int to list
        The same, and what was made of it, for other parameters of the group that had gradients: tasks that
        take turns.
    """

    def __init__(self, own, kind=None, piece=None, device=None):
        self.own, self.kind, self.piece, self.device = own, kind, piece, device
        self._plans: list = []
        self.mirrors = kind is not None and kind[1][-1:] == (MIRROR,)
        self.seen: Any = None
        self.settled = False
        self.others: dict[tuple, list] = {}
        self._alike: Any = None
        self._rows: Any = ()
        self._tensors: list = []
        self._states: list = []
        self._steps: list = []
        self._names: list = []
        self._held: list = []
        self._stamp = 0
        self._key: list[int] = []
        self._listing: Any = None
        self._sizes: list[int] = []
        self._made: list = []
        self._masters: list = []
        self._versions: Any = None

    def update(self, whole, number, rows, owners, params, grads, pointers, counts=True, stores=True):
        """Return the update over these parameters.

        Parameters
        ----------
        whole : Stepper
        number : int
            As for `Group.updates`.
        rows : sequence of int
            Which of the group's parameters.
        owners : list of torch.Tensor
            These.
        params, grads : list of torch.Tensor
            Their memory here, and that of their gradients.
        pointers : list of int
            The gradients' addresses.
        counts : bool
            Whether it is the one that counts the group's step.
        stores : bool
            Whether it is the one that stores the states that are one number.

        Returns
        -------
        nbopt.interface.update.Update
        """
        be, state, own = whole._backend, whole.state, self.own
        if self.device is not None:
            be = whole._backend_of(owners[0])
        if rows != self._rows:
            self._turn_to(rows)
        # As little as can be, since each look at a tensor takes 50 to 150 ns.
        alike = self.seen is not None and self._alike(*params, *grads)
        if not alike and any(map(_is_negative, grads)):
            grads = [*map(_resolved, grads)]  # a copy where the memory holds the values with the other sign
            pointers = [*map(_pointer, grads)]
        if not all(pointers):
            for row, grad in zip(rows, grads):
                wrapped(be, grad, _called(row))  # raises, unless the gradient has no elements
        optimizer = own.optimizer
        names = self.kind or (optimizer.states_in_use(), bool(optimizer.ema_decay))
        # As `_tensors` keep the memory of parameters alive, an equal address means the same memory.
        seen = [
            (names, optimizer.counts_each),
            [*map(_pointer, params)],
            self.seen[-1] if alike else kinds_of(params, grads),
        ]
        stamp = state.stamp[0]
        self.settled = alike and stamp == self._stamp and seen == self.seen
        if seen != self.seen or (stamp != self._stamp and not self._holds(owners, state)):
            if own.sharded:
                check_shards(owners, rows)
            self._wrap(be, owners, params, rows, state)
            self._list(whole, number, rows)
            self.seen, self._alike = seen, likeness(params, grads)
        self._stamp = stamp
        if self.mirrors and whole._refreshes:
            self._take_over(owners, params)

        def columns(update):
            tensors = [wrapped(be, grad, _called(row)) for row, grad in zip(rows, grads)]
            found = list(zip(zip(self._tensors, tensors), self._states))
            if own.sharded:
                check_rule(optimizer, update.program, owners)
            if self.device is not None:
                check_apart(optimizer, trace.options, update)
            if self.piece is not None and update.program.matrices():
                raise ArgumentError(
                    f"{optimizer.classnm} takes whole matrices, whose products are too slow on the host for "
                    "offload: leave them on the device, and offload AdamW's parameters alone"
                )
            check_effect(optimizer, trace, bool(self._made))
            place = lambda number, _: f"parameter {rows[number]} of the group"  # noqa: E731
            columns = checked_columns(optimizer, trace, be, found, [], place)
            return [*columns, self._steps] if self._steps else columns

        def commit():
            own.stepped()
            for param, new in self._made:
                state[param].update(new)
            self._made = []
            # So a backward pass through old values is an error, as after PyTorch's own steps.
            torch.autograd.graph.increment_version(owners)
            if self.mirrors:
                self._versions = versions_of(owners, params, own.sharded)

        update = optimizer.update_of(None, columns, commit, own.epoch(), 1, self.kind, counts, stores)
        trace = optimizer.trace_in_use()
        update.key, update.addresses, update.listing = self._key, np.array(pointers, np.int64), self._listing
        if trace.sums_norm:
            update.norm_set = id(whole)
        if self.piece is not None:
            update.piece, update.plans = self.piece, self._plans
        if self.device is not None:
            update.backend, update.plans = be, self._plans
        return update

    def is_same(self, params, grads, pointers, stamp):
        """Return whether all is surely as it was in the last step, but where the gradients are.

        Parameters
        ----------
        params, grads : list of torch.Tensor
            As for `update`.
        pointers : list of int
        stamp : int
            That of the states.
        """
        if self.seen is None or stamp != self._stamp or not all(pointers):
            return False
        return self._alike(*params, *grads) and [*map(_pointer, params)] == self.seen[1]

    def is_stale(self, params):
        """Return whether it has found memory that is no longer that of the group's parameters.

        Parameters
        ----------
        params : list of torch.Tensor
            The memory of all parameters of the group.
        """
        self._drop_gone(params)
        return self.seen is None or not _are(params, self._rows, self.seen[1])

    def _drop_gone(self, params):
        """Forget those of the others whose memory is no longer that of the group's parameters."""
        for rows, (found, *_) in list(self.others.items()):
            if not _are(params, rows, found[1]):
                del self.others[rows]

    def _list(self, whole, number, rows):
        """Note where the parameters are in the list of the whole step, which random bits depend on."""
        sizes = [[param.numel() for param in other["params"]] for other in whole.param_groups[: number + 1]]
        if sizes[-1] != self._sizes:
            self._sizes, self.seen = sizes[-1], None
            self.others.clear()
            whole._forget(number + 1)  # the groups behind have other positions
        if self.seen is not None:
            self.others.clear()  # something was exchanged, and what it was before must not live on
        self._drop_gone(local(self.own.group["params"]))
        before = sum(map(len, sizes[:-1]))
        self._listing = [*chain.from_iterable(sizes)], [before + row for row in rows]

    def _turn_to(self, rows):
        """Go back to what was found when these parameters had gradients last."""
        versions = self.own.versions  # those of rows that both have are as new as can be
        versions.update(zip(self._rows, self._versions or ()))
        self._versions = [*map(versions.get, rows)]
        if self.seen is not None:
            self.others[tuple(self._rows)] = [getattr(self, name) for name in _OF_ROWS]
        found = self.others.pop(tuple(rows), None)
        if len(self.others) >= _MOST_TURNS:
            del self.others[next(iter(self.others))]
        self._rows, self.seen = rows, None
        if found is not None:
            for name, value in zip(_OF_ROWS, found):
                setattr(self, name, value)

    def _holds(self, params, state):
        """Return whether the states of the last step are still those in `state`."""
        found = [
            states.get(name) for states in (state.get(param, {}) for param in params) for name in self._names
        ]
        return len(found) == len(self._held) and all(map(is_, found, self._held))

    def _take_over(self, owners, params):
        """Take over into masters what others have written into their parameters."""
        versions, before = versions_of(owners, params, self.own.sharded), self._versions
        if versions == before:
            return
        stochastic = bool(self.own.optimizer.stochastic_round)
        for number, (param, master) in enumerate(zip(params, self._masters)):
            if before is None or versions[number] != before[number]:
                refresh(param, master, stochastic)
        self._versions = versions

    def _wrap(self, be, owners, params, rows, state):
        """Make tensors of the parameters and their states, and states where there are none."""
        own, optimizer = self.own, self.own.optimizer
        kept = [*own.kept(self.kind), *([MASTER] if self.mirrors else [])]
        self._made, self._masters, self._versions = [], [], None
        own.versions.clear()
        self._tensors = [
            wrapped(be, param, f"parameter {row} of the group") for row, param in zip(rows, params)
        ]
        self._states, self._held, self._names = [], [], [one.name for one in kept]
        new = own.new_states(owners, state, self.kind)
        for row, owner, param, added in zip(rows, owners, params, new):
            found = {**state.get(owner, {}), **added}
            if added:
                self._made.append((owner, added))
            self._held += [found[one.name] for one in kept]
            tensors = [
                wrapped(be, one.shaped(found[one.name], param), f"the state {one.name} of parameter {row}")
                for one in kept
            ]
            for tensor, one in zip(tensors, kept):
                tensor.name = f"{optimizer.classnm}.{one.name}"
            self._states.append(tensors)
        if self.mirrors:  # the rule's parameter is the master
            held = self._held[len(kept) - 1 :: len(kept)]
            self._masters = [MASTER.shaped(master, param) for master, param in zip(held, params)]
            versions = versions_of(owners, params, own.sharded)
            self._versions = [
                version if MASTER.name in added else None for version, added in zip(versions, new)
            ]
            for number, (tensor, states) in enumerate(zip(self._tensors, self._states)):
                self._tensors[number], states[-1] = states[-1], tensor
                tensor.name = f"{optimizer.classnm}.{MIRROR[0]}"
        counts = own.counts(owners, new)
        self._steps = (
            [*map(be.wrap, counts)]
            if counts
            else [states.pop(0) for states in self._states if optimizer.counts_each]
        )
        self._key = [*map(_serial, chain(self._tensors, chain.from_iterable(self._states), self._steps))]


def _are(params, rows, pointers):
    """Return whether some rows of a list of parameters have memory at these addresses."""
    return max(rows, default=-1) < len(params) and [params[row].data_ptr() for row in rows] == pointers


def _called(row):
    return f"the gradient of parameter {row} of the group"
