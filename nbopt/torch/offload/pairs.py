"""Pair: a parameter on the device, and what the host has of it."""

import weakref

import torch

from nbopt.errors import ArgumentError, DtypeError, LayoutError
from nbopt.torch.masters import has_master
from nbopt.torch.shards import is_sharded

_OFFLOADED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Pair:
    """A parameter, and the tensors on the host that take its place in the optimizer there.

    Attributes
    ----------
    param : torch.Tensor
        On the device.
    host : torch.Tensor
        What the optimizer on the host updates: the parameter itself or, if it has a master there, the 16-bit
        copy of the master, which is on its way to the device.
    gradient : torch.Tensor
        Where the gradient arrives on the host.
    total : torch.Tensor or None
        What gradients are added up in on the host, if they are.
    has_master : bool
    bucket : Bucket
    place : int
        In the bucket.
    passes, expected : int
        How many backward passes have given a gradient since the last step, and how many did before that.
    seen : tuple or None
        Which gradient the last backward pass has left: a reference, and its version.
    arrived : bool
        Whether this gradient has been copied to the host.
    """

    def __init__(self, param, name):
        if is_sharded(param):
            raise LayoutError(
                f"{name} is a DTensor: let FSDP2 offload it (fully_shard(model, offload_policy="
                "CPUOffloadPolicy())), and take the optimizer without Offload"
            )
        if torch.nn.parameter.is_lazy(param):
            raise LayoutError(f"{name} has no shape yet: call the model with some input first")
        if param.device.type not in ("cpu", "cuda"):
            raise LayoutError(
                f"{name} is on {param.device}, and Offload takes parameters on an NVIDIA GPU or on the CPU"
            )
        if param.dtype not in _OFFLOADED:
            raise DtypeError(f"{name} is {param.dtype}: Offload takes float64, float32, float16 and bfloat16")
        self.param, self.name = param, name
        self._kind = param.device, param.dtype, param.shape
        self.host = torch.empty(param.shape, dtype=param.dtype)  # its memory comes later
        self.gradient = torch.empty(0, dtype=param.dtype)
        self.total = None
        self.has_master = False
        self.bucket, self.place = None, 0
        self.passes, self.expected = 0, 1
        self.seen, self.arrived = None, False

    def check(self):
        """Raise if the parameter is not what it was when the optimizer was made."""
        param, (device, dtype, shape) = self.param, self._kind
        if param.device != device or param.dtype != dtype or param.shape != shape:
            raise LayoutError(
                f"{self.name} is {_kind_of(param.device, param.dtype, param.shape)} now, and was "
                f"{_kind_of(device, dtype, shape)} when the optimizer was made: move and convert the model "
                "first (model.to(...)), and make the optimizer then"
            )

    def size_of_sum(self):
        """Return how many bytes the sum of its gradients takes on the host."""
        return self.param.numel() * _dtype_of_sum(self.param).itemsize

    def make_sum(self):
        """Allocate the sum of its gradients, of at least 32 bits."""
        dtype = _dtype_of_sum(self.param)
        self.host.grad_dtype, self.total = dtype, torch.empty(self.param.shape, dtype=dtype)

    def saw(self, grad):
        """Note which gradient a backward pass has left."""
        self.seen, self.arrived = (weakref.ref(grad), grad._version), False

    def is_seen(self, grad):
        """Return whether a gradient is still the one of `saw`, and as it was."""
        seen = self.seen
        return grad is not None and seen is not None and seen[0]() is grad and seen[1] == grad._version

    def forget(self):
        """Forget the gradient."""
        self.passes, self.seen, self.arrived = 0, None, False


def _dtype_of_sum(param):
    return torch.float32 if has_master(param) else param.dtype


def _kind_of(device, dtype, shape):
    return f"{dtype} of shape {tuple(shape)} on {device}"


def check_grad(pair):
    """Raise if a gradient can't be copied to where its bucket has room for it."""
    grad = pair.param.grad
    if grad.dtype != pair.param.dtype and pair.total is None:
        raise DtypeError(
            f"the gradient of {pair.name} is {grad.dtype}, and the parameter {pair.param.dtype}: give both "
            'one dtype, or have gradients added up in float32 on the host, accumulate="host"'
        )


_owners = torch.utils.weak.WeakIdKeyDictionary()


def claim(params, owner, names):
    """Note that an optimizer offloads some parameters.

    Parameters
    ----------
    params : list of torch.Tensor
    owner : Offload
    names : list of str

    Raises
    ------
    ArgumentError
        If another one offloads some of them already. Nothing is noted then.
    """
    for param, name in zip(params, names):
        other = _owners.get(param, _nobody)()
        if other is not None and other is not owner:
            raise ArgumentError(
                f"another Offload has {name} already, and both would copy its gradient: call its close() "
                "first, or give all parameters to one, which may have groups"
            )
    for param in params:
        _owners[param] = weakref.ref(owner)


def release(params):
    """Note that nobody offloads some parameters any more."""
    for param in params:
        _owners.pop(param, None)


def _nobody():
    return None
