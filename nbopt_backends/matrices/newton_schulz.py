"""The iteration of Newton and Schulz, in its plain form and in that of the Gram matrix."""

#: The steps after which the Gram form starts again from the matrix. Rounding errors of the Gram matrix grow
#: by the square of a step's slope at 0, about 12, while small singular values are still lost in them.
RESTART = 2


def orthogonalized(x, function, library, method):
    """Orthogonalise matrices, in place.

    Parameters
    ----------
    x : array
        ``[..., rows, columns]``, in any memory order; modified.
    function : Orthogonalize
    library : object
        Such as `nbopt_backends.matrices.blas.Blas`.
    method : str or None
        As `function` has it.
    """
    wide = x.swapaxes(-1, -2) if x.shape[-2] > x.shape[-1] else x
    library.scale(wide, function.epsilon)
    if method is None:
        method = "gram" if wide.shape[-1] >= library.longer * wide.shape[-2] else "plain"
    work = library.arithmetic(wide, method)
    other = library.empty_like(work)
    steps = function.coefficients
    if method == "plain":
        found = _plain(work, other, steps, library)
    else:
        found = _gram(work, other, steps[:RESTART], library)
        found = _gram(found, work if found is other else other, steps[RESTART:], library)
    if found is not wide:
        wide[...] = found


def _plain(x, other, steps, library):
    """Return the matrices after some steps, in one of the two batches of memory."""
    for a, b, c in steps:
        library.times(library.polynomial(library.gram(x), a, b, c), a, x, other)
        x, other = other, x
    return x


def _gram(x, other, steps, library):
    """Do what `_plain` does by one product with a polynomial in ``x x^T``."""
    if not steps:
        return x
    gram, whole = library.gram(x), None
    for number, (a, b, c) in enumerate(steps):
        step = library.polynomial(gram, a, b, c)
        if number + 1 < len(steps):
            gram = library.times(step, a, library.times(step, a, gram), gram)
            whole = library.whole(step, a) if whole is None else library.times(step, a, whole)
        elif whole is None:
            return library.times(step, a, x, other)
        else:
            whole = library.times(step, a, whole)
    return library.matmul(whole, x, out=other)
