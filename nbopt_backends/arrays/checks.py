"""ArrayBackend: what backends whose arrays have addresses and strides have in common.

Foremost these are the checks before a step.
"""

import sys

import numpy as np

from nbopt.arrays.tensor import Tensor
from nbopt.errors import DtypeError, LayoutError, ShapeError
from nbopt.interface.backend import Backend
from nbopt_backends.arrays.memory import byte_range, check_disjoint, reshaped_strides, resolved
from nbopt_backends.meaning.rounding import FORMATS, kept_bits

STORED_DTYPES = {storage.dtype for storage in FORMATS.values()}


class ArrayBackend(Backend):
    """A backend whose arrays have addresses and strides."""

    @classmethod
    def storage_dtype(cls, dtype):
        """Return `dtype` as a numpy.dtype, or raise DtypeError."""
        try:
            found = None if dtype is None else np.dtype(dtype)
        except TypeError:
            found = None
        if found not in STORED_DTYPES:
            names = ", ".join(sorted(d.name for d in STORED_DTYPES))
            raise DtypeError(
                f"arrays of dtype {dtype} can't be trained; allowed are {names}. Convert it: "
                "x.astype(numpy.float32)"
            )
        return found

    def resolved(self, obj):
        """Return `obj`, or a copy of its values where its memory doesn't hold them."""
        return obj if isinstance(obj, Tensor) else resolved(obj)

    def array_of(self, tensor):
        """Return what has a tensor's shape, dtype, strides and address, for checks and layouts.

        It is a numpy.ndarray if the host can read it.

        Raises
        ------
        LayoutError
            If the tensor is in memory that this backend can't use.
        """
        raise NotImplementedError(f"{type(self).__name__} can't look at arrays")

    def reshape(self, storage, shape):
        """Return an array in another shape, sharing its memory; None where that needs a copy."""
        strides = reshaped_strides(storage.shape, storage.strides, shape, storage.dtype.itemsize)
        return None if strides is None else self.restrided(storage, shape, strides)

    def restrided(self, storage, shape, strides):
        """Return an array of the same memory with another shape and other strides."""
        raise NotImplementedError(f"{type(self).__name__} can't reshape arrays")

    def check_writable(self, tensor):
        """Raise LayoutError if the tensor's memory is read-only."""
        _check_writable(self.array_of(tensor), repr(tensor))

    def copied(self, tensor):
        """Return what `array_of` does, for a contiguous copy that lives as long as the result."""
        raise NotImplementedError(f"{type(self).__name__} can't copy arrays")

    def broadcast(self, array, shape):
        """Return a view of what `array_of` gives, broadcast to a shape that fits."""
        raise NotImplementedError(f"{type(self).__name__} can't broadcast arrays")

    def checked_columns(self, update):
        """Return the update's columns as lists of arrays, and their roundings.

        Before that it makes the checks that only a look at memory can make. The roundings are a list for each
        slot: how many mantissa bits a stochastic rounding keeps in each row, or 0.

        For an assignment outside an optimizer, operands are broadcast to the target's shape, and an operand
        that overlaps the target without being the same view of it is copied first.
        """
        columns = update.columns(update)
        arrays = [[self.array_of(tensor) for tensor in column] for column in columns]
        written = set(update.program.written())
        names = update.program.names
        values = []
        for slot, column in enumerate(columns):
            for row, (tensor, array) in enumerate(zip(column, arrays[slot])):
                if slot in written:
                    _check_writable(array, f"{names[slot]} {tensor!r}")
                values.append(
                    (array, slot in written, lambda n=names[slot], r=row, t=tensor: f"{n} number {r} {t!r}")
                )
        if update.plans is None:
            target = arrays[0][0]
            check_disjoint(values[:1])
            arrays = [[target], *([self._operand(column[0], target)] for column in columns[1:])]
        else:
            check_disjoint(values)
        update.arrays = arrays
        kept = [
            [_kept(update, slot, tensor) if slot in written else 0 for tensor in column]
            for slot, column in enumerate(columns)
        ]
        return arrays, kept

    def check_together(self, updates):
        """Refuse memory that one optimizer of a step writes and another one reads or writes."""
        if len(updates) < 2 or all(update.arrays is None for update in updates):
            return  # nothing is new
        values = []
        for number, update in enumerate(updates):
            written = set(update.program.written())
            arrays = update.arrays or [
                [self.array_of(tensor) for tensor in column] for column in update.columns(update)
            ]
            for slot, column in enumerate(arrays):
                for row, array in enumerate(column):
                    name = f"{update.program.names[slot]} number {row} of the step's update number {number}"
                    values.append((array, slot in written, lambda name=name: name))
        check_disjoint(values)

    def _operand(self, tensor, target):
        """Return an operand of an assignment as an array of the target's shape.

        It is free of dangerous overlap with the target.
        """
        array = self.array_of(tensor)
        alike = (
            array.shape == target.shape and array.strides == target.strides and array.dtype == target.dtype
        )
        (start, end), (target_start, target_end) = byte_range(array), byte_range(target)
        same = alike and start == target_start
        if not same and start < target_end and target_start < end:
            array = self.copied(tensor)
        return self.broadcast(array, target.shape)


def refuse_masked(obj):
    """Raise LayoutError for one of NumPy's masked arrays."""
    masked = sys.modules.get("numpy.ma")  # if nobody has imported it, there are none; it takes a while
    if masked is not None and isinstance(obj, masked.MaskedArray):
        raise LayoutError(
            "a masked array has no value where it is masked: pass x.filled(0), or x.data to ignore the mask"
        )


def given_values(tensor, values):
    """Return what a user gave to be stored in a tensor, as a NumPy array.

    It may be an array, a tensor or a number. The result has a dtype that can be converted.
    """
    refuse_masked(values)
    source = values.get() if isinstance(values, Tensor) else np.asarray(values)
    if source.dtype not in STORED_DTYPES and (source.dtype.kind not in "fiub" or source.dtype.itemsize > 8):
        raise DtypeError(f"values of dtype {source.dtype} can't be stored in {tensor!r}")
    return source


def convert(source, target, tensor):
    """Write the array `source` into the NumPy array `target`, which stands for `tensor`.

    Values are rounded to nearest. NaN is canonical in 16 bits.
    """
    try:
        with np.errstate(all="ignore"):
            target[...] = source
            if target.dtype.itemsize == 2:
                target[np.isnan(target)] = np.nan
    except ValueError:
        raise misfit(source.shape, tensor) from None


def misfit(shape, tensor):
    """Return the error of values of a shape that don't broadcast to a tensor's."""
    return ShapeError(f"values of shape {shape} don't fit {tensor!r}")


def _kept(update, slot, tensor):
    """Return how many mantissa bits a store to `tensor` keeps if it is stochastic, or 0."""
    dtype = tensor.dtype.name
    whole = update.stochastic_round
    if whole is not False and (slot == 0 or tensor.dtype.itemsize == 2):
        return kept_bits(dtype, whole)
    return kept_bits(dtype, tensor.rounding)


def _check_writable(array, called):
    if not array.flags.writeable:
        raise LayoutError(
            f"{called} is read-only, and would be written: pass a writable array (numpy.array(x) makes one). "
            "JAX's arrays always are: train a NumPy copy, and give JAX a copy of that at every step "
            "(jax.numpy.array(w))"
        )
