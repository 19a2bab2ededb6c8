"""Plans: what one step needs besides its scalars, found again at the next step.

A layout is the structure of a step's tensors: their shapes, dtypes and strides. It groups them by dtypes, one launch for each group, and keeps
each group's chunk table, and the table of addresses, which is refreshed where tensors were replaced. It holds no reference to any tensor.
"""

import numpy as np

from nbopt_backends.chunks import chunk_table
from nbopt_backends.reduction import TILE, tile_count

MOST_LAYOUTS = 8


class Group:
    """The tensors of one combination of dtypes.

    Attributes
    ----------
    rows : list of int
        Which parameters, by their place in the list.
    dtypes : tuple of str
        The slots' storage.
    arithmetic : str
        float64 if any slot is float64, else float32.
    table : numpy.ndarray
        int64[rows, slots]: addresses.
    chunks : numpy.ndarray
        See `chunk_table`; only tensors with elements are in it.
    elements : int
    geometries : list of numpy.ndarray, or None
        For each row and slot, see `cpu_drivers.run_staged_chunks`; None where every slot is contiguous.
    views : numpy.ndarray
        int64[rows, slots]: the geometries' addresses.
    """

    def __init__(self, rows, dtypes, arrays, written):
        self.rows = rows
        self.dtypes = dtypes
        self.arithmetic = "float64" if "float64" in dtypes else "float32"
        self.table = np.zeros((len(rows), len(dtypes)), np.int64)
        self.sizes = [row[0].size for row in arrays]
        self.chunks = chunk_table(self.sizes)
        self.elements = sum(self.sizes)
        self.geometries = None
        if not all(array.flags.c_contiguous for row in arrays for array in row):
            self.geometries = [_geometry(array, slot in written) for row in arrays for slot, array in enumerate(row)]
            self.views = np.array([g.ctypes.data for g in self.geometries], np.int64)

    def first_tiles(self, starts):
        """Return, for each chunk, the number of its first tile, given that of each row's first."""
        own = np.asarray(starts, np.int64)[self.rows]
        return own[self.chunks[:, 0]] + self.chunks[:, 1] // TILE


class Layout:
    """The structure of a step's tensors.

    Parameters
    ----------
    arrays : list of list of numpy.ndarray
        One list for each slot.
    key : tuple
        As `layout_key` gives it.
    written : list of int
        The slots that the program stores to.

    Attributes
    ----------
    groups : list of Group
    serials : list of int or None
        The tensors that the address tables are of now.
    """

    def __init__(self, arrays, key, written):
        self.key = key
        self.written = written
        self.serials = None
        rows = list(zip(*arrays))
        by_dtypes = {}
        for number, row in enumerate(rows):
            if row[0].size:
                by_dtypes.setdefault(tuple(array.dtype.name for array in row), []).append(number)
        self.groups = [Group(numbers, dtypes, [rows[n] for n in numbers], written) for dtypes, numbers in by_dtypes.items()]
        # Where each parameter's first tile of squares stands: tensors in list order, whatever their groups.
        counts = [tile_count(row[0].size) if row[0].size else 0 for row in rows]
        self.tile_starts = np.cumsum([0, *counts])

    def refresh(self, arrays, serials):
        """Write the addresses of `arrays` into the groups' tables."""
        for group in self.groups:
            for slot, column in enumerate(arrays):
                group.table[:, slot] = [column[row].__array_interface__["data"][0] for row in group.rows]
        self.serials = serials


def layout_key(arrays, written):
    """Return the structure of a step's arrays, by slot: hashable, and equal where one layout serves both."""
    return tuple(written), tuple(tuple((a.shape, a.dtype.name, a.strides) for a in column) for column in arrays)


def _geometry(array, written):
    kind = 0 if array.flags.c_contiguous else 2 if written else 1
    return np.array([kind, array.itemsize, array.ndim, *array.shape, *array.strides], np.int64)
