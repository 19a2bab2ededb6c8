"""The one file that decides how Numba's threads are used."""

import os
import threading

import numba
import numpy as np
from numba.np.ufunc import parallel

_workqueue_lock = threading.RLock()


def threading_layer():
    """Return the name of Numba's threading layer, starting its threads where that hasn't happened yet."""
    try:
        return numba.threading_layer()
    except ValueError:
        parallel._launch_threads()
        return numba.threading_layer()


def _note_fork():
    global _forked
    _forked = True


_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class Threads:
    """Runs parallel functions, with a guard against what Numba's threading layers can't do.

    - ``workqueue`` aborts the process when two Python threads are in it at once: one lock keeps ours apart.
    - ``omp`` ends the process when it is used after a fork: a forked child runs everything on one thread.
    - ``tbb`` survives both.

    Parameters
    ----------
    limit : int or None
        How many threads to use at most; None: as many as Numba's current setting says.
    """

    def __init__(self, limit=None):
        self.limit = limit

    def wanted(self):
        """Return how many threads a launch asks Numba for."""
        current = numba.get_num_threads()
        return current if self.limit is None else min(self.limit, numba.config.NUMBA_NUM_THREADS)

    def serial(self):
        """Return whether launches must do with one thread: by choice, or in a forked child that can't start others."""
        return (_forked and threading_layer() == "omp") or self.wanted() == 1

    def flushing(self):
        """Return, for each thread of a launch, whether it flushes subnormal numbers to zero.

        Some libraries switch that on for the threads that load them; results then differ from the reference below 1.2e-38.
        """
        found = np.zeros(1 if self.serial() else self.wanted(), np.bool_)
        smallest = np.full(1, np.finfo(np.float32).tiny)
        self.run(_flushing if len(found) > 1 else _flushing.py_func, found, smallest)
        return found.tolist()

    def run(self, function, *args):
        """Call a parallel function, and leave Numba's number of threads as it was."""
        current, wanted = numba.get_num_threads(), self.wanted()
        if threading_layer() == "workqueue":
            with _workqueue_lock:
                _run_on(wanted, current, function, args)
        else:
            _run_on(wanted, current, function, args)


def _run_on(wanted, current, function, args):
    if wanted == current:
        function(*args)
        return
    numba.set_num_threads(wanted)
    try:
        function(*args)
    finally:
        numba.set_num_threads(current)


@numba.njit(parallel=True)
def _flushing(found, smallest):
    for thread in numba.prange(len(found)):
        found[thread] = smallest[0] * np.float32(0.5) == np.float32(0)
