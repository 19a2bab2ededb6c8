"""Reference: a NumPy interpreter of programs, short and slow.

It defines what every op and every stage means.
"""

import math

import numpy as np

from nbopt.interface.update import parts_of
from nbopt.language.lines import ELEMENT, axes_of
from nbopt.language.ops import PRIMITIVES, compute_dtype
from nbopt.language.scalars import evaluate
from nbopt.language.stages import Combine, Matrix, Pass, Scalars, Verdict
from nbopt_backends.arrays.host import HostBackend
from nbopt_backends.matrices.blas import Blas
from nbopt_backends.matrices.stage import run_matrix
from nbopt_backends.meaning.rounding import FORMATS, nearest, stochastic
from nbopt_backends.meaning.slices import expanded, reduced, row_results, shape_of, walk_of
from nbopt_backends.meaning.tree import OPS, combined, partial_results, row_sums
from nbopt_backends.meaning.xoroshiro import first_blocks, random_slices


class Interpreter:
    """One update of a step, while it runs.

    Attributes
    ----------
    rows : list of list of numpy.ndarray
        The arrays of each parameter, by slot.
    kept : list of list of int
        For each parameter and slot, how many mantissa bits a stochastic rounding keeps, or 0.
    numbers : numpy.ndarray
        float64[parameters, numbers], at least one parameter.
    partial : dict
        (level, reduction, parameter) -> the results of its tiles.
    """

    def __init__(self, update, arrays, kept, shared, seed, count):
        self.program, self.seed, self.count = update.program, seed, count
        self.set, self.norm_set = update.set, update.norm_set
        self.places = update.listing[1] if update.listing else range(len(arrays[0]))
        self.rows = [[*row, *shared] for row in zip(*arrays)]
        for row in self.rows:
            row += [
                np.zeros(shape_of(row[0].shape, extent), self.dtype_of(row))
                for extent in self.program.extents[len(row) :]
            ]
        self.kept = [[*row, *(0 for _ in self.program.names[len(row) :])] for row in zip(*kept)]
        self.blocks = first_blocks([row[0].size for row in self.rows], update.listing).tolist()
        self.shared = dict(zip(range(len(arrays), len(update.program.names)), shared))
        self.numbers = np.zeros((max(1, len(self.rows)), update.program.n_numbers))
        self.numbers[:, : update.program.n_given] = update.numbers
        if update.program.size is not None:
            self.numbers[: len(self.rows), update.program.size] = [row[0].size for row in self.rows]
        for number, extent in update.program.lengths:
            lengths = [
                math.prod(row[0].shape[axis] for axis in axes_of(extent, row[0].ndim)) for row in self.rows
            ]
            self.numbers[: len(self.rows), number] = lengths
        self.partial: dict = {}

    def is_true(self, condition):
        """Return whether a condition holds; NaN does not."""
        value = self.numbers[0, condition]
        return bool(value == value and value != 0)

    def run(self, level, stage, taken, parts=()):
        """Run one stage.

        `taken` is whether the conditions so far hold. `parts` are all updates of the step, this one among
        them.
        """
        if isinstance(stage, Combine):
            self._combine(stage, parts or [self])
        elif isinstance(stage, Matrix):
            for row in self.rows:
                if row[0].size:
                    self._matrix(stage, row)
        elif isinstance(stage, Scalars):
            rows = range(len(self.numbers)) if stage.extent or stage.outputs else [0]
            for number in rows:
                self._scalars(stage, number, taken)
        elif isinstance(stage, Pass):
            run = self._run_pass_with_slices if stage.has_slices(self.program.extents) else self.run_pass
            for number, row in enumerate(self.rows):
                if row[0].size:
                    run(level, stage, number, row)

    def run_pass(self, level, stage, number, row):
        """Run a pass over one parameter, given its number and its arrays."""
        dtype = self.dtype_of(row)
        values: list = []

        def value(operand):
            return dtype.type(self.numbers[number, ~operand]) if operand < 0 else values[operand]

        for op, *operands in stage.code:
            if op == "load":
                values.append(row[operands[0]].astype(dtype))
            elif op in ("store", "round"):
                slot, operand, place = operands
                new = self._rounded(np.broadcast_to(value(operand), row[slot].shape), number, slot, place)
                if op == "store":
                    row[slot][...] = new
                values.append(new)
            else:
                values.append(PRIMITIVES[op].numpy(*map(value, operands)))
        self.keep(level, stage, number, [value(operand) for _, operand in stage.reductions])

    def _run_pass_with_slices(self, level, stage, number, row):
        """Run a pass over one parameter, or a slice of it, as over a matrix."""
        extents, dtype = self.program.extents, self.dtype_of(row)
        walk = walk_of(row[0].shape, extents, stage.extent)
        values: list = []

        def value(operand):
            return dtype.type(self.numbers[number, ~operand]) if operand < 0 else values[operand]

        def matrix(operand):
            return np.broadcast_to(value(operand), (walk.rows, walk.columns))

        for op, *operands in stage.code:
            if op == "load":
                values.append(expanded(row[operands[0]].reshape(-1).astype(dtype), walk, operands[0]))
            elif op in ("store", "round"):
                slot, operand, place = operands
                new = self._rounded(matrix(operand).reshape(row[slot].shape), number, slot, place)
                if op == "store":
                    row[slot][...] = new
                values.append(new.reshape(walk.rows, walk.columns).astype(dtype))
            else:
                values.append(PRIMITIVES[op].numpy(*map(value, operands)))
        for index, (op, operand) in enumerate(stage.reductions):
            self.partial[level, stage.extent, index, number] = row_results(op, matrix(operand)).reshape(-1)
        for index, (op, operand, _) in enumerate(stage.folds):
            slot = self._slot_of(level, stage.extent, index)
            row[slot][...] = reduced(op, matrix(operand), walk, slot, row[slot].size).reshape(row[slot].shape)

    @staticmethod
    def _matrix(stage, row):
        """Compute a function of matrices for one parameter, plainly."""
        operands, output = [row[slot][None] for slot in stage.sources], row[stage.output][None]
        operands = [output if slot == stage.output else x for slot, x in zip(stage.sources, operands)]
        run_matrix(stage.function, [(operands, output)], Blas(), "plain")

    def _slot_of(self, level, extent, index):
        """Return where the result of a reduction along axes goes."""
        ends = [
            stage
            for _, stage in self.program.stages()
            if isinstance(stage, Combine) and not isinstance(stage.over, str)
        ]
        return next(
            end.output for end in ends if (end.level, end.extent, end.source) == (level, extent, index)
        )

    def dtype_of(self, row):
        """Return the dtype of the arithmetic on one parameter's elements."""
        return compute_dtype(
            array.dtype for array, extent in zip(row, self.program.extents) if extent == ELEMENT
        )

    def keep(self, level, stage, number, values):
        """Reduce the tiles of what the reductions of a pass take of one parameter."""
        for index, ((op, _), value) in enumerate(zip(stage.reductions, values)):
            every = np.broadcast_to(value, self.rows[number][0].shape)
            self.partial[level, ELEMENT, index, number] = partial_results(op, np.ravel(every))

    def _rounded(self, values, number, slot, place):
        storage, kept = self.rows[number][slot].dtype.name, self.kept[number][slot]
        if not kept:
            return nearest(values, storage)
        random = random_slices(
            self.seed, self.count, place, self.blocks[number], values.size, FORMATS[storage].word
        )
        return stochastic(values, storage, kept, random.reshape(values.shape))

    def _results(self, stage):
        """Return what a reduction gives for each parameter with elements, by number."""
        full = [number for number, row in enumerate(self.rows) if row[0].size]
        if stage.source < 0:
            return {number: self.numbers[number, ~stage.source] for number in full}
        return {
            number: combined(stage.op, self.partial[stage.level, stage.extent, stage.source, number])
            for number in full
        }

    def _combine(self, stage, parts):
        if not isinstance(stage.over, str):
            return  # the pass has left it in its slot
        if stage.over == "step":
            found = {}
            for part, rank in parts_of(self, stage.rank, parts):
                same = next(
                    end for _, end in part.program.stages() if isinstance(end, Combine) and end.rank == rank
                )
                found.update({part.places[number]: result for number, result in part._results(same).items()})
            self.numbers[:, stage.output] = combined(stage.op, [found[place] for place in sorted(found)])
        else:
            self.numbers[:, stage.output] = OPS[stage.op][1]
            for number, result in self._results(stage).items():
                self.numbers[number, stage.output] = result

    def _scalars(self, stage, number, taken):
        row = self.rows[number] if self.rows else self.shared
        values: list = []

        def value(operand):
            return self.numbers[number, ~operand] if operand < 0 else values[operand]

        for op, *operands in stage.code:
            if op == "taken":
                values.append(float(taken))
            elif op == "load":
                values.append(float(row[operands[0]].reshape(())))
            elif op in ("store", "round"):
                slot, operand, _ = operands
                new = nearest(np.float64(value(operand)), row[slot].dtype.name)
                if op == "store":
                    row[slot][...] = new
                values.append(float(new))
            else:
                values.append(evaluate(op, *(float(value(operand)) for operand in operands)))
        for line, output in stage.outputs:
            self.numbers[number, output] = values[line]


