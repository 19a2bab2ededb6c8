"""ArrayBackend: what backends whose arrays have addresses and strides have in common. HostBackend: those over NumPy arrays."""

import math

import numpy as np

from nbopt.backend import Backend
from nbopt.errors import DtypeError, LayoutError, OperandError, ShapeError
from nbopt.tensor import Tensor
from nbopt_backends.memory import array_at, byte_range, check_disjoint, dlpack_structure, torch_structure
from nbopt_backends.rounding import FORMATS, kept_bits

_DTYPES = {storage.dtype for storage in FORMATS.values()}
_CPU_DEVICES = {1, 3, 11}  # DLPack's codes of memory that the host can read: CPU, CUDA pinned, ROCm pinned


_MASKED = "a masked array has no value where it is masked: pass x.filled(0), or x.data to ignore the mask"


class ArrayBackend(Backend):
    """A backend whose arrays have addresses and strides."""

    @classmethod
    def storage_dtype(cls, dtype):
        """Return `dtype` as a numpy.dtype, or raise DtypeError."""
        try:
            found = None if dtype is None else np.dtype(dtype)
        except TypeError:
            found = None
        if found not in _DTYPES:
            names = ", ".join(sorted(d.name for d in _DTYPES))
            raise DtypeError(f"arrays of dtype {dtype} can't be trained; allowed are {names}. Convert it: x.astype(numpy.float32)")
        return found

    def array_of(self, tensor):
        """Return a numpy.ndarray with a tensor's shape, dtype, strides and address, for checks and layouts; its values may be out of reach.

        Raises
        ------
        LayoutError
            If the tensor is in memory that this backend can't use.
        """
        raise NotImplementedError(f"{type(self).__name__} can't look at arrays")

    def check_writable(self, tensor):
        """Raise LayoutError if the tensor's memory is read-only."""
        _check_writable(self.array_of(tensor), repr(tensor))

    def copied(self, tensor):
        """Return what `array_of` does for a contiguous copy of the tensor, which lives as long as the result."""
        raise NotImplementedError(f"{type(self).__name__} can't copy arrays")

    def checked_columns(self, update):
        """Return the update's columns as lists of arrays, after the checks that only a look at memory can make, and their roundings.

        The roundings are a list for each slot: how many mantissa bits a stochastic rounding keeps in each row, or 0.

        For an assignment outside an optimizer, operands are broadcast to the target's shape, and an operand that overlaps the target
        without being the same view of it is copied first.
        """
        columns = update.columns(update)
        written = set(update.program.written())
        names = update.program.names
        values = []
        for slot, column in enumerate(columns):
            for row, tensor in enumerate(column):
                array = self.array_of(tensor)
                if slot in written:
                    _check_writable(array, f"{names[slot]} {tensor!r}")
                values.append((array, slot in written, lambda n=names[slot], r=row, t=tensor: f"{n} number {r} {t!r}"))
        arrays = [[self.array_of(tensor) for tensor in column] for column in columns]
        if update.plans is None:
            target = arrays[0][0]
            check_disjoint(values[:1])
            arrays = [[target], *([self._operand(column[0], target)] for column in columns[1:])]
        else:
            check_disjoint(values)
        update.arrays = arrays
        kept = [[_kept(update, slot, tensor) if slot in written else 0 for tensor in column] for slot, column in enumerate(columns)]
        return arrays, kept

    def check_together(self, updates):
        """Refuse memory that one optimizer of a step writes and another one reads or writes."""
        if all(update.arrays is None for update in updates):
            return  # nothing is new
        values = []
        for number, update in enumerate(updates):
            written = set(update.program.written())
            arrays = update.arrays or [[self.array_of(tensor) for tensor in column] for column in update.columns(update)]
            for slot, column in enumerate(arrays):
                for row, array in enumerate(column):
                    name = f"{update.program.names[slot]} number {row} of the step's update number {number}"
                    values.append((array, slot in written, lambda name=name: name))
        check_disjoint(values)

    def _operand(self, tensor, target):
        """Return an operand of an assignment as an array of the target's shape, free of dangerous overlap with it."""
        array = self.array_of(tensor)
        same = array.shape == target.shape and array.strides == target.strides and array.dtype == target.dtype
        if not (same and byte_range(array) == byte_range(target)) and np.may_share_memory(array, target):
            array = self.copied(tensor)
        return np.broadcast_to(array, target.shape)


