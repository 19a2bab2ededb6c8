"""A group of parameters: its dictionary, its optimizer, and the updates of a step over it."""

from operator import attrgetter, is_, itemgetter
from typing import Any

import numpy as np
import torch

from nbopt.errors import ArgumentError, SparseError, StateError
from nbopt.language.trace import NeedsAxesError
from nbopt.torch.kinds import numpy_dtype
from nbopt.torch.masters import MASTER, MIRROR, has_master, mirrored
from nbopt.torch.saving import copied
from nbopt.torch.shards import is_sharded, local, local_grads
from nbopt.torch.share import Share

_grad, _dtype, _pointer = attrgetter("grad"), attrgetter("dtype"), torch.Tensor.data_ptr

# Values that can't change under the same object.
_CONSTANT = (float, int, bool, str, type(None), np.generic, torch.dtype)


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
    shares : dict of Share
        What the updates are over, by their kinds and pieces. A kind is None, or what a rule that is traced by
        axes or has masters depends on; a piece None, or that of a step that is run piece by piece.
    versions : dict of int to object
        Row of a parameter -> its version after the last step that has stored its master, see
        `nbopt.torch.masters`. What a share of now knows is not in it.
    sharded : bool
        Whether some of the parameters are DTensors.
    count : torch.Tensor or None
        The count of steps, a float64 on the device, if steps may be captured into a graph.
    """

    #: Whether the states of a state dict keep their dtypes.
    keeps_dtypes = False
    _placed: Any = None

    def __init__(self, group, optimizer, warned):
        self.group, self.optimizer, self.warned = group, optimizer, warned
        self.shares: dict[tuple, Share] = {}
        self.versions: dict[int, Any] = {}
        self.sharded = False
        self._places: Any = None
        self._pieces: Any = None
        self.count: Any = None
        self._length = -1
        self._values: Any = None
        self._read: list = []

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
        self.shares.clear()
        self._places = self._pieces = None

    def kept(self, kind=None):
        """Return the states that there are now, a list of `Kept`.

        The parameter's count of steps is the first, if it is among them.

        Parameters
        ----------
        kind : tuple or None
            See `Share`.
        """
        raise NotImplementedError

    def counts(self, params, new):
        """Return the parameters' counts of steps, one tensor each.

        The list is empty if the rule has none, or has them first among its states.
        """
        return []

    def place_count(self):
        """Have the count of steps in `count`, if steps may be captured, so that the group can show it."""
        rule = self.optimizer
        if not rule.counts_on_device(rule.be):
            self.count = self._placed = None
        elif self._placed is None or rule.__dict__.get("_t") is not self._placed:
            device = "cpu" if rule.be.memory == "host" else torch.device("cuda", rule.be.device_id)
            self.count = torch.full((), float(rule.t), dtype=torch.float64, device=device)
            self._placed = rule.__dict__["_t"] = rule.be.wrap(self.count.view(1))

    def shown_count(self):
        """Return the count of steps as the group shows it, an int or `count`."""
        return self.optimizer.t if self.count is None else self.count

    def check_capture(self):
        """Raise StateError where a step can't be captured into a graph."""
        if not self.optimizer.capturable:
            raise StateError(
                f"{self.optimizer.classnm} takes a step while the current stream is captured into a CUDA "
                "graph, which would repeat the numbers of this step in every replay: make the optimizer with "
                "capturable=True, and take a step, before the capture"
            )
        if self.count is None:
            raise StateError(
                f"{self.optimizer.classnm} takes its first step while the current stream is captured into a "
                "CUDA graph, and has no states yet: call optimizer.step() once before the capture"
            )

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

    def loaded(self, saved, params, states, masters=False):
        """Return new states from those of a state dict.

        Parameters
        ----------
        saved : dict
            The group of the state dict.
        params : list of torch.Tensor
            Those of its parameters that have states there.
        states : list of dict
            Theirs. They stay as they are.
        masters : bool
            Whether 16-bit parameters have masters. Else those of the state dict are left out.

        Returns
        -------
        list of dict
            Entries of others are kept.
        """
        known = {one.name: one for one in (*self.known(), MASTER)}
        new = [
            {key: copied(value, param.device) for key, value in found.items() if key not in known}
            for param, found in zip(params, states)
        ]
        for name, one in known.items():
            rows = [row for row, found in enumerate(states) if found.get(name) is not None]
            if one is MASTER:
                rows = [row for row in rows if masters and has_master(params[row])]
            values = [states[row][name] for row in rows]
            made = (
                one.copies(
                    [params[row] for row in rows],
                    values,
                    self.optimizer.state_dtype,
                    self.keeps_dtypes and one is not MASTER,
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
        if self.sharded:
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
            self._forget_gone()
            return []
        if not self.sharded and not all(pointers) and any(map(is_sharded, params)):
            self.sharded = True
            return self.updates(whole, number, stores)
        given = rows, owners, params, grads, pointers
        try:
            if self.optimizer.by_axes() or whole.master_weights or whole._pieces is not None:
                return self._shares_of(whole, number, stores, *given)
            return [self._share(None, None).update(whole, number, *given, stores=stores)]
        except NeedsAxesError:
            self.optimizer.trace_by_axes()
            return self._shares_of(whole, number, stores, *given)

    def _shares_of(self, whole, number, stores, *given):
        """Return the updates of a rule that is traced by axes, has masters, or runs piece by piece.

        There is one for each number of axes and each kind of states, in each piece.
        """
        if self.optimizer.by_axes():
            kinds = self._kinds_by_axes(given[2], whole.master_weights)
        elif whole.master_weights:
            kinds = self._kinds_by_masters(given[2])
        else:
            kinds = {None: range(len(given[0]))}
        if whole._pieces is not None:
            kinds = self._cut(kinds, given[1], whole._pieces)
        else:
            kinds = {(kind, None): places for kind, places in kinds.items()}
        if self.shares.keys() - kinds.keys():
            if self.optimizer.by_axes():  # some are from before it was traced by axes
                self.shares = {key: share for key, share in self.shares.items() if key[0] is not None}
            self._forget_gone(kinds)
        found: list[Any] = []
        for key, places in kinds.items():
            own = given
            if len(places) < len(given[0]):
                own = tuple([values[place] for place in places] for values in given)
            update = self._share(*key).update(
                whole, number, *own, counts=not found, stores=stores and not found
            )
            update.set = update.set or id(self)
            found.append(update)
        return found

    def _kinds_by_axes(self, params, masters):
        kinds: dict[tuple, list[int]] = {}
        for place, param in enumerate(params):
            shape = tuple(param.shape)
            states = self.optimizer.declared_states(shape)
            mirrors = masters and has_master(param)
            states = mirrored(states) if mirrors else states
            kind = len(shape), states, numpy_dtype(torch.float32 if mirrors else param.dtype)
            kinds.setdefault(kind, []).append(place)
        return kinds

    def _kinds_by_masters(self, params):
        dtypes, states = [*map(_dtype, params)], self.optimizer.declared_states()
        if self._places is None or self._places[0] != dtypes:
            places: tuple[list[int], ...] = ([], [])
            for place, param in enumerate(params):
                places[has_master(param)].append(place)
            self._places = dtypes, places
        found = zip((states, mirrored(states)), self._places[1])
        return {(None, states, None): places for states, places in found if places}

    def _cut(self, kinds, owners, pieces):
        """Return the places of some kinds of parameters by kind and piece."""
        known = self._pieces
        if known is not None and known[0] is pieces.dealt and known[1] == kinds and _same(known[2], owners):
            return known[3]
        found: dict[tuple, list[int]] = {}
        for kind, places in kinds.items():
            for place in places:
                found.setdefault((kind, pieces.of(owners[place])), []).append(place)
        self._pieces = pieces.dealt, kinds, [*owners], found
        return found

    def _forget_gone(self, kinds=()):
        """Forget what was found for parameters that have left the group.

        The kinds given are looked at later.
        """
        every = local(self.group["params"])
        for key in self.shares.keys() - kinds:
            if self.shares[key].is_stale(every):
                del self.shares[key]

    def _share(self, kind, piece):
        share = self.shares.get((kind, piece))
        if share is None:
            share = self.shares[kind, piece] = Share(self, kind, piece)
        return share

    def new_states(self, params, state, kind=None):
        """Return the states that parameters lack, one dict for each, in the order in which PyTorch has them.

        Parameters
        ----------
        params : list of torch.Tensor
        state : dict
            Parameter -> its states.
        kind : tuple or None
            See `Share`.
        """
        new: list[dict] = [{} for _ in params]
        masters = kind is not None and kind[1][-1:] == (MIRROR,)
        values = params
        for one in (*([MASTER] if masters else []), *self.kept(kind)):
            rows = [row for row, param in enumerate(params) if state.get(param, {}).get(one.name) is None]
            be = self.optimizer.be
            if rows and be.captures and be.capturing():
                raise StateError(
                    f"parameter {rows[0]} of those with gradients has no state {one.name} yet, and the "
                    "current stream is being captured into a CUDA graph: call optimizer.step() once with "
                    "these gradients before the capture"
                )
            chosen = [params[row] for row in rows], [values[row] for row in rows]
            made = one.new(chosen[0], self.group, self.optimizer.state_dtype, chosen[1]) if rows else []
            for row, tensor in zip(rows, made):
                new[row][one.name] = tensor
            if one is MASTER:
                values = [{**state.get(param, {}), **own}[MASTER.name] for own, param in zip(new, params)]
        for own in new if masters else ():  # the rule's own states come first
            own.update({MASTER.name: own.pop(MASTER.name)} if MASTER.name in own else {})
        return new


def _same(objects, others):
    """Return whether two lists are of the same objects."""
    return len(objects) == len(others) and all(map(is_, objects, others))


def listed(params):
    """Return a group's parameters as a list, the same one where it is one."""
    if isinstance(params, list):
        return params
    return [params] if isinstance(params, torch.Tensor) else list(params)
