"""The backends of an optimizer for PyTorch: one for each device that its parameters are on."""

from typing import Any

import torch

from nbopt.backends import new_backend
from nbopt.errors import ArgumentError, LayoutError
from nbopt.interface.backend import Backend


def device_of(param):
    """Return the device that a parameter is on."""
    return param.device


class Devices:
    """The part of `Stepper` that knows devices.

    Attributes
    ----------
    _backend : Backend
        That of the first parameter. It counts the steps, which random bits depend on.
    _backends : dict of torch.device to Backend
        It is the first of them. They are new, but for one that the user gave.
    """

    _backends: dict[Any, Any]
    _backend: Any
    _chosen: Any
    _seed: Any
    _groups: Any

    def _choose_backend(self, params):
        """Have a backend for a new group, if it is the first one with parameters."""
        if params and not self._backends:
            self._backend = self._backend_of(params[0])
            for own in self._groups:
                vars(own.optimizer)["be"] = self._backend
        elif not isinstance(self._backend, Backend):
            self._backend = self._new_backend(torch.device("cpu"))  # a guess, as long as there are none

    def _backend_of(self, param):
        """Return the backend of a parameter's device; raise LayoutError if none works there."""
        device = device_of(param)
        if device not in self._backends:
            self._backends[device] = self._new_backend(device)
        return self._backends[device]

    def _new_backend(self, device):
        if isinstance(self._chosen, Backend):
            if self._backends:
                raise LayoutError(
                    f"parameters are on {', '.join(map(str, self._backends))} and on {device}, and a backend "
                    "that exists already serves one device: leave backend= out"
                )
            return self._chosen
        name = self._chosen or {"cpu": "cpu", "cuda": "cuda"}.get(device.type)
        if name is None:
            raise LayoutError(
                f"parameters are on {device}, and no backend works there: use the CPU or an NVIDIA GPU"
            )
        made = new_backend(name, rng_seed=self._seed, device_id=device.index or 0)
        if isinstance(self._backend, Backend):
            made.rng_set_state(self._backend.rng_get_state())
        return made


def recipe(be):
    """Return what a backend like this one is made of: its class and the arguments."""
    names = "device_id", "num_threads", "fast_math", "stochastic_round"
    return type(be), {name: getattr(be, name) for name in names}


def by_device(kinds, owners):
    """Return the places of some kinds of parameters by kind, no piece, and device."""
    found: dict[tuple, list[int]] = {}
    for kind, places in kinds.items():
        for place in places:
            found.setdefault((kind, None, device_of(owners[place])), []).append(place)
    return found


def check_apart(optimizer, options, update):
    """Raise where a step over several devices needs one number for all of them.

    Parameters
    ----------
    optimizer : nbopt.Optimizer
    options : nbopt.optimizers.tracing.Options
        Those of its trace.
    update : Update

    Raises
    ------
    ArgumentError
        With the way out.
    """
    if not update.shared and not update.program.over_the_step():
        return
    if options.clips:
        what = "gradient_clip_norm needs"
        instead = "call torch.nn.utils.clip_grad_norm_ before the step"
    elif options.skips:
        what, instead = "skip_nonfinite needs", "leave it out"
    elif options.loss_scale:
        what, instead = "a loss_scale that is a tensor is", "make it a number, loss_scale.item()"
    else:
        what, instead = f"the rule of {optimizer.classnm} needs", "take a rule without one, such as AdamW"
    raise ArgumentError(
        f"{what} one number for all parameters, and these are on several devices: {instead}, or make an "
        "optimizer for each device"
    )
