"""Stages: the launches of a program's stages over a layout, and what they need in device memory."""

from typing import NamedTuple

import numpy as np

from nbopt.language.stages import Combine, Pass, Scalars, Verdict
from nbopt_backends.cuda.kernels import goes_by_tiles, threads_per_chunk
from nbopt_backends.cuda.numbers import ends_text, run_text
from nbopt_backends.cuda.pack import Pack
from nbopt_backends.meaning.tree import OPS, TILE
from nbopt_backends.meaning.xoroshiro import BLOCK

LARGEST_CHUNK = 16384  # elements; `asv_bench/gpu.py --tune` times others
_OPS = {op: number for number, op in enumerate(OPS)}


class Stages:
    """What the launches of a program's stages take that stays: it is copied to the device once.

    Parameters
    ----------
    backend : DeviceBackend
    plan : DevicePlan
        Its image is there already.

    Attributes
    ----------
    taken : Part
        Two int64: whether the step is taken, and 1, which is read where nothing judges.
    passes : int
        How many of the launches are passes.
    """

    def __init__(self, backend, plan):
        program, layout = plan.program, plan.layout
        self.program, self.passes = program, len(program.passes()) * len(layout.groups)
        self._backend, self._layout, self._image = backend, layout, plan.image
        pack = Pack()
        self.taken = pack.add(np.ones(2, np.int64))
        self._starts = pack.add(layout.tile_starts)
        self._full = pack.add(np.flatnonzero(np.diff(layout.tile_starts)))
        self._chunks = self._chunk_tables(pack)
        scalars = [stage for _, stage in program.stages() if isinstance(stage, Scalars)]
        self._rows = {stage: [(dtypes, pack.add(rows)) for dtypes, rows in plan.kinds_of(stage)] for stage in scalars}
        geometries = {place: pack.add(geometry) for place, geometry in layout.geometries.items()}
        self._views = pack.add(np.zeros(layout.table.shape, np.int64))
        self._sums = self._results()
        self._ends = self._end_tables(pack)
        most = max((len(ends) for ends, _ in self._ends.values()), default=0) * len(self._full.values)
        self._scratch = backend.allocate((most,), np.float64)
        pack.allocate(backend)
        for place, geometry in geometries.items():
            self._views.values[place] = geometry.address
        backend.upload(pack.device, pack.host)
        self._memory = pack.device

    # --- tables ---

    def _chunk_tables(self, pack):
        """Return the chunk table for each group and each of the two sizes of chunks that passes need."""
        layout, tables = self._layout, {}
        coarse, starts = _chunk(self._backend.device, layout), np.zeros(layout.n_rows, np.int64)
        for number, group in enumerate(layout.groups):
            starts[group.rows] = group.first_blocks
            for tiles in {goes_by_tiles(stage, group.dtypes, group.kept) for stage in self.program.passes()}:
                table = group.cut(TILE if tiles else coarse)
                blocks = starts[table[:, 0]] + table[:, 1] // BLOCK
                tables[number, tiles] = pack.add(np.column_stack([table, blocks, layout.first_tiles(table)]))
        return tables

    def _results(self):
        """Return the memory of the tiles' results by level."""
        tiles = int(self._layout.tile_starts[-1])
        passes = [(level, stage) for level, stage in self.program.stages() if isinstance(stage, Pass) and stage.reductions]
        return {level: self._backend.allocate((tiles, len(stage.reductions)), np.float64) for level, stage in passes}

    def _end_tables(self, pack):
        """Return the ends of reductions by the level at which they are known, each with its records."""
        ends: dict[int, list] = {}
        for level, stage in self.program.stages():
            if isinstance(stage, Combine):
                ends.setdefault(level, []).append(stage)
        return {level: (found, pack.add(np.array([self._record(end) for end in found], np.int64))) for level, found in ends.items()}

    def _record(self, end):
        if end.source < 0:
            source = [0, ~end.source]
        else:
            sums = self._sums[end.level]
            source = [sums.address + 8 * end.source, sums.strides[0]]
        return [_OPS[end.op], end.over == "step", *source, end.output]

    # --- launches ---

    def launches(self, taken):
        """Return the launches of all stages but the verdicts.

        Parameters
        ----------
        taken : int
            The address at which the step's verdict is.

        Returns
        -------
        list of (tuple, (kernel, int, tuple))
            The place in the order of the step, see `Program.order`; kernel, blocks, arguments.
        """
        # Where a step is not taken, the ends of guarded reductions are of no use, and do no harm.
        found = [((False, level, 0), launch) for level in self._ends for launch in self._folds(level)]
        for place, stage in self.program.order():
            if isinstance(stage, Pass):
                found += [(place, self._pass(place[1], stage, number, taken)) for number in range(len(self._layout.groups))]
            elif isinstance(stage, Scalars):
                found += [(place, self._scalars(stage, taken, *kind)) for kind in self._rows[stage]]
        return found

    def conditions(self):
        """Return the place of each verdict in the order of the step, and the address of its condition."""
        numbers = self._image.numbers.address
        return [(place, numbers + 8 * stage.condition) for place, stage in self.program.order() if isinstance(stage, Verdict)]

    def _pass(self, level, stage, number, taken):
        backend, image, group = self._backend, self._image, self._layout.groups[number]
        chunks = self._chunks[number, goes_by_tiles(stage, group.dtypes, group.kept)]
        n_chunks = len(chunks.values)
        arguments = [
            image.table.address,
            chunks.address,
            n_chunks,
            image.numbers.address,
            image.stride,
            image.random.address,
            self._views.address,
        ]
        arguments += [taken, self._sums[level].address if stage.reductions else 0]
        threads = threads_per_chunk(stage, group.dtypes, group.strided, group.kept)
        return (
            backend.kernel(backend.text(stage, group, not self.program.differs()), backend.stem, "update"),
            backend.device.blocks(n_chunks, threads),
            tuple(arguments),
        )

    def _folds(self, level):
        """Return the launches that end the reductions that are known at a level."""
        (ends, records), image, rows = self._ends[level], self._image, self._layout.n_rows
        blocks = self._backend.device.blocks
        first = (records.address, len(ends), self._starts.address)
        numbers = (image.numbers.address, image.stride)
        found = []
        if any(end.over == "tensor" or end.source >= 0 for end in ends):
            found.append((ends_kernel(self._backend, "fold_tiles"), blocks(len(ends) * rows), (*first, rows, *numbers)))
        if any(end.over == "step" for end in ends):
            arguments = (
                self._full.address,
                len(self._full.values),
                *numbers,
                len(image.numbers.values),
                self._scratch.address,
            )
            found.append((ends_kernel(self._backend, "fold_rows"), blocks(len(ends)), (*first, *arguments)))
        return found

    def _scalars(self, stage, taken, dtypes, rows):
        backend, image, n_rows = self._backend, self._image, len(rows.values)
        text = run_text(stage, backend.dialect(), dtypes)
        arguments = image.table.address, image.table.values.shape[1], image.numbers.address, image.stride, rows.address, n_rows, taken
        return backend.kernel(backend.marked(text), "cuda_numbers", "run"), backend.device.blocks(n_rows, 1), arguments


