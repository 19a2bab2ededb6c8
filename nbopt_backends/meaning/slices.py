"""The fixed shape of reductions along axes, and of all reductions in a pass that knows slices.

Such a pass walks what it loops over, a parameter or a slice of it, as a matrix. Axes that no slice of the
program tells apart are merged, and axes of length 1 are dropped. The last group of axes that is left is the
*columns*, all others together are the *rows*, in C order. A row goes by tiles of `COLUMNS` columns, and rows
go by bands of at most `ROWS`, which lie within the last of the groups of rows.

- What is reduced along the columns as well: each tile of a row is folded as `nbopt_backends.meaning.tree`
  folds, in the arithmetic of the update. The results are float64. Those that belong to one value are joined
  in C order, one after the other, starting from the result over no values. If the result is one number for
  the parameter, they are folded.
- What keeps its columns: the rows of a band are joined one after the other, for each column, in the
  arithmetic, starting from the result over no values. The results of the bands are joined in the same way in
  float64. If the result keeps the last group of the rows as well, a band is one row.

The result is rounded to the arithmetic of the update.
"""

from typing import NamedTuple

import numpy as np

from nbopt.language.lines import ELEMENT, axes_of, is_slice
from nbopt.language.ops import PRIMITIVES
from nbopt_backends.meaning.tree import OPS, fold

COLUMNS = 128
ROWS = 32
#: The most columns of rows that are narrow, of which two fit a tile. No result depends on it.
NARROW = COLUMNS // 2


def groups_of(shape, extents):
    """Return the groups of axes of a parameter.

    Parameters
    ----------
    shape : tuple of int
    extents : sequence of int
        Those of a program's slots: slices tell axes apart.

    Returns
    -------
    list of (int, tuple of int)
        The length of each group, and its axes.
    """
    slices = [extent for extent in extents if is_slice(extent)]
    groups: list[tuple[int, tuple]] = []
    last = None
    for axis, length in enumerate(shape):
        if length == 1:
            continue
        kind = [bool(extent & 2 << axis) for extent in slices]
        if groups and kind == last:
            groups[-1] = groups[-1][0] * length, (*groups[-1][1], axis)
        else:
            groups.append((length, (axis,)))
        last = kind
    return groups


class Walk(NamedTuple):
    """How a pass walks a parameter, or a slice of one.

    Attributes
    ----------
    groups : list of int
        The lengths of the groups of the rows.
    columns : int
    strides : list of list of int
        For each slot of the program: how many of its elements lie between two rows that are next to each
        other along each of the groups, and between two columns, which is 0 or 1. Empty for slots that vary
        with other axes, too.
    """

    groups: list
    columns: int
    strides: list

    @property
    def rows(self):
        """How many rows there are."""
        return int(np.prod(self.groups, dtype=np.int64))

    def outputs(self, slot):
        """Return where in a slot's memory the first column of each row is.

        Parameters
        ----------
        slot : int

        Returns
        -------
        numpy.ndarray
            int64[rows].
        """
        places = np.zeros((), np.int64)
        for length, stride in zip(self.groups, self.strides[slot]):
            places = places[..., None] + np.arange(length) * stride
        return places.reshape(-1)

    def keeps_rows(self, slot):
        """Return whether each row has values of its own in a slot that does not keep the columns."""
        steps = np.cumprod([1, *self.groups[:0:-1]])[::-1].tolist() if self.groups else []
        return self.strides[slot] == [*steps, 0]

    def band(self, slot):
        """Return how many rows a band of a reduction has whose result is in a slot that keeps the columns."""
        return ROWS if self.groups and self.strides[slot][-2] == 0 else 1


