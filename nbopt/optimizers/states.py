"""The tensors of a step: parameters, gradients and states, checked, and made where there are none yet."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nbopt.arrays.tensor import Tensor
from nbopt.errors import DtypeError, NboptError, ShapeError, StateError, TraceError
from nbopt.interface.backend import Backend
from nbopt.language.lines import ELEMENT, STEP, along, loses
from nbopt.layers import as_gradient, entries_of, wrapped

if TYPE_CHECKING:
    from nbopt.optimizers.base import Optimizer

#: What to type where states have to go.
_AFRESH = "Empty the lists of states to start afresh: for states in layer.states: states.clear()"


class State(NamedTuple):
    """What a rule keeps from step to step: how it varies, and how it begins.

    Attributes
    ----------
    axes : str or tuple
        ``"all"``: one value for each element of the parameter. A tuple of axes: one for each slice along
        these; the state's other axes have length 1. ``()``: one for each parameter. ``"step"``: one for all
        parameters of a step.
    init : float or str
        What it is at first: a number, ``"param"`` (the parameter's value) or ``"lr"`` (the learning rate of
        the step that makes it).
    dtype : dtype, optional
        Without it: float64 for one value of the whole step; else the optimizer's ``state_dtype``, or what
        that stands for.
    """

    axes: Any = "all"
    init: Any = 0.0
    dtype: Any = None

    def extent(self, ndim: int | None = None) -> int:
        """Return what it varies with, see `nbopt.language.stages`.

        Parameters
        ----------
        ndim : int, optional
            How many axes the parameter has; needed if the state is along some of them.

        Returns
        -------
        int
        """
        if self.axes == "step":
            return STEP
        if self.axes == "all":
            return ELEMENT
        found = along(self._axes(ndim))
        return ELEMENT if ndim and found == along(range(ndim)) else found

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return its shape.

        Parameters
        ----------
        shape : tuple of int
            The parameter's.

        Returns
        -------
        tuple of int
        """
        if self.axes == "all":
            return shape
        kept = self._axes(len(shape))
        return tuple(length if axis in kept else 1 for axis, length in enumerate(shape))

    def _axes(self, ndim: int | None) -> Collection[int]:
        if not isinstance(self.axes, tuple) or not all(type(axis) is int for axis in self.axes):
            raise StateError(
                f'the axes of a state are "all", "step" or a tuple of ints such as (0,), not {self.axes!r}'
            )
        if not self.axes:
            return ()
        if ndim is None or not all(-ndim <= axis < ndim for axis in self.axes):
            raise StateError(
                f"a state along the axes {self.axes} can't stand beside a parameter with {ndim} axes"
            )
        return {axis % ndim for axis in self.axes}

    def made(self, be: Backend, param: Tensor, name: str | None, dtype: Any, rate: float | None) -> Tensor:
        """Return a new tensor with the value of the beginning.

        Parameters
        ----------
        be : Backend
        param : Tensor
        name : str
            The tensor's.
        dtype : dtype or None
            The optimizer's ``state_dtype``.
        rate : float or None
            The learning rate.

        Returns
        -------
        Tensor

        Raises
        ------
        StateError
            If `init` makes no sense for these axes.
        """
        dtype = self.dtype or dtype or ("float64" if param.dtype == np.float64 else "float32")
        if self.init == "param":
            if self.axes != "all":
                raise StateError(
                    f'the state {name} has axes={self.axes!r}: only one with axes="all" can begin as the '
                    'parameter, init="param"'
                )
            return be.array(param, dtype, name)
        return be.empty(self.shape(param.shape), dtype, name).fill(self.beginning(rate))

    def beginning(self, rate: float | None) -> float:
        """Return the number that it begins with.

        Parameters
        ----------
        rate : float or None
            The learning rate.

        Returns
        -------
        float

        Raises
        ------
        StateError
            If `init` is no number here.
        """
        found: Any = rate if self.init == "lr" else self.init
        if self.init == "lr" and math.prod(getattr(rate, "shape", (0,))) == 1:
            found = float(found.get().item() if isinstance(found, Tensor) else found)
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            why = (
                "the optimizer has no learning rate"
                if self.init == "lr"
                else 'it is a number, "param" or "lr"'
            )
            raise StateError(f"a state can't begin as init={self.init!r}: {why}")
        return found


class Mirror(State):
    """The state that a modifier stores the new parameter in, whatever rule there is."""

    __slots__ = ()


#: The running mean of a parameter, which follows the rule's own states.
EMA = ("ema", State(init="param"))


def mirror(dtype: str | None = None) -> tuple[str, State]:
    """Return the name and the declaration of a copy of the parameter in another format.

    It is the last state. Nothing reads it.

    Parameters
    ----------
    dtype : str, optional
        Without it, the tensor comes from elsewhere.
    """
    return "mirror", Mirror(init="param", dtype=dtype)


