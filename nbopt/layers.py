"""Layers: what optimizers ask of them, and the checks of what they give."""

from nbopt.errors import LayerError


def get_param_list(layer_list):
    """Collect the parameters of layers.

    Parameters
    ----------
    layer_list : list
        Layers: objects whose ``get_params()`` returns ``((W, dW), states)`` or a list of these.

    Returns
    -------
    list of ((W, dW), states)
        W and dW are tensors (or arrays that the backend can wrap), `states` is a list that belongs to the layer and is extended by the
        optimizer on first use.

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


def as_layers(layer_list):
    """Return `layer_list`, any iterable, as a list."""
    try:
        return list(layer_list)
    except TypeError:
        raise LayerError(f"layers come as a list, not as a {type(layer_list).__name__}: write [layer]") from None


def check_distinct(layers):
    """Raise LayerError where a layer is listed twice."""
    if len({*map(id, layers)}) < len(layers):
        twice = next(layer for index, layer in enumerate(layers) if any(layer is other for other in layers[:index]))
        raise LayerError(f"{twice!r} is listed twice: its parameters would be updated twice in one step")


def entries_of(params):
    """Yield (param, grad, states) of each entry that `get_param_list` has collected; raise LayerError where one is malformed."""
    seen: set[int] = set()
    for entry in params:
        try:
            (param, grad), states = entry
        except (TypeError, ValueError):
            raise LayerError(f"get_params() must give ((W, dW), states), not {entry!r}") from None
        if not isinstance(states, list):
            raise LayerError(f"the states of a parameter must be a list, which the optimizer can extend; not {type(states).__name__}")
        if id(states) in seen:
            raise LayerError("two parameters share one list of states: give each a list of its own, [[] for _ in parameters]")
        seen.add(id(states))
        yield param, grad, states


def _explain_layers(layer_list, error):
    for layer in as_layers(layer_list):
        if not callable(getattr(layer, "get_params", None)):
            raise LayerError(
                f"{layer!r} is no layer: a layer has a method get_params() that returns ((W, dW), states) or a list of these. "
                "Raw arrays become one by nbopt.Parameters((W, dW), ...)."
            ) from error
