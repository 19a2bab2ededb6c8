"""The states of a parameter, as PyTorch's optimizers keep them.

What are they called, when are there any, and what do they start from?
"""

from typing import NamedTuple

import numpy as np
import torch

from nbopt.optimizers.states import State

#: The dtypes of 16 bits.
SIXTEEN = (torch.float16, torch.bfloat16)


class Kept(NamedTuple):
    """One state of a parameter.

    Attributes
    ----------
    name : str
        Its key in ``optimizer.state[param]``.
    start : float or str
        What it starts from: a number, the group's key whose value it is, or ``"param"``: the parameter.
    when : str
        The group's key without whose value there is no such state. Empty: there always is.
    single : str
        The dtype's name, if it is one number for the parameter. Else it is empty.
    axes : str or tuple of int
        As for `nbopt.State`, if it is none.
    squeezed : bool
        Whether a state of slices is stored without the axes along which it does not vary.
    dtype : str
        The name of its dtype, if it has one of its own.
    """

    name: str
    start: float | str = 0.0
    when: str = ""
    single: str = ""
    axes: str | tuple = "all"
    squeezed: bool = False
    dtype: str = ""

    def stored(self, shape):
        """Return the shape in which it is stored beside a parameter of some shape."""
        found = State(self.axes).shape(shape)
        if not self.squeezed or self.axes == "all":
            return found
        kept = {axis % len(shape) for axis in self.axes}
        return tuple(length for axis, length in enumerate(found) if axis in kept)

    def new(self, params, group, wanted, values=None):
        """Return new tensors for some parameters.

        Parameters
        ----------
        params : list of torch.Tensor
        group : dict
            Theirs.
        wanted : str or None
            As `state_dtype` takes it.
        values : list of torch.Tensor, optional
            What they start from, if that is the parameter: its values in another format.

        Returns
        -------
        list of torch.Tensor
            Of the parameters' shapes and layouts; or views of one tensor, which a step walks through in a
            row.
        """
        if self.start == "param":
            return [
                value.detach().to(self._dtype(param, wanted), copy=True)
                for param, value in zip(params, values or params)
            ]
        start = float(group[self.start]) if isinstance(self.start, str) else self.start
        if self.single:
            return self._numbers(params, [start] * len(params))
        if self.axes != "all":
            shapes = [self.stored(tuple(param.shape)) for param in params]
            return [
                torch.full(shape, start, dtype=self._dtype(param, wanted), device=param.device)
                for param, shape in zip(params, shapes)
            ]
        return [_filled(param, start, self._dtype(param, wanted)) for param in params]

    def _numbers(self, params, values):
        """Return one number for each parameter: views of one tensor on each device."""
        places: dict[torch.device, list[int]] = {}
        for place, param in enumerate(params):
            places.setdefault(param.device, []).append(place)
        found: dict[int, torch.Tensor] = {}
        for device, own in places.items():
            numbers = [values[place] for place in own]
            made = torch.tensor(numbers, dtype=getattr(torch, self.single), device=device)
            found.update(zip(own, made.unbind()))
        return [found[place] for place in range(len(params))]

    def _dtype(self, param, wanted):
        return getattr(torch, self.dtype) if self.dtype else state_dtype(param, wanted)

    def shaped(self, value, param):
        """Return a state as a rule takes it.

        It is this process's share. One number gets as many axes as the parameter.
        """
        value = getattr(value, "_local_tensor", value)
        if self.squeezed and isinstance(value, torch.Tensor):
            return value.view(State(self.axes).shape(tuple(param.shape)))
        single = self.single and self is not STEP and isinstance(value, torch.Tensor) and value.numel() == 1
        return value.view((1,) * param.ndim) if single else value

    def declared(self):
        """Return what nbopt calls it.

        Returns
        -------
        nbopt.State
        """
        init = self.start if isinstance(self.start, float) else None  # these are made here
        return State((), init, self.single) if self.single else State("all", init)

    def copies(self, params, values, wanted, as_given=False):
        """Return copies of what a state dict has, as `new` makes them.

        Parameters
        ----------
        params : list of torch.Tensor
        values : list of torch.Tensor or float
            A number only if the state is one.
        wanted : str or None
            As `state_dtype` takes it.
        as_given : bool
            Whether they keep their dtypes. A number of the parameter has its own.

        Returns
        -------
        list of torch.Tensor
        """
        if self.single:
            return self._numbers(params, [*map(float, values)])
        return [
            value.detach().to(
                param.device, value.dtype if as_given else self._dtype(param, wanted), copy=True
            )
            for param, value in zip(params, values)
        ]


def kept_of(name, state):
    """Return the state of a parameter that a rule of nbopt's declares.

    Parameters
    ----------
    name : str
    state : nbopt.State
        Not one of the whole step.

    Returns
    -------
    Kept
    """
    if state.axes == ():
        return Kept(name, state.init, single=state.dtype or "float32")
    return Kept(name, state.init, axes=state.axes, dtype=np.dtype(state.dtype).name if state.dtype else "")


#: The parameter's own count of steps.
STEP = Kept("step", single="float32")
#: The running mean of a parameter. No optimizer of PyTorch's has one, so a state dict may lack it.
MEAN = Kept("ema", "param", when="ema_decay")


def _filled(param, start, dtype):
    if start == 0.0:
        # Zeroed pages cost nothing until they are used.
        return torch.zeros_like(param, dtype=dtype, requires_grad=False)
    return torch.full_like(param, start, dtype=dtype, requires_grad=False)


def state_dtype(param, wanted):
    """Return the dtype of a parameter's new states.

    Parameters
    ----------
    param : torch.Tensor
    wanted : str or None
        What the user asks for: a dtype's name, ``"param"`` for the parameter's own, or None: 32 bits at
        least.

    Returns
    -------
    torch.dtype
    """
    if wanted is None:
        return torch.float32 if param.dtype in SIXTEEN else param.dtype
    return param.dtype if wanted == "param" else getattr(torch, wanted)
