"""A PyTorch optimizer around any optimizer of nbopt's. Import this module by its name: ``nbopt`` itself never imports PyTorch."""

import copy
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import numpy as np
import torch

from nbopt import checks, optimizers
from nbopt.backends import new_backend
from nbopt.errors import ArgumentError, LayoutError, NboptError, StateError
from nbopt.interface.backend import Backend
from nbopt.layers import wrapped
from nbopt.optimizers.states import check_effect, checked_columns, storage_name
from nbopt.torch.counted import CountedState, CountedStates
from nbopt.torch.keys import COUNTERS, NOT_SET, OTHERS, GroupKeys, NotSet, one_letter_apart, warn_once
from nbopt.torch.kinds import kinds_of, likeness
from nbopt.torch.seeds import seed_for

__all__ = ["Optimizer"]

_grad, _serial = map(attrgetter, ("grad", "serial"))
_pointer, _is_negative, _resolved = torch.Tensor.data_ptr, torch.Tensor.is_neg, torch.Tensor.resolve_neg
_dictionary = attrgetter("group")

# Values that can't change under the same object.
_CONSTANT = (float, int, bool, str, tuple, type(None), np.generic, torch.dtype)
_STORAGE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Optimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that runs one of nbopt's optimizers, or a rule of your own, on CPU and CUDA tensors, in place.

    >>> optimizer = nbopt.torch.Optimizer(model.parameters(), nbopt.RMSProp(learning_rate=1e-3))
    >>> loss.backward()
    >>> optimizer.step()

    Parameters
    ----------
    params : iterable of torch.Tensor, of (name, tensor), or of dict
        What PyTorch's optimizers take: the parameters, or groups of them. A group may set any hyper-parameter of its optimizer, and with the
        key ``"optimizer"`` have another optimizer. The dictionaries that are given become the entries of `param_groups`. Parameters are
        float64, float32, float16 or bfloat16, on one device.
    optimizer : nbopt.Optimizer
        One that states a rule. Each group works with a copy; the one that is given stays as it is.
    backend : str or Backend, optional
        What runs the steps; ``"cpu"`` or ``"cuda"``, by the first parameter's device, without it. nbopt's current backend is neither used nor
        changed.
    seed : int, optional
        Seed of stochastic rounding, from 0 to 2**64 - 1. Without it each optimizer of a process has another one, which depends only on
        how many were made before it: two optimizers never round alike, and the processes of a parallel run do. PyTorch's own seed plays no part.
        A `Backend` that exists already has a seed of its own.

    Attributes
    ----------
    loss_scale : float, or torch.Tensor of one element
        What the loss was multiplied by: gradients of all groups are divided by it.
    skip_nonfinite : bool
        Whether to leave everything as it is in a step where the norm of the gradients of a group is infinite or NaN.
    skipped : list of int
        How many steps of each group were skipped so.
    param_groups : list of dict
        Each has its hyper-parameters under the names of the optimizer's arguments, the learning rate as ``"lr"``: PyTorch's schedulers change
        it. PyTorch's words for them (``weight_decay``, ``betas``, ``eps``, ``momentum``) are there as well; the one that is written last
        holds, and after a step both show it. All are read at every step, and changing one compiles nothing. A number may be a tensor without
        dimensions, which may be written in place; on a GPU the host waits for its value. ``"t"`` counts the steps; ``"epoch"``, 0 unless you
        set it, is what nbopt's own schedules and ShiftAdaMax depend on. Other keys are kept. Groups may be added, removed, merged and moved.
    state : dict
        ``state[param]`` has the states by their names. They may be written into, exchanged, and removed, which starts them afresh at the next
        step. Entries of others are kept. A state's memory is looked at when the dictionaries change: assign ``state[param][name] = tensor``, not
        ``state[param][name].data``.

    Raises
    ------
    nbopt.errors.NboptError
        One of its subclasses, from the constructor, `add_param_group`, `load_state_dict` or `step`. Nothing has changed then. What PyTorch itself
        finds wrong, such as a list of no tensors, is a ValueError or TypeError of PyTorch's.

    Notes
    -----
    Parameters may get other memory between steps (``p.data = ...``); what they had before is given up at the next step.

    Gradients are taken as they are, whatever ``be.bsz``: PyTorch's are those of mean losses. Parameters without a gradient are skipped; which ones
    they are does not change the random bits of the others' stochastic rounding. The norm clip is over the parameters of one group.

    Formulas are nbopt's (neon's), and differ from those of PyTorch's optimizers of similar names:

    ============================  ==================================================================================================
    ``GradientDescentMomentum``   keeps ``v = momentum * v - lr * g`` where SGD keeps ``b = momentum * b + g`` and steps by ``lr * b``: the
                                  same steps as long as the learning rate stays
    ``RMSProp``                   divides by ``sqrt(r + epsilon) + epsilon`` where PyTorch does by ``sqrt(r) + eps``; other defaults
    ``Adagrad``                   divides by ``sqrt(G + epsilon)`` where PyTorch does by ``sqrt(G) + eps``
    ``Adadelta``                  has no learning rate: PyTorch's with ``lr=1``
    ``Adam``                      adds epsilon to the root before its correction: PyTorch's ``eps`` is ``epsilon / sqrt(1 - beta_2^t)``
    ============================  ==================================================================================================
    """

    state: Any
    defaults: Any

    def __init__(self, params, optimizer, backend=None, seed=None):
        self._optimizer = _usable(optimizer)
        self._backend = backend
        self._seed = seed_for(seed)
        if seed is not None and isinstance(backend, Backend):
            raise ArgumentError("seed= goes with a backend's name; a backend that exists already has a seed: set_backend(..., rng_seed=...)")
        self._chosen = backend
        self._device = None
        self._loss_scale, self._skip_nonfinite = optimizer.loss_scale, optimizer.skip_nonfinite
        self._groups: list[_Group] = []
        self._sizes: list[int] = []
        self._warned: set[str] = set()
        super().__init__(params, GroupKeys(optimizer).completed({}))
        self.state = CountedState(self.state)

    def __setattr__(self, name, value):
        if not name.startswith("_") and "defaults" in self.__dict__ and not hasattr(self, name):
            self._check_attribute(name, value)
        super().__setattr__(name, value)

    def _check_attribute(self, name, value):
        """Raise where a new attribute would do nothing, though it was meant to do something."""
        if name == "schedule":
            text = "give it to the rule, nbopt.torch.Optimizer(params, nbopt.RMSProp(schedule=...))"
            raise ArgumentError(f"optimizer.schedule = ... does nothing: {text}")
        if name in {"learning_rate", *COUNTERS, *self.defaults}:
            key = "lr" if name == "learning_rate" else name
            text = f'write for group in optimizer.param_groups: group["{key}"] = {_brief(value)}'
            raise ArgumentError(f"optimizer.{name} = ... does nothing, since each group has its own: {text}")
        for known in ("loss_scale", "skip_nonfinite"):
            if one_letter_apart(name, known):
                raise ArgumentError(f"optimizer.{name} = ... does nothing; did you mean optimizer.{known} = {_brief(value)}?")

    def add_param_group(self, param_group):
        """Add a group of parameters.

        Parameters
        ----------
        param_group : dict
            As the constructor takes it. As in PyTorch it becomes an entry of `param_groups` itself, and gets what it does not say.

        Raises
        ------
        ArgumentError, LayoutError, DtypeError
            If it is no such dict, a hyper-parameter makes no sense, or a parameter can't be updated. The groups are what they were then.
        """
        _check_group(param_group)
        before, count, defaults = dict(param_group), len(self.param_groups), self.defaults
        try:
            self.defaults = {}  # PyTorch would fill them in without a thought of the two words for one value
            try:
                super().add_param_group(param_group)
            finally:
                self.defaults = defaults
            self._groups.append(self._adopted(param_group))
        except BaseException:
            del self.param_groups[count:]
            param_group.clear()
            param_group.update(before)
            raise

    def _owned(self):
        """Return the `_Group` of each of `param_groups`, found by its dictionary, and made where the dictionary is new."""
        groups = self.param_groups
        if len(groups) != len(self._groups) or not all(map(is_, map(_dictionary, self._groups), groups)):
            known = {id(own.group): own for own in self._groups}
            self._groups = [known.get(id(group)) or self._adopted(group) for group in groups]
            self._forget()
        return self._groups

    def _adopted(self, group):
        """Return a new `_Group` of a dictionary, which gets what it does not say. It stays as it was if an error is raised."""
        _check_group(group)
        optimizer = copy.deepcopy(_usable(group.get("optimizer", self._optimizer)))
        keys = GroupKeys(optimizer)
        defaults = {} if "optimizer" in group else {key: value for key, value in self.defaults.items() if key in keys.values}
        full = {"t": optimizer.t, "epoch": NOT_SET, **keys.completed(group, defaults)}
        full["params"] = _listed(group["params"])
        self._check_device(full["params"])
        optimizer.be = self._backend
        optimizer.loss_scale, optimizer.skip_nonfinite = self._loss_scale, self._skip_nonfinite
        own = _Group(full, optimizer, keys, self._warned)
        own.read()
        for number, param in enumerate(full["params"]):
            if torch.nn.parameter.is_lazy(param):
                raise LayoutError(f"parameter {number} of the group has no shape yet: call the model with some input first (torch.nn.Lazy...)")
            wrapped(self._backend, param, f"parameter {number} of the group")
        group.update(full)
        own.group = group
        return own

    def _check_device(self, params):
        """Make the backend for the first parameters, and check that all others are where they are."""
        if params and self._device is None:
            device = params[0].device
            self._use_backend(device)
            self._device = device
        elif not isinstance(self._backend, Backend):
            self._use_backend(torch.device("cpu"))  # a guess, as long as there are no parameters
        for param in params:
            if param.device != self._device:
                raise LayoutError(
                    f"parameters are on {self._device} and on {param.device}: make an optimizer for each device, after the model was moved"
                )

    def _use_backend(self, device):
        if isinstance(self._chosen, Backend):
            return
        name = self._chosen or {"cpu": "cpu", "cuda": "cuda"}.get(device.type)
        if name is None:
            raise LayoutError(f"the parameters are on {device}, and no backend works there: use the CPU or an NVIDIA GPU")
        made = new_backend(name, rng_seed=self._seed, device_id=device.index or 0)
        if isinstance(self._backend, Backend):
            made.rng_set_state(self._backend.rng_get_state())
        self._backend = made
        for own in self._groups:
            own.optimizer.be = made

    @property
    def loss_scale(self):
        """Float or torch.Tensor : what the loss was multiplied by: gradients of all groups are divided by it.

        A tensor of one element is read at every step, by the device, and may be written in place. At first it is that of the optimizer that was
        given. A state dict does not have it.
        """
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, scale):
        self._set_of_all("loss_scale", scale)

    @property
    def skip_nonfinite(self):
        """Bool : whether to leave everything as it is in a step where the norm of a group's gradients is infinite or NaN, see `nbopt.Optimizer`.

        At first it is that of the optimizer that was given. A state dict does not have it.
        """
        return self._skip_nonfinite

    @skip_nonfinite.setter
    def skip_nonfinite(self, skip):
        self._set_of_all("skip_nonfinite", skip)

    def _set_of_all(self, name, value):
        value = optimizers.Optimizer.checks[name](name, value)
        setattr(self, f"_{name}", value)
        for own in self._groups:
            setattr(own.optimizer, name, value)

    @property
    def skipped(self):
        """List of int : how many steps of each group `skip_nonfinite` has skipped. On a device, reading it waits for the steps so far.

        The numbers are equal, but for groups without gradients in some step and groups that were added later.
        """
        return [own.optimizer.skipped for own in self._owned()]

    def step(self, closure=None):
        """Update all parameters that have gradients, in place: all of them, or none where something is wrong.

        Parameters
        ----------
        closure : callable, optional
            Computes the gradients and returns the loss.

        Returns
        -------
        The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        try:
            if type(self.state) is not CountedState:
                self.state = CountedState(self.state)
            owned = self._owned()
            for own in owned:
                own.read()
            sizes = [len(group["params"]) for group in self.param_groups]
            if sizes != self._sizes:
                self._forget()  # the positions of all parameters in the list of the whole step
                self._sizes = sizes
            updates = [update for number, own in enumerate(owned) for update in own.updates(self, number)]
            if updates:
                self._backend.update(*updates)
        except BaseException:
            self._forget()
            raise
        return loss

    def _forget(self, start=0):
        for own in self._groups[start:]:
            own.seen = None
            own.others.clear()

    # --- saving and copying ---

    def state_dict(self):
        """Return everything that the coming steps depend on, in PyTorch's layout.

        Returns
        -------
        dict
            ``"state"``: index of a parameter -> state's name -> tensor, shared with the optimizer; ``"param_groups"``: the groups, each with
            the name of its optimizer's class under ``"optimizer"``; ``"rng_state"``: see `nbopt.Backend.rng_get_state`; ``"skipped"``: see
            the class. ``torch.save`` and ``torch.load(weights_only=True)`` keep all of it exactly.
        """
        owned = self._owned()
        for own in owned:
            own.read()  # so that both words for a value agree
        found = super().state_dict()
        groups = [{**group, "optimizer": own.optimizer.classnm} for group, own in zip(found["param_groups"], owned)]
        for group in groups:
            if type(group["epoch"]) is NotSet:
                group["epoch"] = 0
        states = {key: dict(value) if isinstance(value, CountedStates) else value for key, value in found["state"].items()}
        return {**found, "state": states, "param_groups": groups, "rng_state": self._backend.rng_get_state(), "skipped": self.skipped}

    def load_state_dict(self, state_dict):
        """Go on from what `state_dict` gave.

        Parameters
        ----------
        state_dict : dict
            It is not changed, and nothing is shared with it. States keep their dtypes. A hyper-parameter that it does not have, since it is
            older, gets the constructor's value. Entries of others in the states are kept.

        Raises
        ------
        StateError
            If it is of another optimizer, or of other shapes, or has values that make no sense. Nothing has changed then.
        """
        given: list[dict] = []
        if not isinstance(state_dict, dict):
            raise StateError(_no_state_dict(state_dict))

        def look(_, found):  # runs after the user's hooks, which may exchange the dictionary
            groups = self._check_loaded(found)
            given.append(found)
            # By parameter already, so PyTorch doesn't cast the states to the parameters' dtypes.
            params = dict(_numbered(groups, self.param_groups))
            states = {params.get(key, key): _copied(value, params[key].device if key in params else None) for key, value in found["state"].items()}
            return {**found, "state": states, "param_groups": groups}

        hook = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        if "rng_state" in given[0]:
            self._backend.rng_set_state(given[0]["rng_state"])
        for own, skipped in zip(self._groups, given[0].get("skipped", [])):
            own.optimizer.skipped = skipped

    def _check_loaded(self, found):
        """Return the groups of a state dict, completed; raise where it can't be loaded."""
        if not isinstance(found, dict) or not isinstance(found.get("state"), dict) or not _are_groups(found.get("param_groups")):
            raise StateError(_no_state_dict(found))
        owned, groups = self._owned(), []
        if len(found["param_groups"]) != len(owned):
            raise StateError(f"the state dict has {len(found['param_groups'])} groups, and the optimizer {len(owned)}")
        for saved, own in zip(found["param_groups"], owned):
            if len(saved["params"]) != len(own.group["params"]):
                raise StateError(
                    f"a group of the state dict has {len(saved['params'])} parameters, and that of the optimizer {len(own.group['params'])}"
                )
            own.check_saved(saved, found["state"])
            try:
                groups.append(own.completed(saved))
            except NboptError as error:
                raise StateError(f"a group of the state dict can't be used: {error}") from error
        self._check_names(found["param_groups"])
        skipped = found.get("skipped", [])
        if not isinstance(skipped, list) or len(skipped) not in (0, len(self._groups)):
            raise StateError(f"the skipped steps of a state dict are a list of one number for each group, not {_brief(skipped)}")
        for count in skipped:
            checks.count("skipped", count)
        if "rng_state" in found:
            before = self._backend.rng_get_state()
            self._backend.rng_set_state(found["rng_state"])  # raises where it is none
            self._backend.rng_set_state(before)
        return groups

    def _check_names(self, saved_groups):
        """Raise where parameters with names stand in another order than in a state dict."""
        theirs, ours = ([*chain.from_iterable(group.get("param_names", ()) for group in groups)] for groups in (saved_groups, self.param_groups))
        places = {name: place for place, name in enumerate(ours)}
        for place, name in enumerate(theirs if len(theirs) == len(ours) else ()):
            if places.get(name, place) != place:
                raise StateError(
                    f"parameter {place} is {name!r} in the state dict and {ours[place]!r} in the optimizer, which has {name!r} elsewhere: states are "
                    "loaded by their place, so give the optimizer its parameters in the order of the run that was saved"
                )

    def __getstate__(self):
        be, owned = self._backend, self._owned()
        for own in owned:
            own.read()
        options = {"device_id": be.device_id, "num_threads": be.num_threads, "fast_math": be.fast_math, "stochastic_round": be.stochastic_round}
        return {
            **super().__getstate__(),
            "_optimizer": self._optimizer,
            "_groups": [own.optimizer for own in owned],
            "_backend": (type(be), options, be.rng_get_state()),
            **{name: getattr(self, name) for name in ("_device", "_loss_scale", "_skip_nonfinite")},
        }

    def __setstate__(self, state):
        """Take over what `__getstate__` gave; PyTorch's `load_state_dict` passes the state and the groups alone."""
        super().__setstate__(state)
        self.state = CountedState(self.state)
        if "_backend" in state:
            backend, options, random = state["_backend"]
            self._backend = self._chosen = backend(**options)
            self._backend.rng_set_state(random)
            self._warned, self._sizes, self._groups = set(), [], []
            for optimizer, group in zip(state["_groups"], self.param_groups):
                optimizer.be = self._backend
                self._groups.append(_Group(group, optimizer, GroupKeys(optimizer), self._warned))
        else:
            for own, group in zip(self._groups, self.param_groups):
                own.go_on_with(group)
        self._forget()


