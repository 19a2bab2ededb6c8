"""Passes that know slices, as records that `nbopt_backends.cpu.drivers.run_stages` goes through.

See `nbopt_backends.meaning.slices`.
"""

import math

import numpy as np

from nbopt.language.lines import ELEMENT
from nbopt.language.stages import Combine
from nbopt_backends.cpu.chunks import SLICED_FIELDS
from nbopt_backends.cpu.ends import COLUMNS_KEPT, END_FIELDS, ROWS_JOINED, ROWS_KEPT
from nbopt_backends.lowering.slices import fold_slots
from nbopt_backends.meaning.slices import ROWS, kinds_of, shape_of, tiles_of_columns, walk_of
from nbopt_backends.meaning.xoroshiro import BLOCK

_PIECE = 16384  # elements of a chunk, about
_COLUMNS = 16384  # of a chunk, where rows are long; a multiple of a tile


class SlicedPass:
    """One pass that knows slices, over the parameters of a plan.

    It has its walks, and the memory of its partial results.

    Parameters
    ----------
    plan : CpuPlan
        Whose workspace has its memory.
    level : int
    stage : Pass

    Attributes
    ----------
    starts : numpy.ndarray
        int64[rows + 1]: where the results of each parameter's tiles begin.
    sums : numpy.ndarray
        float64[tiles, results].
    """

    def __init__(self, plan, level, stage):
        self.plan, self.level, self.stage = plan, level, stage
        extents, structures = plan.program.extents, plan.layout.key[0][0]
        self._slots = fold_slots(stage, extents)
        self._walks, counts = {}, [0]
        for row, (shape, *_) in enumerate(structures):
            walk = self._walks[row] = walk_of(shape, extents, stage.extent)
            counts.append(walk.rows * tiles_of_columns(walk.columns) if plan.layout.sizes[row] else 0)
        self.starts = np.cumsum(counts, dtype=np.int64)
        self._keeping = [
            [bool(walk.strides[slot][-1]) for slot in self._slots] for walk in self._walks.values()
        ]
        self.sums = np.zeros((max(1, int(self.starts[-1])), max(1, len(stage.reductions) + len(stage.folds))))
        self._records: dict[int, int] = {}
        self._direct: set[tuple[int, int]] = set()
        self._contiguous = np.zeros(len(extents), np.int64)

    def records(self):
        """Return the address of each kernel, its chunks, int64[chunks, SLICED_FIELDS], and their rows.

        There is a kernel for each combination of dtypes and column strides, for wide and for narrow rows.
        """
        found, extents = [], self.plan.program.extents
        for group in self.plan.layout.groups:
            for kind, rows in kinds_of(self.plan.layout.shapes(group), extents, self.stage.extent).items():
                kernel = self.plan.backend.sliced_kernel_of(self.stage, group, extents, kind)
                found.append((kernel.address, *self._chunks(group, rows)))
        return found

    def _chunks(self, group, rows):
        plan, layout = self.plan, self.plan.layout
        first_blocks = dict(zip(group.rows, group.first_blocks.tolist()))
        found, owners = [], []
        for row in rows:
            walk = self._walks[row]
            table = layout.table[row]
            common = [table.ctypes.data, self._record(row, group)]
            views = plan.views[row] if self.stage.extent == ELEMENT else self._contiguous
            rest = [
                plan.numbers.ctypes.data + row * plan.stride,
                first_blocks[row] * BLOCK,
                views.ctypes.data,
                layout.table.shape[1],
            ]
            found += [
                [*common, *part, *rest]
                for part in _parts(walk, group.strided and self.stage.extent == ELEMENT)
            ]
            owners += [row] * (len(found) - len(owners))
        return np.array(found, np.int64).reshape(-1, SLICED_FIELDS), owners

    def _record(self, row, group):
        """Return the address of a walk, as kernels take it."""
        walk, n = self._walks[row], len(self._walks[row].groups)
        slots, folds = len(walk.strides), len(self._slots)
        first = 6 + n
        record = [
            walk.columns,
            n,
            self._results_of(row),
            first,
            first + n * slots,
            first + n * slots + 2 * folds,
        ]
        record += walk.groups
        for slot, own in enumerate(walk.strides):
            record += [-1] * n if own and walk.keeps_rows(slot) else own[:-1] if own else [0] * n
        for number, (slot, keeps) in enumerate(zip(self._slots, self._keeping[row])):
            band, address = walk.band(slot), 0
            if keeps:
                address = self._direct_target(row, number)
                self._direct |= {(row, number)} if address else set()
            if keeps and not address:
                last = walk.groups[-1] if n else 1
                bands = walk.rows // last * -(-last // band)
                results = np.zeros((bands, walk.columns), group.arithmetic)
                address = self.plan.kept_alive(results)
            record += [address, band]
        for own in walk.strides:
            record += _steps(walk.groups, own) if own else [0] * n
        self._records[row] = self.plan.kept_alive(np.array(record, np.int64))
        return self._records[row]

    def _direct_target(self, row, number):
        """Return the address of what a reduction gives if bands may leave it there, else 0.

        They may if each has all rows of what it keeps: then nothing is left to be joined.
        """
        over, walk = self.stage.folds[number][2], self._walks[row]
        last, band = walk.groups[-1] if walk.groups else 1, walk.band(self._slots[number])
        bands = walk.rows // last * -(-last // band)
        if bands * walk.columns != math.prod(shape_of(self.plan.layout.key[0][0][row][0], over)):
            return 0
        output = next(
            stage.output
            for level, stage in self.plan.program.stages()
            if isinstance(stage, Combine)
            and (level, stage.over, stage.extent, stage.source)
            == (self.level + 1, over, self.stage.extent, number)
        )
        return int(self.plan.layout.table[row, output])

    def _results_of(self, row):
        """Return the address of the results of a parameter's tiles."""
        return self.sums.ctypes.data + int(self.starts[row]) * self.sums.strides[0]

    def source(self, number):
        """Return where the results of a reduction to one number are.

        These are the starts, the first result, and the bytes to the next.
        """
        return [self.starts.ctypes.data, self.sums.ctypes.data + 8 * number, self.sums.strides[0]]

    def end(self, stage):
        """Return the entries that end a reduction along axes, where something is left to do, and their rows.

        Parameters
        ----------
        stage : Combine
        """
        entries, owners = [], []
        for group in self.plan.layout.groups:
            for row in group.rows:
                if (row, stage.source) in self._direct:
                    continue
                walk, keeps = self._walks[row], self._keeping[row][stage.source]
                slot, wide = self._slots[stage.source], int(group.arithmetic == "float64")
                size = int(np.prod(shape_of(self.plan.layout.key[0][0][row][0], stage.over), dtype=np.int64))
                kind, source = COLUMNS_KEPT, [0, 0, 0]
                if not keeps:
                    kind = ROWS_KEPT if walk.keeps_rows(slot) else ROWS_JOINED
                    place = len(self.stage.reductions) + stage.source
                    source = [
                        self._results_of(row) + 8 * place,
                        self.sums.shape[1],
                        tiles_of_columns(walk.columns),
                    ]
                scratch = 0 if kind == ROWS_KEPT else self.plan.kept_alive(np.zeros(size))
                target = int(self.plan.layout.table[row, stage.output])
                length, piece = (
                    (walk.columns, _COLUMNS)
                    if keeps
                    else (walk.rows, _PIECE if kind == ROWS_KEPT else walk.rows)
                )
                for first in range(0, length, piece):
                    part = first, min(first + piece, length)
                    entries.append(
                        [
                            self._records[row],
                            slot,
                            stage.source,
                            target,
                            size,
                            kind,
                            *source,
                            scratch,
                            wide,
                            walk.rows,
                            *part,
                        ]
                    )
                owners += [row] * (len(entries) - len(owners))
        return np.array(entries, np.int64).reshape(-1, END_FIELDS), owners


def _steps(groups, strides):
    """Return how far a slot's first column moves if the next row lies along each group, as the rows before.

    All groups after that one begin again.
    """
    back, found = 0, []
    for length, stride in zip(reversed(groups), reversed(strides[:-1])):
        found.append(stride - back)
        back += (length - 1) * stride
    return found[::-1]


def _parts(walk, whole_rows):
    """Yield (first row, end, first column, end) of the chunks of a walk. Bands are not cut."""
    last = walk.groups[-1] if walk.groups else 1
    starts = [start + band for start in range(0, walk.rows, last) for band in range(0, last, ROWS)]
    starts.append(walk.rows)
    wide = walk.columns if whole_rows else min(walk.columns, 2 * _COLUMNS)
    step = walk.columns if wide == walk.columns else _COLUMNS
    band = 0
    while band < len(starts) - 1:
        end = band + 1
        while end < len(starts) - 1 and (starts[end + 1] - starts[band]) * step <= _PIECE:
            end += 1
        for column in range(0, walk.columns, step):
            yield starts[band], starts[end], column, min(column + step, walk.columns)
        band = end
