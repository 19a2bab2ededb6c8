"""The memory's own speed: a plain loop over the arrays of an optimizer.

The loop does nothing but an add for each array that it writes.
"""

from functools import partial

import numba
import numpy as np

from .side_by_side import measure

# Elements of a piece; the last is the whole of a thread's share, cut once.
CHUNKS = (4096, 65536, None)


def arrays_of(job):
    """Return a job's arrays as (updated, read, written).

    One step reads and writes the first, only reads the second, and only writes the third.
    """
    (pair, states), *others = job.layers[0].get_params()
    if others:
        raise ValueError("a streaming loop goes over one parameter")
    param, grad = (tensor.storage for tensor in pair)
    states = [state.storage for state in states]
    # Adadelta's last step, ShiftAdaMax's inverse and mirrors are stored and never read.
    stored = states[2:] if job.optimizer.classnm in ("Adadelta", "ShiftAdaMax") else []
    stored = states[-1:] if job.optimizer.mirror_dtype else stored
    return [param, *states[: len(states) - len(stored)]], [grad], stored


def moved_bytes(updated, read, written):
    """Return how many bytes one pass moves between memory and the cores."""
    return sum(2 * a.nbytes for a in updated) + sum(a.nbytes for a in [*read, *written])


def streaming_text(updated, written, half=False):
    """Return the source of the loops over `updated` + 1 + `written` arrays. For RMSProp, 2 + 1 + 0::

    def body(u0, u1, g):
        for i in range(g.size):
            x = g[i]
            u0[i] += x
            u1[i] += x

    def stream(u0, u1, g, chunk):
        for c in prange((g.size + chunk - 1) // chunk):
            low = c * chunk
            high = min(low + chunk, g.size)
            body(u0[low:high], u1[low:high], g[low:high])

    With `half`, the read array and the written ones have integers of 16 bits, which are copied.
    """
    names = [*(f"u{k}" for k in range(updated)), "g", *(f"w{k}" for k in range(written))]
    stored = "g[i]" if half else "x + x"
    adds = [*(f"u{k}[i] += x" for k in range(updated)), *(f"w{k}[i] = {stored}" for k in range(written))]
    lines = [
        f"def body({', '.join(names)}):",
        "    for i in range(g.size):",
        f"        x = {'float32(g[i])' if half else 'g[i]'}",
        *(f"        {add}" for add in adds),
        "",
        f"def stream({', '.join(names)}, chunk):",
        "    for c in prange((g.size + chunk - 1) // chunk):",
        "        low = c * chunk",
        "        high = min(low + chunk, g.size)",
        f"        body({', '.join(f'{name}[low:high]' for name in names)})",
    ]
    return "\n".join(lines)


def streaming_step(updated, read, written=()):
    """Return the fastest streaming loop over these arrays, out of a few ways to go about it.

    Parameters
    ----------
    updated, read, written : list of numpy.ndarray
        float32, of one size; `read` is one array. The arrays of an optimizer will do: positive values stay
        so. `read` and `written` may have 16 bits.

    Returns
    -------
    step : callable
    label : str
        Which way it is.
    """
    updated, read, written = ([a.reshape(-1) for a in column] for column in (updated, read, written))
    half = read[0].itemsize == 2
    read, written = ([a.view(np.uint16) if half else a for a in column] for column in (read, written))
    loops = {"": (_compiled(len(updated), len(written), half), (*updated, *read, *written))}
    if written and not half:
        # A processor reads a line before it writes into it, and is quicker at that when the loop asks for it.
        loops[", written arrays updated"] = (
            _compiled(len(updated) + len(written), 0),
            (*updated, *written, *read),
        )
    share = -(-read[0].size // numba.get_num_threads())
    ways = {}
    for how, (stream, arrays) in loops.items():
        for chunk in CHUNKS:
            ways[f"chunks of {chunk or share}{how}"] = partial(stream, *arrays, chunk or share)
    seconds = measure(ways, rounds=5)
    best = min(ways, key=lambda way: float(np.median(seconds[way])))
    return ways[best], best


def _compiled(updated, written, half=False):
    place = {"prange": numba.prange, "float32": np.float32}
    exec(streaming_text(updated, written, half), place)
    place["body"] = numba.njit(place["body"])
    return numba.njit(parallel=True)(place["stream"])
