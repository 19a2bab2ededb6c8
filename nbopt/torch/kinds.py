"""What a step depends on in PyTorch's tensors beside their memory.

One call sees whether it is still so.
"""

from functools import cache
from operator import attrgetter

import numpy as np
import torch

_nbytes, _dtype, _shape = map(attrgetter, ("nbytes", "dtype", "shape"))
_stride, _is_contiguous = torch.Tensor.stride, torch.Tensor.is_contiguous


@cache
def numpy_dtype(dtype):
    """Return one of PyTorch's dtypes as NumPy's (ml_dtypes' for bfloat16), or None if there is none."""
    try:
        return np.dtype(str(dtype).rpartition(".")[2])
    except TypeError:
        return None


def kinds_of(params, grads):
    """Return what a step over parameters and their gradients depends on.

    It is all but where they are and how many they are. PyTorch sees to it that a gradient has its parameter's
    shape, so what happens to the shape of a parameter shows there too.
    """
    return (
        [*map(_nbytes, grads)],
        [*map(_dtype, params)],
        [*map(_dtype, grads)],
        _strides(params),
        _strides(grads),
    )


def likeness(params, grads):
    """Return a function that says whether other tensors are surely like these.

    It takes as many parameters and gradients, one after the other. If the answer is true, `kinds_of` would
    return the same as for these, and no gradient has a negative bit that these have not. It is one call,
    several times as fast as looks at each tensor from Python. It may be false for no reason that matters
    here: in another mode of PyTorch, or if two parameters have one gradient.
    """
    if _Guards is None:
        return never
    return _Guards(*params, *grads, dynamic_dims_sizes=None, dynamic_dims_strides=None).check


def never(*tensors):
    """Return False, as a function of `likeness` may."""
    return False


def _strides(tensors):
    """Return the shapes and strides of PyTorch tensors, or None where all are contiguous."""
    return None if all(map(_is_contiguous, tensors)) else [*map(_shape, tensors), *map(_stride, tensors)]


def _guards():
    """Return what `torch.compile` looks at its inputs with, or None.

    None says that this PyTorch has it not, or not with all that is needed here. The class is private to
    PyTorch, so it has to show that it sees each difference.
    """
    try:
        from torch._C._dynamo.guards import TensorGuards

        one = torch.ones(2, 2, device="cpu")
        check = TensorGuards(one, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        others = torch._neg_view(one), one.view(torch.int32), one.t(), one[:1], one.as_strided((1, 4), (2, 1))
        return TensorGuards if check(one) is True and not any(map(check, others)) else None
    except Exception:
        return None


_Guards = _guards()
