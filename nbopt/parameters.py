"""Parameters: raw arrays as a layer."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

from nbopt.arrays.tensor import Tensor
from nbopt.attributes import Misspelt
from nbopt.backends import get_backend
from nbopt.errors import LayerError, NboptError
from nbopt.interface.backend import Backend
from nbopt.layers import as_gradient
from nbopt.naming import NervanaObject

_serials = itertools.count()
_SHOWN = 4  # shapes in a text


class _Changes:
    """The number that something has until it changes. Nothing else has had it.

    Without a number, each step has to look again.

    Parameters
    ----------
    of : _Changes, optional
        Those of what this is a part of.
    """

    __slots__ = ("of", "serial")
    serial: int | None

    def __init__(self, of: _Changes | None = None) -> None:
        self.of = of
        self.note()

    def note(self) -> None:
        """Take another number."""
        self.serial = next(_serials)
        if self.of is not None:
            self.of.note()


class _Counted(list[Any]):
    """A list that notes the changes of its entries."""

    def __init__(self, values: Iterable[Any], changes: _Changes) -> None:
        super().__init__(values)
        self.changes = changes

    def __reduce__(self) -> Any:
        return list, (list(self),)


def _counting(name: str) -> Callable[..., Any]:
    method = getattr(list, name)

    def counted(self: _Counted, *args: Any, **options: Any) -> Any:
        self.changes.note()
        return method(self, *args, **options)

    counted.__name__ = name
    return counted


for _name in (
    "__setitem__", "__delitem__", "__iadd__", "__imul__", "append", "extend", "insert", "pop", "remove",
    "clear", "reverse", "sort",
):  # fmt: skip
    setattr(_Counted, _name, _counting(_name))


def _pairs_of(given: Any) -> str:
    """Return what to type in place of something that is no pair, after a colon."""
    if isinstance(given, dict):
        return ": write Parameters(*pairs.values())"
    if hasattr(given, "parameters") or hasattr(given, "requires_grad") or inspect.isgenerator(given):
        return ": of a model of PyTorch's write Parameters(*[(p, p.grad) for p in model.parameters()])"
    return ""


class _Fixed(tuple[Any, ...]):
    """A tuple that says what to write in place of an assignment to an entry."""

    def __setitem__(self, index: Any, value: Any) -> None:
        raise LayerError(
            "one entry can't be assigned: write layer.set_grad(index, dW) for a gradient, and "
            "layer.params = [W, b] for parameters"
        )

    def __reduce__(self) -> Any:
        return tuple, (tuple(self),)


class Parameters(NervanaObject):
    """A layer made of arrays that already exist. Optimizers update the parameters in place, without copies.

    Parameters
    ----------
    *pairs : (param, grad)
        Arrays (or tensors) of the same shape: NumPy arrays and PyTorch's tensors on the CPU, device arrays on
        a GPU. JAX's arrays, which are immutable, can be gradients.
    name : str, optional
        What `MultiOptimizer` and messages call the layer.

    Attributes
    ----------
    params : tuple
        The parameters, as they were given or set last. Assign a list to replace all (``layer.params = [W,
        b]``); the states stay.
    grads : tuple
        The gradients, as they were given or set last. Assign a list to replace all (``layer.grads = [dW,
        db]``); `set_grad` replaces one. Gradients that are written in place need neither. None leaves the
        parameter out of the next steps. That of a parameter without dimensions may be a number.
    states : list of list of Tensor
        What optimizers keep for each parameter; empty until the first step. ``layer.states[0] = []`` starts
        the first one afresh.

    Notes
    -----
    A NumPy array's ``flags.writeable`` is looked at when the parameter, its gradient or its states are
    replaced, not in each step.

    Examples
    --------
    >>> import numpy as np, nbopt
    >>> W, dW = np.ones((3, 2), np.float32), np.full((3, 2), 0.1, np.float32)
    >>> layer = nbopt.Parameters((W, dW), name="linear")
    >>> nbopt.GradientDescentMomentum(learning_rate=1.0, momentum_coef=0).optimize([layer], epoch=0)
    >>> float(W[0, 0].round(3))
    0.9
    """

    def __init__(self, *pairs: Any, name: str | None = None) -> None:
        super().__init__(name=name)
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise LayerError(
                    "Parameters takes (param, grad) pairs: Parameters((W, dW), (b, db)); not "
                    f"{type(pair).__name__}{_pairs_of(pair)}"
                )
            if isinstance(pair[0], (tuple, list)) and all(hasattr(part, "shape") for part in pair[0]):
                raise LayerError(
                    "Parameters takes pairs as arguments of their own: Parameters(*pairs) for a list of them"
                )
        self._params: tuple[Any, ...] = _Fixed(param for param, _ in pairs)
        self._grads = [grad for _, grad in pairs]
        self.changes = _Changes()
        self._list_states([] for _ in pairs)
        self._backend: Any = None
        self._tensors: list[Any] = []
        self._entries: Any = None
        self._listed = -1  # the number of the list of states when the entries were made

    grad = Misspelt("grads", "layer.grads = [dW, db], or layer.set_grad(0, dW)", LayerError)
    param = Misspelt("params", "layer.params = [W, b]", LayerError)

    @property
    def params(self) -> tuple[Any, ...]:
        """The parameters, as they were given or set last."""
        return self._params

    @params.setter
    def params(self, params: Iterable[Any]) -> None:
        self._params = _Fixed(self._one_each(params, "parameters"))
        self._backend = None
        self.changes.note()

    @property
    def states(self) -> list[list[Tensor]]:
        """What optimizers keep for each parameter: a list of tensors."""
        return self._states

    @states.setter
    def states(self, states: Iterable[Any]) -> None:
        self._list_states(self._one_each(states, "lists of states"))

    def _list_states(self, states: Iterable[Any]) -> None:
        self._states: Any = _Counted(states, _Changes(self.changes))

    def _one_each(self, values: Iterable[Any], called: str) -> list[Any]:
        if hasattr(values, "shape") or isinstance(values, (int, float)):
            raise LayerError(f"{called} come as a list, such as [x], not as {type(values).__name__}")
        values = list(values)
        if len(values) != len(self._params):
            raise LayerError(
                f"there are {len(self.params)} parameters, so {len(self.params)} {called} are needed, not "
                f"{len(values)}"
            )
        return values

    @property
    def grads(self) -> tuple[Any, ...]:
        """The gradients, as they were given or set last."""
        return _Fixed(self._grads)

    @grads.setter
    def grads(self, grads: Iterable[Any]) -> None:
        self._grads = self._one_each(grads, "gradients")
        self._entries = None
        self.changes.note()

    def set_grad(self, index: int, grad: Any) -> None:
        """Replace the gradient of one parameter.

        Parameters
        ----------
        index : int
            Which parameter, from 0.
        grad : array or Tensor
            Of the parameter's shape; or a number, or None, as in `grads`.

        Raises
        ------
        LayerError
            If there is no such parameter.
        """
        try:
            self._grads[index] = grad
        except IndexError:
            raise LayerError(
                f"layer {self.name!r} has {len(self._grads)} parameters, counted from 0, so there is no "
                f"gradient {index}"
            ) from None
        self._entries = None
        self.changes.note()

    def get_params(self) -> list[Any]:
        """Return what optimizers ask layers for.

        Returns
        -------
        list of ((Tensor, Tensor), list of Tensor)
            ``((param, grad), states)`` for each parameter; tensors of the current backend, which share the
            arrays' memory.

        Raises
        ------
        LayerError
            If there is not one list of states for each parameter.
        nbopt.errors.NboptError
            One of its subclasses, if an array can't be used.
        """
        be = get_backend()
        if be is not self._backend:
            self._tensors = self._wrapped(be, self._params, "parameter")
            self._backend, self._entries = be, None
            self.changes.note()
        if self._entries is None or self._listed != self._states.changes.serial:
            grads = [
                None if grad is None else as_gradient(be, grad, param)
                for param, grad in zip(self._tensors, self._grads)
            ]
            wrapped = self._wrapped(be, grads, "the gradient of parameter")
            states = self._lists_of_states()
            entries = [((param, grad), own) for param, grad, own in zip(self._tensors, wrapped, states)]
            if not all(map(is_, grads, self._grads)):  # a copy holds the values of this step only
                self.changes.serial = None
                return entries
            self._entries, self._listed = entries, self._states.changes.serial
            self.changes.note()
        return self._entries

    def _lists_of_states(self) -> list[Any]:
        """Return the lists of states, each of which notes its changes from now on."""
        if not self._states and self.params:
            raise LayerError(
                f"layer {self.name!r} has no lists of states any more. To start afresh, write "
                "layer.states = [[] for _ in layer.params]"
            )
        states = self._one_each(self._states, "lists of states")
        if not all(type(own) is _Counted and own.changes is self.changes for own in states):
            # One for each list, so that two parameters that share one still do.
            counted = {id(own): _Counted(own, self.changes) for own in states if isinstance(own, list)}
            self._states[:] = [counted.get(id(own), own) for own in states]
        return list(self._states)

    def _wrapped(self, be: Backend, arrays: Iterable[Any], called: str) -> list[Tensor | None]:
        found = []
        for number, array in enumerate(arrays):
            try:
                found.append(None if array is None else be.wrap(array))
            except NboptError as error:
                raise type(error)(f"{called} {number} of layer {self.name!r}: {error}") from None
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backend": None, "_tensors": [], "_entries": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._params = _Fixed(self._params)
        self.changes = _Changes()
        self._list_states(self._states)

    def __len__(self) -> int:
        return len(self._params)

    def __repr__(self) -> str:
        shapes = [str(tuple(getattr(param, "shape", ()))) for param in self._params[:_SHOWN]]
        rest = len(self._params) - len(shapes)
        return f"<Parameters {self.name!r}: {', '.join([*shapes, *([f'and {rest} more'] if rest else [])])}>"
