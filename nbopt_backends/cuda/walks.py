"""Walks: what the kernel of a pass that knows slices takes, and the memory of slices.

See `nbopt_backends.cuda.slices`.
"""

import functools
from typing import NamedTuple

import numpy as np

from nbopt.language.lines import ELEMENT
from nbopt_backends.cuda.slices import LANES
from nbopt_backends.cuda.turns import is_in
from nbopt_backends.matrices.rounds import places_of
from nbopt_backends.meaning.slices import COLUMNS, ROWS, tiles_of_columns, walk_of
from nbopt_backends.plans.chunks import chunk_table

_walk_of = functools.lru_cache(maxsize=1024)(walk_of)  # many parameters have the same shape


def on_device(backend, values):
    """Return a NumPy array's values in new device memory."""
    array = backend.allocate(values.shape, values.dtype)
    if values.size:
        backend.upload(array, values)
    return array


def with_workspace(backend, layout, program, rounds):
    """Allocate a program's workspace slots of each parameter.

    Their addresses are written into the layout's table.

    Parameters
    ----------
    backend : DeviceBackend
    layout : Layout
    program : Program
    rounds : list of list of int
        See `rounds_of_plan`.

    Returns
    -------
    memory : DeviceArray
        To be kept.
    batches : list of dict of int to list of (int, tuple, str)
        For each round, and each slot that holds matrices: the address, the shape ``(batch, *shape)`` and the
        dtype of each batch of equal shapes. They are in the same order for all slots.
    """
    places, size = places_of(program, layout, rounds)
    memory = backend.allocate((size,), np.uint8)
    batches: list[dict] = [{} for _ in rounds or [None]]
    for place in places:
        first = memory.address + place.start
        layout.table[place.rows, place.slot] = first + place.step * np.arange(len(place.rows))
        if program.extents[place.slot] == ELEMENT:
            batches[place.round].setdefault(place.slot, []).append((first, place.batch, place.dtype))
    return memory, batches


def _shape(layout, row):
    return layout.key[0][0][row][0]


def walks_of(stage, program, layout, group):
    """Return how a pass walks the parameters of a group.

    Returns
    -------
    dict of tuple of str to list of (int, Walk)
        For each text that they need, see `slices_text`: the rows that have it, with their walks.
    """
    found: dict = {}
    for row in group.rows:
        walk = _walk_of(_shape(layout, row), program.extents, stage.extent)
        kinds = tuple(kind_of(walk, program.extents.index(extent)) for _, _, extent in stage.folds)
        found.setdefault(kinds, []).append((row, walk))
    return found


def kind_of(walk, slot):
    """Return what a fold leaves whose result is laid out as a slot is: see `slices_text`."""
    if walk.strides[slot][-1] == 0:
        return "rows"
    return "each" if walk.groups and walk.band(slot) == 1 else "bands"


