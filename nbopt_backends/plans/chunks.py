"""The chunk table: many tensors of any sizes, seen as one list of equal pieces."""

import numpy as np

#: Elements of a chunk. A multiple of a reduction's tile; small enough to balance threads, large enough to
#: hide a call.
CHUNK = 16384


def chunk_table(sizes, chunk=CHUNK):
    """Cut tensors into pieces.

    Parameters
    ----------
    sizes : sequence of int
        The number of elements of each tensor; it may exceed 2**31, and be 0.
    chunk : int
        The number of elements of a piece. Every tensor starts a new one.

    Returns
    -------
    numpy.ndarray
        int64[n, 3]: tensor, offset in elements, length in elements. Tensors in order, offsets ascending, no
        empty piece.
    """
    sizes = np.asarray(sizes, np.int64)
    counts = -(-sizes // chunk)
    tensor = np.repeat(np.arange(len(sizes)), counts)
    first = np.cumsum(counts) - counts
    offset = (np.arange(counts.sum()) - np.repeat(first, counts)) * chunk
    length = np.minimum(chunk, np.repeat(sizes, counts) - offset)
    return np.ascontiguousarray(np.stack([tensor, offset, length], axis=1), np.int64)
