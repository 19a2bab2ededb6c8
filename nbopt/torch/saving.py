"""State dicts, copies and pickles of nbopt's optimizers for PyTorch."""

import copy
from itertools import chain
from typing import Any

import torch

from nbopt import checks
from nbopt.errors import NboptError, StateError
from nbopt.interface.backend import Backend
from nbopt.torch.counted import CountedState, CountedStates
from nbopt.torch.devices import recipe

_ATTRIBUTES = "_seed", "_loss_scale", "_skip_nonfinite", "_master_weights", "_capturable"
_STORAGE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Saved:
    """The part of `Stepper` that saves and loads."""

    _owned: Any
    _forget: Any
    _backend: Any
    _backends: Any
    _chosen: Any
    _groups: Any
    master_weights: Any
    param_groups: Any
    register_load_state_dict_pre_hook: Any
    skipped: Any
    state: Any

    def state_dict(self):
        """Return everything that the coming steps depend on, in PyTorch's layout.

        Returns
        -------
        dict
            ``"state"``: index of a parameter -> state's name -> tensor, shared with the optimizer;
            ``"param_groups"``: the groups; ``"rng_state"``: see `nbopt.Backend.rng_get_state`; ``"skipped"``:
            see the class. Groups have these two as well, if they matter: PyTorch's distributed checkpoints
            keep nothing else. ``torch.save`` and ``torch.load(weights_only=True)`` keep all of it exactly.
        """
        owned = self._owned()
        for own in owned:
            own.read()  # so that both words for a value agree
        found = super().state_dict()  # type: ignore[misc]
        groups = [own.saved(group) for own, group in zip(owned, found["param_groups"])]
        states = {
            key: dict(value) if isinstance(value, CountedStates) else value
            for key, value in found["state"].items()
        }
        random, skipped = self._backend.rng_get_state(), self.skipped
        for own, group, count in zip(owned, groups, skipped):
            # Distributed checkpoints keep the states and the groups alone.
            if own.optimizer.stochastic_round:
                group["rng_state"] = random
            if count:
                group["skipped"] = count
        return {
            **found,
            "state": states,
            "param_groups": groups,
            "rng_state": random,
            "skipped": skipped,
        }

    def load_state_dict(self, state_dict):
        """Go on from what `state_dict` gave.

        Parameters
        ----------
        state_dict : dict
            It is not changed, and nothing is shared with it. A hyper-parameter that it does not have, since
            it is older, gets the constructor's value. Entries of others in the states are kept.

        Raises
        ------
        StateError
            If it is of another optimizer, or of other shapes, or has values that make no sense. Nothing has
            changed then.
        """
        given: list[dict] = []
        kept = self._in_graphs()
        if not isinstance(state_dict, dict):
            raise StateError(_no_state_dict(state_dict))

        def look(_, found):  # runs after the user's hooks, which may exchange the dictionary
            found = _lifted(found)
            groups = self._check_loaded(found)
            given.append(found)
            # By parameter already, so PyTorch doesn't cast the states to the parameters' dtypes.
            states = dict(found["state"])
            for saved, own in zip(groups, self._owned()):
                pairs = [pair for pair in zip(saved["params"], own.group["params"]) if pair[0] in states]
                loaded = own.loaded(
                    saved,
                    [param for _, param in pairs],
                    [found["state"][index] for index, _ in pairs],
                    self.master_weights,
                )
                for (index, param), new in zip(pairs, loaded):
                    del states[index]
                    states[param] = new
            rest = {
                key: value if isinstance(key, torch.Tensor) else copied(value)
                for key, value in states.items()
            }
            return {**found, "state": rest, "param_groups": groups}

        hook = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)  # type: ignore[misc]
        finally:
            hook.remove()
        self._put_back(*kept)
        if "rng_state" in given[0]:
            self._backend.rng_set_state(given[0]["rng_state"])
        for own, skipped in zip(self._groups, given[0].get("skipped", [])):
            own.optimizer.skipped = skipped

    def _in_graphs(self):
        """Return the states, and the learning rates in memory, that graphs may read.

        They are dictionaries: parameter -> its states; number of a group -> its rate.
        """
        states, rates = {}, {}
        for number, own in enumerate(self._groups):
            if own.count is not None:
                states.update({param: dict(self.state.get(param, {})) for param in own.group["params"]})
                rates[number] = own.group.get("lr")
        return states, rates

    @torch.no_grad()
    def _put_back(self, states, rates):
        """Write what was loaded into the memory of before, if graphs may read that."""
        for param, before in states.items():
            loaded = self.state.get(param, {})
            for name, value in [*loaded.items()]:
                if _is_like(value, before.get(name)):
                    loaded[name] = before[name].copy_(value)
        for number, rate in rates.items():
            if isinstance(rate, torch.Tensor):
                group = self.param_groups[number]
                group["lr"] = rate.fill_(float(group["lr"]))

    def _check_loaded(self, found):
        """Return the groups of a state dict, completed; raise where it can't be loaded."""
        if (
            not isinstance(found, dict)
            or not isinstance(found.get("state"), dict)
            or not _are_groups(found.get("param_groups"))
        ):
            raise StateError(_no_state_dict(found))
        owned, groups = self._owned(), []
        if len(found["param_groups"]) != len(owned):
            raise StateError(
                f"the state dict has {len(found['param_groups'])} groups, and the optimizer {len(owned)}"
            )
        for saved, own in zip(found["param_groups"], owned):
            if len(saved["params"]) != len(own.group["params"]):
                raise StateError(
                    f"a group of the state dict has {len(saved['params'])} parameters, and that of the "
                    f"optimizer {len(own.group['params'])}"
                )
            own.check_saved(saved, found["state"])
            try:
                groups.append(own.completed(saved))
            except NboptError as error:
                raise StateError(f"a group of the state dict can't be used: {error}") from error
        self._check_names(found["param_groups"])
        skipped = found.get("skipped", [])
        if not isinstance(skipped, list) or len(skipped) not in (0, len(self._groups)):
            raise StateError(
                "the skipped steps of a state dict are a list of one number for each group, not "
                f"{brief(skipped)}"
            )
        for count in skipped:
            checks.count("skipped", count)
        if "rng_state" in found:
            before = self._backend.rng_get_state()
            self._backend.rng_set_state(found["rng_state"])  # raises where it is none
            self._backend.rng_set_state(before)
        return groups

    def _check_names(self, saved_groups):
        """Raise where parameters with names stand in another order than in a state dict."""
        theirs, ours = (
            [*chain.from_iterable(group.get("param_names", ()) for group in groups)]
            for groups in (saved_groups, self.param_groups)
        )
        places = {name: place for place, name in enumerate(ours)}
        for place, name in enumerate(theirs if len(theirs) == len(ours) else ()):
            if places.get(name, place) != place:
                raise StateError(
                    f"parameter {place} is {name!r} in the state dict and {ours[place]!r} in the optimizer, "
                    f"which has {name!r} elsewhere: states are loaded by their place, so give the optimizer "
                    "its parameters in the order of the run that was saved"
                )

    def _taken_along(self):
        """Return the attributes of a subclass that copies and pickles have, by name."""
        return {}

    def __getstate__(self):
        be, owned = self._backend, self._owned()
        for own in owned:
            own.read()
        backends = self._backends.items()
        return {
            **super().__getstate__(),  # type: ignore[misc, dict-item]
            "_groups": [own.optimizer for own in owned],
            "_backend": (*recipe(be), be.rng_get_state()),
            "_backends": {device: None if own is be else recipe(own) for device, own in backends},
            "_chosen": True if isinstance(self._chosen, Backend) else self._chosen,
            **{name: getattr(self, name) for name in _ATTRIBUTES},
            **self._taken_along(),
        }

    def _group_again(self, group, optimizer):
        """Return the `Group` of a dictionary that has all its entries, with an optimizer of its own."""
        raise NotImplementedError

    def __setstate__(self, state):
        """Take over what `__getstate__` gave.

        PyTorch's `load_state_dict` passes the state and the groups alone.
        """
        super().__setstate__(state)  # type: ignore[misc]
        self.state = CountedState(self.state)
        if "_backend" in state:
            backend, options, random = state["_backend"]
            be = self._backend = backend(**options)
            be.rng_set_state(random)
            self._backends = {
                device: be if own is None else own[0](**own[1]) for device, own in self._backends.items()
            }
            self._chosen = be if self._chosen is True else self._chosen
            self._warned, self._sizes, self._groups, self._norm = set(), [], [], None
            for optimizer, group in zip(state["_groups"], self.param_groups):
                vars(optimizer)["be"] = self._backend
                self._groups.append(self._group_again(group, optimizer))
        else:
            for own, group in zip(self._groups, self.param_groups):
                own.go_on_with(group)
        self._forget()


