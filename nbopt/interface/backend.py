"""Backend: the interface between optimizers and whatever runs their programs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbopt.arrays.assignment import (
    TensorTracer,
    broadcast,
    dtypes_of,
    reduced_shape,
    shape_of,
    without_reductions,
)
from nbopt.arrays.methods import Ops, add_methods
from nbopt.arrays.tensor import Tensor, normalise_rounding
from nbopt.errors import ArgumentError, ShapeError, TraceError
from nbopt.interface.interrupts import uninterrupted
from nbopt.interface.update import Update, decide_together
from nbopt.language.expressions import Node, Reduction, as_number
from nbopt.language.ops import compute_dtype
from nbopt.language.trace import tracing


class Backend(Ops):
    """Arrays, element-wise ops over them, and fused updates.

    Subclasses implement the methods under "for implementers".

    Parameters
    ----------
    rng_seed : int, optional
        Seed of stochastic rounding; drawn from the system without one, and readable as ``rng_seed``.
    datatype : dtype
        The dtype of new tensors that are given none.
    batch_size : int
        Gradients are divided by it. At least 1.
    stochastic_round : bool or int
        The rounding that new tensors start with.
    device_id : int
        Which device, for backends with several.
    num_threads : int, optional
        How many threads a CPU backend uses at most.
    fast_math : bool
        Let the compiler reassociate and contract arithmetic: faster in places, and no longer the same bits
        everywhere.

    Attributes
    ----------
    launches, compilations : int
        How many kernels this backend has started, and built (from source, not from a cache), so far.
    """

    name: Any = None
    memory = "host"
    #: Whether steps can be captured into a graph that replays them; and whether the number of updates, on
    #: which random bits depend, is counted on the device by now.
    captures = counts_on_device = False
    #: Whether `update` can run a step piece by piece.
    takes_turns = False

    def __init__(
        self,
        rng_seed: int | None = None,
        datatype: Any = np.float32,
        batch_size: int = 1,
        stochastic_round: bool | int = False,
        device_id: int = 0,
        num_threads: int | None = None,
        fast_math: bool = False,
    ) -> None:
        if rng_seed is not None and not (isinstance(rng_seed, (int, np.integer)) and 0 <= rng_seed < 2**64):
            raise ArgumentError(f"rng_seed must be an int from 0 to 2**64 - 1, not {rng_seed!r}")
        if num_threads is not None and not (isinstance(num_threads, (int, np.integer)) and num_threads >= 1):
            raise ArgumentError(f"num_threads must be an int from 1 on, not {num_threads!r}")
        self.rng_seed = int.from_bytes(os.urandom(8), "little") if rng_seed is None else rng_seed.__index__()
        self._first_seed = self.rng_seed
        self.datatype = self.storage_dtype(datatype)
        self.bsz = batch_size
        self.stochastic_round = normalise_rounding(stochastic_round)
        self.device_id = device_id
        self.num_threads = num_threads
        if not isinstance(fast_math, bool):
            raise ArgumentError(f"fast_math must be True or False, not {fast_math!r}")
        self.fast_math = fast_math
        self.launches = 0
        self.compilations = 0
        self._updates = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<backend {self.name!r}, batch size {self.bsz}>"

    @property
    def bsz(self) -> int:
        """Int : the batch size that optimizers divide gradients by."""
        return self._bsz

    @bsz.setter
    def bsz(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ArgumentError(
                f"the batch size must be an int from 1 on, not {value!r}: gradients are divided by it"
            )
        self._bsz = value.__index__()

    @property
    def default_dtype(self) -> np.dtype[Any]:
        """numpy.dtype : neon's name of `datatype`."""
        return self.datatype

    @default_dtype.setter
    def default_dtype(self, dtype: Any) -> None:
        self.datatype = self.storage_dtype(dtype)

    # --- arrays ---

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
            return Tensor(self, self.adopt(obj.storage), obj.name, obj.rounding)
        return Tensor(self, self.adopt(obj), None, self.stochastic_round)

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
        return Tensor(self, storage, name, self.stochastic_round)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any = None, name: str | None = None) -> Tensor:
        """Return a new tensor, all 0.

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
        """
        return self.empty(shape, dtype, name).fill(0.0)

    def ones(self, shape: int | tuple[int, ...], dtype: Any = None, name: str | None = None) -> Tensor:
        """Return a new tensor, all 1.

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

    # --- steps and assignments ---

    def update(self, *updates: Update, turns: Any = None) -> Callable[..., object]:
        """Run one step, whole or not at all. The one door through which optimizers reach a backend.

        Everything that can fail (validation, allocation, compilation) happens for all updates before the
        first kernel is launched. From there on a KeyboardInterrupt waits until the last launch.

        Parameters
        ----------
        *updates : Update
            Modified in place: the tensors of the slots that the programs write.
        turns : callable, optional
            Has the step run piece by piece, if `takes_turns`: an update's `piece` says to which it belongs.
            Reductions over the step, and conditions, are done for all pieces at first. ``turns(together)``
            returns a generator of the numbers of the pieces, and a piece runs where its number was yielded.
            If `together` is True it yields None before, since the first part reads the gradients of all
            pieces. It is sent whether the step is taken. Pieces may write the same memory, since nothing else
            of the step reads it; the caller has checked that they share no other.

        Returns
        -------
        callable
            What `prepare` has returned, for `repeat`.

        Raises
        ------
        NboptError
            One of its subclasses. Nothing has changed then.
        """
        run = self.prepare_all(updates)
        with uninterrupted:
            with self._lock:
                count = self._updates
                self._updates += 1
            for update in updates:
                update.commit()
            if turns is None:
                run(count)
            else:
                run(count, turns)
            if self.counts_on_device:
                self.counted()
        return run

    def repeat(self, run: Any, numbers: list[float], commit: Callable[[], object]) -> bool:
        """Run a step of one update once more, with other numbers, over the same tensors.

        Parameters
        ----------
        run : callable
            What `update` has returned, if it has a method ``again``.
        numbers : list of float
            See `nbopt.interface.update.Update`.
        commit : callable
            Likewise.

        Returns
        -------
        bool
            False, and nothing has changed, if the backend has to look at the tensors again.
        """
        if not run.again(numbers):
            return False
        with uninterrupted:
            with self._lock:
                count = self._updates
                self._updates += 1
            commit()
            run(count)
            if self.counts_on_device:
                self.counted()
        return True

    def prepare_all(self, updates: Sequence[Update]) -> Callable[..., object]:
        """Prepare the updates of one step, without changing any value; return what runs them.

        Parameters
        ----------
        updates : sequence of Update

        Returns
        -------
        callable
            See `prepare`.
        """
        if len(updates) > 1:
            decide_together(updates)
        return self.prepare(updates)

    def assign(self, target: Tensor, value: Any) -> None:
        """Evaluate `value` and store it in the tensor `target`: what ``target[:] = value`` does.

        Parameters
        ----------
        target : Tensor
            Modified in place.
        value : Node, number or array
            Shapes broadcast to the target's, as in NumPy. Two that differ by axes of length 1 alone fit as
            well, as in neon: (n,) and (n, 1). Reductions in it are evaluated first, each to a small tensor.

        Raises
        ------
        ShapeError
            If the shapes don't fit.
        LayoutError
            If the target is read-only.
        TraceError
            Inside a rule, which can assign its own slots only.
        """
        if tracing.active:
            raise TraceError(
                "a rule assigns its own slots and nothing else: what else it needs must be a number or one "
                "of its states"
            )
        if hasattr(value, "__array__") and not isinstance(value, (Node, np.generic)):
            value = np.asanyarray(value)
            target = _fitted(target, value.shape)
            if target.rounding is not False:
                storable = (
                    value.dtype if value.dtype.name in ("float32", "float16", "bfloat16") else np.float64
                )
                self.update(self._assignment(target, self.array(value, storable)))
                return
            self.set_values(target, value)
            with self._lock:
                self._updates += 1
            if self.counts_on_device:
                self.counted()
        else:
            self.update(self._assignment(target, value if isinstance(value, Node) else as_number(value)))

    def _assignment(self, target: Tensor, value: Any) -> Update:
        value = without_reductions(value, self._reduce)
        shape = shape_of(value)
        target = _fitted(target, shape)
        if broadcast(shape, target.shape) != target.shape:
            raise ShapeError(
                f"an expression of shape {shape} can't be assigned to a tensor of shape {target.shape}"
            )
        tracer = TensorTracer(target)
        tracer.assign(value)
        program, scalars = tracer.program()
        given, _ = scalars.function()(tracer.numbers)
        return Update(program, given, None, lambda update: [[tensor] for tensor in tracer.tensors])

    def _reduce(self, node: Reduction) -> Tensor:
        arg = node.arg
        if not isinstance(arg, Tensor):
            arg = self.empty(shape_of(arg), compute_dtype(dtypes_of(arg)))
            arg.rounding = False
            # No user made this assignment, so the update count stays.
            self.prepare([self._assignment(arg, node.arg)])(0)
        if node.op != "sum" and (arg.size if node.axis is None else arg.shape[node.axis]) == 0:
            raise ShapeError(f"be.{node.op} of no elements has no value; the tensor has shape {arg.shape}")
        return self.reduce(node.op, arg, node.axis, reduced_shape(arg.shape, node.axis, node.keepdims))

    # --- random numbers ---

    def rng_reset(self) -> None:
        """Go back to the state after construction: the same seed, no updates so far."""
        self.rng_seed, self._updates = self._first_seed, 0

    def rng_get_state(self) -> dict[str, int]:
        """Return the state of stochastic rounding: all that its random bits depend on.

        Returns
        -------
        dict
            ``{"seed": int, "updates": int}``; `updates` is the number of steps and assignments so far.
        """
        return {"seed": self.rng_seed, "updates": self._updates}

    def rng_set_state(self, state: dict[str, int]) -> None:
        """Restore a state.

        Parameters
        ----------
        state : dict
            As `rng_get_state` returns it.

        Raises
        ------
        ArgumentError
            If it is no such state.
        """
        try:
            seed, updates = state["seed"], state["updates"]
            valid = isinstance(seed, int) and isinstance(updates, int) and 0 <= seed < 2**64 and updates >= 0
        except (TypeError, KeyError, IndexError):
            valid = False
        if not valid:
            raise ArgumentError(
                f"a state is what rng_get_state returns, {{'seed': int, 'updates': int}}; not {state!r}"
            )
        self.rng_seed, self._updates = int(seed), int(updates)

    # --- for implementers ---

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


def _fitted(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the target of an assignment as a view of the value's shape.

    It is another view only if the shapes differ by axes of length 1 alone.
    """
    if shape != target.shape and [n for n in shape if n != 1] == [n for n in target.shape if n != 1]:
        return target.reshape(shape)
    return target


def _as_shape(shape: Any) -> tuple[int, ...]:
    dims = shape if isinstance(shape, (tuple, list)) else (shape,)
    if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in dims):
        raise ShapeError(f"a shape is a tuple of ints from 0 on, not {shape!r}")
    return tuple(n.__index__() for n in dims)


add_methods(Backend)  # be.add, be.sum, ...