class HostBackend(ArrayBackend):
    """A backend whose storage is numpy.ndarray. Subclasses implement `prepare`, `norm_factor` and `sum_last_axis`."""

    memory = "host"

    def adopt(self, obj):
        """Return `obj` as a numpy.ndarray that shares its memory."""
        # New gradients at every step are the normal case, so what needs no second look is let through at once.
        if type(obj) is np.ndarray and obj.dtype in _DTYPES and obj.dtype.isnative and obj.flags.aligned:
            return obj
        if isinstance(obj, np.ma.MaskedArray):
            raise LayoutError(_MASKED)
        array = obj.view(np.ndarray) if isinstance(obj, np.ndarray) else _from_foreign(self, obj)
        if not array.dtype.isnative:
            raise LayoutError(f"the array is byte-swapped ({array.dtype.str}): convert it by x.astype(x.dtype.newbyteorder('='))")
        self.storage_dtype(array.dtype)
        if not array.flags.aligned:
            raise LayoutError("the array's memory is not aligned to its elements: make a copy of it (numpy.array(x))")
        return array

    def array_of(self, tensor):
        """Return the tensor's array."""
        if tensor.be.memory != "host":
            raise LayoutError(f"{tensor!r} is in a device's memory, and this backend works on the host's")
        return tensor.storage

    def copied(self, tensor):
        """Return a copy of the tensor's array."""
        return tensor.storage.copy()

    def allocate(self, shape, dtype):
        """Return a new numpy.ndarray in C order."""
        return np.empty(shape, dtype)

    def to_numpy(self, tensor):
        """Return a copy of the tensor's array."""
        return tensor.storage.copy()

    def set_values(self, tensor, values):
        """Copy values into the tensor's array."""
        array = tensor.storage
        _check_writable(array, repr(tensor))
        convert(given_values(tensor, values), array, tensor)

    def reduce(self, op, tensor, axis, shape):
        """Reduce a tensor over an axis (None: over all elements) and return a new tensor of shape `shape`."""
        array = tensor.storage
        if array.dtype.itemsize == 2:
            array = array.astype(np.float32)  # and the result stays float32, for what it is used in
        # Reduced values last: (how many results, how many values each)
        count = array.size if axis is None else array.shape[axis]
        matrix = (array if axis is None else np.moveaxis(array, axis, -1)).reshape(math.prod(shape), count)
        with np.errstate(all="ignore"):
            result = self.sum_last_axis(np.ascontiguousarray(matrix)) if op == "sum" else _REDUCERS[op](matrix)
        return Tensor(self, np.ascontiguousarray(result, dtype=array.dtype).reshape(shape))

    def sum_last_axis(self, matrix):
        """Return the sums of the rows of a matrix, in the fixed shape of `nbopt_backends.reduction`.

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


def given_values(tensor, values):
    """Return what a user gave to be stored in a tensor (an array, a tensor or a number) as a NumPy array of a dtype that can be converted."""
    if isinstance(values, np.ma.MaskedArray):
        raise LayoutError(_MASKED)
    source = values.get() if isinstance(values, Tensor) else np.asarray(values)
    if source.dtype not in _DTYPES and (source.dtype.kind not in "fiub" or source.dtype.itemsize > 8):
        raise DtypeError(f"values of dtype {source.dtype} can't be stored in {tensor!r}")
    return source


def convert(source, target, tensor):
    """Write the array `source` into the NumPy array `target`, which stands for `tensor`, rounding to nearest; NaN is canonical in 16 bits."""
    try:
        with np.errstate(all="ignore"):
            target[...] = source
            if target.dtype.itemsize == 2:
                target[np.isnan(target)] = np.nan
    except ValueError:
        raise ShapeError(f"values of shape {source.shape} don't fit {tensor!r}") from None


def _kept(update, slot, tensor):
    """Return how many mantissa bits a store to `tensor` keeps if it is stochastic, or 0."""
    dtype = tensor.dtype.name
    whole = update.stochastic_round
    if whole is not False and (slot == 0 or tensor.dtype.itemsize == 2):
        return kept_bits(dtype, whole)
    return kept_bits(dtype, tensor.rounding)


def _extreme(reducer, zero_signs):
    """Return a maximum or minimum in which -0 is below +0, which NumPy leaves open."""

    def reduced(matrix):
        found = reducer(matrix, axis=1)
        zero = zero_signs(np.where(matrix == 0, np.copysign(1, matrix), zero_signs([-1.0, 1.0]) * -1.0), axis=1)
        return np.where(found == 0, np.copysign(found, zero), found)

    return reduced


_REDUCERS = {
    "max": _extreme(np.max, np.max),
    "min": _extreme(np.min, np.min),
    "argmax": lambda matrix: np.argmax(matrix, axis=1),
    "argmin": lambda matrix: np.argmin(matrix, axis=1),
}


def _check_writable(array, called):
    if not array.flags.writeable:
        raise LayoutError(
            f"{called} is read-only, and would be written: pass a writable array (numpy.array(x) makes one). JAX's arrays always are: train a NumPy "
            "copy, and give JAX a copy of that at every step (jax.numpy.array(w))"
        )


def _from_foreign(home, obj):
    if hasattr(obj, "data_ptr") and hasattr(obj, "is_cuda"):
        return _from_torch(home, obj)
    if hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__"):
        device = obj.__dlpack_device__()[0]
        if device not in _CPU_DEVICES:
            raise LayoutError(f"the array is on another device (DLPack's type {int(device)}): use that device's backend, or copy it to the host")
        try:
            return np.from_dlpack(obj)
        except RuntimeError:  # bfloat16, which NumPy doesn't know
            capsule = obj.__dlpack__()
            # A capsule of this version doesn't say whether its array may be written; NumPy takes it for read-only as well.
            return array_at(*dlpack_structure(home, capsule), (capsule, obj), readonly=True)
    if hasattr(obj, "__cuda_array_interface__"):
        raise LayoutError('the array is on a GPU: use the backend "cuda", or copy it to the host')
    raise OperandError(f"{type(obj).__name__} is no array whose memory could be shared. be.array(x) makes a tensor with a copy of its values")


def _from_torch(home, tensor):
    """Wrap a PyTorch tensor by its address: it exports neither what requires gradients nor bfloat16."""
    if tensor.device.type != "cpu":
        raise LayoutError(f"the tensor is on {tensor.device}: use that device's backend, or copy it to the host by x.cpu()")
    dtype, strides = torch_structure(home, tensor)
    # Detached it keeps this memory alive, even if the tensor gets other memory by x.data = ...
    return array_at(tensor.data_ptr(), tuple(tensor.shape), dtype, strides, tensor.detach())
