"""A PyTorch optimizer around any optimizer of nbopt's. Import this module by its name: ``nbopt`` itself never imports PyTorch."""

import copy
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from nbopt import checks, optimizers
from nbopt.backend import Backend
from nbopt.backends import new_backend
from nbopt.base import NervanaObject
from nbopt.errors import ArgumentError, LayoutError, NboptError, StateError
from nbopt.optimizers.base import storage_name, wrapped
from nbopt.seeds import seed_for

__all__ = ["Optimizer"]

_grad, _nbytes, _dtype, _shape, _serial = map(attrgetter, ("grad", "nbytes", "dtype", "shape", "serial"))
_pointer, _stride, _is_contiguous = torch.Tensor.data_ptr, torch.Tensor.stride, torch.Tensor.is_contiguous
_is_negative, _resolved = torch.Tensor.is_neg, torch.Tensor.resolve_neg

# Keys of groups beside the hyper-parameters: ours, PyTorch's, and what a scheduler wants to find when it goes on from an earlier run.
_COUNTERS = {"t": 0, "epoch": 0}
_OTHER_KEYS = {"params", "param_names", "initial_lr", *_COUNTERS}
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
        key ``"optimizer"`` have another optimizer. Parameters are float64, float32, float16 or bfloat16, on one device.
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
        How many steps of each group were skipped so. They are the same, but for groups without gradients in some step, and those added later.
    param_groups : list of dict
        Each has its hyper-parameters under the names of the optimizer's arguments, the learning rate as ``"lr"``: PyTorch's schedulers change
        it. All are read at every step, and changing one compiles nothing. A number may be a tensor without dimensions, which may be written in
        place; on a GPU the host waits for its value. ``"t"`` counts the steps; ``"epoch"``, 0 unless you set
        it, is what nbopt's own schedules and ShiftAdaMax depend on.
    state : dict
        ``state[param]`` has the states by their names. Write into these tensors, if you must; to exchange them use `load_state_dict`.

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

    def __init__(self, params, optimizer, backend=None, seed=None):
        self._optimizer = _usable(optimizer)
        self._backend = backend
        self._seed = seed_for(seed)
        if seed is not None and isinstance(backend, Backend):
            raise ArgumentError("seed= goes with a backend's name; a backend that exists already has a seed: set_backend(..., rng_seed=...)")
        self._groups: list[_Group] = []
        super().__init__(params, _settings(optimizer))

    def add_param_group(self, param_group):
        """Add a group of parameters.

        Parameters
        ----------
        param_group : dict
            As the constructor takes it. It is left as it is.

        Raises
        ------
        ArgumentError, LayoutError, DtypeError
            If it is no such dict, a hyper-parameter makes no sense, or a parameter can't be updated. The groups are what they were then.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise ArgumentError(f'a group is a dict, such as {{"params": model.parameters(), "lr": 0.01}}, not {_brief(param_group)}')
        group = dict(param_group)
        optimizer = copy.deepcopy(_usable(group.pop("optimizer", self._optimizer)))
        settings = _settings(optimizer)
        unknown = group.keys() - settings.keys() - _OTHER_KEYS
        if unknown:
            known = ", ".join(settings)
            raise ArgumentError(f"a group of {optimizer.classnm} has no {', '.join(sorted(unknown))}; its hyper-parameters are {known}")
        group = {**settings, **_COUNTERS, "t": optimizer.t, **group}
        source = self._groups[0].optimizer if self._groups else self._optimizer
        optimizer.loss_scale, optimizer.skip_nonfinite = source.loss_scale, source.skip_nonfinite
        super().add_param_group(group)
        for key in self.defaults.keys() - settings.keys():
            group.pop(key, None)  # of another optimizer
        try:
            self._check_device(group["params"])
            optimizer.be = self._backend
            added = _Group(optimizer)
            added.read(group)
            for number, param in enumerate(group["params"]):
                if torch.nn.parameter.is_lazy(param):
                    raise LayoutError(f"parameter {number} of the group has no shape yet: call the model with some input first (torch.nn.Lazy...)")
                wrapped(self._backend, param, f"parameter {number} of the group")
        except BaseException:
            self.param_groups.pop()
            raise
        self._groups.append(added)

    def _check_device(self, params):
        """Make the backend, where there is none yet, and check that all parameters are where the first one is."""
        every = [param for group in self.param_groups for param in group["params"]]
        if not isinstance(self._backend, Backend):
            if not every:
                raise ArgumentError("the first group has no parameters, so it is not known where they are: add it when it has some")
            device = every[0].device
            name = self._backend or {"cpu": "cpu", "cuda": "cuda"}.get(device.type)
            if name is None:
                raise LayoutError(f"the parameters are on {device}, and no backend works there: use the CPU or an NVIDIA GPU")
            self._backend = new_backend(name, rng_seed=self._seed, device_id=device.index or 0)
        for param in params:
            if param.device != every[0].device:
                raise LayoutError(
                    f"parameters are on {every[0].device} and on {param.device}: make an optimizer for each device, after the model was moved"
                )

    @property
    def loss_scale(self):
        """Float or torch.Tensor : what the loss was multiplied by: gradients of all groups are divided by it.

        A tensor of one element is read at every step, by the device, and may be written in place. At first it is that of the optimizer that was
        given. A state dict does not have it.
        """
        return self._groups[0].optimizer.loss_scale

    @loss_scale.setter
    def loss_scale(self, scale):
        for group in self._groups:
            group.optimizer.loss_scale = scale

    @property
    def skip_nonfinite(self):
        """Bool : whether to leave everything as it is in a step where the norm of a group's gradients is infinite or NaN, see `nbopt.Optimizer`.

        At first it is that of the optimizer that was given. A state dict does not have it.
        """
        return self._groups[0].optimizer.skip_nonfinite

    @skip_nonfinite.setter
    def skip_nonfinite(self, skip):
        for group in self._groups:
            group.optimizer.skip_nonfinite = skip

    @property
    def skipped(self):
        """List of int : how many steps of each group were skipped so. On a device, reading it waits for the steps so far."""
        return [group.optimizer.skipped for group in self._groups]

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
            updates = [update for number, own in enumerate(self._groups) for update in own.updates(self, number)]
            if updates:
                self._backend.update(*updates)
        except BaseException:
            self._forget()
            raise
        return loss

    def _forget(self):
        for group in self._groups:
            group.seen = None

    # --- saving and copying ---

    def state_dict(self):
        """Return everything that the coming steps depend on, in PyTorch's layout.

        Returns
        -------
        dict
            ``"state"``: index of a parameter -> state's name -> tensor, shared with the optimizer; ``"param_groups"``: the groups;
            ``"rng_state"``: see `nbopt.Backend.rng_get_state`; ``"skipped"``: see the class. ``torch.save`` and
            ``torch.load(weights_only=True)`` keep all of it exactly.
        """
        return {**super().state_dict(), "rng_state": self._backend.rng_get_state(), "skipped": self.skipped}

    def load_state_dict(self, state_dict):
        """Go on from what `state_dict` gave.

        Parameters
        ----------
        state_dict : dict
            It is not changed, and nothing is shared with it. States keep their dtypes.

        Raises
        ------
        StateError
            If it is of another optimizer, or of other shapes, or has values that make no sense. Nothing has changed then.
        """
        given: list[dict] = []
        if not isinstance(state_dict, dict):
            raise StateError(_no_state_dict(state_dict))

        def look(_, found):  # runs after the user's hooks, which may exchange the dictionary
            self._check_loaded(found)
            given.append(found)

        hook = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        # PyTorch has cast the states to the parameters' dtypes.
        for index, param in _numbered(given[0]["param_groups"], self.param_groups):
            if index in given[0]["state"]:
                states = given[0]["state"][index]
                self.state[param] = {name: value.to(param.device, copy=True) for name, value in states.items()}
        if "rng_state" in given[0]:
            self._backend.rng_set_state(given[0]["rng_state"])
        for group, skipped in zip(self._groups, given[0].get("skipped", [])):
            group.optimizer.skipped = skipped

    def _check_loaded(self, found):
        if not isinstance(found, dict) or not isinstance(found.get("state"), dict) or not _are_groups(found.get("param_groups")):
            raise StateError(_no_state_dict(found))
        if len(found["param_groups"]) != len(self.param_groups):
            raise StateError(f"the state dict has {len(found['param_groups'])} groups, and the optimizer {len(self.param_groups)}")
        for saved, group, own in zip(found["param_groups"], self.param_groups, self._groups):
            optimizer = own.optimizer
            if len(saved["params"]) != len(group["params"]):
                raise StateError(f"a group of the state dict has {len(saved['params'])} parameters, and that of the optimizer {len(group['params'])}")
            missing = (_settings(optimizer).keys() | _COUNTERS.keys()) - saved.keys()
            if missing:
                raise StateError(
                    f"the state dict is not of nbopt's {optimizer.classnm}: a group of it has no {', '.join(sorted(missing))}. "
                    "Load it into the optimizer that it was made by"
                )
            for index, param in _numbered([saved], [group]):
                states = found["state"].get(index, {})
                if not isinstance(states, dict):
                    raise StateError(f"the states of parameter {index} are a dict, not {_brief(states)}")
                if states.keys() - set(optimizer.state_names):
                    raise StateError(f"{optimizer.classnm} keeps the states {optimizer.state_names}; the state dict has {tuple(states)}")
                for name, value in states.items():
                    if not isinstance(value, torch.Tensor) or value.dtype not in _STORAGE:
                        raise StateError(f"the state {name} of parameter {index} must be a tensor of one of {_STORAGE}, not {_brief(value)}")
                    if value.shape != param.shape:
                        raise StateError(f"the state {name} of parameter {index} has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}")
            trial = copy.deepcopy(optimizer)
            trial.be = self._backend
            try:
                _Group(trial).read(saved)
            except NboptError as error:
                raise StateError(f"a group of the state dict can't be used: {error}") from error
        skipped = found.get("skipped", [])
        if not isinstance(skipped, list) or len(skipped) not in (0, len(self._groups)):
            raise StateError(f"the skipped steps of a state dict are a list of one number for each group, not {_brief(skipped)}")
        for count in skipped:
            checks.count("skipped", count)
        if "rng_state" in found:
            before = self._backend.rng_get_state()
            self._backend.rng_set_state(found["rng_state"])  # raises where it is none
            self._backend.rng_set_state(before)

    def __getstate__(self):
        be = self._backend
        options = {"device_id": be.device_id, "num_threads": be.num_threads, "fast_math": be.fast_math, "stochastic_round": be.stochastic_round}
        return {
            **super().__getstate__(),
            "_optimizer": self._optimizer,
            "_groups": [group.optimizer for group in self._groups],
            "_backend": (type(be), options, be.rng_get_state()),
        }

    def __setstate__(self, state):
        """Take over what `__getstate__` gave; PyTorch's `load_state_dict` passes the state and the groups alone."""
        super().__setstate__(state)
        if "_backend" in state:
            backend, options, random = state["_backend"]
            self._backend = backend(**options)
            self._backend.rng_set_state(random)
            self._groups = [_Group(optimizer) for optimizer in state["_groups"]]
            for group in self._groups:
                group.optimizer.be = self._backend
        self._forget()


