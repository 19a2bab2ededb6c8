"""Plans: what one step needs besides its scalars, found again at the next step.

A layout is the structure of a step's tensors: their shapes, dtypes and strides. It groups them by dtypes, one launch for each group, and keeps
each group's chunk table, and the table of addresses, which is refreshed where tensors were replaced. It holds no reference to any tensor.
"""

from typing import NamedTuple

import numpy as np

from nbopt_backends.chunks import chunk_table
from nbopt_backends.reduction import TILE, tile_count

MOST_LAYOUTS = 8


_TYPE_CODES = {"float32": "f", "float64": "d"}


class Launch(NamedTuple):
    """A compiled function with all its arguments but the scalars' address.

    Attributes
    ----------
    serial : callable
        Returns the variant for one thread.
    parallel : callable or None
        The variant for all threads; None where one thread is faster.
    arguments : tuple of int
    """

    serial: object
    parallel: object
    arguments: tuple


class Plan:
    """A program over a layout, compiled.

    Attributes
    ----------
    backend : Backend
        Whose it is.
    program : Program
    layout : Layout
    launches : list of Launch
        One for each group.
    passes : object
        What computes the norm-clip factor, if anything does.
    type_codes : list of str
        Of each group's scalars, for array.array.
    serials : list of int or None
        The tensors that the address tables are of now.
    """

    def __init__(self, backend, program, layout, launches, passes):
        self.backend, self.program, self.layout, self.launches, self.passes = backend, program, layout, launches, passes
        self.type_codes = [_TYPE_CODES[group.arithmetic] for group in layout.groups]
        self.serials = None


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

    def arguments(self):
        """Return the addresses that drivers take: of the table, the views (where some slots are strided), the width, the chunks."""
        views = () if self.geometries is None else (self.views.ctypes.data,)
        return self.table.ctypes.data, *views, self.table.shape[1], self.chunks.ctypes.data, len(self.chunks)

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
    tile_starts : numpy.ndarray
        Where each parameter's first tile of squares stands in the norm: tensors in list order, whatever their groups.
    """

    def __init__(self, arrays, key, written):
        self.key = key
        rows = list(zip(*arrays))
        by_dtypes = {}
        for number, row in enumerate(rows):
            if row[0].size:
                by_dtypes.setdefault(tuple(array.dtype.name for array in row), []).append(number)
        self.groups = [Group(numbers, dtypes, [rows[n] for n in numbers], written) for dtypes, numbers in by_dtypes.items()]
        counts = [tile_count(row[0].size) if row[0].size else 0 for row in rows]
        self.tile_starts = np.cumsum([0, *counts])

    def refresh(self, arrays):
        """Write the addresses of `arrays` into the groups' tables."""
        for group in self.groups:
            for slot, column in enumerate(arrays):
                group.table[:, slot] = [column[row].__array_interface__["data"][0] for row in group.rows]


def layout_key(arrays):
    """Return the structure of a step's arrays, by slot; equal where one layout serves both."""
    return [[(a.shape, a.dtype, a.strides) for a in column] for column in arrays]


def _geometry(array, written):
    kind = 0 if array.flags.c_contiguous else 2 if written else 1
    return np.array([kind, array.itemsize, array.ndim, *array.shape, *array.strides], np.int64)
