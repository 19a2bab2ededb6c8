"""The tensors of a step: parameters, gradients and states, checked, and made where there are none yet."""

import inspect

import numpy as np

from nbopt.errors import DtypeError, NboptError, ShapeError, StateError, TraceError
from nbopt.language.cutter import loses
from nbopt.layers import as_gradient, entries_of, wrapped

#: What to type where states have to go.
_AFRESH = "Empty the lists of states to start afresh: for states in layer.states: states.clear()"


def checked_columns(optimizer, be, params, made, place=lambda number, states: f"parameter {number}"):
    """Return the columns of an `Update` over `params`, validated, with new states where there are none yet.

    Parameters
    ----------
    optimizer : Optimizer
    be : Backend
    params : list of ((W, dW), states)
    made : list
        Extended by (states, new tensors) for each list of states that has to be filled when the step can't fail any more.
    place : callable
        ``place(number, states)`` returns what messages call the parameter: its number in `params` and its list of states are given.

    Returns
    -------
    list of list of Tensor
        params, grads, states of the first name in use, ...

    Raises
    ------
    LayerError, ShapeError, StateError
        If the entries are malformed, a gradient or state has another shape than its parameter, or the states are another optimizer's.
    """
    names = optimizer.states_in_use()
    rows = []
    for number, (param, grad, states) in enumerate(entries_of(params)):
        part = ""
        try:
            param = be.wrap(param)
            part = "the gradient of "
            grad = be.wrap(as_gradient(be, grad, param))
            part = ""
            if param.shape != grad.shape:
                raise ShapeError(f"it has shape {param.shape} and its gradient {grad.shape}")
            rows.append([param, grad, *_states_of(optimizer, be, param, grad, states, names, made)])
        except NboptError as error:
            raise type(error)(f"{part}{place(number, states)}: {error}") from None
    return [list(column) for column in zip(*rows)]


def _states_of(optimizer, be, param, grad, states, names, made):
    # Where none is in use any more, those that were stay as they are.
    own = [f"{optimizer.classnm}.{name}" for name in names or optimizer.state_names]
    if not states:
        dtype = optimizer.state_dtype or ("float64" if param.dtype == np.float64 else "float32")
        new = [be.zeros(grad.shape, dtype, f"{optimizer.classnm}.{name}") for name in names]
        if new:
            made.append((states, new))
        return new
    for state, name in zip(states, own):
        found = getattr(state, "name", None)
        if found is not None and "." in found and found != name:
            raise StateError(f"its states were left by another optimizer ({found}), and {optimizer.classnm} can't go on from them. {_AFRESH}")
    if len(states) != len(own) and (names or len(states) > len(own)):
        raise StateError(f"{optimizer.classnm} keeps {len(own)} states ({', '.join(own) or 'none'}), and the parameter has {len(states)}. {_AFRESH}")
    used = [wrapped(be, state, f"the state {name}") for state, name in zip(states, names)]
    for state, name in zip(used, names):
        if state.shape != grad.shape:
            raise ShapeError(f"its state {name} has shape {state.shape}, and its gradient {grad.shape}")
    return used


def check_effect(optimizer, new_states):
    """Check in the first step that the rule does not lose what it computes: that it assigns the states that it reads, and the parameter.

    Parameters
    ----------
    optimizer : Optimizer
    new_states : bool
        Whether states are made in this step. Those that were there before need not be 0, so a rule may just read them.

    Raises
    ------
    TraceError
        With the line to type.
    """
    if optimizer.t:
        return
    code, own = optimizer.trace_in_use().tracer.code, ("param", "grad", *optimizer.states_in_use())
    lost = {line[1] for line in code if line[0] == "load"} - {line[1] for line in code if line[0] == "store"}
    if 0 in lost and loses(code, 0):
        raise TraceError(
            f"the rule of {optimizer.classnm} computes a value of the parameter that nothing uses, and never assigns the parameter: "
            "write param[:] = ..., not param = ..., which only gives the value a name"
        )
    arguments = [*inspect.signature(optimizer.rule).parameters][1:]  # as the user calls them
    names = arguments if len(arguments) == len(own) else own
    for name in [names[slot] for slot in sorted(lost) if 1 < slot < len(own) and new_states]:
        raise TraceError(
            f"the rule of {optimizer.classnm} reads the state {name}, which starts at 0, and never assigns it: write {name}[:] = ... "
            f"(a plain {name} = ... only gives a value another name). If it is meant to stay as it is, write {name}[:] = {name}"
        )


def place_in(layers, states):
    """Return what messages call the parameter that has this list of states.

    Parameters
    ----------
    layers : list
    states : list

    Returns
    -------
    str or None
        The parameter's number and its layer. None if no layer has it.
    """
    for index, layer in enumerate(layers):
        entries = layer.get_params()
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            if isinstance(entry, tuple) and entry[1:] and entry[1] is states:
                name = getattr(layer, "name", None)
                return f"parameter {number} of layer {index if name is None else repr(name)}"
    return None


def storage_name(be, dtype):
    """Return the name of a dtype for states, which may be PyTorch's; an error says what it is."""
    try:
        return be.storage_dtype(str(dtype).rpartition(".")[2] if type(dtype).__module__ == "torch" else dtype).name
    except DtypeError:
        raise DtypeError(f'state_dtype must be a dtype that {be.name!r} stores, such as "bfloat16", "float32" or "float64", not {dtype!r}') from None