class _Group:
    """What a group of parameters has beside its dictionary.

    Attributes
    ----------
    optimizer : nbopt.Optimizer
        The group's own. Its ``be`` is the adapter's, so that a rule needs no current backend.
    seen : list or None
        Everything about the tensors, and their addresses, that the last step depended on; but the gradients' addresses, which
        PyTorch exchanges at every step.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.seen = None
        self._keys = [(key, "learning_rate" if key == "lr" else key) for key in _settings(optimizer)]
        self._read: dict[str, Any] = {}
        self._tensors: list = []
        self._states: list = []
        self._key: list[int] = []
        self._listing: Any = None
        self._made: list = []

    def read(self, group):
        """Set the optimizer's hyper-parameters from the group's dictionary."""
        for key, attribute in self._keys:
            try:
                value = group[key]
            except KeyError:
                raise ArgumentError(f"a group has no {key!r} any more: {self.optimizer.classnm} needs it at every step") from None
            if value is not self._read.get(key, self):
                named = key == "state_dtype" and value is not None
                setattr(self.optimizer, attribute, storage_name(self.optimizer.be, value) if named else value)
                self._read[key] = self if hasattr(value, "shape") else value  # a tensor may be written in place
        t = group.get("t")
        if t is not self.optimizer.t:
            self.optimizer.t = t

    def updates(self, whole, number):
        """Return the group's share of a step, a list of one `nbopt.backend.Update`, or of none where there is no gradient.

        Parameters
        ----------
        whole : Optimizer
            The PyTorch optimizer. New states are entered into its ``state`` when the step can't fail any more.
        number : int
            Which of its groups this is.
        """
        be, group = whole._backend, whole.param_groups[number]
        self.read(group)
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
        if any(map(_is_negative, grads)):
            grads = [*map(_resolved, grads)]  # a copy where the memory holds the values with the other sign
            pointers = [*map(_pointer, grads)]
        if 0 in pointers:
            for row, grad in zip(rows, grads):
                wrapped(be, grad, _called(row))  # raises, unless the gradient has no elements
        optimizer = self.optimizer
        names = optimizer.states_in_use()
        # As little as can be, since each look at a tensor takes 50 ns. PyTorch sees to it that a gradient has its parameter's shape, so
        # what happens to a parameter shows there too; and as `_tensors` keep their memory alive, an equal address means the same memory.
        seen = [names, [*map(_pointer, params)], [*map(_nbytes, grads)], [*map(_dtype, grads)], _strides(params), _strides(grads), params[0].dtype]
        if seen != self.seen:
            self._wrap(be, params, rows, whole.state, names)
            sizes = [[param.numel() for param in other["params"]] for other in whole.param_groups[: number + 1]]
            before = sum(map(len, sizes[:-1]))
            self._listing = [*chain.from_iterable(sizes)], [before + row for row in rows]
            self.seen = seen

        def columns(update):
            tensors = [wrapped(be, grad, _called(row)) for row, grad in zip(rows, grads)]
            found = list(zip(zip(self._tensors, tensors), self._states))
            optimizer.check_effect(update.program, bool(self._made))
            return optimizer.checked_columns(be, found, [], lambda number, _: f"parameter {rows[number]} of the group")

        def commit():
            group["t"] = optimizer.t
            for param, new in self._made:
                whole.state[param].update(new)
            self._made = []
            torch.autograd.graph.increment_version(params)  # so that a backward pass through old values is an error, as after PyTorch's own steps

        update = optimizer.update_of(None, columns, commit, group["epoch"], 1)
        update.key, update.addresses, update.listing = self._key, np.array(pointers, np.int64), self._listing
        return [update]

    def _wrap(self, be, params, rows, state, names):
        """Make tensors of the parameters and their states, and states where there are none."""
        optimizer = self.optimizer
        self._made = []
        self._tensors = [wrapped(be, param, f"parameter {row} of the group") for row, param in zip(rows, params)]
        self._states = []
        for param in params:
            own = state.get(param, {})
            missing = [name for name in names if name not in own]
            if missing:
                dtype = getattr(torch, optimizer.state_dtype or ("float64" if param.dtype == torch.float64 else "float32"))
                new = {name: torch.zeros_like(param, dtype=dtype, requires_grad=False) for name in missing}
                self._made.append((param, new))
                own = {**own, **new}
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


def _strides(tensors):
    """Return the shapes and strides of PyTorch tensors, or None where all are contiguous."""
    return None if all(map(_is_contiguous, tensors)) else [*map(_shape, tensors), *map(_stride, tensors)]


def _numbered(saved_groups, groups):
    """Return (index in a state dict, parameter) for all parameters of some groups."""
    return list(zip(chain.from_iterable(g["params"] for g in saved_groups), chain.from_iterable(g["params"] for g in groups)))


def _settings(optimizer):
    """Return the hyper-parameters as a group has them: the constructor's arguments that are no objects."""
    try:
        found = optimizer.get_description(skip=["name", "schedule"])["config"]
    except AttributeError as error:
        raise ArgumentError(f"{error}: keep each argument of the optimizer's constructor as an attribute of the same name") from None
    taken = sorted(found.keys() & _OTHER_KEYS)
    if taken:
        raise ArgumentError(f"{optimizer.classnm}'s constructor has arguments that mean something else in groups: rename {', '.join(taken)}")
    found = {key: value for key, value in found.items() if not isinstance(getattr(optimizer, key), NervanaObject)}
    return {"lr" if key == "learning_rate" else key: value for key, value in found.items()}


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
