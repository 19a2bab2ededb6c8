"""CpuPlan: the stages of a step as records that `nbopt_backends.cpu.drivers.run_stages` goes through."""

import math
from struct import Struct
from typing import NamedTuple

import numpy as np

from nbopt.language.stages import Combine, Pass, Scalars, axes_of
from nbopt_backends.cpu.drivers import (
    CHUNK_FIELDS,
    COMBINE,
    COMBINE_STEP,
    FIELDS,
    PASS,
    SCALARS,
    STRIDED_PASS,
    VERDICT,
)
from nbopt_backends.cpu.slices import SlicedPass, end_of, workspace_of
from nbopt_backends.meaning.tree import OPS
from nbopt_backends.plans.plan import Plan

_OPS = {op: number for number, op in enumerate(OPS)}


class Record(NamedTuple):
    """One stage as `run_stages` takes it.

    Attributes
    ----------
    kind : int
    guarded : bool
    fields : list of int
        From the third on.
    chunks : numpy.ndarray or None
        int64[chunks, CHUNK_FIELDS], of a pass.
    rank : int or None
        Of a reduction over the step: which one it is, see `Combine`.
    """

    kind: int
    guarded: bool
    fields: list
    chunks: np.ndarray | None = None
    rank: int | None = None


def _guarded(stage, kind, fields):
    return kind, stage.guarded, fields


class CpuPlan(Plan):
    """A plan whose tables are in the host's memory.

    Attributes
    ----------
    numbers : numpy.ndarray
        float64[rows, numbers]; one row if all parameters have the same.
    records : list of (tuple, Record)
        For each stage its place in the order of the step, see `Program.order`, and its record.
    elements : int
        Of all tensors.
    results : dict of int to list of (int, int)
        For each reduction over the step: each parameter's place in the list of all, and the address of what
        is reduced of it.
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
        if program.workspace:
            workspace_of(self)
        sliced = [
            (level, stage)
            for level, stage in program.stages()
            if isinstance(stage, Pass) and stage.has_slices(program.extents)
        ]
        self._sliced = {(level, stage.extent): SlicedPass(self, stage) for level, stage in sliced}
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
        if isinstance(stage, Pass) and (level, stage.extent) in self._sliced:
            sliced = self._sliced[level, stage.extent]
            found = [
                Record(*_guarded(stage, *sliced.record(group, flags)), chunks)
                for group, flags, chunks in sliced.records()
            ]
        elif isinstance(stage, Pass):
            found = [self._pass(level, stage, group) for group in self.layout.groups]
        elif isinstance(stage, Scalars):
            found = [self._scalars(stage, *kind) for kind in self.kinds_of(stage)]
        else:
            found = [self._verdict(stage)]
        return [(order, record) for record in found]

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
        return Record(
            STRIDED_PASS if group.strided else PASS,
            stage.guarded,
            [self.backend.kernel_of(stage, group).address],
            chunks,
        )

    def _combine(self, order, stage):
        """Return the records of the end of a reduction: of what folds each parameter's tiles, and over the
        step of what folds the results.
        """
        numbers = self.numbers.ctypes.data, self.stride
        if not isinstance(stage.over, str):
            return [(order, Record(*_guarded(stage, *end_of(stage, self._sliced))))]
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
        fields = [_OPS[stage.op], numbers[0] + 8 * stage.output, self.stride, len(self.numbers)]
        return [*found, (order, Record(COMBINE_STEP, stage.guarded, fields, rank=stage.rank))]

    def _fold_rows(self, stage, target, step):
        if stage.source < 0:
            source = [0, self.numbers.ctypes.data + 8 * ~stage.source, self.stride]
        elif (stage.level, stage.extent) in self._sliced:
            source = self._sliced[stage.level, stage.extent].source(stage.source)
        else:
            sums = self._partial[stage.level]
            source = [
                self.layout.tile_starts.ctypes.data,
                sums.ctypes.data + 8 * stage.source,
                sums.strides[0],
            ]
        fields = [_OPS[stage.op], *source, self.layout.n_rows, target, step, self._scratch.ctypes.data]
        return Record(COMBINE, stage.guarded, fields)

    def _scalars(self, stage, dtypes, rows):
        table, function = self.layout.table, self.backend.scalars_of(stage, dtypes)
        numbers = self.numbers.ctypes.data, self.stride
        fields = [
            function.address,
            table.ctypes.data,
            table.shape[1],
            *numbers,
            len(rows),
            self.kept_alive(rows),
        ]
        return Record(SCALARS, stage.guarded, fields)

    def _verdict(self, stage):
        return Record(VERDICT, False, [self.numbers.ctypes.data + 8 * stage.condition])


def in_order(plans):
    """Return the stages of several plans as one list of records, in the order in which they run.

    Passes at the same place that have the same kernel become one: parameters of several groups share a loop,
    whatever their numbers.

    Returns
    -------
    records : numpy.ndarray
        int64[stages, FIELDS].
    chunks : list of numpy.ndarray
        What the records point to, besides the memory of the plans.
    """
    entries = sorted((entry for plan in plans for entry in plan.records), key=lambda entry: entry[0])
    owner = {id(record): plan for plan in plans for _, record in plan.records}
    joined: dict = {}
    for number, (place, record) in enumerate(entries):
        alone = () if record.chunks is not None else (number,)  # passes are joined
        joined.setdefault(
            (place, record.kind, record.guarded, *(record.fields if not alone else ()), *alone), []
        ).append(record)
    records, kept = [], []
    for group in joined.values():
        fields = [group[0].kind, group[0].guarded, *group[0].fields]
        if group[0].rank is not None:
            parts = [
                plan
                for plan in plans
                if plan is owner[id(group[0])]
                or (plan.set is not None and plan.set == owner[id(group[0])].set)
            ]
            results = sorted(result for plan in parts for result in plan.results[group[0].rank])
            addresses, scratch = (
                np.array([address for _, address in results], np.int64),
                np.zeros(max(1, len(results))),
            )
            kept += [addresses, scratch]
            fields += [addresses.ctypes.data, len(addresses), scratch.ctypes.data]
        if group[0].chunks is not None:
            chunks = np.concatenate([record.chunks for record in group])
            kept.append(chunks)
            fields += [chunks.ctypes.data, len(chunks)]
        records.append(fields + [0] * (FIELDS - len(fields)))
    return np.array(records, np.int64).reshape(-1, FIELDS), kept
