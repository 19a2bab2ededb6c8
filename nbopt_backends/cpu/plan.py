"""CpuPlan: the stages of a step as records that `nbopt_backends.cpu.drivers.run_stages` goes through."""

from struct import Struct

import numpy as np

from nbopt.language.stages import ELEMENT, TENSOR, Combine, Pass, Scalars, Verdict
from nbopt_backends.cpu.drivers import COMBINE, FIELDS, PASS, SCALARS, STRIDED_PASS, VERDICT
from nbopt_backends.meaning.tree import OPS
from nbopt_backends.plans.plan import Plan

_OPS = {op: number for number, op in enumerate(OPS)}


class CpuPlan(Plan):
    """A plan whose tables are in the host's memory.

    Attributes
    ----------
    numbers : numpy.ndarray
        float64[rows, numbers]; one row if all parameters have the same.
    records : list of (tuple, list of int)
        For each stage its place in the order of the step, see `Program.order`, and its record.
    elements : int
        Of all tensors.
    """

    def __init__(self, backend, update, layout):
        super().__init__(backend, update, layout)
        program = update.program
        self.elements = sum(layout.sizes)
        self.numbers = np.zeros((len(layout.table) if program.differs() else 1, program.n_numbers))
        self._given = Struct(f"{program.n_given}d")
        if program.size is not None:
            self.numbers[: layout.n_rows, program.size] = layout.sizes
        self._stride = self.numbers.strides[0] if len(self.numbers) > 1 else 0
        self._kept_alive: list = []
        self._partial = self._results(program)
        self._scratch = np.zeros(max(1, layout.n_rows, layout.tile_starts[-1]))
        self._views = self._geometries()
        self.records = []
        for order, stage in program.order():
            for record in self._records(order, stage):
                self.records.append((order, record + [0] * (FIELDS - len(record))))

    def give(self, numbers):
        """Set the numbers that the host gives, of all parameters."""
        if len(self.numbers) == 1:
            self._given.pack_into(self.numbers, 0, *numbers)
        else:
            self.numbers[:, : len(numbers)] = numbers

    def share(self, tensors):
        """Note where the slots are that are one number for the whole step."""
        for place, tensor in enumerate(tensors, -len(tensors)):
            self.layout.table[:, place] = tensor.storage.__array_interface__["data"][0]

    def _address(self, array):
        self._kept_alive.append(array)
        return array.ctypes.data

    def _results(self, program):
        """Return the memory of the tiles' results by level."""
        tiles = self.layout.tile_starts[-1]
        passes = [(level, stage) for level, stage in program.stages() if isinstance(stage, Pass) and stage.reductions]
        return {level: np.zeros((max(1, tiles), len(stage.reductions))) for level, stage in passes}

    def _geometries(self):
        """Return int64[rows, slots]: the addresses of the geometries; 0 for rows that have none."""
        found = np.zeros(self.layout.table.shape, np.int64)
        for place, geometry in self.layout.geometries.items():
            found[place] = self._address(geometry)
        return found

    def _records(self, order, stage):
        level = order[1]
        if isinstance(stage, Pass):
            return [self._pass(level, stage, group) for group in self.layout.groups]
        return [{Combine: self._combine, Scalars: self._scalars, Verdict: self._verdict}[type(stage)](stage)]

    def _pass(self, level, stage, group):
        layout, table = self.layout, self.layout.table
        kernel = self.backend.kernel_of(stage, group)
        sums = self._partial.get(level)
        record = [STRIDED_PASS if group.strided else PASS, stage.guarded, kernel.address, table.ctypes.data, table.shape[1]]
        record += [group.chunks.ctypes.data, len(group.chunks), group.places.ctypes.data, self.numbers.ctypes.data, self._stride]
        record += [0, 0, 0] if sums is None else [sums.ctypes.data, sums.shape[1], self._address(layout.first_tiles(group.chunks))]
        return [*record, self._views.ctypes.data]

    def _combine(self, stage):
        layout = self.layout
        if stage.source < 0:
            source = [0, ~stage.source]
        else:
            sums = self._partial[stage.level]
            source = [sums.ctypes.data + 8 * stage.source, sums.strides[0]]
        record = [COMBINE, stage.guarded, _OPS[stage.op], stage.over == "step", *source, layout.tile_starts.ctypes.data, layout.n_rows]
        return [*record, self.numbers.ctypes.data, self._stride, stage.output, self._scratch.ctypes.data, len(self.numbers)]

    def _scalars(self, stage):
        table = self.layout.table
        dtypes = dict(zip(range(self.program.extents.count(ELEMENT), len(self.program.names)), (dtype.name for dtype in self.shared)))
        function = self.backend.scalars_of(stage, {line[1]: dtypes[line[1]] for line in stage.code if line[0] in ("load", "store", "round")})
        rows = len(self.numbers) if stage.extent == TENSOR or stage.outputs else 1
        record = [SCALARS, stage.guarded, function.address, table.ctypes.data, table.shape[1], self.numbers.ctypes.data, self._stride]
        return [*record, rows]

    def _verdict(self, stage):
        return [VERDICT, False, self.numbers.ctypes.data + 8 * stage.condition]


def in_order(plans):
    """Return the records of several plans as int64[stages, FIELDS], in the order in which they run."""
    records = [entry for plan in plans for entry in plan.records]
    return np.array([record for _, record in sorted(records, key=lambda entry: entry[0])], np.int64).reshape(-1, FIELDS)
