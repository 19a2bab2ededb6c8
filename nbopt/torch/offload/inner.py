"""Interface: what an offloaded optimizer and the one on the host, which it wraps, have in common."""

from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from nbopt import optimizers
from nbopt.errors import ArgumentError
from nbopt.optimizers.matrix import MatrixOptimizer
from nbopt.torch.family.muon import Muon
from nbopt.torch.offload.states import States
from nbopt.torch.optimizer import Optimizer
from nbopt.torch.stepper import Stepper

_OWN = ("params", "param_names")


def give_keys(groups, inner):
    """Have the groups on the host say what those on the device say."""
    for group, own in zip(groups, inner):
        _copy(group, own)


def take_keys(groups, inner):
    """Have the groups on the device say what those on the host say."""
    for group, own in zip(groups, inner):
        _copy(own, group)


def _copy(source, target):
    for key in target.keys() - source.keys():
        if key not in _OWN:
            del target[key]
    target.update((key, value) for key, value in source.items() if key not in _OWN)


def made(optimizer, groups, options):
    """Return the optimizer on the host.

    Parameters
    ----------
    optimizer : type, callable or nbopt.Optimizer
        As `Offload` takes it.
    groups : list of dict
        Of tensors on the host.
    options : dict

    Raises
    ------
    ArgumentError
        If it is none that can be offloaded.
    """
    if isinstance(optimizer, optimizers.Optimizer):
        rule = optimizer
        optimizer = partial(Optimizer, optimizer=rule)
    elif not callable(optimizer):
        raise ArgumentError(
            f"the optimizer is a class such as nbopt.torch.AdamW, or a rule such as nbopt.Lion(), not "
            f"{optimizer!r}"
        )
    inner = optimizer(groups, **options)
    name = type(inner).__name__
    if not isinstance(inner, Stepper):
        known = f"nbopt.torch.{name}" if hasattr(torch.optim, name) else "nbopt.torch.AdamW"
        raise ArgumentError(f"Offload takes optimizers of nbopt.torch, not {type(inner)}: take {known}")
    if isinstance(inner, Muon) or any(isinstance(own.optimizer, MatrixOptimizer) for own in inner._owned()):
        raise ArgumentError(
            "the products of whole matrices are too slow on the host: leave Muon's matrices on the device, "
            "in an optimizer of their own, and offload the other parameters"
        )
    if not inner._backend.takes_turns:
        raise ArgumentError(
            f'Offload runs its steps by the backend "cpu", not by {inner._backend.name!r}: leave backend= out'
        )
    return inner


class Interface:
    """The part of `Offload` that passes on what it is asked for.

    Attributes
    ----------
    inner : Stepper
    """

    _inner: Any
    _hosts: Any
    _follow_groups: Any
    param_groups: Any

    @property
    def inner(self):
        """Stepper : the optimizer on the host."""
        return self._inner

    @property
    def _step_supports_amp_scaling(self):
        return getattr(self._inner, "_step_supports_amp_scaling", False)

    def __getattr__(self, name):
        inner = self.__dict__.get("_inner")
        if inner is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in ("train", "eval"):
            return partial(self._in_mode, getattr(inner, name))
        return getattr(inner, name)

    def __setattr__(self, name, value):
        inner = self.__dict__.get("_inner")
        own = name.startswith("_") or name in self.__dict__ or hasattr(type(self), name)
        if inner is None or own or not hasattr(inner, name):
            super().__setattr__(name, value)
        else:
            setattr(inner, name, value)

    def __reduce_ex__(self, protocol):
        """Refuse copies and pickles."""
        raise TypeError("an Offload can't be copied or pickled: save its state_dict(), and make another one")

    @property
    def host_bytes(self):
        """Dict of str to int : how many bytes of the host's memory are held, by what they hold.

        ``"parameters"`` are those without masters, ``"states"`` have the masters, ``"gradients"`` and
        ``"copies"`` are on their way to the host and to the device, ``"sums"`` are those of
        ``accumulate="host"``.
        """
        states = (value for states in self._inner.state.values() for value in states.values())
        pairs = self._hosts.pairs.values()
        return {
            **self._hosts.memory.held(),
            "states": sum(value.nbytes for value in states if isinstance(value, torch.Tensor)),
            "sums": sum(pair.total.nbytes for pair in pairs if pair.total is not None),
        }

    def close(self):
        """Give up the parameters, so that another optimizer may offload them. Take no step after that."""
        self._hosts.close()

    def _in_mode(self, change):
        """Have the optimizer on the host change what stands in place of the parameters."""
        self._follow_groups()
        give_keys(self.param_groups, self._inner.param_groups)
        with self._hosts.values(self._inner) as send:
            change()
            send()
        take_keys(self.param_groups, self._inner.param_groups)

    @contextmanager
    def ema(self):
        """Have running means in place of the parameters for a while, see `nbopt.torch.stepper.Stepper.ema`.

        Yields
        ------
        None
            The host has a place for all parameters as long as this lasts.
        """
        self._follow_groups()
        with self._hosts.values(self._inner) as send:
            try:
                with self._inner.ema():
                    send()
                    yield
            finally:
                send()

    @property
    def state(self):
        """States : parameter -> its states, which are on the host. They may be exchanged and removed."""
        return {} if self.__dict__.get("_inner") is None else States(self._hosts.pairs, self._inner.state)

    @state.setter
    def state(self, value):
        if value:
            raise ArgumentError("an Offload's states are its inner optimizer's: use load_state_dict")

    def state_dict(self):
        """Return what the optimizer without offload would: either loads the other's.

        Returns
        -------
        dict
            Its states are on the host.
        """
        self._follow_groups()
        give_keys(self.param_groups, self._inner.param_groups)
        return self._inner.state_dict()

    def load_state_dict(self, state_dict):
        """Go on from what `state_dict` gave, of this or of the optimizer without offload.

        Parameters
        ----------
        state_dict : dict
            It is not changed, and nothing is shared with it. States may be on any device.
        """
        self._follow_groups()
        self._inner.load_state_dict(state_dict)
        take_keys(self.param_groups, self._inner.param_groups)

    def register_state_dict_pre_hook(self, hook, prepend=False):
        """Call ``hook(optimizer)`` before `state_dict`."""
        return self._inner.register_state_dict_pre_hook(lambda _: hook(self), prepend)

    def register_state_dict_post_hook(self, hook, prepend=False):
        """Call ``hook(optimizer, state_dict)`` after `state_dict`."""
        return self._inner.register_state_dict_post_hook(lambda _, found: hook(self, found), prepend)

    def register_load_state_dict_pre_hook(self, hook, prepend=False):
        """Call ``hook(optimizer, state_dict)`` before `load_state_dict`."""
        return self._inner.register_load_state_dict_pre_hook(lambda _, found: hook(self, found), prepend)

    def register_load_state_dict_post_hook(self, hook, prepend=False):
        """Call ``hook(optimizer)`` after `load_state_dict`."""
        return self._inner.register_load_state_dict_post_hook(lambda _: hook(self), prepend)
