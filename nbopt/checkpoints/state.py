"""The state of a run: what `Optimizer.state_dict` returns.

`nbopt.checkpoints.restore` puts it back, and `nbopt.checkpoints.file` keeps it on disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType
from typing import TYPE_CHECKING, Any

from nbopt.backends import get_backend
from nbopt.checkpoints.structure import VERSION
from nbopt.errors import CheckpointError
from nbopt.interface.backend import Backend
from nbopt.layers import Layer, as_layers, check_distinct, entries_of, get_param_list, wrapped
from nbopt.naming import NervanaObject

if TYPE_CHECKING:
    from nbopt.optimizers.base import Optimizer


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
                "name": name_of(layer),
                "parameters": [_parameter(be, param, states, called) for param, states, called in entries],
            }
            for layer, entries in parameters_of(layers)
        ],
    }


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


def _numbers(optimizer: Any) -> dict[str, Any]:
    """Return the states that are one number for all parameters, as a part of an entry.

    The part is empty if there is none.
    """
    found = optimizer.step_numbers()
    return {"numbers": found} if found else {}


def parameters_of(layers: Iterable[Layer]) -> list[Any]:
    """Return [(layer, [(param, states, what messages call it), ...]), ...], checked."""
    layers = as_layers(layers)
    check_distinct(layers)
    own = [get_param_list([layer]) for layer in layers]
    list(entries_of(entry for params in own for entry in params))  # complains about malformed ones
    return [
        (
            layer,
            [
                (param, states, f"parameter {place} of layer {name_of(layer) or number}")
                for place, ((param, _), states) in enumerate(params)
            ],
        )
        for number, (layer, params) in enumerate(zip(layers, own))
    ]


def name_of(layer: Any) -> str | None:
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
