"""The updates of a step over a group of parameters: one, or one for each kind, piece and device."""

from operator import attrgetter, is_
from typing import Any

import torch

from nbopt.errors import SparseError
from nbopt.language.trace import NeedsAxesError
from nbopt.torch.devices import by_device
from nbopt.torch.kinds import numpy_dtype
from nbopt.torch.masters import has_master, mirrored
from nbopt.torch.shards import is_sharded, local, local_grads
from nbopt.torch.share import Share

_grad, _dtype, _pointer = attrgetter("grad"), attrgetter("dtype"), torch.Tensor.data_ptr


class Updates:
    """The part of a group that makes the updates of a step.

    Attributes
    ----------
    group : dict
        The entry of ``param_groups``.
    optimizer : nbopt.Optimizer
        The group's own.
    shares : dict of Share
        What the updates are over, by their kinds and pieces. A kind is None, or what a rule that is traced by
        axes or has masters depends on; a piece None, or that of a step that is run piece by piece. If the
        optimizer has several devices, the device comes third.
    versions : dict of int to object
        Row of a parameter -> its version after the last step that has stored its master, see
        `nbopt.torch.masters`. What a share of now knows is not in it.
    sharded : bool
        Whether some of the parameters are DTensors.
    """

    def __init__(self, group, optimizer):
        self.group, self.optimizer = group, optimizer
        self.shares: dict[tuple, Share] = {}
        self.versions: dict[int, Any] = {}
        self.sharded = False
        self._places: Any = None
        self._pieces: Any = None

    def forget(self):
        """Look at everything afresh in the next step."""
        self.shares.clear()
        self._places = self._pieces = None

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
            deals = whole.master_weights or whole._pieces is not None or len(whole._backends) > 1
            if deals or self.optimizer.by_axes():
                return self._shares_of(whole, number, stores, *given)
            return [self._share(None, None).update(whole, number, *given, stores=stores)]
        except NeedsAxesError:
            self.optimizer.trace_by_axes()
            return self._shares_of(whole, number, stores, *given)

    def _shares_of(self, whole, number, stores, *given):
        """Return the updates of a rule that is traced by axes, has masters, or of which there are parts.

        There is one for each number of axes and each kind of states, in each piece or on each device.
        """
        if self.optimizer.by_axes():
            kinds = self._kinds_by_axes(given[2], whole.master_weights)
        elif whole.master_weights:
            kinds = self._kinds_by_masters(given[2])
        else:
            kinds = {None: range(len(given[0]))}
        if whole._pieces is not None:
            kinds = self._cut(kinds, given[1], whole._pieces)
        elif len(whole._backends) > 1:
            kinds = by_device(kinds, given[1])
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

    def _share(self, *key):
        share = self.shares.get(key)
        if share is None:
            share = self.shares[key] = Share(self, *key)
        return share


def _same(objects, others):
    """Return whether two lists are of the same objects."""
    return len(objects) == len(others) and all(map(is_, objects, others))
