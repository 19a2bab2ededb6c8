"""Stages: the launches of a program's stages over a layout, and what they need in device memory."""

from functools import partial
from typing import NamedTuple

import numpy as np

from nbopt.interface.update import parts_of
from nbopt.language.lines import LEAVES, STEP
from nbopt.language.stages import Combine, Matrix, Pass, Scalars, Verdict
from nbopt_backends.cuda.closing import NODE_FIELDS, close_text
from nbopt_backends.cuda.ends import Ends
from nbopt_backends.cuda.fused import planned
from nbopt_backends.cuda.kernels import goes_by_tiles, threads_per_chunk, update_text
from nbopt_backends.cuda.launches import Kernel, PassLaunch, Queued
from nbopt_backends.cuda.matrices import Matrices
from nbopt_backends.cuda.nodes import Nodes
from nbopt_backends.cuda.pack import Pack
from nbopt_backends.cuda.slices import slices_text
from nbopt_backends.cuda.small import Small, named_text, scalars_text
from nbopt_backends.cuda.turns import LAST, Turns, is_in
from nbopt_backends.cuda.walks import Walks, on_device
from nbopt_backends.meaning.tree import TILE
from nbopt_backends.meaning.xoroshiro import BLOCK

LARGEST_CHUNK = 4096  # elements; `asv_bench/gpu.py --tune` times others
_LAST = (True, LAST, 0, 0)  # behind all places in the order of a step


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
        self.turns, self.passes = Turns(plan), 0
        self._round_of = np.zeros(layout.n_rows, np.int64)
        for number, rows in enumerate(plan.rounds, 1):
            self._round_of[rows] = number
        passes = [(place, stage) for place, stage in program.order() if isinstance(stage, Pass)]
        with_slices = [(place, stage) for place, stage in passes if stage.has_slices(program.extents)]
        self._walks = {
            (place[1], stage.extent): Walks(backend, program, layout, stage, self.turns.of(place))
            for place, stage in with_slices
        }
        pack = Pack()
        self.taken = pack.add(np.ones(2, np.int64))
        self._nodes = Nodes(np.diff(layout.tile_starts))
        nodes = pack.add(self._nodes.table)
        self._chunks = self._chunk_tables(pack)
        self._rows: dict = {}
        for place, stage in program.order():
            if isinstance(stage, Scalars):
                self._rows[place, stage] = [*self._kinds(pack, plan, place, stage)]
        geometries = {place: pack.add(geometry) for place, geometry in layout.geometries.items()}
        self._views = pack.add(np.zeros(layout.table.shape, np.int64))
        results = {
            (place[1], stage.extent): self._results(pack, place[1], stage)
            for place, stage in passes
            if stage.reductions
        }
        closed = {place: Nodes(np.diff(walks.starts)) for place, walks in self._walks.items()}
        self._leaves = {
            (key, number): pack.add(closed[key].leaves(rows))
            for key, place in {(place[1], stage.extent): place for place, stage in with_slices}.items()
            for number, rows in self.turns.of(place)
        }
        tables = {place: pack.add(own.table) for place, own in closed.items()}
        pack.allocate(backend)
        for place, geometry in geometries.items():
            self._views.values[place] = geometry.address
        nodes.values[...] = self._nodes.at(nodes.address)
        for chunks in self._chunks.values():
            chunks.values[:, 5] = nodes.address + 8 * NODE_FIELDS * chunks.values[:, 5]
        for place, table in tables.items():
            table.values[...] = closed[place].at(table.address)
            for (key, _), leaves in self._leaves.items():
                if key == place:
                    leaves.values[:] = table.address + 8 * NODE_FIELDS * leaves.values
        backend.upload(pack.device, pack.host)
        self._memory = pack.device
        self._sums = {place: memory.address for place, (memory, _) in results.items()}
        self.ends = Ends(backend, plan, results, self._walks, self.turns)
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
                table = table[np.argsort(self._round_of[table[:, 0]], kind="stable")]
                blocks = starts[table[:, 0]] + table[:, 1] // BLOCK
                nodes = self._nodes.of_results(table[:, 0], table[:, 1] // TILE)
                tables[number, tiles] = pack.add(
                    np.column_stack([table, blocks, layout.first_tiles(table), nodes])
                )
        return tables

    def _kinds(self, pack, plan, place, stage):
        """Yield the place of each launch of scalar code, its dtypes, and the table of its rows."""
        for dtypes, rows in plan.kinds_of(stage):
            if stage.extent == STEP:
                yield self.turns.of_step(place, not stage.outputs), dtypes, pack.add(rows)
                continue
            for number, own in self.turns.of(place):
                mine = np.array([row for row in rows.tolist() if is_in(row, own)], np.int64)
                if len(mine):
                    yield self.turns.at(place, number), dtypes, pack.add(mine)

    def _results(self, pack, level, stage):
        """Return the memory of the results of a pass's tiles, and where each row's begin."""
        walks = self._walks.get((level, stage.extent))
        if walks is not None:
            return walks.sums, pack.add(walks.starts)
        starts = self._layout.tile_starts
        return self._backend.allocate((int(starts[-1]), len(stage.reductions)), np.float64), pack.add(starts)

    # --- launches ---

    def entries(self, taken, alone):
        """Return what all stages take but the verdicts, and the ends of reductions over the step.

        Parameters
        ----------
        taken : int
            The address at which the step's verdict is.
        alone : bool
            Whether no other program is part of the step.

        Returns
        -------
        list of (tuple, PassLaunch or Small or Kernel or Queued)
            The place in the order of the step, see `Turns.at`.
        """
        found, self.passes = self.ends.entries.copy(), 0
        for place, stage in self.program.order():
            if isinstance(stage, Scalars):
                early = self._earliest(place, stage) if alone and not self.turns.many else place
                for at, *kind in self._rows[place, stage]:
                    at = at if early == place else self.turns.at(early)
                    found.append((at, self._scalars(stage, taken, *kind)))
            for number, rows in self.turns.of(place):
                at = self.turns.at(place, number)
                if isinstance(stage, Pass):
                    found += [(at, one) for one in self._passes(place[1], stage, taken, number, rows)]
                elif isinstance(stage, Matrix):
                    found.append((at, Queued(self.matrices.launch(stage, number))))
        return found

    def _earliest(self, place, stage):
        """Return where a stage of scalar code can stand: counters, which come last, as soon as all is known.

        They stand where reductions end, so that they run at the end of a pass.
        """
        program, code = self.program, stage.code
        if not place[0] or stage.outputs:
            return place
        needed = {value for line in code for value in _operands(line) if value < 0}
        slots = {line[1] for line in code if line[0] in ("load", "store")}
        level = program.verdict or 0 if ("taken",) in code else 0
        for at, other in program.stages()[: -len(program.ends)]:
            if isinstance(other, Pass) and not slots.isdisjoint(other.used()):
                return place
            known = [other.output] if isinstance(other, Combine) else ()
            if isinstance(other, Scalars):
                known = [output for _, output in other.outputs]
                if not slots.isdisjoint(line[1] for line in other.code if line[0] in ("load", "store")):
                    level = max(level, at)
            if not needed.isdisjoint(~number for number in known):
                level = max(level, at)
        ends = [at for at, other in program.stages() if isinstance(other, Combine) and at >= level]
        return (False, min(ends), place[2]) if ends else place

    def conditions(self):
        """Return the place of each verdict in the order of the step, and the address of its condition."""
        numbers = self._image.numbers.address
        return [
            (place, numbers + 8 * stage.condition)
            for place, stage in self.program.order()
            if isinstance(stage, Verdict)
        ]

    def _passes(self, level, stage, taken, number, rows):
        """Return the launches of a pass in a round, and of what ends its reductions if it knows slices."""
        backend, image, shared = self._backend, self._image, not self.program.differs()
        random = backend.counter.address or image.random.address
        numbers = image.numbers.address, image.stride, random
        last = taken, self._sums.get((level, stage.extent), 0)
        outputs = tuple(self.ends.outputs.get((level, stage.extent), ()))
        walks, found = self._walks.get((level, stage.extent)), []

        def arguments(address, n_chunks):
            return image.table.address, address, n_chunks, *numbers, self._views.address, *last

        for turn, group, kinds, chunks, _ in walks.parts if walks else ():
            if turn == number:
                form = group.dtypes, group.arithmetic, group.strided, group.kept, shared
                text = slices_text(stage, self.program.extents, kinds, backend.dialect(), *form)
                n_chunks = chunks.shape[0]
                given, blocks = (*arguments(chunks.address, n_chunks), 0), backend.device.blocks(n_chunks)
                found.append(Kernel(backend.marked(text), backend.stem, "update", blocks, given))
        self.passes += len(found)
        if found and stage.reductions:
            leaves = self._leaves[(level, stage.extent), number]
            parameters = sum(is_in(row, rows) for row in np.flatnonzero(np.diff(walks.starts)).tolist())
            given = leaves.address, len(leaves.values), *numbers[:2], last[1]
            text = partial(close_text, stage, backend.dialect())
            blocks = backend.device.blocks(len(leaves.values))
            found.append(PassLaunch(text, "close", blocks, given, parameters, True, False, outputs))
        for place, group in enumerate(self._layout.groups if walks is None else ()):
            chunks = self._chunks[place, goes_by_tiles(stage, group.dtypes, group.kept)]
            address, n_chunks = self._in_round(chunks, number)
            if not n_chunks:
                continue
            threads = threads_per_chunk(stage, group.dtypes, group.strided, group.kept)
            kind = group.dtypes, group.arithmetic, group.strided, group.kept, shared
            text = partial(update_text, stage, backend.dialect(), *kind)
            given, blocks = arguments(address, n_chunks), backend.device.blocks(n_chunks, threads)
            reduces, begins = bool(stage.reductions), self._begins(stage, blocks)
            arrivals = sum(is_in(row, rows) for row in group.rows) if reduces else blocks
            found.append(PassLaunch(text, "update", blocks, given, arrivals, reduces, begins, outputs))
            self.passes += 1
        return found

    def _begins(self, stage, blocks):
        """Return whether the blocks of a pass can each run the small stages before it.

        That costs as much time as a launch of their own if the GPU runs all blocks at once, and more if not.
        A pass that may be left out reads the verdict of stages before it.
        """
        return not stage.guarded and blocks <= self._backend.device.resident_blocks

    def _in_round(self, chunks, number):
        """Return the address and the length of the part of a table of chunks that a round goes over."""
        if not number:
            return chunks.address, len(chunks.values)
        turns = self._round_of[chunks.values[:, 0]]
        first, last = np.searchsorted(turns, (number, number + 1)).tolist()
        return chunks.address + first * chunks.values.strides[0], last - first

    def _scalars(self, stage, taken, dtypes, rows):
        backend, image, n_rows = self._backend, self._image, len(rows.values)
        arguments = (
            image.table.address,
            image.table.values.shape[1],
            image.numbers.address,
            image.stride,
            rows.address,
            n_rows,
            taken,
        )
        text = scalars_text(stage, backend.dialect(), dtypes)
        repeatable = all(line[0] != "store" for line in stage.code)
        return Small(text, "run", arguments, backend.device.blocks(n_rows, 1), repeatable)


def _operands(line):
    """Return the operands of a line of scalar code."""
    op, *rest = line
    return [] if op in LEAVES else rest[1:2] if op in ("store", "round") else rest


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
    counts : bool
        Whether they count the update there.
    """

    others: list
    launches: list
    matrices: list
    passes: int
    memory: list
    counter: int | None
    counts: bool


def joined(plans, counts):
    """Return the launches of several plans in the order of a step; see `Joined`."""
    launches, memory = planned_together(plans, counts)
    backend, stages = plans[0].backend, [plan.stages for plan in plans]
    prepared = [launch.prepared(backend) for launch in launches]
    matrices = [one.matrices for one in stages if one.matrices]
    passes = sum(one.passes for one in stages)
    return Joined(plans[1:], prepared, matrices, passes, memory, backend.counter.address, counts)


def planned_together(plans, counts):
    """Return the launches of several plans, not compiled yet, and what memory they take.

    What is guarded in any looks at one verdict.

    Parameters
    ----------
    plans : list of DevicePlan
    counts : bool
        Whether the launches count the update in memory.

    Returns
    -------
    list of Kernel or Queued
    list of DeviceArray
    """
    backend, stages = plans[0].backend, [plan.stages for plan in plans]
    conditions = [condition for one in stages for condition in one.conditions()]
    taken = stages[0].taken.address if conditions else stages[0].taken.address + 8
    entries = [entry for one in stages for entry in one.entries(taken, len(plans) == 1)]
    for number, (place, address) in enumerate(sorted(conditions)):
        arguments = address, int(number == 0), taken
        place = stages[0].turns.at(place)
        entries.append((place, Small(named_text("judge"), "judge", arguments, 1)))
    if counts:
        entries.append((_LAST, backend.counter.stage(backend.counter.address or 0)))
    memory = _join_step_ends(plans, entries)
    launches, used = planned(backend, entries)
    return launches, memory + used


def _join_step_ends(plans, entries):
    """Add the ends of reductions over the step to the entries, and return what memory they take.

    Some are over the parameters of several plans, see `nbopt.interface.update.parts_of`.
    """
    found = []
    for plan in plans:
        for level, stages in plan.stages.ends.over_the_step.items():
            results = [
                sorted(
                    result
                    for part, rank in parts_of(plan, stage.rank, plans)
                    for result in _results_of(part, rank)
                )
                for stage in stages
            ]
            addresses = np.array([[address for _, address in own] for own in results], np.int64)
            found.append((plan.stages.ends, level, on_device(plan.backend, addresses)))
    tables = [table for _, _, table in found]
    scratch = plans[0].backend.allocate((max((table.size for table in tables), default=0),), np.float64)
    entries += [
        ((False, 0, level, 1), ends.fold_rows(level, table, scratch.address)) for ends, level, table in found
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
