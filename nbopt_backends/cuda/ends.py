"""The ends of reductions: what passes and small stages are given for them."""

import math
from itertools import groupby

import numpy as np

from nbopt.language.stages import Combine
from nbopt_backends.cuda.launches import Kernel
from nbopt_backends.cuda.numbers import ends_text
from nbopt_backends.cuda.small import Small, named_text
from nbopt_backends.cuda.turns import is_in
from nbopt_backends.cuda.walks import on_device
from nbopt_backends.meaning.tree import OPS
from nbopt_backends.plans.chunks import chunk_table

_OPS = {op: number for number, op in enumerate(OPS)}
_VALUES = 256  # of slices that a block joins


class Ends:
    """The ends of a program's reductions over a layout.

    Parameters
    ----------
    backend : DeviceBackend
    plan : DevicePlan
    results : dict
        (level, extent) of a pass that reduces -> the memory of its tiles' results, and the address of
        int64[rows + 1], where each row's begin.
    walks : dict
        (level, extent) of a pass that knows slices -> its `Walks`.
    turns : Turns

    Attributes
    ----------
    entries : list of (tuple, Small or Kernel)
        Those that end reductions along axes, and over numbers, as `Stages.entries` returns them. Those over
        numbers are repeated in each round for all rows, which does no harm.
    outputs : dict
        (level, extent) of a pass -> which of its reductions becomes which number of a parameter.
    over_the_step : dict of int to list of Combine
        Those over the step by the level at which they are known.
    """

    def __init__(self, backend, plan, results, walks, turns):
        self._backend, self._image, self._layout, self._places = backend, plan.image, plan.layout, plan.places
        self._results, self._walks, self._turns = results, walks, turns
        self.over_the_step: dict = {}
        # Where a step is not taken, the ends of guarded reductions are of no use, and do no harm.
        self.entries: list = []
        self.outputs: dict = {}
        self._step_records: dict = {}
        self._memory: list = []  # of the tables, which is kept
        ends = [(level, stage) for level, stage in plan.program.stages() if isinstance(stage, Combine)]
        for level, found in groupby(ends, key=lambda end: end[0]):
            stages = [stage for _, stage in found]
            self._over_parameters(level, [stage for stage in stages if stage.over == "tensor"])
            self._join_slices(level, [stage for stage in stages if not isinstance(stage.over, str)])
            over = [stage for stage in stages if stage.over == "step"]
            if over:
                self.over_the_step[level] = over
                self._step_records[level] = self._kept(
                    np.array([[_OPS[stage.op], stage.output] for stage in over], np.int64)
                )

    def results(self, stage):
        """Return where what a reduction over the step is over is.

        Returns
        -------
        list of (int, int)
            For each parameter with elements, its place in the list of all, and the address of its result.
        """
        full = np.flatnonzero(np.diff(self._layout.tile_starts)).tolist()
        numbers = self._image.numbers.address
        if stage.source < 0:
            return [
                (self._places[row], numbers + row * self._image.stride + 8 * ~stage.source) for row in full
            ]
        memory, starts = self._results[stage.level, stage.extent]
        first = memory.address + 8 * stage.source
        return [(self._places[row], first + int(starts.values[row]) * memory.strides[0]) for row in full]

    def fold_rows(self, level, results, scratch):
        """Return the small stage that ends the reductions over the step that are known at a level.

        Parameters
        ----------
        level : int
        results : DeviceArray
            int64[reductions, n]: the addresses of what they are over, in the order of the parameters.
        scratch : int
            Address of as many float64.
        """
        image, records = self._image, self._step_records[level]
        n_ends, n = results.shape
        arguments = (
            records.address,
            n_ends,
            results.address,
            n,
            image.numbers.address,
            image.stride,
            len(image.numbers.values),
            scratch,
        )
        blocks = self._backend.device.blocks(n_ends)
        return Small(named_text("fold_rows"), "fold_rows", arguments, blocks)

    def _kept(self, values):
        self._memory.append(on_device(self._backend, values))
        return self._memory[-1]

    def _over_parameters(self, level, stages):
        """Note which results of passes are numbers of parameters, and copy what is a number already."""
        image, copies = self._image, []
        for stage in stages:
            if stage.source < 0:
                starts = self._kept(self._layout.tile_starts).address
                copies.append([_OPS[stage.op], ~stage.source, starts, stage.output])
            else:
                self.outputs.setdefault((stage.level, stage.extent), []).append((stage.source, stage.output))
                image.numbers.values[:, stage.output] = OPS[stage.op][1]  # what it is over no elements
        if copies:
            records, rows = self._kept(np.array(copies, np.int64)), self._layout.n_rows
            arguments = records.address, len(copies), rows, image.numbers.address, image.stride
            blocks = self._backend.device.blocks(len(copies) * rows, 1)
            small, place = (
                Small(named_text("copy_numbers"), "copy_numbers", arguments, blocks),
                (False, level, 0),
            )
            self.entries += [(self._turns.at(place, number), small) for number, _ in self._turns.of(place)]

    def _join_slices(self, level, stages):
        records, tables, place = [], [], (False, level, 0)
        for stage in stages:
            for left in self._walks[stage.level, stage.extent].left[stage.source]:
                record, size = slice_record(stage.op, left, int(self._layout.table[left.row, stage.output]))
                table = chunk_table([size], _VALUES)
                table[:, 0] = len(records)
                records += record
                tables.append((left.row, table))
        if not tables:
            return
        address = self._kept(np.array(records, np.int64)).address
        text = self._backend.marked(ends_text(self._backend.dialect()))
        for number, rows in self._turns.of(place):
            own = [table for row, table in tables if is_in(row, rows)]
            if own:
                chunks = self._kept(np.concatenate(own))
                blocks = self._backend.device.blocks(chunks.shape[0])
                arguments = address, chunks.address, chunks.shape[0]
                kernel = Kernel(text, "cuda_numbers", "join_slices", blocks, arguments)
                self.entries.append((self._turns.at(place, number), kernel))


def slice_record(op, left, target):
    """Return the record of the end of a parameter's reduction along axes, and how many values the result has.

    The record is: the op; the address of what is left, and the bytes of each of its values; the address of
    the result, likewise; how many axes are kept; how many others there are but for the last, and how many
    places these have; the lengths and distances, in bytes, of the axes that are kept, and of the others. An
    axis next to another one of its kind is one with it.

    Parameters
    ----------
    op : str
    left : Left
    target : int
        The address of the result.
    """
    kept: list[int] = []
    gone: list[int] = []
    for keeps, axes in groupby(left.axes, key=lambda axis: axis[0]):
        lengths, distances = zip(*((length, distance) for _, length, distance in axes))
        merged = kept if keeps else gone
        merged += [math.prod(lengths), distances[-1]]
    gone = gone or [1, 0]
    runs = math.prod(gone[:-2:2])
    record = [
        _OPS[op],
        left.address,
        left.size,
        target,
        left.result_size,
        len(kept) // 2,
        len(gone) // 2 - 1,
        runs,
        *kept,
        *gone,
    ]
    return record, math.prod(kept[::2])
