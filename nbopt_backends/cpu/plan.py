"""CpuPlan: the stages of a step as records that `nbopt_backends.cpu.drivers.run_stages` goes through."""

import itertools
import math
from functools import partial
from struct import Struct

import numpy as np

from nbopt.interface.update import parts_of
from nbopt.language.lines import STEP, axes_of
from nbopt.language.stages import Combine, Matrix, Pass, Scalars
from nbopt_backends.cpu.chunks import CHUNK_FIELDS
from nbopt_backends.cpu.drivers import FIELDS
from nbopt_backends.cpu.records import Matrices, Record
from nbopt_backends.cpu.rounds import in_rounds, workspace_of
from nbopt_backends.cpu.slices import SlicedPass
from nbopt_backends.matrices.blas import Blas
from nbopt_backends.matrices.rounds import rounds_of_plan
from nbopt_backends.matrices.stage import run_matrix
from nbopt_backends.meaning.tree import OPS
from nbopt_backends.plans.plan import Plan

_OPS = {op: number for number, op in enumerate(OPS)}
_FOLDED = 1 << 14  # tiles whose results are worth an entry of their own


class CpuPlan(Plan):
    """A plan whose tables are in the host's memory.

    Attributes
    ----------
    numbers : numpy.ndarray
        float64[rows, numbers]; one row if all parameters have the same.
    records : list of (tuple, Record or Matrices)
        For each stage its place in the order of the step, see `Program.order`, and its record.
    elements : int
        Of all tensors.
    results : dict of int to list of (int, int)
        For each reduction over the step: each parameter's place in the list of all, and the address of what
        is reduced of it.
    rounds : list of list of int
        Which rows go through functions of matrices together, if not all do. All stages from `first_of_round`
        on are run for one round after the other.
    first_of_round : tuple
        A place in the order of the step.
    """

    def __init__(self, backend, update, layout):
        super().__init__(backend, update, layout)
        program = update.program
        self.elements = sum(layout.sizes)
        self.numbers = np.zeros((len(layout.table) if program.differs() else 1, program.n_numbers))
        self._given = Struct(f"{program.n_given}d")
        if program.size is not None:
            self.numbers[: layout.n_rows, program.size] = layout.sizes
        for number, extent in program.lengths:
            shapes = [shape for shape, *_ in layout.key[0][0]]
            self.numbers[: layout.n_rows, number] = [
                math.prod(shape[axis] for axis in axes_of(extent, len(shape))) for shape in shapes
            ]
        self.stride = self.numbers.strides[0] if len(self.numbers) > 1 else 0
        self._kept_alive: list = []
        self._partial = self._results(program)
        self.views = self._geometries()
        self.rounds, self.first_of_round = rounds_of_plan(program, layout)
        self._batches = workspace_of(self)
        sliced = [
            (level, stage)
            for level, stage in program.stages()
            if isinstance(stage, Pass) and stage.has_slices(program.extents)
        ]
        self._sliced = {(level, stage.extent): SlicedPass(self, level, stage) for level, stage in sliced}
        tiles = [layout.tile_starts, *(one.starts for one in self._sliced.values())]
        self._scratch = np.zeros(max(1, *(int(starts[-1]) for starts in tiles)))
        self.records, self.results = [], {}
        for order, stage in program.order():
            self.records += self._records(order, stage)

    def give(self, numbers):
        """Set the numbers that the host gives, of all parameters."""
        if len(self.numbers) == 1:
            self._given.pack_into(self.numbers, 0, *numbers)
        else:
            self.numbers[:, : len(numbers)] = numbers

    def share(self, tensors):
        """Note where the slots are that are one number for the whole step."""
        for slot, tensor in zip(self.program.shared(), tensors):
            self.layout.table[:, slot] = tensor.storage.__array_interface__["data"][0]

    def kept_alive(self, array):
        """Return the address of an array, which lives as long as the plan."""
        self._kept_alive.append(array)
        return array.ctypes.data

    def _results(self, program):
        """Return the memory of the tiles' results by level."""
        tiles = self.layout.tile_starts[-1]
        passes = [
            (level, stage)
            for level, stage in program.stages()
            if isinstance(stage, Pass) and stage.reductions
        ]
        return {level: np.zeros((max(1, tiles), len(stage.reductions))) for level, stage in passes}

    def _geometries(self):
        """Return int64[rows, slots]: the addresses of the geometries; 0 for rows that have none."""
        found = np.zeros(self.layout.table.shape, np.int64)
        for place, geometry in self.layout.geometries.items():
            found[place] = self.kept_alive(geometry)
        return found

    def _records(self, order, stage):
        level = order[1]
        if isinstance(stage, Combine):
            return self._combine(order, stage)
        if isinstance(stage, Matrix):
            return [
                (order, Matrices(stage.guarded, self._matrices(stage, batches), number))
                for number, batches in enumerate(self._batches)
            ]
        if isinstance(stage, Pass) and (level, stage.extent) in self._sliced:
            found = self._sliced[level, stage.extent].records()
            found = [
                Record("run_sliced_chunk", stage.guarded, kernel, chunks, True, rows=rows)
                for kernel, chunks, rows in found
            ]
        elif isinstance(stage, Pass):
            found = [self._pass(level, stage, group) for group in self.layout.groups]
        elif isinstance(stage, Scalars):
            found = [self._scalars(stage, *kind) for kind in self.kinds_of(stage)]
        else:
            found = [Record("decide", False, 0, self.numbers.ctypes.data + 8 * stage.condition)]
        return [(order, record) for record in found]

    def _matrices(self, stage, batches):
        """Return a function that computes a function of matrices of the parameters of a round."""
        slots = *stage.sources, stage.output
        batches = [(own[:-1], own[-1]) for own in zip(*(batches.get(slot, []) for slot in slots))]
        return partial(run_matrix, stage.function, batches, Blas(self.backend.threads.allowed))

    def _pass(self, level, stage, group):
        layout, table, rows = self.layout, self.layout.table, group.chunks[:, 0]
        sums = self._partial.get(level)
        chunks = np.zeros((len(rows), CHUNK_FIELDS), np.int64)
        chunks[:, 0] = table.ctypes.data + rows * table.strides[0]
        chunks[:, 1:3], chunks[:, 3] = group.chunks[:, 1:], group.places
        chunks[:, 4] = self.numbers.ctypes.data + rows * self.stride
        if sums is not None:
            chunks[:, 5] = sums.ctypes.data + layout.first_tiles(group.chunks) * sums.strides[0]
            chunks[:, 6] = sums.strides[0]
        chunks[:, 7], chunks[:, 8] = self.views.ctypes.data + rows * self.views.strides[0], table.shape[1]
        function = "run_strided_chunk" if group.strided else "run_chunk"
        kernel = self.backend.kernel_of(stage, group).address
        return Record(function, stage.guarded, kernel, chunks, passes=True, rows=rows)

    def _combine(self, order, stage):
        """Return the records of the end of a reduction.

        They fold each parameter's tiles. If the reduction is over the step, more of them fold the results.
        """
        op, numbers = _OPS[stage.op], (self.numbers.ctypes.data, self.stride)
        if not isinstance(stage.over, str):
            entries, rows = self._sliced[stage.level, stage.extent].end(stage)
            found = [(order, Record("combine_slice", stage.guarded, op, entries, rows=rows))]
            return found if len(entries) else []
        if stage.over != "step":
            return [(order, self._fold_rows(stage, numbers[0] + 8 * stage.output, self.stride))]
        found = []
        if stage.source < 0:
            first, stride = numbers[0] + 8 * ~stage.source, self.stride
        else:
            first, stride = self.kept_alive(np.zeros(max(1, self.layout.n_rows))), 8
            found.append(((*order[:2], 0), self._fold_rows(stage, first, stride)))
        full = np.flatnonzero(np.diff(self.layout.tile_starts)).tolist()
        self.results[stage.rank] = [(self.places[row], first + row * stride) for row in full]
        entry = np.array([[numbers[0] + 8 * stage.output, self.stride, len(self.numbers)]], np.int64)
        return [*found, (order, Record("combine_step", stage.guarded, op, entry, rank=stage.rank))]

    def _fold_rows(self, stage, target, step):
        starts = np.zeros(self.layout.n_rows + 1, np.int64)
        if stage.source < 0:
            source = [0, self.numbers.ctypes.data + 8 * ~stage.source, self.stride]
        elif (stage.level, stage.extent) in self._sliced:
            sliced = self._sliced[stage.level, stage.extent]
            source, starts = sliced.source(stage.source), sliced.starts
        else:
            sums, starts = self._partial[stage.level], self.layout.tile_starts
            source = [starts.ctypes.data, sums.ctypes.data + 8 * stage.source, sums.strides[0]]
        entries, rows = [], self._rows_of_folds(starts)
        for first, last in itertools.pairwise(rows):
            own = [source[0] and source[0] + 8 * first, source[1] + (0 if source[0] else first * source[2])]
            place = self._scratch.ctypes.data + 8 * int(starts[first])
            entries.append([*own, source[2], last - first, target + first * step, step, place])
        entries, rows = np.array(entries, np.int64).reshape(-1, 7), rows[:-1] if self.rounds else None
        return Record("combine", stage.guarded, _OPS[stage.op], entries, rows=rows)

    def _rows_of_folds(self, starts):
        """Return the rows where the entries begin that fold so many tiles, and the end of the last."""
        rows = self.layout.n_rows
        if self.rounds:
            return [*range(rows + 1)]
        found = [0]
        for row in range(1, rows):
            if starts[row] - starts[found[-1]] >= _FOLDED:
                found.append(row)
        return [*found, rows]

    def _scalars(self, stage, dtypes, rows):
        table, function = self.layout.table, self.backend.scalars_of(stage, dtypes)
        numbers = self.numbers.ctypes.data, self.stride
        first, each = self.kept_alive(rows), bool(self.rounds) and stage.extent != STEP
        lists = [(1, first + 8 * place) for place in range(len(rows))] if each else [(len(rows), first)]
        entries = [[table.ctypes.data, table.shape[1], *numbers, *own] for own in lists]
        shares = stage.extent == STEP and not stage.outputs
        return Record(
            "run_scalars",
            stage.guarded,
            function.address,
            np.array(entries, np.int64),
            shares=shares,
            rows=rows if each else None,
        )


