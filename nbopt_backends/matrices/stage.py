"""A stage that is a function of matrices, over batches of arrays."""

import itertools
import math
from functools import partial

import numpy as np

from nbopt.language.matrices import ADJUSTMENTS, Product
from nbopt_backends.matrices.newton_schulz import orthogonalized

#: The most bytes that a part of a batch takes, if the function does not say.
WORKSPACE = 1 << 28


def run_matrix(function, batches, library, method=None):
    """Compute a function of the matrices of some batches.

    Parameters
    ----------
    function : Product or Orthogonalize
    batches : list of (list of array, array)
        The operands of each batch and its result, all ``[batch, *shape]``. Results are modified; an operand
        may be the result itself, others are not changed.
    library : object
        Such as `nbopt_backends.matrices.blas.Blas`.
    method : str, optional
        In place of the function's own.
    """
    with np.errstate(all="ignore"):
        run = _run_product if isinstance(function, Product) else _run_orthogonalize
        run(function, batches, library, method)


def _run_product(function, batches, library, method):
    for sources, output in batches:
        _multiply(function, sources, output, library)


def _run_orthogonalize(function, batches, library, method):
    for sources, output in batches:
        if sources[0] is not output:
            output[...] = sources[0]
    kinds: dict[tuple, list] = {}
    for number, (_, output) in enumerate(batches):
        for block in _blocks(function, output):
            together = tuple(sorted(block.shape[-2:])) if library.gathers else (number, block.shape)
            kinds.setdefault((together, str(output.dtype)), []).append(block)
    bound = function.workspace or WORKSPACE
    for blocks in kinds.values():
        most = min(library.part, bound // blocks[0].itemsize)
        if library.gathers and not library.halves(blocks[0].dtype):  # copies are as large as the matrices
            most = min(most, sum(math.prod(block.shape) for block in blocks) // 2)
        parts = _parts(blocks, most)
        jobs = [
            partial(_orthogonalize, function, pieces, library, method or function.method) for pieces in parts
        ]
        library.do(jobs, min(blocks[0].shape[-2:]) * math.prod(blocks[0].shape[-2:]))


def needed(function, shapes, itemsize):
    """Return about how many bytes of memory the products on a library that gathers take at a time.

    These are matrices, their product and polynomials: four batches in half the arithmetic's size, or of half
    the matrices, or three of one.
    """
    each: dict[tuple, list[int]] = {}
    if isinstance(function, Product):
        return 2 * WORKSPACE if shapes else 0
    for shape in shapes:
        many, *sides = function.batch_of(shape)
        each.setdefault(tuple(sorted(sides)), []).append(many * math.prod(sides))
    largest = max((sum(own) for own in each.values()), default=0)
    one = max((small * large for small, large in each), default=0)
    return 2 * max(min(largest, (function.workspace or WORKSPACE) // itemsize), one) * itemsize


def _orthogonalize(function, pieces, library, method):
    wide = [piece.swapaxes(-1, -2) if piece.shape[-2] > piece.shape[-1] else piece for piece in pieces]
    for own in [wide] if library.gathers else [[piece] for piece in wide]:
        orthogonalized(own, function, library, method)
    for piece in pieces if function.adjust else ():
        factor = ADJUSTMENTS[function.adjust](*piece.shape[-2:])
        if factor != 1:
            piece *= factor


def _parts(blocks, most):
    """Yield lists of parts of batches, with at most so many elements together, or one matrix."""
    pieces, left = [], most
    for block in blocks:
        each, start = math.prod(block.shape[1:]), 0
        while start < block.shape[0]:
            if pieces and left < each:
                yield pieces
                pieces, left = [], most
            count = min(max(1, left // each), block.shape[0] - start)
            pieces.append(block[start : start + count])
            start, left = start + count, left - count * each
    if pieces:
        yield pieces


def _blocks(function, batch):
    """Yield what is orthogonalised matrix by matrix, as views ``[batch, rows, columns]`` of a batch."""
    many, rows, columns = function.batch_of(tuple(batch.shape[1:]))
    matrices, heads = batch.reshape(batch.shape[0] * many, rows, columns), function.heads
    for start, length in function.parts_of((rows, columns)[function.axis]):
        if function.axis == -2:
            for first in range(start, start + length, length // heads):
                yield matrices[:, first : first + length // heads]
        else:
            for first in range(start, start + length, length // heads):
                yield matrices[:, :, first : first + length // heads]


def _multiply(function, sources, output, library):
    sources = [source.reshape(-1, *source.shape[-2:]) for source in sources]
    result = output.reshape(-1, *output.shape[-2:])
    count = max(1, min(library.part, WORKSPACE // result.itemsize) // math.prod(result.shape[1:]))
    for start in range(0, len(result), count):
        own = slice(start, start + count)
        factors = [
            sources[number][own].swapaxes(-1, -2) if flipped else sources[number][own]
            for number, flipped in function.factors
        ]
        while len(factors) > 1:
            costs = [a.shape[-2] * a.shape[-1] * b.shape[-1] for a, b in itertools.pairwise(factors)]
            least = costs.index(min(costs))
            factors[least : least + 2] = [library.matmul(factors[least], factors[least + 1])]
        result[own] = factors[0]