def _bands(walk):
    """Return how many rows the last of the groups of rows has, and how many bands they are."""
    last = walk.groups[-1] if walk.groups else 1
    return last, -(-last // ROWS)


def _left_by(walk, slot, kind):
    """Return the axes of what a fold leaves of a parameter, in C order.

    For each it is whether the result keeps it, and its length.
    """
    kept = [bool(stride) for stride in walk.strides[slot]]
    if kind == "rows":
        return [*zip(kept, walk.groups), (False, tiles_of_columns(walk.columns))]
    if kind == "each":
        return [*zip(kept, walk.groups), (True, walk.columns)]
    return [*zip(kept, walk.groups[:-1]), (False, _bands(walk)[1]), (True, walk.columns)]


class Left(NamedTuple):
    """What a fold leaves of a parameter for the end of the reduction.

    Attributes
    ----------
    row : int
        The parameter's.
    address, size : int
        Where it is, and the bytes of each value.
    result_size : int
        The bytes of each value of the result.
    axes : list of (bool, int, int)
        The axes of what is left, in C order: whether the result keeps it, its length, and the bytes from one
        to the next.
    """

    row: int
    address: int
    size: int
    result_size: int
    axes: list


class Walks:
    """What the launches of one pass that knows slices take, of a layout.

    Attributes
    ----------
    starts : numpy.ndarray
        int64[rows + 1]: where each row's tiles begin among those of all rows.
    sums : DeviceArray
        float64[tiles, reductions].
    parts : list of (int, Group, tuple of str, DeviceArray, DeviceArray)
        For each launch, the round, the group, the kinds of its text, the chunks, and what they point to.
    left : list of list of Left
        For each fold, what it leaves of each parameter.
    """

    def __init__(self, backend, program, layout, stage, rounds):  # as `Turns.of` returns them
        self._program, self._stage = program, stage
        self._coarse = [slot for slot in stage.read() if program.extents[slot] != stage.extent]
        walks = [
            (group, kinds, rows)
            for group in layout.groups
            for kinds, rows in walks_of(stage, program, layout, group).items()
        ]
        tiles = np.zeros(layout.n_rows, np.int64)
        for _, _, rows in walks:
            for row, walk in rows:
                tiles[row] = walk.rows * tiles_of_columns(walk.columns)
        self.starts = np.concatenate([[0], np.cumsum(tiles)])
        self.sums = backend.allocate((int(self.starts[-1]), len(stage.reductions)), np.float64)
        self.left: list[list] = [[] for _ in stage.folds]
        self._leave(backend, walks)
        self.parts = []
        for number, together in rounds:
            for group, kinds, rows in walks:
                own = [one for one in rows if is_in(one[0], together)]
                if own:
                    self.parts.append((number, group, kinds, *self._chunks(backend, group, kinds, own)))

    def _leave(self, backend, walks):
        """Allocate the memory of what folds leave."""
        size = 0
        for group, kinds, rows in walks:
            for fold, kind in enumerate(kinds):
                slot = self._program.extents.index(self._stage.folds[fold][2])
                result = np.dtype(group.arithmetic).itemsize
                item = 8 if kind == "rows" else result
                for row, walk in rows:
                    axes, step = [], item
                    for keeps, length in reversed(_left_by(walk, slot, kind)):
                        axes.append((keeps, length, step))
                        step *= length
                    self.left[fold].append(Left(row, size, item, result, axes[::-1]))
                    size += -(-step // 16) * 16
        self._memory = backend.allocate((size,), np.uint8)
        self.left = [
            [one._replace(address=self._memory.address + one.address) for one in left] for left in self.left
        ]

    def _chunks(self, backend, group, kinds, rows):
        """Return the chunk table of a launch, and the walks' records, on the device."""
        left = [{one.row: one.address for one in own} for own in self.left]
        records, tables = [], []
        first_blocks = dict(zip(group.rows, group.first_blocks))
        for row, walk in rows:
            last, bands = _bands(walk)
            tiles = tiles_of_columns(walk.columns)
            shift = (min(walk.columns, COLUMNS) - 1).bit_length()
            outer = walk.groups[:-1]
            record = [
                walk.columns,
                tiles,
                shift,
                last,
                bands,
                self.starts[row],
                len(outer),
                *(own[row] for own in left),
            ]
            for slot in self._coarse:
                record += [walk.strides[slot][-1], walk.strides[slot][-2] if walk.groups else 0]
            record += outer
            for slot in self._coarse:
                record += walk.strides[slot][:-2]
            cut = chunk_table([walk.rows // last * bands * tiles], LANES >> shift)
            table = np.column_stack(
                [
                    np.full(len(cut), row),
                    cut[:, 1:],
                    np.full(len(cut), first_blocks[row]),
                    np.full(len(cut), len(records)),
                    np.zeros(len(cut), np.int64),
                ]
            )
            records += record
            tables.append(table)
        memory = on_device(backend, np.array(records, np.int64))
        chunks = np.concatenate(tables)
        chunks[:, 4] = memory.address + 8 * chunks[:, 4]
        return on_device(backend, chunks), memory
