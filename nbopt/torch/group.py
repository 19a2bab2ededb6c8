"""A group of parameters, as a step sees it: which tensors it has, where they are, and what of that is new."""

import copy
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import numpy as np
import torch

from nbopt.errors import ArgumentError, SparseError
from nbopt.language.trace import NeedsAxesError
from nbopt.layers import wrapped
from nbopt.optimizers.states import check_effect, checked_columns
from nbopt.torch.kinds import kinds_of, likeness
from nbopt.torch.saving import copied
from nbopt.torch.shards import check_rule, check_shards, is_sharded, local, local_grads

_grad, _serial = map(attrgetter, ("grad", "serial"))
_pointer, _is_negative, _resolved = torch.Tensor.data_ptr, torch.Tensor.is_neg, torch.Tensor.resolve_neg

# Values that can't change under the same object.
_CONSTANT = (float, int, bool, str, type(None), np.generic, torch.dtype)
# Attributes of a group that depend on what has gradients.
_OF_ROWS = "seen", "_alike", "_tensors", "_states", "_steps", "_names", "_held", "_stamp", "_key", "_listing"
_MOST_TURNS = 8


class Group:
    """What a group of parameters has beside its dictionary. Subclasses know what the dictionary's keys mean.

    Attributes
    ----------
    group : dict
        The entry of ``param_groups``.
    optimizer : nbopt.Optimizer
        The group's own. Its ``be`` is that of the PyTorch optimizer, so that a rule needs no current backend.
    warned : set of str
        The warnings that were given, shared by all groups.
    seen : list or None
        Everything about the tensors, and their addresses, that the last step depended on; but the gradients'
        addresses, which PyTorch exchanges at every step.
    others : dict of tuple of int to list
        The same, and what was made of it, for other parameters of the group that had gradients: tasks that
        take turns.
    kind : tuple or None
        Of a part of a group whose rule is traced by axes: the number of axes of its parameters, and the
        states beside them.
    parts : dict of tuple to Group
        The group's parts, by their kinds.
    """

    #: Whether the states of a state dict keep their dtypes.
    keeps_dtypes = False

    def __init__(self, group, optimizer, warned):
        self.group, self.optimizer, self.warned = group, optimizer, warned
        self.seen: Any = None
        self.others: dict[tuple, list] = {}
        self.kind: Any = None
        self.parts: Any = {}
        self._alike: Any = None
        self._rows: Any = ()
        self._length = -1
        self._values: Any = None
        self._read: list = []
        self._tensors: list = []
        self._states: list = []
        self._steps: list = []
        self._names: list = []
        self._held: list = []
        self._stamp = 0
        self._sharded = False
        self._key: list[int] = []
        self._listing: Any = None
        self._sizes: list[int] = []
        self._made: list = []

    def watched(self):
        """Return the keys that have to be read at every step, with ``"params"`` among them."""
        raise NotImplementedError

    def take(self, found):
        """Set the optimizer's hyper-parameters.

        Parameters
        ----------
        found : dict
            The watched keys and their values, which become the group's.
        """
        raise NotImplementedError

    def epoch(self):
        """Return what nbopt's own schedules depend on."""
        return 0

    def forget(self):
        """Look at everything afresh in the next step."""
        self.seen = None
        self.others.clear()
        self.parts.clear()

    def kept(self):
        """Return the states that there are now, a list of `Kept`.

        The parameter's count of steps is the first, if it is among them.
        """
        raise NotImplementedError

    def counts(self, params, new):
        """Return the parameters' counts of steps, one tensor each.

        The list is empty if the rule has none, or has them first among its states.
        """
        return []

    def set_of_updates(self):
        """Return what all groups whose gradients have one norm have in common.

        It is None if the group's norm is its own.
        """
        return None

    def stepped(self):
        """Note that a step was made. It can't fail any more."""

    def saved(self, group):
        """Return the group as a state dict has it.

        Parameters
        ----------
        group : dict
            As PyTorch has it there.
        """
        return group

    def check_saved(self, saved, states):
        """Raise StateError if a group of a state dict, or one of its states, is another optimizer's."""
        raise NotImplementedError

    def completed(self, saved):
        """Return a group of a state dict with what it does not say; raise where it makes no sense."""
        raise NotImplementedError

    def known(self):
        """Return all states that the rule may take, a sequence of `Kept`."""
        return self.kept()

    def loaded(self, saved, params, states):
        """Return new states from those of a state dict.

        Parameters
        ----------
        saved : dict
            The group of the state dict.
        params : list of torch.Tensor
            Those of its parameters that have states there.
        states : list of dict
            Theirs. They stay as they are.

        Returns
        -------
        list of dict
            Entries of others are kept.
        """
        known = {one.name: one for one in self.known()}
        new = [
            {key: copied(value, param.device) for key, value in found.items() if key not in known}
            for param, found in zip(params, states)
        ]
        for name, one in known.items():
            rows = [row for row, found in enumerate(states) if found.get(name) is not None]
            values = [states[row][name] for row in rows]
            made = (
                one.copies(
                    [params[row] for row in rows], values, self.optimizer.state_dtype, self.keeps_dtypes
                )
                if rows
                else []
            )
            for row, value in zip(rows, made):
                new[row][name] = value
        return [{key: own[key] for key in found if key in own} for own, found in zip(new, states)]

    def go_on_with(self, group):
        """Take another dictionary in place of the one so far: `completed` has made it."""
        self.group = group
        self.read_again()
        self.read()

    def read(self):
        """Set the optimizer's hyper-parameters from the group's dictionary, if it has changed."""
        group = self.group
        if len(group) != self._length:
            self._watched = self.watched()
            self._values, self._read, self._length = itemgetter(*self._watched), [], len(group)
        try:
            values = self._values(group)
        except KeyError as error:
            raise ArgumentError(
                f"a group has no {error} any more: {self.optimizer.classnm} needs it at every step"
            ) from None
        if len(values) != len(self._read) or not all(map(is_, values, self._read)):
            found = dict(zip(self._watched, values))
            found["params"] = listed(found["params"])
            self.take(found)
            group.update(found)
            self._read = [value if self._stays(value) else object() for value in self._values(group)]

    def read_again(self):
        """Forget what was read."""
        self._length = -1

    def _stays(self, value):
        """Return whether a value can't change without another object."""
        if type(value) is tuple:
            return all(isinstance(part, _CONSTANT) for part in value)
        return isinstance(value, _CONSTANT) or value is self.group["params"]

    def updates(self, whole, number, stores=True):
        """Return the group's share of a step, a list of `nbopt.interface.backend.Update`.

        The list has one, or none if there is no gradient.

        Parameters
        ----------
        whole : Stepper
            The PyTorch optimizer. New states are entered into its ``state`` when the step can't fail any
            more.
        number : int
            Which of its groups this is.
        stores : bool
            Whether the group stores the states that are one number, or another one does it for all.
        """
        owners = params = self.group["params"]
        rows: Any = range(len(params))
        if self._sharded:
            grads, params = local_grads(params), local(params)
        else:
            grads = [*map(_grad, params)]
        try:
            pointers = [*map(_pointer, grads)]
        except (TypeError, RuntimeError):  # some are None, or sparse
            rows = [row for row in rows if grads[row] is not None]
            owners, params, grads = ([x[row] for row in rows] for x in (owners, params, grads))
            for row, grad in zip(rows, grads):
                if grad.layout is not torch.strided:
                    raise SparseError(
                        f"the gradient of parameter {row} of the group is sparse ({grad.layout}), and a step "
                        "needs all of its elements: make it dense (param.grad = param.grad.to_dense()), or "
                        "have the layer make it so (torch.nn.Embedding(..., sparse=False))"
                    ) from None
            pointers = [*map(_pointer, grads)]
        if not rows:
            return []
        if not self._sharded and not all(pointers) and any(map(is_sharded, params)):
            self._sharded = True
            return self.updates(whole, number, stores)
        given = rows, owners, params, grads, pointers
        if self.optimizer.by_axes():
            return self._parts_of(whole, number, stores, *given)
        try:
            return [self._update(whole, number, *given, stores=stores)]
        except NeedsAxesError:
            self.optimizer.trace_by_axes()
            return self._parts_of(whole, number, stores, *given)

    def _parts_of(self, whole, number, stores, *given):
        """Return the updates of a rule that is traced by axes.

        There is one for each number of axes and each kind of states.
        """
        kinds: dict[tuple, list[int]] = {}
        for place, param in enumerate(given[2]):
            shape = tuple(param.shape)
            kinds.setdefault((len(shape), self.optimizer.declared_states(shape)), []).append(place)
        found: list[Any] = []
        for kind, places in kinds.items():
            part = self.parts.get(kind)
            if part is None:
                part = self.parts[kind] = copy.copy(self)
                part.kind, part.others = kind, {}
                part.seen = part.parts = None
                part._rows = ()
            update = part._update(
                whole,
                number,
                *([values[place] for place in places] for values in given),
                counts=not found,
                stores=stores and not found,
            )
            update.set = update.set or id(self)
            found.append(update)
        return found

    def _update(self, whole, number, rows, owners, params, grads, pointers, counts=True, stores=True):
        """Return the update over some of the parameters.

        Parameters
        ----------
        whole, number
            As for `updates`.
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
        """
        be, state = whole._backend, whole.state
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
        optimizer = self.optimizer
        names = self.kind or (optimizer.states_in_use(), bool(optimizer.ema_decay))
        # As `_tensors` keep the memory of parameters alive, an equal address means the same memory.
        seen = [names, [*map(_pointer, params)], self.seen[-1] if alike else kinds_of(params, grads)]
        stamp = state.stamp[0]
        if seen != self.seen or (stamp != self._stamp and not self._holds(owners, state)):
            if self._sharded:
                check_shards(owners, rows)
            self._wrap(be, owners, params, rows, state)
            self._list(whole, number, rows)
            self.seen, self._alike = seen, likeness(params, grads)
        self._stamp = stamp

        def columns(update):
            tensors = [wrapped(be, grad, _called(row)) for row, grad in zip(rows, grads)]
            found = list(zip(zip(self._tensors, tensors), self._states))
            if self._sharded:
                check_rule(optimizer, update.program, owners)
            check_effect(optimizer, trace, bool(self._made))
            place = lambda number, _: f"parameter {rows[number]} of the group"  # noqa: E731
            columns = checked_columns(optimizer, trace, be, found, [], place)
            return [*columns, self._steps] if self._steps else columns

        def commit():
            self.stepped()
            for param, new in self._made:
                state[param].update(new)
            self._made = []
            # So a backward pass through old values is an error, as after PyTorch's own steps.
            torch.autograd.graph.increment_version(owners)

        update = optimizer.update_of(None, columns, commit, self.epoch(), 1, self.kind, counts, stores)
        trace = optimizer.trace_in_use()
        update.key, update.addresses, update.listing = self._key, np.array(pointers, np.int64), self._listing
        update.set = self.set_of_updates()
        return update

    def _list(self, whole, number, rows):
        """Note where the parameters are in the list of the whole step, which random bits depend on."""
        sizes = [[param.numel() for param in other["params"]] for other in whole.param_groups[: number + 1]]
        if sizes[-1] != self._sizes:
            self._sizes, self.seen = sizes[-1], None
            self.others.clear()
            whole._forget(number + 1)  # the groups behind have other positions
        every = local(self.group["params"])
        for other, (found, *_) in list(self.others.items()):
            if self.seen is not None or found[1] != [every[row].data_ptr() for row in other]:
                del self.others[other]  # something was exchanged, and what it was before must not live on
        before = sum(map(len, sizes[:-1]))
        self._listing = [*chain.from_iterable(sizes)], [before + row for row in rows]

    def _turn_to(self, rows):
        """Go back to what was found when these parameters had gradients last."""
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

    def _wrap(self, be, owners, params, rows, state):
        """Make tensors of the parameters and their states, and states where there are none."""
        optimizer, kept = self.optimizer, self.kept()
        self._made = []
        self._tensors = [
            wrapped(be, param, f"parameter {row} of the group") for row, param in zip(rows, params)
        ]
        self._states, self._held, self._names = [], [], [one.name for one in kept]
        new = self.new_states(owners, state)
        for row, owner, param, added in zip(rows, owners, params, new):
            own = {**state.get(owner, {}), **added}
            if added:
                self._made.append((owner, added))
            self._held += [own[one.name] for one in kept]
            tensors = [
                wrapped(be, one.shaped(own[one.name], param), f"the state {one.name} of parameter {row}")
                for one in kept
            ]
            for tensor, one in zip(tensors, kept):
                tensor.name = f"{optimizer.classnm}.{one.name}"
            self._states.append(tensors)
        counts = self.counts(owners, new)
        self._steps = (
            [*map(be.wrap, counts)]
            if counts
            else [states.pop(0) for states in self._states if optimizer.counts_each]
        )
        self._key = [*map(_serial, chain(self._tensors, chain.from_iterable(self._states), self._steps))]

    def new_states(self, params, state):
        """Return the states that parameters lack, one dict for each, in the order in which PyTorch has them.

        Parameters
        ----------
        params : list of torch.Tensor
        state : dict
            Parameter -> its states.
        """
        new: list[dict] = [{} for _ in params]
        for one in self.kept():
            rows = [row for row, param in enumerate(params) if state.get(param, {}).get(one.name) is None]
            made = (
                one.new([params[row] for row in rows], self.group, self.optimizer.state_dtype) if rows else []
            )
            for row, tensor in zip(rows, made):
                new[row][one.name] = tensor
        return new


def listed(params):
    """Return a group's parameters as a list, the same one where it is one."""
    if isinstance(params, list):
        return params
    return [params] if isinstance(params, torch.Tensor) else list(params)


def _called(row):
    return f"the gradient of parameter {row} of the group"
