"""Layouts: the structure of a step's tensors, which is their shapes, dtypes and strides.

A layout groups them by dtypes, one launch for each group. It keeps each group's chunk table, and the table of
addresses, which is refreshed where tensors were replaced. It holds no reference to any tensor.
"""

from operator import attrgetter

import numpy as np

from nbopt.errors import LayoutError
from nbopt.language.lines import ELEMENT, is_slice
from nbopt.language.ops import compute_dtype
from nbopt_backends.arrays.memory import address_of, byte_range, reach
from nbopt_backends.meaning.tree import TILE, tiles_of
from nbopt_backends.meaning.xoroshiro import BLOCK, first_blocks
from nbopt_backends.plans.chunks import CHUNK, chunk_table


class Group:
    """The tensors of one combination of dtypes and roundings.

    Attributes
    ----------
    rows : list of int
        Which parameters, by their place in the list.
    dtypes : tuple of str
        The slots' storage.
    kept : tuple of int
        For each slot, how many mantissa bits a stochastic rounding keeps, or 0.
    arithmetic : str
        float64 if any slot is float64, else float32.
    chunks : numpy.ndarray
        See `chunk_table`; only tensors with elements are in it.
    places : numpy.ndarray
        int64[chunks]: see `primitives.draw`.
    first_blocks : numpy.ndarray
        int64[rows]: the number of each tensor's first block in the stream of random bits.
    elements : int
    strided : bool
        Whether some slots are not contiguous.
    """

    def __init__(self, rows, dtypes, kept, arrays, block_starts, elements):
        self.rows = rows
        self.dtypes = dtypes
        self.kept = kept
        self.arithmetic = compute_dtype(dtypes[slot] for slot in elements).name
        self.sizes = [row[0].size for row in arrays]
        self.first_blocks = block_starts[self.rows]
        self.chunks = self.cut(CHUNK)
        self.places = block_starts[self.chunks[:, 0]] * BLOCK + self.chunks[:, 1]
        self.elements = sum(self.sizes)
        self.strided = not all(row[slot].flags.c_contiguous for row in arrays for slot in elements)

    def widen(self, width, workspace):
        """Let the dtypes and roundings be those of all slots.

        The last slots are workspace. Those before them are none of a pass's.
        """
        between = width - workspace - len(self.dtypes)
        self.dtypes = (*self.dtypes, *("float64",) * between, *(self.arithmetic,) * workspace)
        self.kept = (*self.kept, *(0,) * (between + workspace))

    def cut(self, chunk):
        """Return the group's tensors in pieces, int64[n, 3].

        A piece is the tensor's place in the list of all, and its offset and length in elements.
        """
        table = chunk_table(self.sizes, chunk)
        table[:, 0] = np.asarray(self.rows, np.int64)[table[:, 0]]
        return table


