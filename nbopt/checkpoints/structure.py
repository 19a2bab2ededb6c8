"""The structure of a state: which keys it has, and what stands under them."""

from __future__ import annotations

from types import NoneType
from typing import Any

from nbopt.errors import CheckpointError

VERSION = 1


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
        "optimizers": [{"path": [str], "type": str, "t": int, "skipped": int, "numbers?": {str: float}}],
        "rng": {"seed": int, "updates": int},
        "layers": [{"name": name, "parameters": [of_parameter]}],
    }
    if not _is_built_like(state, structure):
        raise CheckpointError(
            "this is no state of nbopt: pass what optimizer.state_dict(layers) returned, unchanged"
        )


def _is_built_like(value: Any, structure: Any) -> bool:
    """Return whether a value has a structure.

    A key that ends with ``?`` need not be there, and ``{str: kind}`` is a dict with any strings as its keys.
    """
    if isinstance(structure, list):
        return isinstance(value, list) and all(_is_built_like(item, structure[0]) for item in value)
    if not isinstance(structure, dict):
        return isinstance(value, structure)
    if not isinstance(value, dict):
        return False
    if str in structure:
        parts, needed = dict.fromkeys(filter(lambda key: isinstance(key, str), value), structure[str]), set()
    else:
        parts = {key.rstrip("?"): part for key, part in structure.items()}
        needed = {key for key in structure if not key.endswith("?")}
    return needed <= value.keys() <= parts.keys() and all(
        _is_built_like(item, parts[key]) for key, item in value.items()
    )
