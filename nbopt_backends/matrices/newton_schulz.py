"""The iteration of Newton and Schulz, in its plain form and in that of the Gram matrix."""

#: The steps after which the Gram form starts again from the matrix. Rounding errors of the Gram matrix grow
#: by the square of a step's slope at 0, about 12, while small singular values are still lost in them.
RESTART = 2
#: From which length over width on the Gram form is taken: there it takes no more memory than a batch and two
#: others, and fewer operations, also where BLAS computes only one half of ``x x^T``.
LONG = 2.0
#: The same where products are in half the size of the matrices. It takes fewer operations from 1.5 on.
LONG_IN_HALVES = 1.5


def orthogonalized(pieces, function, library, method):
    """Orthogonalise matrices, in place.

    Parameters
    ----------
    pieces : list of array
        Batches ``[..., rows, columns]`` of one shape that is no longer than wide, in any memory order;
        modified. One alone, unless the library gathers.
    function : Orthogonalize
    library : object
        Such as `nbopt_backends.matrices.blas.Blas`.
    method : str or None
        As `function` has it.
    """
    rows, columns = pieces[0].shape[-2:]
    longer = LONG_IN_HALVES if method is None and library.halves(pieces[0].dtype) else LONG
    method = "gram" if method != "plain" and columns >= longer * rows else "plain"
    work = library.scaled(pieces, function.epsilon, method)
    other = library.empty_like(work)
    steps = function.coefficients
    if method == "plain":
        found = _plain(work, other, steps, library)
    else:
        found = _gram(work, other, steps[:RESTART], library)
        found = _gram(found, work if found is other else other, steps[RESTART:], library)
    start = 0
    for piece in pieces if found is not pieces[0] else ():
        piece[...] = found[start : start + len(piece)]
        start += len(piece)


def _square(x, library, number=0):
    """Return as much memory of wide matrices as their Gram matrices take; None if they are too short."""
    *batch, small, large = x.shape
    if (number + 1) * small > large:
        return None
    if not library.packed(x):
        return x[..., number * small : (number + 1) * small]
    flat = x.reshape(*batch, small * large)[..., number * small * small : (number + 1) * small * small]
    return flat.reshape(*batch, small, small)


def _plain(x, other, steps, library):
    """Return the matrices after some steps, in one of the two batches of memory.

    The Gram matrices lie where the product comes, which needs them no more. So there are three batches at
    most: the matrices, their product, the polynomials.
    """
    polynomial = None
    for a, b, c in steps:
        polynomial = library.polynomial(library.gram(x, _square(other, library)), a, b, c, polynomial)
        x, other = library.times(polynomial, a, x, other), x
    return x


def _gram(x, other, steps, library):
    """Do what `_plain` does by one product with a polynomial in ``x x^T``.

    What this product needs has memory of its own. The rest lies where the product comes, as far as it fits.
    """
    if not steps:
        return x
    gram, step, whole, spare = library.gram(x, _square(other, library)), None, None, None
    for number, (a, b, c) in enumerate(steps):
        step = library.polynomial(gram, a, b, c, step)
        if number + 1 < len(steps):
            spare = library.times(step, a, gram, spare)
            library.times(step, a, spare, gram)
        if whole is not None:
            whole, spare = library.times(step, a, whole, spare), whole
        elif number + 1 < len(steps):
            whole, step = library.whole(step, a), _square(other, library, 1)
        else:
            return library.times(step, a, x, other)
    return library.matmul(whole, x, out=other)
