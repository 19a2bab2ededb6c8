"""Tensor: a backend's handle of an array."""

from __future__ import annotations

import itertools
import math
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from nbopt.errors import ArgumentError, OperandError, ShapeError
from nbopt.language.expressions import Node, as_number

if TYPE_CHECKING:
    from nbopt.interface.backend import Backend

_serials = itertools.count()


def normalise_rounding(value: object) -> bool | int:
    """Return a rounding setting in its normal form.

    Parameters
    ----------
    value : bool or int
        False or 0: to nearest even. True: stochastic, to the storage's own mantissa. An int k >= 1:
        stochastic, to k mantissa bits.

    Returns
    -------
    bool or int
        False, True or an int >= 1. (1 and True differ: one keeps a single bit, the other all that the storage
        has.)

    Raises
    ------
    ArgumentError
        If `value` is negative, or neither an int nor a bool.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)) and value >= 0:
        return int(value) or False
    raise ArgumentError(
        "rounding must be False (to nearest), True (stochastic) or the number of mantissa bits to keep, an "
        f"int from 1 on; not {value!r}"
    )


class Tensor(Node):
    """An array of a backend: what optimizers update and expressions read.

    Tensors are made by `Backend.array`, `wrap`, `empty`, `zeros`, `ones` and the like, not by calling this
    class.

    Attributes
    ----------
    be : Backend
    storage : object
        The backend's own array, shared with its owner where the tensor was wrapped. On the CPU a
        numpy.ndarray.
    shape : tuple of int
    dtype : numpy.dtype
    name : str or None
    serial : int
        A number that no other tensor of the process has, and a new one where `rounding` is set: plans know
        tensors by it without keeping them alive.
    """

    #: How often a tensor of the process has got another rounding.
    roundings_set = 0

    __slots__ = ("__weakref__", "_rounding", "be", "dtype", "name", "serial", "shape", "storage")

    def __init__(
        self, be: Backend, storage: Any, name: str | None = None, rounding: bool | int = False
    ) -> None:
        self.be = be
        self.storage = storage
        self.shape = tuple(storage.shape)
        self.dtype = storage.dtype
        self.name = name
        self.serial = next(_serials)
        self._rounding = rounding

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def rounding(self) -> bool | int:
        """How stored values are rounded; see `nbopt.arrays.tensor.normalise_rounding`."""
        return self._rounding

    @rounding.setter
    def rounding(self, value: bool | int) -> None:
        rounding = normalise_rounding(value)
        if rounding is not self._rounding:
            self._rounding = rounding
            self.serial = next(_serials)  # plans look again at a tensor with another serial
            Tensor.roundings_set += 1

    def get(self) -> np.ndarray[Any, Any]:
        """Return the values.

        Returns
        -------
        numpy.ndarray
            A copy, of the same shape and dtype.
        """
        return self.be.to_numpy(self)

    def set(self, values: Any) -> Tensor:
        """Copy values into the tensor, rounded to nearest.

        Parameters
        ----------
        values : array, Tensor or number
            Broadcasts to the tensor's shape, as in NumPy.

        Returns
        -------
        Tensor
            This one.
        """
        self.be.set_values(self, values)
        return self

    def fill(self, value: float) -> Tensor:
        """Set every element to one number, rounded to nearest.

        Parameters
        ----------
        value : float

        Returns
        -------
        Tensor
            This one.
        """
        self.be.set_values(self, as_number(value))
        return self

    def __getitem__(self, key: Any) -> Tensor:
        """Return a view: ``t[2:5]``, ``t[:, 0]``.

        Slices and integers only, so that it always shares the memory.
        """
        parts = key if isinstance(key, tuple) else (key,)
        for part in parts:
            whole = isinstance(part, (int, np.integer)) and not isinstance(part, bool)
            if not (part is Ellipsis or isinstance(part, slice) or whole):
                raise OperandError(
                    "a tensor is indexed by slices and integers, which give views; not by "
                    f"{type(part).__name__}"
                )
        try:
            return Tensor(self.be, self.be.view(self.storage, parts), self.name, self._rounding)
        except IndexError as error:
            raise ShapeError(f"{self!r} has no such part: {error}") from None

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other in memory, in C order."""
        return bool(self.storage.flags.c_contiguous)

    def reshape(self, *shape: Any) -> Tensor:
        """Return a view of another shape: ``t.reshape(3, 4)`` or ``t.reshape((3, 4))``.

        Parameters
        ----------
        *shape : int, or one tuple of int
            With as many elements. One length may be -1: what is left for it.

        Returns
        -------
        Tensor
            It shares this one's memory.

        Raises
        ------
        ShapeError
            If the number of elements differs, or the memory's strides don't allow a view.
        """
        given = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        try:
            lengths = tuple(index(n) for n in given)
        except TypeError:
            raise ShapeError(f"a shape is made of ints, not {given!r}") from None
        if lengths.count(-1) == 1 and (known := -math.prod(lengths)):
            lengths = tuple(self.size // known if n == -1 else n for n in lengths)
        if min(lengths, default=0) < 0 or math.prod(lengths) != self.size:
            raise ShapeError(f"{self!r} has {self.size} elements, which don't fit the shape {tuple(given)}")
        storage = self.be.reshape(self.storage, lengths)
        if storage is None:
            raise ShapeError(
                f"a view of {self!r}, whose memory has gaps, in the shape {lengths} would need a copy: "
                f"write be.array(x.get().reshape({lengths}), x.dtype)"
            )
        return Tensor(self.be, storage, self.name, self._rounding)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Evaluate `value` (an expression, tensor, number or array) and store it here."""
        target = self if isinstance(key, slice) and key == slice(None) else self[key]
        self.be.assign(target, value)

    def __len__(self) -> int:
        if not self.shape:
            raise OperandError("a tensor without dimensions has no length")
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self.get() if dtype is None else self.get().astype(dtype)

    # Protocols for other libraries. Storage that has none of them gives AttributeError, as if they were not
    # here.

    @property
    def __cuda_array_interface__(self) -> Any:
        return self.storage.__cuda_array_interface__

    @property
    def __dlpack__(self) -> Any:
        return self.storage.__dlpack__

    @property
    def __dlpack_device__(self) -> Any:
        return self.storage.__dlpack_device__

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Tensor{name} {self.shape} {self.dtype.name}>"