def walk_of(shape, extents, extent):
    """Return the walk of a pass.

    Parameters
    ----------
    shape : tuple of int
        The parameter's.
    extents : sequence of int
        Those of the program's slots.
    extent : int
        The pass's.

    Returns
    -------
    Walk
    """
    own = [
        (length, axes)
        for length, axes in groups_of(shape, extents)
        if extent == ELEMENT or extent & 2 << axes[0]
    ] or [(1, ())]
    strides = []
    for other in extents:
        found, step = [], 1
        for length, axes in reversed(own):
            varies = other == ELEMENT or (is_slice(other) and bool(axes) and bool(other & 2 << axes[0]))
            found.append(step if varies else 0)
            step *= length if varies else 1
        strides.append(found[::-1] if other == extent or is_coarser(other, extent) else [])
    return Walk([length for length, _ in own[:-1]], own[-1][0], strides)


def kinds_of(shapes, extents, extent):
    """Return which of some parameters can share a kernel of a pass.

    Those can whose slots lie alike along the columns, if their rows are of one kind.

    Parameters
    ----------
    shapes : dict of int to tuple of int
        The parameters' shapes, by their rows.
    extents, extent
        As for `walk_of`.

    Returns
    -------
    dict of (tuple of int, int) to list of int
        For each slot, how many of its elements lie between two columns, 0 or 1; and how wide rows are, see
        `width_of` -> which parameters.
    """
    kinds: dict[tuple, list[int]] = {}
    for row, shape in shapes.items():
        walk = walk_of(shape, extents, extent)
        flags = tuple(own[-1] if own else 0 for own in walk.strides)
        kinds.setdefault((flags, width_of(walk.columns)), []).append(row)
    return kinds


def width_of(columns):
    """Return what kind of kernel a walk with so many columns takes.

    0: rows are wide. 1: they are narrow. 3: there are 3 columns, as in most kernels of convolutions.
    """
    return 3 if columns == 3 else int(columns <= NARROW)


def is_coarser(extent, other):
    """Return whether a slice varies with a part of what another extent varies with."""
    return is_slice(extent) and not extent & ~other


def tiles_of_columns(columns):
    """Return how many tiles a row of so many columns has."""
    return -(-columns // COLUMNS)


def row_results(op, values):
    """Fold the tiles of each row: of float32 or float64 [rows, columns] to float64[rows, tiles]."""
    parts = [fold(op, values[:, start : start + COLUMNS]) for start in range(0, values.shape[1], COLUMNS)]
    return np.stack(parts, axis=1).astype(np.float64)


def reduced(op, values, walk, slot, size):
    """Reduce a matrix to a slice.

    Parameters
    ----------
    op : str
        ``"sum"``, ``"max"`` or ``"min"``.
    values : numpy.ndarray
        [rows, columns], in the arithmetic of the update.
    walk : Walk
    slot : int
        Where the result goes.
    size : int
        How many elements it has.

    Returns
    -------
    numpy.ndarray
        [size], in the same arithmetic.
    """
    name, nothing = OPS[op]
    join = PRIMITIVES[name].numpy
    outputs = walk.outputs(slot)
    found = np.full(size, nothing)
    if walk.strides[slot][-1] == 0:
        for place, results in zip(outputs, row_results(op, values)):
            for result in results:
                found[place] = join(found[place], result)
    else:
        band, columns = walk.band(slot), walk.columns
        last = walk.groups[-1] if walk.groups else 1
        for start in range(0, walk.rows, last):
            for row in range(start, start + last, band):
                result = np.full(columns, nothing, values.dtype)
                for one in values[row : min(row + band, start + last)]:
                    result = join(result, one)
                place = slice(outputs[row], outputs[row] + columns)
                found[place] = join(found[place], result.astype(np.float64))
    return found.astype(values.dtype)


def expanded(values, walk, slot):
    """Return a slot's values, flat, as a matrix of the walk: [rows, columns], or what broadcasts to it."""
    places = walk.outputs(slot)[:, None] + np.arange(walk.columns) * walk.strides[slot][-1]
    return values[places]


def shape_of(shape, extent):
    """Return the shape of a slice of a parameter, with length 1 along the axes that it does not vary with."""
    kept = axes_of(extent, len(shape))
    return tuple(length if axis in kept else 1 for axis, length in enumerate(shape))