_OF_ROWS = "seen", "_alike", "_tensors", "_states", "_held", "_stamp", "_key", "_listing"  # attributes of a group that depend on what has gradients
_MOST_TURNS = 8


class _Group:
    """What a group of parameters has beside its dictionary.

    Attributes
    ----------
    group : dict
        The entry of ``param_groups``.
    optimizer : nbopt.Optimizer
        The group's own. Its ``be`` is the adapter's, so that a rule needs no current backend.
    keys : GroupKeys
    warned : set of str
        The warnings that were given, shared by all groups.
    seen : list or None
        Everything about the tensors, and their addresses, that the last step depended on; but the gradients' addresses, which
        PyTorch exchanges at every step.
    others : dict of tuple of int to list
        The same, and what was made of it, for other parameters of the group that had gradients: tasks that take turns.
    """

    def __init__(self, group, optimizer, keys, warned):
        self.group, self.optimizer, self.keys, self.warned = group, optimizer, keys, warned
        self.given = group.get("optimizer")
        self.seen: Any = None
        self.others: dict[tuple, list] = {}
        self._alike: Any = None
        self._rows: Any = ()
        self._length = -1
        self._values: Any = None
        self._read: list = []
        self._tensors: list = []
        self._states: list = []
        self._held: list = []
        self._stamp = 0
        self._key: list[int] = []
        self._listing: Any = None
        self._sizes: list[int] = []
        self._made: list = []

    def read(self):
        """Set the optimizer's hyper-parameters from the group's dictionary."""
        group = self.group
        if len(group) != self._length:
            self._watched = self.keys.watched(group)
            self._values, self._read, self._length = itemgetter(*self._watched), [], len(group)
        try:
            values = self._values(group)
        except KeyError as error:
            raise ArgumentError(f"a group has no {error} any more: {self.optimizer.classnm} needs it at every step") from None
        if len(values) != len(self._read) or not all(map(is_, values, self._read)):
            self._set(dict(zip(self._watched, values)))
        t = group.get("t")
        if t is not self.optimizer.t:
            self.optimizer.t = t

    def _set(self, found):
        group = self.group
        if group.get("optimizer") is not self.given:
            raise ArgumentError("a group keeps its optimizer: take the group out of param_groups, and add one with the other optimizer")
        found["params"] = _listed(found["params"])
        self.keys.set(self.optimizer, found, self._converted)
        group.update(found)
        if self.keys.rate_is_unused(group):
            name = self.optimizer.classnm
            warn_once(self.warned, f"{name} has no learning rate: its group's \"lr\", which is there for PyTorch's schedulers, does nothing")
        same = group["params"], self.given
        self._read = [value if isinstance(value, _CONSTANT) or any(value is one for one in same) else object() for value in self._values(group)]

    def _converted(self, key, value):
        return storage_name(self.optimizer.be, value) if key == "state_dtype" and value is not None else value

    def epoch(self):
        """Return the epoch for nbopt's own schedules, and warn where there is one that does nothing."""
        epoch = self.group["epoch"]
        if type(epoch) is not NotSet:
            return epoch
        schedule = self.optimizer.schedule
        if schedule is not None and getattr(schedule, "step_config", self) is not None:
            name = type(schedule).__name__
            text = f'a {name} depends on the epoch, and PyTorch has none: set group["epoch"] = ... in each epoch, or use a scheduler of PyTorch\'s'
            warn_once(self.warned, text)
        return 0

    def check_saved(self, saved, states):
        """Raise where a group of a state dict is not of this group's optimizer, or its states don't fit the parameters."""
        optimizer = self.optimizer
        missing, unknown = self.keys.values.keys() - saved.keys(), saved.keys() - self.keys.values.keys() - OTHERS
        # Only a state dict of before has no name of a class, and no keys of others either.
        unnamed = "optimizer" not in saved
        if "t" not in saved:
            wrong = "a group of it has no t"
        elif not unnamed and saved["optimizer"] != optimizer.classnm:
            wrong = f"a group of it is of {saved['optimizer']}"
        elif unnamed and missing and unknown:
            wrong = f"a group of it has no {', '.join(sorted(missing))}"
        else:
            wrong = ""
        if wrong:
            raise StateError(f"the state dict is not of nbopt's {optimizer.classnm}: {wrong}. Load it into the optimizer that it was made by")
        for index, param in _numbered([saved], [self.group]):
            found = states.get(index, {})
            if not isinstance(found, dict):
                raise StateError(f"the states of parameter {index} are a dict, not {_brief(found)}")
            if unnamed and found and not found.keys() & set(optimizer.state_names):
                raise StateError(f"{optimizer.classnm} keeps the states {optimizer.state_names}; the state dict has {tuple(found)}")
            for name in found.keys() & set(optimizer.state_names):
                value = found[name]
                if not isinstance(value, torch.Tensor) or value.dtype not in _STORAGE:
                    raise StateError(f"the state {name} of parameter {index} must be a tensor of one of {_STORAGE}, not {_brief(value)}")
                if value.shape != param.shape:
                    raise StateError(f"the state {name} of parameter {index} has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}")

    def completed(self, saved):
        """Return a group of a state dict, with the constructor's values for what it does not say; raise where it makes no sense."""
        full = {"epoch": 0, **self.keys.completed({key: value for key, value in saved.items() if key != "optimizer"})}
        full["epoch"] = full["epoch"] or NOT_SET
        trial = copy.deepcopy(self.optimizer)
        trial.be = self.optimizer.be
        _Group({**full, "params": self.group["params"]}, trial, self.keys, self.warned).read()
        return full

    def go_on_with(self, group):
        """Take another dictionary in place of the one so far: `completed` has made it."""
        if self.given is not None:
            group["optimizer"] = self.given
        self.group, self._length = group, -1
        self.read()

    def updates(self, whole, number):
        """Return the group's share of a step, a list of one `nbopt.interface.backend.Update`, or of none where there is no gradient.

        Parameters
        ----------
        whole : Optimizer
            The PyTorch optimizer. New states are entered into its ``state`` when the step can't fail any more.
        number : int
            Which of its groups this is.
        """
        be, group, state = whole._backend, self.group, whole.state
        params = group["params"]
        rows: Any = range(len(params))
        grads = [*map(_grad, params)]
        try:
            pointers = [*map(_pointer, grads)]
        except (TypeError, RuntimeError):  # some are None, or sparse
            rows = [row for row in rows if grads[row] is not None]
            params, grads = [params[row] for row in rows], [grads[row] for row in rows]
            for row, grad in zip(rows, grads):
                if grad.layout is not torch.strided:
                    raise LayoutError(
                        f"the gradient of parameter {row} of the group is sparse ({grad.layout}), and a step needs all of its elements: make it "
                        "dense (param.grad = param.grad.to_dense()), or have the layer make it so (torch.nn.Embedding(..., sparse=False))"
                    ) from None
            pointers = [*map(_pointer, grads)]
        if not rows:
            return []
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
        names = optimizer.states_in_use()
        # As `_tensors` keep the memory of parameters alive, an equal address means the same memory.
        seen = [names, [*map(_pointer, params)], self.seen[-1] if alike else kinds_of(params, grads)]
        stamp = state.stamp[0]
        if seen != self.seen or (stamp != self._stamp and not self._holds(params, state, names)):
            self._wrap(be, params, rows, state, names)
            sizes = [[param.numel() for param in other["params"]] for other in whole.param_groups[: number + 1]]
            if sizes[-1] != self._sizes:
                self._sizes, self.seen = sizes[-1], None
                self.others.clear()
                whole._forget(number + 1)  # the groups behind have other positions
            every = group["params"]
            for other, (found, *_) in list(self.others.items()):
                if self.seen is not None or found[1] != [every[row].data_ptr() for row in other]:
                    del self.others[other]  # something was exchanged, and what it was before must not live on
            before = sum(map(len, sizes[:-1]))
            self._listing = [*chain.from_iterable(sizes)], [before + row for row in rows]
            self.seen, self._alike = seen, likeness(params, grads)
        self._stamp = stamp

        def columns(update):
            tensors = [wrapped(be, grad, _called(row)) for row, grad in zip(rows, grads)]
            found = list(zip(zip(self._tensors, tensors), self._states))
            trace = optimizer.trace_in_use()
            check_effect(optimizer, trace, bool(self._made))
            return checked_columns(optimizer, trace, be, found, [], lambda number, _: f"parameter {rows[number]} of the group")

        def commit():
            group["t"] = optimizer.t
            for param, new in self._made:
                state[param].update(new)
            self._made = []
            torch.autograd.graph.increment_version(params)  # so that a backward pass through old values is an error, as after PyTorch's own steps

        update = optimizer.update_of(None, columns, commit, self.epoch(), 1)
        update.key, update.addresses, update.listing = self._key, np.array(pointers, np.int64), self._listing
        return [update]

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

    def _holds(self, params, state, names):
        """Return whether the states of the last step are still those in `state`."""
        found = [states.get(name) for states in (state.get(param, {}) for param in params) for name in names]
        return len(found) == len(self._held) and all(map(is_, found, self._held))

    def _wrap(self, be, params, rows, state, names):
        """Make tensors of the parameters and their states, and states where there are none."""
        optimizer = self.optimizer
        self._made = []
        self._tensors = [wrapped(be, param, f"parameter {row} of the group") for row, param in zip(rows, params)]
        self._states, self._held = [], []
        for param in params:
            own = state.get(param, {})
            missing = [name for name in names if name not in own]
            if missing:
                dtype = getattr(torch, optimizer.state_dtype or ("float64" if param.dtype == torch.float64 else "float32"))
                new = {name: torch.zeros_like(param, dtype=dtype, requires_grad=False) for name in missing}
                self._made.append((param, new))
                own = {**own, **new}
            self._held += [own[name] for name in names]
            tensors = [be.wrap(own[name]) for name in names]
            for tensor, name in zip(tensors, names):
                tensor.name = f"{optimizer.classnm}.{name}"
            self._states.append(tensors)
        self._key = [*map(_serial, chain(self._tensors, chain.from_iterable(self._states)))]


