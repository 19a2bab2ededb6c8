"""Products of batches of matrices by NumPy's BLAS."""

import threading

import numpy as np

#: Multiplications of a product up to which BLAS (OpenBLAS) takes one thread.
_SMALL = 1 << 18
#: How large ``b^2 / c`` may be for the steps' polynomials to be sums of squares: more digits would cancel.
_CANCELLED = 64
#: Elements of one large matrix that are added to another at a time.
_SUMMED = 1 << 15


class _Jobs:
    """Functions without arguments that some threads call, each the next one that is left."""

    def __init__(self, jobs):
        self._left, self.failed = [*reversed(jobs)], []

    def run(self):
        """Call what is left."""
        with np.errstate(all="ignore"):  # each thread has a setting of its own
            while self._left:
                try:
                    job = self._left.pop()
                except IndexError:  # another thread was faster
                    return
                try:
                    job()
                except BaseException as error:
                    self.failed.append(error)
                    self._left.clear()


class Blas:
    """The products that functions of matrices are made of, over NumPy arrays.

    Parameters
    ----------
    threads : callable, optional
        Returns how many threads may be used. BLAS has threads of its own for large matrices.

    Attributes
    ----------
    gathers : bool
        Whether all batches of a shape go through a function together, as one copy. BLAS takes matrix by
        matrix.
    part : int
        How many elements of small matrices go through a function at a time, so that they stay in the cache.
    """

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
        shared = _Jobs(jobs)  # threads are started for each call, since they don't survive a fork
        others = [threading.Thread(target=shared.run) for _ in range(threads - 1)]
        for other in others:
            other.start()
        shared.run()
        for other in others:
            other.join()
        if shared.failed:
            raise shared.failed[0]

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
        """Return what `times` takes for the coefficients of a step: here ``a + b g + c g^2``.

        That is ``c (g + s)^2 + (a - c s^2)`` with ``s = b / 2c``, which is less to do beside the product.
        """
        diagonal = np.einsum("...ii->...i", gram)  # a view
        if b * b > _CANCELLED * abs(c):
            return self._summed(gram, a, b, c, out)
        kept, shift = diagonal.copy(), b / (2 * c)
        diagonal += gram.dtype.type(shift)
        found = self.gram(gram, out)  # symmetric
        diagonal[...] = kept
        found *= found.dtype.type(c)
        np.einsum("...ii->...i", found)[...] += found.dtype.type(a - c * shift * shift)
        return found

    def _summed(self, gram, a, b, c, out):
        found = self.gram(gram, out)
        found *= found.dtype.type(c)
        rows = found.shape[-1] if len(found) > 1 else max(1, _SUMMED // found.shape[-1])
        for start in range(0, found.shape[-1], rows):  # so that what is in between stays small
            own = ..., slice(start, start + rows), slice(None)
            found[own] += found.dtype.type(b) * gram[own]
        np.einsum("...ii->...i", found)[...] += found.dtype.type(a)
        return found

    def whole(self, polynomial, a):
        """Return the polynomial with its constant term."""
        return polynomial

    def times(self, polynomial, a, x, out=None):
        """Return the product of a polynomial and each matrix; `a` is its constant term."""
        return np.matmul(polynomial, x, out=out)