def in_order(plans):
    """Return the stages of several plans in the order in which they run.

    Returns
    -------
    segments : list of numpy.ndarray or Matrices
        int64[stages, FIELDS]: records that one call goes through; or what runs between two calls.
    entries : list of numpy.ndarray
        What the records point to, besides the memory of the plans.
    """
    found = [(order, record, plan) for plan in plans for order, record in plan.records]
    found.sort(key=lambda one: one[0])
    kept: list = []
    segments: list = []
    for part in in_rounds(found, plans):
        for apart, own in itertools.groupby(part, key=lambda one: isinstance(one[1], Matrices)):
            if apart:
                segments += [record for _, record, _ in own]
            else:
                segments.append(records_of([*own], plans, kept))
    return segments, kept


def records_of(found, plans, kept):
    """Return some stages as one list of records, and add what they point to to the list `kept`."""
    joined: dict = {}
    for number, (order, record, plan) in enumerate(found):
        alone = () if record.passes else (number,)
        joined.setdefault((order, *record[:3], *alone), []).append((record, plan))
    records = []
    for group in joined.values():
        record, plan = group[0]
        if isinstance(record.entries, int):
            place = [record.entries, 0, 1]
        else:
            entries = np.concatenate([own.entries for own, _ in group])
            if record.rank is not None:
                entries = _with_results(record, plan, plans, kept)
            kept.append(entries)
            place = [entries.ctypes.data, entries.strides[0], len(entries)]
        function = plan.backend.driver(record.function)
        records.append([record.guarded, record.passes, function.address, record.argument, *place])
    return np.array(records, np.int64).reshape(-1, FIELDS)


def _with_results(record, plan, plans, kept):
    """Return the entry of a reduction over the step, with the results of all parts of the call."""
    parts = parts_of(plan, record.rank, plans)
    results = sorted(result for part, rank in parts for result in part.results[rank])
    addresses = np.array([address for _, address in results], np.int64)
    scratch = np.zeros(max(1, len(results)))
    kept += [addresses, scratch]
    rest = [addresses.ctypes.data, len(addresses), scratch.ctypes.data]
    return np.array([[*record.entries[0].tolist(), *rest]], np.int64)
