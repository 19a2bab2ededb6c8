"""Products of batches of matrices by NumPy's BLAS."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

#: Multiplications of a product up to which BLAS (OpenBLAS) takes one thread.
_SMALL = 1 << 18
#: Elements of one large matrix that are added to another at a time.
_SUMMED = 1 << 15


def _quietly(job):
    with np.errstate(all="ignore"):  # each thread has a setting of its own
        job()


class Blas:
    """The products that functions of matrices are made of, over NumPy arrays.

    Parameters
    ----------
    threads : callable, optional
        Returns how many threads may be used. BLAS has threads of its own for large matrices.

    Attributes
    ----------
    longer : float
        From which length over width on the Gram form takes fewer operations. BLAS computes only one half of
        ``x @ x.T``, so the plain form is cheaper here than elsewhere.
    gathers : bool
        Whether all batches of a shape go through a function together, as one copy. BLAS takes matrix by
        matrix.
    part : int
        How many elements of small matrices go through a function at a time, so that they stay in the cache.
    """

    longer = 2.0
    gathers = False
    part = 1 << 17
    matmul = staticmethod(np.matmul)

    def __init__(self, threads=lambda: 1):
        self._threads = threads

    def do(self, jobs, multiplications):
        """Call some functions without arguments, each of which has products of so many multiplications."""
        threads = min(self._threads(), len(jobs)) if multiplications <= _SMALL else 1
        if threads < 2:
            for job in jobs:
                job()
            return
        with ThreadPoolExecutor(threads) as pool:  # for each call, since threads don't survive a fork
            for done in [pool.submit(_quietly, job) for job in jobs]:
                done.result()

    def scaled(self, pieces, epsilon, method):
        """Return matrices, each divided by its Frobenius norm, or by `epsilon` if that is larger.

        They are one batch in the dtype of the products: the only piece itself, or a copy.
        """
        (x,) = pieces
        squares = np.einsum("...ij,...ij->...i", x, x).sum(-1, dtype=np.float64)
        x *= (1.0 / np.maximum(np.sqrt(squares), epsilon)).astype(x.dtype)[..., None, None]
        return x

    def halves(self, dtype):
        """Return whether products for matrices of a dtype are in one of half its size."""
        return False

    def empty_like(self, x):
        """Return new memory for a batch."""
        return np.empty_like(x)

    def packed(self, x):
        """Return whether a batch is contiguous, in C order."""
        return x.flags.c_contiguous

    def gram(self, x, out=None):
        """Return ``x x^T`` of each matrix."""
        return np.matmul(x, x.swapaxes(-1, -2), out=out)

    def polynomial(self, gram, a, b, c, out=None):
        """Return what `times` takes for the coefficients of a step: here ``a + b g + c g^2``."""
        found = self.gram(gram, out)  # symmetric
        found *= found.dtype.type(c)
        rows = found.shape[-1] if len(found) > 1 else max(1, _SUMMED // found.shape[-1])
        for start in range(0, found.shape[-1], rows):  # so that what is in between stays small
            own = ..., slice(start, start + rows), slice(None)
            found[own] += found.dtype.type(b) * gram[own]
        np.einsum("...ii->...i", found)[...] += found.dtype.type(a)  # a view of the diagonals
        return found

    def whole(self, polynomial, a):
        """Return the polynomial with its constant term."""
        return polynomial

    def times(self, polynomial, a, x, out=None):
        """Return the product of a polynomial and each matrix; `a` is its constant term."""
        return np.matmul(polynomial, x, out=out)
