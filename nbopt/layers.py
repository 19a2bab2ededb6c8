"""Layers: what optimizers ask of them, and the checks of what they give."""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from nbopt.arrays.tensor import Tensor
from nbopt.errors import LayerError, NboptError
from nbopt.interface.backend import Backend
from nbopt.language.ops import compute_dtype

_OF_A_MODEL = "for a model of PyTorch's write nbopt.torch.AdamW(model.parameters())"


class Layer(Protocol):
    """What optimizers ask of a layer. `get_param_list` says what it gives."""

    def get_params(self) -> Any:
        """Return ``((W, dW), states)``, or a list of these."""


def get_param_list(layer_list: Iterable[Layer]) -> list[Any]:
    """Collect the parameters of layers.

    Parameters
    ----------
    layer_list : list
        Layers: objects whose ``get_params()`` returns ``((W, dW), states)`` or a list of these.

    Returns
    -------
    list of ((W, dW), states)
        W and dW are tensors (or arrays that the backend can wrap), `states` is a list that belongs to the
        layer and is extended by the optimizer on first use. A dW of None leaves the parameter out of this
        step.

    Raises
    ------
    LayerError
        If something in the list has no ``get_params``, or the list is no list.
    """
    found = []
    try:
        for layer in layer_list:
            entry = layer.get_params()
            if isinstance(entry, list):
                found.extend(entry)
            else:
                found.append(entry)
    except (AttributeError, TypeError) as error:
        _explain_layers(layer_list, error)
        raise
    return found


def as_layers(layer_list: Iterable[Any]) -> list[Any]:
    """Return `layer_list`, any iterable, as a list."""
    try:
        return list(layer_list)
    except TypeError:
        raise LayerError(_no_list(layer_list)) from None


def _no_list(value: Any) -> str:
    kind = type(value).__name__
    if hasattr(value, "parameters") and not hasattr(value, "get_params"):
        return f"layers come as a list, not as a model: {_OF_A_MODEL}"
    given = f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
    return f"layers come as a list, not as {given}: write [layer], as in optimizer.optimize([layer], epoch)"


def check_distinct(layers: list[Any]) -> None:
    """Raise LayerError where a layer is listed twice."""
    if len({*map(id, layers)}) < len(layers):
        twice = next(
            layer for index, layer in enumerate(layers) if any(layer is other for other in layers[:index])
        )
        raise LayerError(f"{twice!r} is listed twice: its parameters would be updated twice in one step")


def entries_of(params: Iterable[Any]) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Yield (param, grad, states) of each entry that `get_param_list` has collected.

    A malformed one raises LayerError.
    """
    seen: set[int] = set()
    for entry in params:
        try:
            (param, grad), states = entry
        except (TypeError, ValueError):
            raise LayerError(f"get_params() must give ((W, dW), states), not {entry!r}") from None
        if not isinstance(states, list):
            raise LayerError(
                "the states of a parameter must be a list, which the optimizer can extend; not "
                f"{type(states).__name__}"
            )
        if id(states) in seen:
            raise LayerError(
                "two parameters share one list of states: give each a list of its own, [[] for _ in "
                "parameters]"
            )
        seen.add(id(states))
        yield param, grad, states


def rows_with_gradients(params: list[Any]) -> tuple[list[int], list[int]]:
    """Return where the gradients are.

    Parameters
    ----------
    params : list of ((W, dW), states)
        As `get_param_list` returns.

    Returns
    -------
    (list of int, list of int)
        The number of elements of each parameter, and the places of those that have a gradient: see
        `nbopt.interface.update.Update.listing`.

    Raises
    ------
    LayerError
        If an entry is malformed.
    """
    entries = list(entries_of(params))
    sizes = [math.prod(getattr(param, "shape", ())) for param, _, _ in entries]
    return sizes, [row for row, (_, grad, _) in enumerate(entries) if grad is not None]


def warn_of_lost_states(layer_list: Iterable[Layer]) -> bool:
    """Warn of the first layer that gives other lists of states whenever it is asked.

    What an optimizer puts there is lost.

    Parameters
    ----------
    layer_list : list
        Layers whose entries are well formed.

    Returns
    -------
    bool
        Whether there is one.
    """
    for layer in layer_list:
        for (_, states), (_, again) in zip(get_param_list([layer]), get_param_list([layer])):
            if again is not states and not again:
                warnings.warn(
                    f"get_params() of {layer!r} gives a new list of states at each call, so the optimizer's "
                    "states are lost after each step. Make the lists once, in the layer's __init__: "
                    "self.states = [[] for _ in parameters]",
                    stacklevel=2,
                )
                return True
    return False


def as_gradient(be: Backend, grad: Any, param: Tensor) -> Any:
    """Return what `Backend.wrap` can take to read a gradient: see `Backend.resolved`.

    A number, as NumPy's sums are, becomes a tensor.

    Parameters
    ----------
    be : Backend
    grad : number, array or Tensor
    param : Tensor

    Returns
    -------
    array or Tensor
        `grad` itself, where its memory holds its values.
    """
    if isinstance(grad, (float, int, np.generic)):
        return be.array(grad, compute_dtype([param.dtype]))
    return be.resolved(grad)


def _explain_layers(layer_list: Iterable[Any], error: Exception) -> None:
    for layer in as_layers(layer_list):
        if not callable(getattr(layer, "get_params", None)):
            of_torch = hasattr(layer, "parameters") or hasattr(layer, "requires_grad")
            more = f" {_OF_A_MODEL[0].upper()}{_OF_A_MODEL[1:]}." if of_torch else ""
            raise LayerError(
                f"{_brief(layer)} is no layer: a layer has a method get_params() that returns ((W, dW), "
                "states) or a list of these. Raw arrays become one by nbopt.Parameters((W, dW), ...)." + more
            ) from error


def _brief(value: Any) -> str:
    """Return what messages say in place of a value whose text may be long."""
    if hasattr(value, "shape"):
        return f"an array of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_brief, value))})"
    return repr(value)


def wrapped(be: Backend, array: Any, called: str) -> Tensor:
    """Return ``be.wrap(array)``; an error says what the array is."""
    try:
        return be.wrap(array)
    except NboptError as error:
        raise type(error)(f"{called}: {error}") from None


def read(be: Backend, array: Any, called: str) -> Tensor:
    """Return what `wrapped` does, for an array that is only read; see `Backend.resolved`."""
    return wrapped(be, be.resolved(array), called)
