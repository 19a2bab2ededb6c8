"""What runs a step on the CPU: one call from Python into compiled code, which goes through all stages.

The function here is compiled with and without threads, from a copy of this file in the cache folder. What
the stages do is compiled apart, where a step has such a stage, and reached by address: see `chunks` and
`ends` in this folder.
"""

import numpy as np
from numba import prange

from nbopt_backends.cpu.primitives import (
    call_stage,
    empty,
    int64_at,
    load_int64,
    next_number,
    part,
    put_int64,
)

#: A stage is a record of int64[FIELDS]: 0 whether it is left out once the step's condition is false; 1
#: whether it is a pass; 2 the address of ``void function(argument, entry, step)``; 3 the argument; 4 the
#: address of the first entry; 5 the bytes from one entry to the next; 6 how many there are.
FIELDS = 7

#: Bytes from one thread's share to the next: two cache lines, which threads would take from each other.
SHARE = 128


def run_stages(threads, stages, n_stages, step):
    """Run the stages of a step, one after the other.

    Parameters
    ----------
    threads : int64
        How many share a stage.
    stages : int64
        Address of int64[n_stages, FIELDS].
    n_stages : int64
    step : int64
        Address of int64[3]: the seed, the update count, and whether the step is taken, which a stage may
        change.

    Returns
    -------
    int64
        How many passes ran.
    """
    passes = 0
    for s in range(n_stages):
        stage = stages + s * FIELDS * 8
        if load_int64(stage, 0, -1) != 0 and load_int64(step, 2, -1) == 0:
            continue
        passes += load_int64(stage, 1, -1)
        function, argument = load_int64(stage, 2, -1), load_int64(stage, 3, -1)
        first, size, count = load_int64(stage, 4, -1), load_int64(stage, 5, -1), load_int64(stage, 6, -1)
        if threads == 1 or count == 1:  # wakes no thread
            for k in range(count):
                call_stage(function, argument, first + k * size, step)
        else:
            memory = empty(threads * SHARE, np.int8)
            for thread in range(threads):
                share = memory.ctypes.data + thread * SHARE
                put_int64(share, 0, count * thread // threads)
                put_int64(share, 1, count * (thread + 1) // threads)
            for thread in prange(threads):
                take(memory.ctypes.data, thread, threads, function, argument, first, size, step)
    return passes


@part
def take(shares, thread, threads, function, argument, first, size, step):
    """Take entries until none are left: of a thread's own share first, then of the others'.

    A share is in the order of memory. A thread that comes late, or gets no processor for a while, finds its
    share done by others.

    Parameters
    ----------
    shares : int64
        Address of the shares, SHARE bytes each: int64[2], the next entry and the one after the last.
    thread, threads : int64
        The thread's number, and how many there are.
    function, argument, first, size, step : int64
        As in `run_stages`.
    """
    for k in range(threads):
        share = shares + (thread + k) % threads * SHARE
        end = int64_at(share, 1)
        entry = next_number(share)
        while entry < end:
            call_stage(function, argument, first + entry * size, step)
            entry = next_number(share)
