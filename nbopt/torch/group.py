"""A group of parameters: its dictionary, its optimizer, and its states."""

from operator import is_, itemgetter
from typing import Any

import numpy as np
import torch

from nbopt.errors import ArgumentError, StateError, UnknownArgumentError
from nbopt.torch.keys import warn_of_misspelt
from nbopt.torch.masters import MASTER, MIRROR, has_master
from nbopt.torch.saving import brief, copied
from nbopt.torch.updates import Updates

# Values that can't change under the same object.
_CONSTANT = (float, int, bool, str, type(None), np.generic, torch.dtype)


class Group(Updates):
    """What a group of parameters has beside its dictionary. Subclasses know what the dictionary's keys mean.

    Attributes
    ----------
    group : dict
        The entry of ``param_groups``.
    optimizer : nbopt.Optimizer
        The group's own. Its ``be`` is that of the PyTorch optimizer, so that a rule needs no current backend.
    warned : set of str
        The warnings that were given, shared by all groups.
    count : torch.Tensor or None
        The count of steps, a float64 on the device, if steps may be captured into a graph.
    """

    #: Whether the states of a state dict keep their dtypes.
    keeps_dtypes = False
    _placed: Any = None

    def __init__(self, group, optimizer, warned):
        super().__init__(group, optimizer)
        self.warned = warned
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
            warn_of_misspelt(self.warned, group, self._watched)
            self._values, self._read, self._length = itemgetter(*self._watched), [], len(group)
        try:
            values = self._values(group)
        except KeyError as error:
            raise lost(error.args[0], self.optimizer) from None
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


def check_group(group):
    """Raise where something is no group of parameters."""
    text = f'a group is a dict, such as {{"params": model.parameters(), "lr": 0.01}}, not {brief(group)}'
    if not isinstance(group, dict):
        raise UnknownArgumentError(text)
    if "params" not in group:
        raise ArgumentError(text)


def lost(key, optimizer):
    """Return the error that says that a group has lost a key."""
    return ArgumentError(f"a group has no {key!r} any more: {optimizer.classnm} needs it at every step")


def listed(params):
    """Return a group's parameters as a list, the same one where it is one."""
    if isinstance(params, list):
        return params
    return [params] if isinstance(params, torch.Tensor) else list(params)
