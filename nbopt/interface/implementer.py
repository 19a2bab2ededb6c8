"""What the implementer of a backend writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbopt.arrays.methods import Ops

if TYPE_CHECKING:
    from nbopt.arrays.tensor import Tensor
    from nbopt.interface.update import Update


class Implementer(Ops):
    """The methods of `nbopt.Backend` that its subclasses implement, and what they say of themselves."""

    name: Any = None
    memory = "host"
    #: Whether steps can be captured into a graph that replays them; and whether the number of updates, on
    #: which random bits depend, is counted on the device by now.
    captures = counts_on_device = False
    #: Whether `update` can run a step piece by piece.
    takes_turns = False

    @classmethod
    def problem(cls) -> str | None:
        """Return why this backend can't be used on this machine.

        Returns
        -------
        str or None
            The reason and what to do about it; None where it can be used.
        """
        return None

    @classmethod
    def storage_dtype(cls, dtype: Any) -> np.dtype[Any]:
        """Return a dtype in which the backend can store arrays.

        Parameters
        ----------
        dtype : dtype
            Or its name.

        Returns
        -------
        numpy.dtype

        Raises
        ------
        DtypeError
            If the backend doesn't store it.
        """
        raise NotImplementedError(f"{cls.__name__} does not say which dtypes it stores")

    def adopt(self, obj: Any) -> Any:
        """Return the storage that shares the memory of a foreign array.

        Parameters
        ----------
        obj : object
            Whatever the user passed to `wrap`.

        Returns
        -------
        object
            With the attributes `shape` (a tuple) and `dtype` (a numpy.dtype). Raises what `wrap` documents.
        """
        raise NotImplementedError(f"{type(self).__name__} can't wrap arrays")

    def resolved(self, obj: Any) -> Any:
        """Return what `wrap` can take to read the values of `obj` as they are now.

        Parameters
        ----------
        obj : object
            A gradient, or whatever else is only read.

        Returns
        -------
        object
            `obj` itself, or a copy of its values where its memory doesn't hold them as they are (PyTorch's
            negative bit).
        """
        return obj

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return new storage in C order, with arbitrary values.

        Parameters
        ----------
        shape : tuple of int
        dtype : numpy.dtype
            One that `storage_dtype` returned.

        Returns
        -------
        object
            As `adopt` returns.
        """
        raise NotImplementedError(f"{type(self).__name__} can't make arrays")

    def view(self, storage: Any, key: tuple[Any, ...]) -> Any:
        """Return a part of a tensor's storage, sharing its memory.

        Parameters
        ----------
        storage : object
            As `adopt` returns.
        key : tuple of slice, int and Ellipsis

        Returns
        -------
        object
            As `adopt` returns. Raises IndexError where there is no such part.
        """
        return storage[key if any(part is Ellipsis for part in key) else (*key, ...)]

    def reshape(self, storage: Any, shape: tuple[int, ...]) -> Any:
        """Return a tensor's storage in another shape, sharing its memory.

        Parameters
        ----------
        storage : object
            As `adopt` returns.
        shape : tuple of int
            With as many elements.

        Returns
        -------
        object or None
            As `adopt` returns; None where it would need a copy.
        """
        raise NotImplementedError(f"{type(self).__name__} can't reshape arrays")

    def picklable(self, storage: Any) -> Any:
        """Return a tensor's storage in a form that pickle can write and `wrap` can take.

        Parameters
        ----------
        storage : object
            As `adopt` returns.

        Returns
        -------
        object
        """
        return storage

    def to_numpy(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """Return a tensor's values: what ``tensor.get()`` does.

        Parameters
        ----------
        tensor : Tensor

        Returns
        -------
        numpy.ndarray
            A copy, of the same shape and dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} can't copy arrays to the host")

    def set_values(self, tensor: Tensor, values: Any) -> None:
        """Copy values into a tensor, rounded to nearest: what ``tensor.set(values)`` does.

        Parameters
        ----------
        tensor : Tensor
            Modified in place.
        values : array, Tensor or number
            Broadcasts to the tensor's shape, as in NumPy. Raises ShapeError where it can't.
        """
        raise NotImplementedError(f"{type(self).__name__} can't copy arrays from the host")

    def check_writable(self, tensor: Tensor) -> None:
        """Check that a tensor can be written.

        Parameters
        ----------
        tensor : Tensor

        Raises
        ------
        LayoutError
            If its memory is known to be read-only.
        """

    def prepare(self, updates: Sequence[Update]) -> Callable[..., object]:
        """Do everything for a step that can fail, without changing any value: check, make states, compile.

        Parameters
        ----------
        updates : sequence of Update

        Returns
        -------
        callable
            ``run(count)`` runs the step; `count` is the number of updates before it, which random bits depend
            on. The stages of all updates run level by level: the conditions of all of them are known before
            the first guarded stage. If updates have pieces, it takes ``turns`` as well, see `update`.
        """
        raise NotImplementedError(f"{type(self).__name__} can't run programs")

    def explain(self, update: Update) -> list[str]:
        """Return the texts of a step's kernels, without running them: what `nbopt.explain` shows.

        Parameters
        ----------
        update : Update

        Returns
        -------
        list of str
            One text for each kernel.
        """
        raise NotImplementedError(f"{type(self).__name__} has no texts of kernels to show")

    def reduce(self, op: str, tensor: Tensor, axis: int | None, shape: tuple[int, ...]) -> Tensor:
        """Reduce a tensor over an axis.

        Parameters
        ----------
        op : str
            A name from `nbopt.language.ops.REDUCTIONS`.
        tensor : Tensor
        axis : int or None
            None: over all elements. Only sums are over none.
        shape : tuple of int
            The result's, with or without the reduced axis.

        Returns
        -------
        Tensor
            A new one, float32 for 16-bit tensors, else of the tensor's dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reductions")

    def capturing(self) -> bool:
        """Return whether what would be launched now is captured into a graph, see `captures`.

        Returns
        -------
        bool
        """
        return False

    def counted(self) -> None:
        """Have the device count the update that was just queued, see `counts_on_device`."""

    def synchronize(self) -> None:
        """Wait until everything that was launched is done. CPU backends are always done."""
