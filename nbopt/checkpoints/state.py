"""The state of a run: what `Optimizer.state_dict` returns, and how it is put back as a whole.

`nbopt.checkpoints.file` keeps it on disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from nbopt import checks
from nbopt.arrays.tensor import Tensor, normalise_rounding
from nbopt.backends import get_backend
from nbopt.errors import CheckpointError
from nbopt.interface.backend import Backend
from nbopt.interface.interrupts import uninterrupted
from nbopt.layers import Layer, as_layers, check_distinct, entries_of, get_param_list, wrapped
from nbopt.naming import NervanaObject

if TYPE_CHECKING:
    from nbopt.optimizers.base import Optimizer

VERSION = 1

_AS_SAVED = "Load it with the layers that it was saved with, in the same order"


def state_dict(optimizer: Optimizer, layers: Iterable[Layer]) -> dict[str, Any]:
    """Return the state of a run; see `Optimizer.state_dict`."""
    members = members_of(optimizer)
    be = get_backend()
    return {
        "version": VERSION,
        "optimizer": _description(optimizer),
        "optimizers": [
            {
                "path": path,
                "type": member.modulenm,
                "t": _count(member),
                "skipped": member.skipped,
                **_numbers(member),
            }
            for path, member in members
        ],
        "rng": be.rng_get_state(),
        "layers": [
            {
                "name": _name(layer),
                "parameters": [_parameter(be, param, states, called) for param, states, called in entries],
            }
            for layer, entries in _layers(layers)
        ],
    }


def load_state_dict(
    optimizer: Optimizer, state: dict[str, Any], layers: Iterable[Layer], hyperparameters: bool = True
) -> None:
    """Put a state back; see `Optimizer.load_state_dict`."""
    check_structure(state, np.ndarray)
    Restoration(optimizer, layers, state, hyperparameters).commit()


def members_of(optimizer: Any) -> list[tuple[list[Any], Any]]:
    """Return [(path, optimizer)]: the optimizer and all that are inside of MultiOptimizers, each once.

    The path is the list of keys that lead to it; of several, the first in sorted order, whatever the order of
    the mappings.
    """
    found: list[tuple[list[Any], Any]] = [([], optimizer)]
    seen = {id(optimizer)}
    for path, member in found:
        if not callable(getattr(member, "members", None)):
            raise CheckpointError(_no_optimizer(member))
        mapping = member.members()
        for key in sorted(mapping, key=str):
            if id(mapping[key]) not in seen:
                seen.add(id(mapping[key]))
                found.append(([*path, key], mapping[key]))
    return found


def _no_optimizer(given: Any) -> str:
    kind = type(given).__name__
    if hasattr(given, "param_groups"):
        return (
            f"an optimizer of PyTorch's ({kind}) is saved by torch.save(optimizer.state_dict(), path), and "
            "goes on by optimizer.load_state_dict(torch.load(path))"
        )
    if isinstance(given, (list, tuple)) or hasattr(given, "get_params"):
        return (
            "the optimizer comes before the layers: write nbopt.save(path, optimizer, layers), and "
            "nbopt.load(path, optimizer, layers)"
        )
    return f"{given!r} is no optimizer whose state could be known: derive its class from nbopt.Optimizer"


def check_structure(state: Any, values: type | tuple[type, ...]) -> None:
    """Raise CheckpointError unless `state` is built like one of `state_dict`.

    Its arrays must be objects of the class `values`.
    """
    version = state.get("version") if isinstance(state, dict) else None
    if type(version) is int and version != VERSION:
        raise CheckpointError(
            f"the checkpoint has format {version}, and this version of nbopt knows format {VERSION}: use the "
            "nbopt that saved it"
        )
    name = (str, NoneType)
    of_state = {"name": name, "rounding": (bool, int), "values": values}
    of_parameter = {"name": name, "values": values, "states": [of_state]}
    structure = {
        "version": int,
        "optimizer": {"type": str, "config": dict},
        "optimizers": [{"path": [str], "type": str, "t": int, "skipped": int}],
        "rng": {"seed": int, "updates": int},
        "layers": [{"name": name, "parameters": [of_parameter]}],
    }
    if not _is_built_like(_without_numbers(state), structure):
        raise CheckpointError(
            "this is no state of nbopt: pass what optimizer.state_dict(layers) returned, unchanged"
        )


def _numbers(optimizer: Any) -> dict[str, Any]:
    """Return the states that are one number for all parameters, as a part of an entry.

    The part is empty if there is none.
    """
    found = optimizer.step_numbers()
    return {"numbers": found} if found else {}


def _without_numbers(state: Any) -> Any:
    """Return a state without what not every entry of an optimizer has."""
    optimizers = state.get("optimizers") if isinstance(state, dict) else None
    if not isinstance(optimizers, list) or not all(
        _is_built_like(_numbers_of(own), {str: float}) for own in optimizers
    ):
        return state
    return {**state, "optimizers": [{key: own[key] for key in own if key != "numbers"} for own in optimizers]}


def _numbers_of(own: Any) -> Any:
    return own.get("numbers", {}) if isinstance(own, dict) else None


def _is_built_like(value: Any, structure: Any) -> bool:
    if structure == {str: float}:
        return isinstance(value, dict) and all(
            isinstance(key, str) and isinstance(item, float) for key, item in value.items()
        )
    if isinstance(structure, dict):
        known = isinstance(value, dict) and value.keys() == structure.keys()
        return known and all(_is_built_like(value[key], part) for key, part in structure.items())
    if isinstance(structure, list):
        return isinstance(value, list) and all(_is_built_like(item, structure[0]) for item in value)
    return isinstance(value, structure)


# --- taking a state ---


def _layers(layers: Iterable[Layer]) -> list[Any]:
    """Return [(layer, [(param, states, what messages call it), ...]), ...], checked."""
    layers = as_layers(layers)
    check_distinct(layers)
    own = [get_param_list([layer]) for layer in layers]
    list(entries_of(entry for params in own for entry in params))  # complains about malformed ones
    return [
        (
            layer,
            [
                (param, states, f"parameter {place} of layer {_name(layer) or number}")
                for place, ((param, _), states) in enumerate(params)
            ],
        )
        for number, (layer, params) in enumerate(zip(layers, own))
    ]


def _name(layer: Any) -> str | None:
    """Return the name that the user gave a layer, or None.

    A name that counts objects is another one in the next process.
    """
    name = getattr(layer, "name", None)
    chosen = layer._named if isinstance(layer, NervanaObject) else True
    return name if chosen and isinstance(name, str) else None


def _parameter(be: Backend, param: Any, states: list[Any], called: str) -> dict[str, Any]:
    param = wrapped(be, param, called)
    states = [wrapped(be, state, f"a state of {called}") for state in states]
    return {
        "name": param.name,
        "values": param.get(),
        "states": [
            {"name": state.name, "rounding": state.rounding, "values": state.get()} for state in states
        ],
    }


def _count(optimizer: Any) -> int:
    if type(optimizer.t) is not int:
        raise CheckpointError(f"the step counter t of {optimizer!r} must be an int, not {optimizer.t!r}")
    return optimizer.t


def _description(optimizer: Any) -> Any:
    try:
        description = optimizer.get_description()
    except AttributeError as error:
        raise CheckpointError(
            f"{optimizer!r} can't be described: {error}. Keep each argument of its constructor as an "
            "attribute of the same name."
        ) from error
    _check_plain(description["config"], optimizer.classnm)
    return description


def _check_plain(value: Any, called: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(
                    f"the keys of {called} must be strings to be kept in a checkpoint, not {key!r}"
                )
            _check_plain(item, f"{called}.{key}")
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, called)
    elif not isinstance(value, (bool, int, float, str, NoneType)):
        raise CheckpointError(
            f"{called} is {value!r}, which a checkpoint can't hold: it takes numbers, strings, None, lists "
            "and dicts of these, optimizers, and schedules whose class derives from nbopt.Schedule"
        )


# --- putting it back ---


class Arriving:
    """An array of a state, and where it goes.

    Attributes
    ----------
    values : numpy.ndarray
        Or, until it is read from a file, anything with its shape and dtype. Not needed any more, and dropped,
        once it has arrived.
    tensor : Tensor or None
        What it overwrites; None for a state that is to be made.
    name, rounding
        Of the tensor to be made.
    """

    def __init__(
        self, values: Any, tensor: Any, name: str | None = None, rounding: bool | int = False
    ) -> None:
        self.values, self.tensor, self.name, self.rounding = values, tensor, name, rounding


class Restoration:
    """A state that fits an optimizer and its layers, about to be put back.

    Parameters
    ----------
    optimizer : Optimizer
    layers : list
    state : dict
        Of the structure that `check_structure` accepts. What stands for an array needs a shape and a dtype
        only.
    hyperparameters : bool

    Attributes
    ----------
    arrays : list of Arriving
        In the order of the state: each parameter, then its states.

    Raises
    ------
    nbopt.errors.NboptError
        If anything does not fit. Nothing has changed then.
    """

    def __init__(
        self, optimizer: Any, layers: Iterable[Layer], state: dict[str, Any], hyperparameters: bool
    ) -> None:
        checks.boolean("hyperparameters", hyperparameters)
        self._be = get_backend()
        self._rng = state["rng"]
        self._attributes = _attributes(optimizer, state, hyperparameters)
        self._lists: list[Any] = []
        self.arrays: list[Arriving] = []
        given, saved = _layers(layers), state["layers"]
        if len(given) != len(saved):
            raise CheckpointError(
                f"the checkpoint has {len(saved)} layers, and {len(given)} are given. {_AS_SAVED}."
            )
        for number, ((layer, entries), own) in enumerate(zip(given, saved)):
            _check_name(f"layer {number}", own["name"], _name(layer))
            parameters = own["parameters"]
            if len(entries) != len(parameters):
                raise CheckpointError(
                    f"layer {_name(layer) or number} has {len(parameters)} parameters in the checkpoint, and "
                    f"{len(entries)} here. {_AS_SAVED}."
                )
            owner = optimizer.optimizer_of(layer)
            for (param, states, called), parameter in zip(entries, parameters):
                self._add_parameter(wrapped(self._be, param, called), parameter, called)
                _check_states(owner, parameter, called)
                self._add_states(states, parameter["states"], called)

    def _add_parameter(self, param: Tensor, saved: Any, called: str) -> None:
        values = saved["values"]
        _check_name(called, saved["name"], param.name)
        if param.shape != tuple(values.shape):
            raise CheckpointError(
                f"{called} has shape {tuple(values.shape)} in the checkpoint, and {param.shape} here. "
                f"{_AS_SAVED}."
            )
        if param.dtype != values.dtype:
            raise CheckpointError(
                f"{called} has dtype {values.dtype} in the checkpoint, and {param.dtype} here. Values are "
                "not converted, since in another dtype the run would be another one: make the array "
                f"{values.dtype} before loading"
            )
        self._be.check_writable(param)
        self.arrays.append(Arriving(values, param))

    def _add_states(self, states: list[Any], saved: Any, called: str) -> None:
        arriving = []
        for number, own in enumerate(saved):
            values, name, rounding = own["values"], own["name"], normalise_rounding(own["rounding"])
            self._be.storage_dtype(values.dtype)
            tensor = (
                wrapped(self._be, states[number], f"a state of {called}") if number < len(states) else None
            )
            if tensor is not None and _is_this_state(tensor, own):
                self._be.check_writable(tensor)
            else:
                tensor = None
            arriving.append(Arriving(values, tensor, name, rounding))
        if len(states) != len(saved) or any(array.tensor is None for array in arriving):
            self._lists.append((states, arriving))
        self.arrays.extend(arriving)

    def commit(self) -> None:
        """Put the state back: all of it, or nothing if anything fails. A Ctrl-C takes effect afterwards."""
        be = self._be
        for array in self.arrays:
            if array.tensor is None:
                made = be.empty(tuple(array.values.shape), array.values.dtype, array.name)
                made.rounding = array.rounding
                array.tensor, array.values = made.set(array.values), None
        with uninterrupted, ExitStack() as undo:
            undo.callback(be.rng_set_state, be.rng_get_state())
            be.rng_set_state(self._rng)
            for member, name, value in self._attributes:
                undo.callback(setattr, member, name, getattr(member, name))
                setattr(member, name, value)
            for array in self.arrays:
                if array.values is not None:
                    undo.callback(array.tensor.set, array.tensor.get())
                    array.tensor.set(array.values)
                    array.values = None
            for states, arriving in self._lists:
                undo.callback(states.__setitem__, slice(None), states[:])
                states[:] = [array.tensor for array in arriving]
            undo.pop_all()


def _attributes(optimizer: Any, state: dict[str, Any], hyperparameters: bool) -> list[tuple[Any, str, Any]]:
    """Return [(optimizer, attribute, new value)], after checking that the optimizers are the same ones."""
    members = members_of(optimizer)
    here = {tuple(path): member.modulenm for path, member in members}
    saved = {tuple(member["path"]): member["type"] for member in state["optimizers"]}
    if here != saved:
        raise CheckpointError(
            f"the checkpoint was saved with {_listed(saved)}, and the optimizer here is {_listed(here)}. "
            "Load it into an optimizer of the same class; a MultiOptimizer with the same keys, and the same "
            "ones shared among them."
        )
    saved_members = {tuple(member["path"]): member for member in state["optimizers"]}
    found = []
    if hyperparameters:
        # Built anew, the optimizer's own constructor checks the values.
        model = {tuple(path): member for path, member in members_of(optimizer.rebuilt(state["optimizer"]))}
        for path, member in members:
            source = model.get(tuple(path))
            if source is None or source.modulenm != member.modulenm:
                raise CheckpointError(
                    "the description in the checkpoint is not that of its optimizers: it was changed after "
                    "it was saved"
                )
            names = source.get_description(skip=["name", "optimizer_mapping"])["config"]
            found += [(*member.place_of(name), getattr(source, name)) for name in names]
    for path, member in members:
        own = saved_members[tuple(path)]
        found.append((member, "t", own["t"]))
        # A MultiOptimizer has its optimizers' count.
        if own["skipped"] != member.skipped and not member.members():
            found.append((member, "skipped", own["skipped"]))
        if member.step_states or "numbers" in own:
            found.append((member, "step_states", dict(own.get("numbers", {}))))
    return found


def _listed(members: dict[Any, str]) -> str:
    return ", ".join(
        f"{' / '.join(map(str, path))}: {kind}" if path else kind for path, kind in members.items()
    )


def _is_this_state(tensor: Tensor, saved: Any) -> bool:
    """Return whether a state that is there already can be overwritten.

    Whoever holds it then sees the run go on.
    """
    values = saved["values"]
    same = (tensor.shape, tensor.dtype, tensor.name) == (tuple(values.shape), values.dtype, saved["name"])
    return same and tensor.rounding is normalise_rounding(saved["rounding"])  # 1 and True are different ones


def _check_name(called: str, saved: str | None, here: str | None) -> None:
    if None not in (saved, here) and saved != here:
        raise CheckpointError(
            f"{called} is called {saved!r} in the checkpoint, and {here!r} here. {_AS_SAVED}, or give it its "
            "old name."
        )


def _check_states(owner: Any, parameter: Any, called: str) -> None:
    """Check saved states as `optimize` would, before they are read.

    One that overrides `optimize`, neon's way, may keep what it likes.
    """
    if owner.has_own_optimize or not parameter["states"]:
        return
    shape = tuple(parameter["values"].shape)
    declared = {f"{owner.classnm}.{name}": state for name, state in owner.every_state(shape).items()}
    own = [*declared]
    saved = [state["name"] for state in parameter["states"]]
    named = [name for name in saved if name is not None and "." in name]
    # Some optimizers don't use all of their states, by their hyper-parameters, which may be the checkpoint's.
    if len(saved) > len(own) or named != [name for name in own if name in named]:
        raise CheckpointError(
            f"{called} has the states {', '.join(map(str, saved))} in the checkpoint, and {owner.classnm}, "
            f"which updates it here, keeps {', '.join(own) or 'none'}. Load it with the optimizer that it "
            "was saved with, and the layers' old names."
        )
    for state in parameter["states"]:
        found, wanted = (
            tuple(state["values"].shape),
            declared[state["name"]].shape(shape) if state["name"] in declared else shape,
        )
        if found != wanted:
            raise CheckpointError(
                f"{called} has a state of shape {found} in the checkpoint, and that of {owner.classnm} is of "
                f"shape {wanted}"
            )
