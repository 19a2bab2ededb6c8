"""Putting the state of a run back as a whole: what `Optimizer.load_state_dict` does."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from nbopt import checks
from nbopt.arrays.tensor import Tensor, normalise_rounding
from nbopt.backends import get_backend
from nbopt.checkpoints.state import members_of, name_of, parameters_of
from nbopt.checkpoints.structure import check_structure
from nbopt.errors import CheckpointError
from nbopt.interface.interrupts import uninterrupted
from nbopt.layers import Layer, wrapped

if TYPE_CHECKING:
    from nbopt.optimizers.base import Optimizer

_AS_SAVED = "Load it with the layers that it was saved with, in the same order"


def load_state_dict(
    optimizer: Optimizer, state: dict[str, Any], layers: Iterable[Layer], hyperparameters: bool = True
) -> None:
    """Put a state back; see `Optimizer.load_state_dict`."""
    check_structure(state, np.ndarray)
    Restoration(optimizer, layers, state, hyperparameters).commit()


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
        given, saved = parameters_of(layers), state["layers"]
        if len(given) != len(saved):
            raise CheckpointError(
                f"the checkpoint has {len(saved)} layers, and {len(given)} are given. {_AS_SAVED}."
            )
        for number, ((layer, entries), own) in enumerate(zip(given, saved)):
            _check_name(f"layer {number}", own["name"], name_of(layer))
            parameters = own["parameters"]
            if len(entries) != len(parameters):
                raise CheckpointError(
                    f"layer {name_of(layer) or number} has {len(parameters)} parameters in the checkpoint, "
                    f"and {len(entries)} here. {_AS_SAVED}."
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