def ends_kernel(backend, name):
    """Return a kernel of `numbers.ends_text`."""
    return backend.kernel(backend.marked(ends_text(backend.dialect())), "cuda_numbers", name)


class Joined(NamedTuple):
    """What runs the stages of several plans together.

    Attributes
    ----------
    others : list of DevicePlan
        The plans but the first, whose own this is.
    launches : list of (kernel, int, tuple)
        Kernel, blocks, arguments; in their order.
    passes : int
        How many of them are passes.
    """

    others: list
    launches: list
    passes: int


def joined(plans):
    """Return the launches of several plans in the order of a step. What is guarded in any looks at one verdict."""
    backend, stages = plans[0].backend, [plan.stages for plan in plans]
    conditions = [condition for one in stages for condition in one.conditions()]
    taken = stages[0].taken.address if conditions else stages[0].taken.address + 8
    entries = [entry for one in stages for entry in one.launches(taken)]
    for number, (place, address) in enumerate(sorted(conditions)):
        entries.append((place, (ends_kernel(backend, "judge"), 1, (address, int(number == 0), taken))))
    entries.sort(key=lambda entry: entry[0])
    return Joined(plans[1:], [launch for _, launch in entries], sum(one.passes for one in stages))


def _chunk(device, layout):
    """Return the elements of a chunk: large, but small enough that every processor of the GPU gets some."""
    elements = sum(group.elements for group in layout.groups)
    chunk = LARGEST_CHUNK
    while chunk > 1024 and elements < chunk * device.resident_blocks:
        chunk //= 2
    return chunk
