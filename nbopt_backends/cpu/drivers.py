"""What runs a step on the CPU: one call from Python into compiled code, which goes through all stages.

The functions here are compiled from a copy of this file in the cache folder. What the stages do is compiled
apart, where a step has such a stage, and reached by address: see `chunks` and `ends` in this folder.
"""

from nbopt_backends.cpu.primitives import (
    call_parallel_for,
    call_stage,
    int64_at,
    load_int64,
    next_number,
    put_int64,
    stack_memory,
)

#: A stage is a record of int64[FIELDS]: 0 whether it is left out once the step's condition is false; 1
#: whether it is a pass; 2 the address of ``void function(argument, entry, step)``; 3 the argument; 4 the
#: address of the first entry; 5 the bytes from one entry to the next; 6 how many there are.
FIELDS = 7

#: Bytes from one thread's share to the next: two cache lines, which threads would take from each other.
SHARE = 128
_HEAD = 128  # bytes in front of the shares


def run_stages(threads, parallel, stages, n_stages, step):
    """Run the stages of a step, one after the other.

    Parameters
    ----------
    threads : int64
        How many share a stage.
    parallel : int64
        If these are several, the address of int64[2]: those of Numba's ``parallel_for`` and of `take`.
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
    # int64[12]: what `take` reads; the first share, how many there are, and the bytes from one to the next,
    # as `parallel_for` takes them. Then the shares.
    memory = stack_memory(_HEAD + (threads * SHARE if threads > 1 else 0))
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
            shares = memory + _HEAD
            for thread in range(threads):
                put_int64(shares + thread * SHARE, 0, count * thread // threads)
                put_int64(shares + thread * SHARE, 1, count * (thread + 1) // threads)
            put_int64(memory, 0, shares)
            put_int64(memory, 1, threads)
            put_int64(memory, 2, function)
            put_int64(memory, 3, argument)
            put_int64(memory, 4, first)
            put_int64(memory, 5, size)
            put_int64(memory, 6, step)
            put_int64(memory, 8, shares)
            put_int64(memory, 9, threads)
            put_int64(memory, 10, SHARE)
            call_parallel_for(
                int64_at(parallel, 0),
                int64_at(parallel, 1),
                memory + 64,
                memory + 72,
                memory + 80,
                memory,
                0,
                1,
                threads,
            )
    return passes


def take(own, lengths, steps, work):
    """Take entries until none are left: of a thread's own share first, then of the others'.

    A share is in the order of memory. A thread that comes late, or gets no processor for a while, finds its
    share done by others. The parameters are those of NumPy's inner loops.

    Parameters
    ----------
    own : int64
        Address of int64[1]: the address of the thread's first share. A share is int64[2], the next entry and
        the one after the last.
    lengths : int64
        Address of int64[1]: how many shares the thread gets.
    steps : int64
        Not used.
    work : int64
        Address of int64[7]: the address of the first share, how many there are, and `function`, `argument`,
        `first`, `size` and `step` as in `run_stages`.
    """
    shares, threads = int64_at(work, 0), int64_at(work, 1)
    function, argument, first, size = (
        int64_at(work, 2),
        int64_at(work, 3),
        int64_at(work, 4),
        int64_at(work, 5),
    )
    step, thread = int64_at(work, 6), (int64_at(own, 0) - shares) // SHARE
    for k in range(threads):
        share = shares + (thread + k) % threads * SHARE
        end = int64_at(share, 1)
        entry = next_number(share)
        while entry < end:
            call_stage(function, argument, first + entry * size, step)
            entry = next_number(share)