def checked_columns(
    optimizer: Optimizer,
    trace: Any,
    be: Backend,
    params: list[Any],
    made: list[tuple[list[Tensor], list[Tensor]]],
    place: Callable[[int, Any], str | None] = lambda number, states: f"parameter {number}",
) -> list[list[Any]]:
    """Return the columns of an `Update` over `params`, validated, with new states where there are none yet.

    Parameters
    ----------
    optimizer : Optimizer
    trace : Trace
        What the states are for.
    be : Backend
    params : list of ((W, dW), states)
    made : list
        Extended by (states, new tensors) for each list of states that has to be filled when the step can't
        fail any more.
    place : callable
        ``place(number, states)`` returns what messages call the parameter: its number in `params` and its
        list of states are given.

    Returns
    -------
    list of list of Tensor
        params, grads, states of the first name in use, ...

    Raises
    ------
    LayerError, ShapeError, StateError
        If the entries are malformed, a gradient or state has another shape than its parameter, a function of
        matrices is not defined for its shape, or the states are another optimizer's.
    """
    own = [(name, state) for name, state in trace.options.states if state.axes != "step"]
    functions = [stage.function for stage in trace.program.matrices()]
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
            for function in functions:
                function.check(param.shape)
            rows.append([param, grad, *_states_of(optimizer, trace.rate, be, param, states, own, made)])
        except NboptError as error:
            raise type(error)(f"{part}{place(number, states)}: {error}") from None
    return [list(column) for column in zip(*rows)]


def _states_of(
    optimizer: Optimizer,
    rate: Any,
    be: Backend,
    param: Tensor,
    states: list[Tensor],
    declared: Any,
    made: list[tuple[list[Tensor], list[Tensor]]],
) -> list[Any]:
    names = [name for name, _ in declared]
    # Where none is in use any more, those that were stay as they are.
    own = [f"{optimizer.classnm}.{name}" for name in names or optimizer.state_names]
    if not states:
        if names and be.capturing():
            raise StateError(
                f"it has no states yet, and the current stream is being captured into a graph: call "
                f"{optimizer.classnm}'s optimize(layers, epoch) once before the capture"
            )
        dtype = optimizer.state_dtype
        new = [state.made(be, param, f"{optimizer.classnm}.{name}", dtype, rate) for name, state in declared]
        if new:
            made.append((states, new))
        return new
    for state in states[len(own) :]:
        reason = optimizer.aside.get(str(getattr(state, "name", None)).removeprefix(f"{optimizer.classnm}."))
        if reason:
            raise StateError(reason)
    for state, name in zip(states, own):
        found = getattr(state, "name", None)
        if found is not None and "." in found and found != name:
            raise StateError(
                f"its states were left by another optimizer ({found}), and {optimizer.classnm} can't go on "
                f"from them. {_AFRESH}"
            )
    if len(states) != len(own) and (names or len(states) > len(own)):
        raise StateError(
            f"{optimizer.classnm} keeps {len(own)} states ({', '.join(own) or 'none'}), and the parameter "
            f"has {len(states)}. {_AFRESH}"
        )
    used = [wrapped(be, state, f"the state {name}") for state, name in zip(states, names)]
    for state, (name, kind) in zip(used, declared):
        if state.shape != kind.shape(param.shape):
            raise ShapeError(
                f"its state {name} has shape {state.shape}; for a parameter of shape {param.shape} it is "
                f"{kind.shape(param.shape)}"
            )
    return used


def check_effect(optimizer: Optimizer, trace: Any, new_states: bool) -> None:
    """Check in the first step that the rule does not lose what it computes.

    It must assign the parameter, and each state that it reads.

    Parameters
    ----------
    optimizer : Optimizer
    trace : Trace
    new_states : bool
        Whether states are made in this step. Those that were there before need not be 0, so a rule may just
        read them.

    Raises
    ------
    TraceError
        With the line to type.
    """
    if optimizer._cache().plans if trace.options.on_device else optimizer.t:
        return
    code, slots, declared = trace.tracer.code, trace.tracer.names, trace.options.states
    lost = {line[1] for line in code if line[0] == "load"} - {line[1] for line in code if line[0] == "store"}
    if 0 in lost and loses(code, 0):
        raise TraceError(
            f"the rule of {optimizer.classnm} computes a value of the parameter that nothing uses, and never "
            "assigns the parameter: write param[:] = ..., not param = ..., which only gives the value a "
            "name"
        )
    arguments = [*inspect.signature(optimizer.rule).parameters][1:]  # as the user calls them
    own = [name for name, _ in declared]
    names = arguments[2:] if len(arguments) == len(own) + 2 else own
    for name in [
        name
        for name, (own, state) in zip(names, declared)
        if slots.index(own) in lost and state.init == 0.0 and new_states
    ]:
        raise TraceError(
            f"the rule of {optimizer.classnm} reads the state {name}, which starts at 0, and never assigns "
            f"it: write {name}[:] = ... (a plain {name} = ... only gives a value another name). If it is "
            f"meant to stay as it is, write {name}[:] = {name}"
        )


def place_in(layers: list[Any], states: Any) -> str | None:
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


def storage_name(be: Backend, dtype: Any) -> str:
    """Return the name of a dtype for states, which may be PyTorch's; an error says what it is."""
    try:
        return be.storage_dtype(
            str(dtype).rpartition(".")[2] if type(dtype).__module__ == "torch" else dtype
        ).name
    except DtypeError:
        raise DtypeError(
            f'state_dtype must be a dtype that {be.name!r} stores, such as "bfloat16", "float32" or '
            f'"float64", not {dtype!r}'
        ) from None