class Layout:
    """The structure of a step's arrays, and their addresses.

    Parameters
    ----------
    arrays : list of list of array
        As `ArrayBackend.array_of` gives them, one list for each slot.
    program : Program
    key : tuple
        Of these arrays, as `layout_key` gives it.
    memory : str
        Whose arrays they are: `Backend.memory`.

    Attributes
    ----------
    key, memory
        As given.
    written : list of int
        The slots that the program stores to.
    groups : list of Group
    n_rows : int
    sizes : list of int
        The elements of each row.
    table : numpy.ndarray
        int64[rows, width]: the addresses of each slot of each tensor, those of workspace included.
    geometries : dict
        (row, slot) -> the geometry of each slot of each row of the groups that are strided, see
        `nbopt_backends.cpu.chunks`.
    tile_starts : numpy.ndarray
        int64[rows + 1]: where each row's tiles begin among those of all rows, see
        `nbopt_backends.meaning.tree`.
    pointed_at : bytes or None
        What `point_gradients` was given last, if the tables still say so.
    """

    def __init__(self, arrays, program, key, memory="host"):
        self.key, self.written, self.memory = key, program.written(), memory
        _, kept, listing = key
        self._address_of = _host_address if memory == "host" else attrgetter("address")
        rows = list(zip(*arrays))
        kept = list(zip(*kept)) if kept else [(0,) * len(arrays)] * len(rows)
        kinds = {}
        for number, row in enumerate(rows):
            if row[0].size:
                kinds.setdefault((tuple(array.dtype.name for array in row), kept[number]), []).append(number)
        block_starts = first_blocks([row[0].size for row in rows], listing)
        given = program.extents[: len(program.extents) - program.workspace]
        elements = [slot for slot, extent in enumerate(given) if extent == ELEMENT]
        _check_slices(program, rows)
        self.groups = [
            Group(numbers, *kind, [rows[n] for n in numbers], block_starts, elements)
            for kind, numbers in kinds.items()
        ]
        self.n_rows, self.sizes = len(rows), [row[0].size for row in rows]
        if program.workspace:
            for group in self.groups:
                group.widen(len(program.names), program.workspace)
        self.table = np.zeros((max(1, self.n_rows), len(program.names)), np.int64)
        self.geometries = {
            (number, slot): _geometry(rows[number][slot], slot in self.written)
            for group in self.groups if group.strided for number in group.rows for slot in elements
        }  # fmt: skip
        self.pointed_at = self._gradients = None
        self.tile_starts = np.cumsum([0, *(tiles_of(size) for size in self.sizes)], dtype=np.int64)

    def shapes(self, group):
        """Return the shapes of the parameters of a group, by their rows."""
        return {row: self.key[0][0][row][0] for row in group.rows}

    def first_tiles(self, chunks):
        """Return the number of the first tile of each chunk of a table."""
        return self.tile_starts[chunks[:, 0]] + chunks[:, 1] // TILE

    def refresh(self, arrays):
        """Write the addresses of `arrays`, checked before, into the groups' tables."""
        self.pointed_at = None
        for slot, column in enumerate(arrays):
            self.table[: self.n_rows, slot] = [address_of(array) if array.size else 0 for array in column]
        spans = sorted(
            byte_range(array)
            for slot in self.written
            if slot < len(arrays)
            for array in arrays[slot]
            if array.size
        )
        # Sorted by their starts, one beyond all memory at the end; the ends so far, so that both ascend.
        self._starts = np.array([*(start for start, _ in spans), np.iinfo(np.int64).max], np.int64)
        self._ends = np.maximum.accumulate(np.array([end for _, end in spans], np.int64))

    def noted(self):
        """Return what `restore` takes."""
        return self.table.copy(), self._starts, self._ends, self.pointed_at

    def restore(self, noted):
        """Make the addresses what they were when `noted` was called."""
        table, starts, ends, pointed_at = noted
        self.pointed_at = None  # an interrupt must not leave it with other addresses
        self.table[...] = table
        self._starts, self._ends, self.pointed_at = starts, ends, pointed_at

    def replace_gradients(self, rows, tensors):
        """Point some rows at other gradients.

        Returns
        -------
        bool
            False, and nothing is changed, where a tensor is not of the structure of the one before, or may
            overlap what is written.
        """
        key, address_of, memory = self.key[0][1], self._address_of, self.memory
        found = []
        for row, tensor in zip(rows, tensors):
            array = tensor.storage
            if (array.shape, array.dtype, array.strides) != key[row] or tensor.be.memory != memory:
                return False
            found.append(address_of(array))
        addresses = np.array(found, np.int64)
        if len(rows) < self.n_rows:
            addresses, some = np.zeros(self.n_rows, np.int64), addresses
            addresses[:] = self.table[: self.n_rows, 1]
            addresses[rows] = some
        return self.point_gradients(addresses)

    def point_gradients(self, addresses):
        """Do what `replace_gradients` does for all of them, whose structure is known to be the same.

        Parameters
        ----------
        addresses : numpy.ndarray
            int64, by row.
        """
        pointed_at = addresses.tobytes()
        if pointed_at == self.pointed_at:
            return True
        if self._gradients is None:
            # For each group: its rows, which bytes a row's elements take around the first one's, and the bits
            # that no address may have.
            self._gradients = []
            for group in self.groups:
                column = [self.key[0][1][row] for row in group.rows]
                low, high = np.array([reach(*structure) for structure in column], np.int64).T.copy()
                self._gradients.append((np.array(group.rows), low, high, column[0][1].itemsize - 1))
        found = [addresses[rows] for rows, *_ in self._gradients]
        for own, (_, low, high, unaligned) in zip(found, self._gradients):
            if int(np.bitwise_or.reduce(own)) & unaligned or self._written_between(own + low, own + high):
                return False
        self.pointed_at = None  # an interrupt must not leave it with new addresses
        for own, group in zip(found, self.groups):
            self.table[group.rows, 1] = own
        self.pointed_at = pointed_at
        return True

    def _written_between(self, starts, ends):
        """Return whether the step writes memory in any of the spans.

        They are int64 arrays of first bytes, and of bytes after the last.
        """
        # The first written span that reaches beyond the start.
        after = self._ends.searchsorted(starts, side="right")
        return bool((self._starts[after] < ends).any())


def _check_slices(program, rows):
    """Refuse slices of parameters that are strided: they are small, and kernels take them as they lie."""
    slices = [slot for slot in program.columns() if is_slice(program.extents[slot])]
    for number, row in enumerate(rows):
        for slot in slices:
            if not row[slot].flags.c_contiguous:
                raise LayoutError(
                    f"{program.names[slot]} number {number} must be contiguous: make a copy of it "
                    "(numpy.ascontiguousarray(x))"
                )


def _host_address(array):
    """Return what `address_of` does for a numpy.ndarray, at once: a step asks it of every new gradient."""
    return array.__array_interface__["data"][0]


def layout_key(arrays, kept=None, listing=None):
    """Return what a layout is made for; equal where one serves both.

    Parameters
    ----------
    arrays : list of list of array
        One list for each slot.
    kept : list of list of int, optional
        For each slot, how many mantissa bits a stochastic rounding keeps in each row, or 0; all 0 without it.
    listing : (list of int, list of int), optional
        See `nbopt.interface.update.Update`.

    Returns
    -------
    tuple
        The (shape, dtype, strides) of each array, by slot; `kept`; `listing`.
    """
    return [[(a.shape, a.dtype, a.strides) for a in column] for column in arrays], kept, listing


def _geometry(array, written):
    kind = 0 if array.flags.c_contiguous else 2 if written else 1
    return np.array([kind, array.dtype.itemsize, array.ndim, *array.shape, *array.strides], np.int64)
