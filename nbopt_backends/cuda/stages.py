"""Stages: the launches of a program's stages over a layout, and what they need in device memory."""

from typing import NamedTuple

import numpy as np

from nbopt.language.stages import Matrix, Pass, Scalars, Verdict
from nbopt_backends.cuda.ends import Ends, ends_kernel
from nbopt_backends.cuda.kernels import goes_by_tiles, threads_per_chunk
from nbopt_backends.cuda.numbers import run_text
from nbopt_backends.cuda.pack import Pack
from nbopt_backends.cuda.walks import Walks, on_device
from nbopt_backends.matrices.stage import needed, run_matrix
from nbopt_backends.meaning.tree import TILE
from nbopt_backends.meaning.xoroshiro import BLOCK

LARGEST_CHUNK = 16384  # elements; `asv_bench/gpu.py --tune` times others


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
    ends : Ends
    matrices : Matrices or None
    """

    def __init__(self, backend, plan):
        program, layout = plan.program, plan.layout
        self.program = program
        self._backend, self._layout, self._image = backend, layout, plan.image
        passes = [(level, stage) for level, stage in program.stages() if isinstance(stage, Pass)]
        with_slices = [(level, stage) for level, stage in passes if stage.has_slices(program.extents)]
        self._walks = {
            (level, stage.extent): Walks(backend, program, layout, stage) for level, stage in with_slices
        }
        self.passes = (len(passes) - len(with_slices)) * len(layout.groups) + sum(
            len(walks.parts) for walks in self._walks.values()
        )
        pack = Pack()
        self.taken = pack.add(np.ones(2, np.int64))
        self._chunks = self._chunk_tables(pack)
        scalars = [stage for _, stage in program.stages() if isinstance(stage, Scalars)]
        self._rows = {
            stage: [(dtypes, pack.add(rows)) for dtypes, rows in plan.kinds_of(stage)] for stage in scalars
        }
        geometries = {place: pack.add(geometry) for place, geometry in layout.geometries.items()}
        self._views = pack.add(np.zeros(layout.table.shape, np.int64))
        results = {
            (level, stage.extent): self._results(pack, level, stage)
            for level, stage in passes
            if stage.reductions
        }
        pack.allocate(backend)
        for place, geometry in geometries.items():
            self._views.values[place] = geometry.address
        backend.upload(pack.device, pack.host)
        self._memory = pack.device
        self._sums = {place: memory.address for place, (memory, _) in results.items()}
        self.ends = Ends(backend, plan, results, self._walks)
        self.matrices = Matrices(backend, plan) if program.matrices() else None

    # --- tables ---

    def _chunk_tables(self, pack):
        """Return the chunk table for each group and each of the two sizes of chunks that passes need."""
        layout, tables = self._layout, {}
        passes = [stage for stage in self.program.passes() if not stage.has_slices(self.program.extents)]
        coarse, starts = _chunk(self._backend.device, layout), np.zeros(layout.n_rows, np.int64)
        for number, group in enumerate(layout.groups):
            starts[group.rows] = group.first_blocks
            for tiles in {goes_by_tiles(stage, group.dtypes, group.kept) for stage in passes}:
                table = group.cut(TILE if tiles else coarse)
                blocks = starts[table[:, 0]] + table[:, 1] // BLOCK
                tables[number, tiles] = pack.add(np.column_stack([table, blocks, layout.first_tiles(table)]))
        return tables

    def _results(self, pack, level, stage):
        """Return the memory of the results of a pass's tiles, and where each row's begin."""
        walks = self._walks.get((level, stage.extent))
        if walks is not None:
            return walks.sums, pack.add(walks.starts)
        starts = self._layout.tile_starts
        return self._backend.allocate((int(starts[-1]), len(stage.reductions)), np.float64), pack.add(starts)

    # --- launches ---

    def launches(self, taken):
        """Return the launches of all stages but the verdicts, and the ends of reductions over the step.

        Parameters
        ----------
        taken : int
            The address at which the step's verdict is.

        Returns
        -------
        list of (tuple, (kernel, int, tuple))
            The place in the order of the step, see `Program.order`; kernel, blocks, arguments. Of a function
            of matrices: None, 0, and what queues it on a stream.
        """
        found = self.ends.launches.copy()
        for place, stage in self.program.order():
            if isinstance(stage, Pass):
                found += [(place, launch) for launch in self._passes(place[1], stage, taken)]
            elif isinstance(stage, Matrix):
                found.append((place, self.matrices.launch(stage)))
            elif isinstance(stage, Scalars):
                found += [(place, self._scalars(stage, taken, *kind)) for kind in self._rows[stage]]
        return found

    def conditions(self):
        """Return the place of each verdict in the order of the step, and the address of its condition."""
        numbers = self._image.numbers.address
        return [
            (place, numbers + 8 * stage.condition)
            for place, stage in self.program.order()
            if isinstance(stage, Verdict)
        ]

    def _passes(self, level, stage, taken):
        """Return the launches of a pass."""
        backend, image, shared = self._backend, self._image, not self.program.differs()
        random = backend.counter.address or image.random.address
        numbers = image.numbers.address, image.stride, random
        last = taken, self._sums.get((level, stage.extent), 0)
        walks, found = self._walks.get((level, stage.extent)), []
        for group, kinds, chunks, _ in walks.parts if walks else ():
            kernel = backend.kernel(
                backend.walk_text(self.program, stage, group, kinds), backend.stem, "update"
            )
            arguments = (
                image.table.address,
                chunks.address,
                chunks.shape[0],
                *numbers,
                self._views.address,
                *last,
            )
            found.append((kernel, backend.device.blocks(chunks.shape[0]), arguments))
        for number, group in enumerate(self._layout.groups if walks is None else ()):
            chunks = self._chunks[number, goes_by_tiles(stage, group.dtypes, group.kept)]
            threads = threads_per_chunk(stage, group.dtypes, group.strided, group.kept)
            kernel = backend.kernel(backend.text(stage, group, shared), backend.stem, "update")
            arguments = (
                image.table.address,
                chunks.address,
                len(chunks.values),
                *numbers,
                self._views.address,
                *last,
            )
            found.append((kernel, backend.device.blocks(len(chunks.values), threads), arguments))
        return found

    def _scalars(self, stage, taken, dtypes, rows):
        backend, image, n_rows = self._backend, self._image, len(rows.values)
        text = run_text(stage, backend.dialect(), dtypes)
        arguments = (
            image.table.address,
            image.table.values.shape[1],
            image.numbers.address,
            image.stride,
            rows.address,
            n_rows,
            taken,
        )
        return (
            backend.kernel(backend.marked(text), "cuda_numbers", "run"),
            backend.device.blocks(n_rows, 1),
            arguments,
        )


class Matrices:
    """The functions of matrices of a plan.

    Parameters
    ----------
    backend : DeviceBackend
    plan : DevicePlan
    """

    def __init__(self, backend, plan):
        self._library = backend.device.products(backend.device_id, backend.streams.library)
        self._plan = plan.batches
        shapes = [(shape[1:], dtype) for own in plan.batches.values() for _, shape, dtype in own]
        self.size = max(
            needed(
                stage.function,
                [shape for shape, _ in shapes],
                8 if any(dtype == "float64" for _, dtype in shapes) else 4,
            )
            for stage in plan.program.matrices()
        )

    def reserve(self):
        """Make sure that there is memory for the products."""
        self._library.reserve(self.size)

    def launch(self, stage):
        """Return what `Stages.launches` does for a function of matrices.

        It is computed in skipped steps as well, since the host doesn't know of them; its result is stored by
        later passes alone.
        """
        library = self._library
        slots = *stage.sources, stage.output
        arrays = {slot: [library.batch(*one) for one in self._plan.get(slot, [])] for slot in slots}
        batches = [(own[:-1], own[-1]) for own in zip(*(arrays[slot] for slot in slots))]

        def queue(stream):
            with library.on(stream):
                run_matrix(stage.function, batches, library)

        return None, 0, queue


class Joined(NamedTuple):
    """What runs the stages of several plans together.

    Attributes
    ----------
    others : list of DevicePlan
        The plans but the first, whose own this is.
    launches : list of callable
        What queues each of them on a stream, given its handle; in their order.
    matrices : list of Matrices
    passes : int
        How many of them are passes.
    memory : list of DeviceArray
        What they take besides the memory of the plans.
    counter : int or None
        The backend's `Counter.address` that they were made for.
    """

    others: list
    launches: list
    matrices: list
    passes: int
    memory: list
    counter: int | None


def joined(plans):
    """Return the launches of several plans in the order of a step.

    What is guarded in any looks at one verdict.
    """
    backend, stages = plans[0].backend, [plan.stages for plan in plans]
    conditions = [condition for one in stages for condition in one.conditions()]
    taken = stages[0].taken.address if conditions else stages[0].taken.address + 8
    entries = [entry for one in stages for entry in one.launches(taken)]
    for number, (place, address) in enumerate(sorted(conditions)):
        entries.append((place, (ends_kernel(backend, "judge"), 1, (address, int(number == 0), taken))))
    memory = _join_step_ends(plans, entries)
    entries.sort(key=lambda entry: entry[0])
    matrices = [one.matrices for one in stages if one.matrices]
    launches = [
        arguments if kernel is None else backend.device.prepared(kernel, blocks, arguments)
        for _, (kernel, blocks, arguments) in entries
    ]
    passes = sum(one.passes for one in stages)
    return Joined(plans[1:], launches, matrices, passes, memory, backend.counter.address)


def _join_step_ends(plans, entries):
    """Add the ends of reductions over the step to the entries, and return what memory they take.

    Those of plans that are parts of one call are over the parameters of all of them.
    """
    found = []
    for plan in plans:
        parts = [part for part in plans if part is plan or (plan.set is not None and part.set == plan.set)]
        for level, stages in plan.stages.ends.over_the_step.items():
            results = [
                sorted(result for part in parts for result in _results_of(part, stage.rank))
                for stage in stages
            ]
            addresses = np.array([[address for _, address in own] for own in results], np.int64)
            found.append((plan.stages.ends, level, on_device(plan.backend, addresses)))
    tables = [table for _, _, table in found]
    scratch = plans[0].backend.allocate((max((table.size for table in tables), default=0),), np.float64)
    entries += [
        ((False, level, 1), ends.fold_rows(level, table, scratch.address)) for ends, level, table in found
    ]
    return [*tables, scratch]


def _results_of(plan, rank):
    """Return what the reduction over the step with this rank is over, of a plan's parameters."""
    ends = plan.stages.ends
    return next(
        ends.results(stage)
        for stages in ends.over_the_step.values()
        for stage in stages
        if stage.rank == rank
    )


def _chunk(device, layout):
    """Return the elements of a chunk: large, but small enough that every processor of the GPU gets some."""
    elements = sum(group.elements for group in layout.groups)
    chunk = LARGEST_CHUNK
    while chunk > 1024 and elements < chunk * device.resident_blocks:
        chunk //= 2
    return chunk