def _brief(value):
    """Return what messages say in place of a value whose text may be long."""
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value)) or '(none)'}"
    return repr(value) if value is None or isinstance(value, (bool, int, float, str, type)) else f"an object of {type(value)}"


def _no_state_dict(value):
    return f"a state dict is what state_dict() of an nbopt.torch.Optimizer returned, not {_brief(value)}"


def _are_groups(value):
    return isinstance(value, list) and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in value)


def _called(row):
    return f"the gradient of parameter {row} of the group"


def _numbered(saved_groups, groups):
    """Return (index in a state dict, parameter) for all parameters of some groups."""
    return list(zip(chain.from_iterable(g["params"] for g in saved_groups), chain.from_iterable(g["params"] for g in groups)))


def _check_group(group):
    if not isinstance(group, dict) or "params" not in group:
        raise ArgumentError(f'a group is a dict, such as {{"params": model.parameters(), "lr": 0.01}}, not {_brief(group)}')


def _listed(params):
    """Return a group's parameters as a list, the same one where it is one."""
    if isinstance(params, list):
        return params
    return [params] if isinstance(params, torch.Tensor) else list(params)


def _copied(value, device):
    """Return a copy of an entry of a state dict. Tensors keep their dtypes, and go to the device, where there is one."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        # PyTorch counts steps in tensors on the CPU.
        return {key: _copied(item, None if key == "step" else device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, device) for item in value)
    return copy.deepcopy(value)


def _usable(optimizer):
    """Return `optimizer`, or raise where it can't be run for PyTorch."""
    if isinstance(optimizer, optimizers.MultiOptimizer):
        raise ArgumentError(
            "MultiOptimizer goes by the names of layers. Give groups of parameters optimizers of their own: nbopt.torch.Optimizer("
            '[{"params": weights}, {"params": biases, "optimizer": nbopt.Adam()}], nbopt.RMSProp())'
        )
    if not isinstance(optimizer, optimizers.Optimizer):
        raise ArgumentError(f"the optimizer must be one of nbopt's, such as nbopt.RMSProp(), not {_brief(optimizer)}: it comes after the parameters")
    own = type(optimizer)
    if own.optimize is not optimizers.Optimizer.optimize or own.updates is not optimizers.Optimizer.updates:
        raise ArgumentError(f"{optimizer.classnm} overrides optimize, and only what a rule says can be run for PyTorch: write its step as rule(...)")
    return optimizer
