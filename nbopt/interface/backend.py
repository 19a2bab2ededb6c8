"""Backend: the interface between optimizers and whatever runs their programs."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbopt.arrays.methods import add_methods
from nbopt.arrays.tensor import normalise_rounding
from nbopt.attributes import Constant, Misspelt
from nbopt.errors import ArgumentError
from nbopt.interface.assigning import Assigning
from nbopt.interface.interrupts import uninterrupted
from nbopt.interface.random_state import RandomState
from nbopt.interface.update import Update, decide_together
from nbopt.language.words import OPTIONS, advice_for_op, advising


class Backend(Assigning, RandomState):
    """Arrays, element-wise ops over them, and fused updates.

    Subclasses implement the methods of `nbopt.interface.implementer.Implementer`.

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

    device_id: Any = Constant()
    num_threads: Any = Constant()
    fast_math: Any = Constant()
    batch_size = Misspelt("bsz", "be.bsz = 64")
    seed = Misspelt("rng_seed", "be.rng_seed = 0")

    @functools.partial(advising, words=OPTIONS)
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

    if not TYPE_CHECKING:  # it would have every attribute

        def __getattr__(self, name):
            advice = "" if hasattr(type(self), name) else advice_for_op(name)
            if not advice:
                return object.__getattribute__(self, name)  # raises the error of before
            raise AttributeError(f"the backend {self.name!r} has no {name!r}{advice}", name=name, obj=self)

    @property
    def bsz(self) -> int:
        """The batch size that optimizers divide gradients by."""
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
        """What neon calls `datatype`."""
        return self.datatype

    @default_dtype.setter
    def default_dtype(self, dtype: Any) -> None:
        self.datatype = self.storage_dtype(dtype)

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
        self.run_prepared(run, updates, turns)
        return run

    def run_prepared(self, run: Callable[..., object], updates: Sequence[Update], turns: Any = None) -> None:
        """Commit the updates of a step and run it, as one of this backend's.

        Parameters
        ----------
        run : callable
            What `prepare_all` has returned for them; or calls what it has returned on several backends.
        updates : sequence of Update
        turns : callable, optional
            As for `update`.
        """
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

    def repeat(
        self, run: Any, numbers: list[float], commit: Callable[[], object], addresses: Any = None
    ) -> bool:
        """Run a step of one update once more, with other numbers, over the same tensors.

        Parameters
        ----------
        run : callable
            What `update` has returned, if it has a method ``again``.
        numbers : list of float
            See `nbopt.interface.update.Update`.
        commit : callable
            Likewise.
        addresses : numpy.ndarray, optional
            Likewise, if gradients may be elsewhere.

        Returns
        -------
        bool
            False, and nothing has changed, if the backend has to look at the tensors again.
        """
        if not (run.again(numbers) if addresses is None else run.again(numbers, addresses)):
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


add_methods(Backend)  # be.add, be.sum, ...
