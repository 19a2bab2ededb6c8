"""HostBackend: what backends over NumPy arrays have in common."""

import math

import numpy as np

from nbopt.arrays.tensor import Tensor
from nbopt.errors import LayoutError
from nbopt_backends.arrays.checks import STORED_DTYPES, ArrayBackend, convert, given_values, refuse_masked
from nbopt_backends.arrays.memory import array_at, dlpack_structure, no_array, torch_structure

_CPU_DEVICES = {1, 3, 11}  # DLPack's codes of memory that the host can read: CPU, CUDA pinned, ROCm pinned


class HostBackend(ArrayBackend):
    """A backend whose storage is numpy.ndarray. Subclasses implement `prepare` and `sum_last_axis`."""

    memory = "host"

    def adopt(self, obj):
        """Return `obj` as a numpy.ndarray that shares its memory."""
        # New gradients at every step are the normal case, so what needs no second look is let through at
        # once.
        if (
            type(obj) is np.ndarray
            and obj.dtype in STORED_DTYPES
            and obj.dtype.isnative
            and obj.flags.aligned
        ):
            return obj
        refuse_masked(obj)
        array = obj.view(np.ndarray) if isinstance(obj, np.ndarray) else _from_foreign(self, obj)
        if not array.dtype.isnative:
            raise LayoutError(
                f"the array is byte-swapped ({array.dtype.str}): convert it by "
                "x.astype(x.dtype.newbyteorder('='))"
            )
        self.storage_dtype(array.dtype)
        if not array.flags.aligned:
            raise LayoutError(
                "the array's memory is not aligned to its elements: make a copy of it (numpy.array(x))"
            )
        return array

    def array_of(self, tensor):
        """Return the tensor's array."""
        if tensor.be.memory != "host":
            raise LayoutError(f"{tensor!r} is in a device's memory, and this backend works on the host's")
        return tensor.storage

    def restrided(self, storage, shape, strides):
        """Return a view of a numpy.ndarray."""
        return np.lib.stride_tricks.as_strided(storage, shape, strides)

    def copied(self, tensor):
        """Return a copy of the tensor's array."""
        return tensor.storage.copy()

    def broadcast(self, array, shape):
        """Return a view of another shape."""
        return np.broadcast_to(array, shape)

    def allocate(self, shape, dtype):
        """Return a new numpy.ndarray in C order."""
        return np.empty(shape, dtype)

    def to_numpy(self, tensor):
        """Return a copy of the tensor's array."""
        return tensor.storage.copy()

    def set_values(self, tensor, values):
        """Copy values into the tensor's array."""
        self.check_writable(tensor)
        convert(given_values(tensor, values), tensor.storage, tensor)

    def reduce(self, op, tensor, axis, shape):
        """Reduce a tensor over an axis (None: over all elements) and return a new tensor of shape `shape`."""
        array = tensor.storage
        if array.dtype.itemsize == 2:
            array = array.astype(np.float32)  # and the result stays float32, for what it is used in
        # Reduced values last: (how many results, how many values each)
        count = array.size if axis is None else array.shape[axis]
        matrix = (array if axis is None else np.moveaxis(array, axis, -1)).reshape(math.prod(shape), count)
        with np.errstate(all="ignore"):
            result = (
                self.sum_last_axis(np.ascontiguousarray(matrix)) if op == "sum" else _REDUCERS[op](matrix)
            )
        return Tensor(self, np.ascontiguousarray(result, dtype=array.dtype).reshape(shape))

    def sum_last_axis(self, matrix):
        """Return the sums of the rows of a matrix, in the fixed shape of `nbopt_backends.meaning.tree`.

        Parameters
        ----------
        matrix : numpy.ndarray
            (m, n), float32 or float64, C-contiguous.

        Returns
        -------
        numpy.ndarray
            (m,), of the same dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} has no sum")


def _extreme(reducer, zero_signs):
    """Return a maximum or minimum in which -0 is below +0, which NumPy leaves open."""

    def reduced(matrix):
        found = reducer(matrix, axis=1)
        zero = zero_signs(
            np.where(matrix == 0, np.copysign(1, matrix), zero_signs([-1.0, 1.0]) * -1.0), axis=1
        )
        return np.where(found == 0, np.copysign(found, zero), found)

    return reduced


_REDUCERS = {
    "max": _extreme(np.max, np.max),
    "min": _extreme(np.min, np.min),
    "argmax": lambda matrix: np.argmax(matrix, axis=1),
    "argmin": lambda matrix: np.argmin(matrix, axis=1),
}


def _from_foreign(home, obj):
    if hasattr(obj, "data_ptr") and hasattr(obj, "is_cuda"):
        return _from_torch(home, obj)
    if hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__"):
        device = obj.__dlpack_device__()[0]
        if device not in _CPU_DEVICES:
            raise LayoutError(
                f"the array is on another device (DLPack's type {int(device)}): use that device's backend, "
                "or copy it to the host"
            )
        try:
            return np.from_dlpack(obj)
        except RuntimeError:  # bfloat16, which NumPy doesn't know
            capsule = obj.__dlpack__()
            # A capsule of this version doesn't say whether its array may be written; NumPy takes it for
            # read-only as well.
            return array_at(*dlpack_structure(home, capsule), (capsule, obj), readonly=True)
    if hasattr(obj, "__cuda_array_interface__"):
        raise LayoutError('the array is on a GPU: use the backend "cuda", or copy it to the host')
    raise no_array(obj)


def _from_torch(home, tensor):
    """Wrap a PyTorch tensor by its address: it exports neither what requires gradients nor bfloat16."""
    if tensor.device.type != "cpu":
        raise LayoutError(
            f"the tensor is on {tensor.device}: use that device's backend, or copy it to the host by x.cpu()"
        )
    address, dtype, strides = torch_structure(home, tensor)
    # Detached it keeps this memory alive, even if the tensor gets other memory by x.data = ...
    return array_at(address, tuple(tensor.shape), dtype, strides, tensor.detach())