def run_stages(steps):
    """Run the stages of several updates of a step in their order.

    Return how many passes over a parameter there were.
    """
    taken, passes = True, 0
    entries = [(place, step, stage) for step in steps for place, stage in step.program.order()]
    with np.errstate(all="ignore"):
        for place, step, stage in sorted(entries, key=lambda entry: entry[0]):
            if isinstance(stage, Verdict):
                taken = taken and step.is_true(stage.condition)
            elif taken or not stage.guarded:
                step.run(place[1], stage, taken, steps)
                passes += isinstance(stage, Pass) * len(step.rows)
    return passes


class Reference(HostBackend):
    """The backend ``"reference"``: the same results as the others, by NumPy alone."""

    name = "reference"

    def prepare(self, updates):
        """Return a function that interprets the updates' programs, one stage after the other."""
        looked_at = [
            (update, *self.checked_columns(update), [tensor.storage for tensor in update.shared])
            for update in updates
        ]
        self.check_together(updates)

        def run(count):
            passes = run_stages([Interpreter(*given, self.rng_seed, count) for given in looked_at])
            self.launches += passes  # apart from the call, in which other threads count theirs

        return run

    def sum_last_axis(self, matrix):
        """Return the sums of the rows of a (m, n) array."""
        return row_sums(matrix)

    def explain(self, update):
        """Return the update's program as text."""
        lines = [f"# {stage}" for _, stage in update.program.stages()]
        return ["\n".join(["# The reference interprets these stages with NumPy:", *lines, ""])]
