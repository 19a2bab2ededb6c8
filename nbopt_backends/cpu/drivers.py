"""What runs a step on the CPU: one call from Python into compiled code, with a parallel loop for each stage.

The function here is compiled with and without threads, from a copy of this file in the cache folder. What
the stages do is compiled apart, where a step has such a stage, and reached by address: see `chunks` and
`ends` in this folder.
"""

from numba import prange

from nbopt_backends.cpu.primitives import call_stage, load_int64

#: A stage is a record of int64[FIELDS]: 0 whether it is left out once the step's condition is false; 1
#: whether it is a pass; 2 the address of ``void function(argument, entry, step)``; 3 the argument; 4 the
#: address of the first entry; 5 the bytes from one entry to the next; 6 how many there are.
FIELDS = 7


def run_stages(stages, n_stages, step):
    """Run the stages of a step, one after the other.

    Parameters
    ----------
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
        if count == 1:  # wakes no thread
            call_stage(function, argument, first, step)
        else:
            for k in prange(count):
                call_stage(function, argument, first + k * size, step)
    return passes
