"""A stage that is a function of matrices, over batches of arrays."""

import itertools
import math
from functools import partial

import numpy as np

from nbopt.language.matrices import ADJUSTMENTS, Product
from nbopt_backends.matrices.newton_schulz import orthogonalized

#: The most bytes that a part of a batch takes, if the function does not say.
WORKSPACE = 1 << 28


def batches_of(shapes):
    """Return which of some parameters make up each batch: those of one shape.

    Parameters
    ----------
    shapes : dict of int to tuple of int
        By their rows.

    Returns
    -------
    dict of tuple of int to list of int
        The shapes and the rows. Those without elements are left out.
    """
    found: dict[tuple, list[int]] = {}
    for row, shape in shapes.items():
        if math.prod(shape):
            found.setdefault(shape, []).append(row)
    return found


def rounds_of(functions, shapes):
    """Return which of some parameters go through functions of matrices together.

    A round takes as much workspace as the matrices of one shape do, or as the functions allow, if that is
    less. One parameter is never cut.

    Parameters
    ----------
    functions : list of Product or Orthogonalize
    shapes : dict of int to (tuple of int, int)
        The shapes and the bytes of an element, by the parameters' rows.

    Returns
    -------
    list of list of int
        The rows of each round.
    """
    sizes = {row: math.prod(shape) * itemsize for row, (shape, itemsize) in shapes.items()}
    batches: dict[tuple, list[int]] = {}
    for row, (shape, itemsize) in shapes.items():
        batches.setdefault((*sorted(shape), itemsize), []).append(row)
    totals = [sum(sizes[row] for row in rows) for rows in batches.values()]
    allowed = [getattr(function, "workspace", None) or WORKSPACE for function in functions]
    most, left = min(max(totals, default=0), *allowed), 0
    found: list[list[int]] = []
    for total, rows in zip(totals, batches.values()):
        for number, row in enumerate(rows):
            needed = total if number == 0 and total <= most else sizes[row]
            if not found or needed > left:
                found.append([])
                left = most
            found[-1].append(row)
            left -= sizes[row]
    return found


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
        parts = _parts(blocks, min(library.part, bound // blocks[0].itemsize))
        jobs = [
            partial(_orthogonalize, function, pieces, library, method or function.method) for pieces in parts
        ]
        library.do(jobs, min(blocks[0].shape[-2:]) * math.prod(blocks[0].shape[-2:]))


def needed(function, shapes, itemsize):
    """Return about how many bytes of memory the products on a library that gathers take at a time."""
    each: dict[tuple, list[int]] = {}
    if isinstance(function, Product):
        return 2 * WORKSPACE if shapes else 0
    for shape in shapes:
        many, *sides = function.batch_of(shape)
        each.setdefault(tuple(sorted(sides)), []).append(many * math.prod(sides))
    largest = max((sum(own) for own in each.values()), default=0)
    one = max((small * large for small, large in each), default=0)
    return 4 * max(min(largest, (function.workspace or WORKSPACE) // itemsize), one) * itemsize


def _orthogonalize(function, pieces, library, method):
    if not library.gathers:
        for piece in pieces:
            orthogonalized(piece, function, library, method)
    else:
        wide = [piece.swapaxes(-1, -2) if piece.shape[-2] > piece.shape[-1] else piece for piece in pieces]
        whole, start = library.joined(wide), 0
        orthogonalized(whole, function, library, method)
        for piece in wide:
            piece[...] = whole[start : start + len(piece)]
            start += len(piece)
    for piece in pieces if function.adjust else ():
        piece *= ADJUSTMENTS[function.adjust](*piece.shape[-2:])


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