def check_states(index, found, shapes):
    """Raise where the states of a parameter in a state dict don't fit it.

    Parameters
    ----------
    index : int
        The parameter's place.
    found : dict
        Its states there.
    shapes : dict of str to tuple of int
        The states that it has here, and their shapes.

    Raises
    ------
    StateError
        Which says what does not fit.
    """
    if not isinstance(found, dict):
        raise StateError(f"the states of parameter {index} are a dict, not {brief(found)}")
    for name in found.keys() & shapes.keys():
        value, shape = found[name], shapes[name]
        if not isinstance(value, torch.Tensor) or value.dtype not in _STORAGE:
            raise StateError(
                f"the state {name} of parameter {index} must be a tensor of one of {_STORAGE}, not "
                f"{brief(value)}"
            )
        if value.shape != shape and not (value.numel() == 1 and all(length == 1 for length in shape)):
            raise StateError(
                f"the state {name} of parameter {index} has shape {tuple(value.shape)}, and has to have "
                f"{tuple(shape)}"
            )


def copied(value, device=None):
    """Return a copy of an entry of a state dict.

    Tensors keep their dtypes, and go to the device, where there is one.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        # PyTorch counts steps in tensors on the CPU.
        return {key: copied(item, None if key == "step" else device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(item, device) for item in value)
    return copy.deepcopy(value)


def _is_like(value, other):
    """Return whether a tensor can be copied into another one, bit by bit."""
    if not isinstance(value, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)


def brief(value):
    """Return what messages say in place of a value whose text may be long."""
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value)) or '(none)'}"
    return (
        repr(value)
        if value is None or isinstance(value, (bool, int, float, str, type))
        else f"an object of {type(value)}"
    )


def _lifted(found):
    """Return a state dict with the state of random bits, and the skipped steps, beside its groups alone."""
    if not isinstance(found, dict) or not _are_groups(found.get("param_groups")):
        return found
    given, more = found["param_groups"], {}
    random = [group["rng_state"] for group in given if "rng_state" in group]
    if random:
        more["rng_state"] = random[0]
    if any("skipped" in group for group in given):
        more["skipped"] = [group.get("skipped", 0) for group in given]
    groups = [
        {key: value for key, value in group.items() if key not in ("rng_state", "skipped")} for group in given
    ]
    return {**more, **found, "param_groups": groups}


def _no_state_dict(value):
    return f"a state dict is what state_dict() of an optimizer returned, not {brief(value)}"


def _are_groups(value):
    return isinstance(value, list) and all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in value
    )
