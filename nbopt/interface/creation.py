"""Making tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbopt.arrays.tensor import Tensor
from nbopt.errors import ShapeError
from nbopt.interface.implementer import Implementer


class Creation(Implementer):
    """The part of `nbopt.Backend` that makes tensors."""

    datatype: np.dtype[Any]
    stochastic_round: bool | int

    def array(self, ary: Any, dtype: Any = None, name: str | None = None) -> Tensor:
        """Return a new tensor with the values of an array.

        Parameters
        ----------
        ary : Tensor, or anything that NumPy can convert to an array
            Copied.
        dtype : dtype, optional
            float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`); the backend's `datatype` without
            one, whatever that of `ary`.
        name : str, optional

        Returns
        -------
        Tensor
            Of the same shape, in C order.
        """
        values = ary.get() if isinstance(ary, Tensor) else np.asanyarray(ary)
        tensor = self.empty(values.shape, dtype, name)
        self.set_values(tensor, values)
        return tensor

    def wrap(self, obj: Any) -> Tensor:
        """Return a tensor that shares the memory of `obj`, without a copy.

        Parameters
        ----------
        obj : Tensor, numpy.ndarray, or any other array
            Any that exports DLPack or ``__cuda_array_interface__`` for this backend's device.

        Returns
        -------
        Tensor
            `obj` itself, where it is a tensor of this backend.

        Raises
        ------
        OperandError
            If `obj` is no array.
        LayoutError
            If its memory can't be used as it is: byte-swapped, unaligned, masked, or on another device.
        DtypeError
            If its dtype is not one of `storage_dtype`'s.
        """
        if isinstance(obj, Tensor):
            if obj.be is self:
                return obj
            return Tensor(self, self.adopt(obj.storage), obj.name, obj.rounding)  # type: ignore[arg-type]
        return Tensor(self, self.adopt(obj), None, self.stochastic_round)  # type: ignore[arg-type]

    def empty(self, shape: int | tuple[int, ...], dtype: Any = None, name: str | None = None) -> Tensor:
        """Return a new tensor with arbitrary values.

        Parameters
        ----------
        shape : int or tuple of int
            Any number of dimensions, in C order.
        dtype : dtype, optional
            float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`); the backend's `datatype` without
            one.
        name : str, optional

        Returns
        -------
        Tensor

        Raises
        ------
        ShapeError
            If `shape` is no tuple of ints from 0 on.
        DtypeError
            If the backend doesn't store this dtype.
        """
        storage = self.allocate(
            _as_shape(shape), self.datatype if dtype is None else self.storage_dtype(dtype)
        )
        return Tensor(self, storage, name, self.stochastic_round)  # type: ignore[arg-type]

    def zeros(self, shape: int | tuple[int, ...], dtype: Any = None, name: str | None = None) -> Tensor:
        """Return a new tensor, all 0.

        Parameters
        ----------
        shape : int or tuple of int
        dtype, name
            As for `empty`.

        Returns
        -------
        Tensor
        """
        return self.empty(shape, dtype, name).fill(0.0)

    def ones(self, shape: int | tuple[int, ...], dtype: Any = None, name: str | None = None) -> Tensor:
        """Return a new tensor, all 1.

        Parameters
        ----------
        shape : int or tuple of int
        dtype, name
            As for `empty`.

        Returns
        -------
        Tensor
        """
        return self.empty(shape, dtype, name).fill(1.0)

    def empty_like(self, ary: Any, name: str | None = None) -> Tensor:
        """Return a new tensor of the shape and dtype of `ary`, with arbitrary values.

        Parameters
        ----------
        ary : Tensor or array
        name : str, optional

        Returns
        -------
        Tensor
        """
        return self.empty(ary.shape, ary.dtype, name)

    def zeros_like(self, ary: Any, name: str | None = None) -> Tensor:
        """Return a new tensor of the shape and dtype of `ary`, all 0.

        Parameters
        ----------
        ary : Tensor or array
        name : str, optional

        Returns
        -------
        Tensor
        """
        return self.zeros(ary.shape, ary.dtype, name)


def _as_shape(shape: Any) -> tuple[int, ...]:
    dims = shape if isinstance(shape, (tuple, list)) else (shape,)
    if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in dims):
        raise ShapeError(f"a shape is a tuple of ints from 0 on, not {shape!r}")
    return tuple(n.__index__() for n in dims)
