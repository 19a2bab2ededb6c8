"""The one file that decides how Numba's threads are used."""

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import llvmlite.binding
import numba
import numpy as np
from numba.np.ufunc import parallel

# How long OpenMP's threads keep a core busy after a launch, waiting for the next. Their default is
# milliseconds, which starves whatever computes gradients between steps (NumPy's BLAS has threads of its own):
# the digits example took 3 to 15 times as long. This is about 0.1 ms. The runtime reads it once, when Numba
# loads it; a setting of the user's own wins.
_WAITING = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "0"}
_USERS_OWN = ("OMP_WAIT_POLICY", *_WAITING)

# Below so many elements, waking a second thread costs more than it saves; workqueue takes ten times as long
# to wake.
_FEW = 1 << 18
_FEW_FOR_WORKQUEUE = 1 << 21
# From so many on, a thread that comes a time slice of the scheduler too late costs little of the whole.
_MANY = 1 << 23
# Between the two a launch goes the way that has been faster of late, and tries the other one now and then.
_REMEMBERED = 5
_TRIED_EVERY = 64

_start_lock = threading.Lock()
_workqueue_lock = threading.RLock()
_threads_lost = False  # in a forked child whose parent had started threads that don't survive


def threading_layer():
    """Return the name of Numba's threading layer, starting its threads where that hasn't happened yet."""
    try:
        return numba.threading_layer()
    except ValueError:
        with _start_lock:
            added = [] if any(name in os.environ for name in _USERS_OWN) else list(_WAITING)
            os.environ.update({name: _WAITING[name] for name in added})
            try:
                # On a thread of its own: OpenMP's number of threads belongs to the thread that sets it, and
                # other libraries (PyTorch) go by it.
                with ThreadPoolExecutor(1) as helper:
                    helper.submit(parallel._launch_threads).result()
            finally:
                for name in added:
                    del os.environ[name]
        return numba.threading_layer()


def parallel_for():
    """Return the address of the threading layer's ``parallel_for``, as Numba's own parallel loops call it.

    It is ``void(function, arguments, lengths, steps, data, dimensions, arrays, threads)``.
    """
    threading_layer()
    return llvmlite.binding.address_of_symbol("numba_parallel_for")


def _after_fork():
    global _threads_lost
    try:
        _threads_lost = _threads_lost or numba.threading_layer() == "omp"
    except ValueError:  # none were started
        pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _processes_here():
    """Return how many processes of one run share this machine's processors, if nobody has divided these."""
    # torchrun sets it. It sets OMP_NUM_THREADS=1 as well, which Numba does not look at.
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() and "NUMBA_NUM_THREADS" not in os.environ else 1


class Faster:
    """Calls one of two functions that do the same: the one that has been faster of late.

    Whether a second thread helps a small launch depends on what else runs. Where another library keeps its
    threads awake, a launch on two threads waits for a whole time slice of the scheduler.

    Parameters
    ----------
    *ways : callable
        Two. The first is tried first.
    """

    def __init__(self, *ways):
        self._ways, self._calls = ways, 0
        self._seconds = [deque(maxlen=_REMEMBERED), deque(maxlen=_REMEMBERED)]

    def __call__(self, *arguments):
        """Call one of them, and note how long it takes."""
        self._calls += 1
        if self._calls <= 2 * _REMEMBERED:
            way = (self._calls + 1) % 2
        else:
            first, second = (sorted(seconds)[_REMEMBERED // 2] for seconds in self._seconds)
            way = int(second < first) ^ (self._calls % _TRIED_EVERY == 0)
        start = perf_counter()
        result = self._ways[way](*arguments)
        self._seconds[way].append(perf_counter() - start)
        return result


class Threads:
    """Runs parallel functions, with a guard against what Numba's threading layers can't do.

    - ``workqueue`` aborts the process when two Python threads are in it at once: one lock keeps ours apart.
    - ``omp`` ends the process when it is used after a fork: a forked child runs everything on one thread.
    - ``tbb`` survives both.

    Parameters
    ----------
    limit : int or None
        How many threads to use at most. None: as many as Numba's current setting says; if that is not the
        user's own, processes that torchrun has started on this machine share them.
    """

    def __init__(self, limit=None):
        self.limit, self._processes = limit, _processes_here()

    def wanted(self):
        """Return how many threads a launch asks Numba for."""
        threading_layer()
        return self.allowed()

    def allowed(self):
        """Return how many threads of Python's own may be started at most."""
        every = numba.config.NUMBA_NUM_THREADS
        if self.limit is not None:
            return min(self.limit, every)
        current = numba.get_num_threads()
        return current if current < every else max(1, every // self._processes)

    def serial(self):
        """Return whether launches must do with one thread.

        They must by choice, or in a forked child that can't start others.
        """
        return _threads_lost or self.limit == 1 or self.wanted() == 1

    def lost(self):
        """Return whether this is a forked child that can't start threads, and older plans count on them."""
        return _threads_lost

    def worthwhile(self, elements):
        """Return whether a launch over so many elements is faster on all threads than on one."""
        if elements <= _FEW or self.serial():
            return False
        return elements > _FEW_FOR_WORKQUEUE or threading_layer() != "workqueue"

    def certain(self, elements):
        """Return whether that is so whatever else runs, given that it is `worthwhile`."""
        return elements > _MANY or threading_layer() == "workqueue"

    def flushing(self):
        """Return, for each thread of a launch, whether it flushes subnormal numbers to zero.

        Some libraries switch that on for the threads that load them; results then differ from the reference
        below 1.2e-38.
        """
        found = np.zeros(1 if self.serial() else self.wanted(), np.bool_)
        smallest = np.full(1, np.finfo(np.float32).tiny)
        self.run(_flushing if len(found) > 1 else _flushing.py_func, found, smallest)
        return found.tolist()

    def run(self, function, *args):
        """Call a parallel function with the number of threads, and leave Numba's number as it was."""
        current, wanted = numba.get_num_threads(), self.wanted()
        if threading_layer() == "workqueue":
            with _workqueue_lock:
                return _run_on(wanted, current, function, args)
        return _run_on(wanted, current, function, args)


def _run_on(wanted, current, function, args):
    if wanted == current:
        return function(wanted, *args)
    numba.set_num_threads(wanted)
    try:
        return function(wanted, *args)
    finally:
        numba.set_num_threads(current)


@numba.njit(parallel=True)
def _flushing(threads, found, smallest):
    for thread in numba.prange(threads):
        found[thread] = smallest[0] * np.float32(0.5) == np.float32(0)
