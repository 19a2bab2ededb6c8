"""Reference: a NumPy interpreter of programs, short and slow. It defines what every op and every stage means."""

import numpy as np

from nbopt.language.ops import PRIMITIVES, compute_dtype
from nbopt.language.scalars import evaluate
from nbopt.language.stages import ELEMENT, Combine, Pass, Scalars, Verdict
from nbopt_backends.arrays.host import HostBackend
from nbopt_backends.meaning.reduction import tree_sum
from nbopt_backends.meaning.rounding import FORMATS, nearest, stochastic
from nbopt_backends.meaning.tree import OPS, combined, partial_results
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
        self.rows = [[*row, *shared] for row in zip(*arrays)]
        self.kept = [[*row, *(0 for _ in shared)] for row in zip(*kept)]
        self.blocks = first_blocks([row[0].size for row in self.rows], update.listing).tolist()
        self.shared = dict(zip(range(len(arrays), len(update.program.names)), shared))
        self.numbers = np.zeros((max(1, len(self.rows)), update.program.n_numbers))
        self.numbers[:, : update.program.n_given] = update.numbers
        if update.program.size is not None:
            self.numbers[: len(self.rows), update.program.size] = [row[0].size for row in self.rows]
        self.partial: dict = {}

    def is_true(self, condition):
        """Return whether a condition holds; NaN does not."""
        value = self.numbers[0, condition]
        return bool(value == value and value != 0)

    def run(self, level, stage, taken):
        """Run one stage; `taken` is whether the conditions so far hold."""
        if isinstance(stage, Combine):
            self._combine(stage)
        elif isinstance(stage, Scalars):
            rows = range(len(self.numbers)) if stage.extent or stage.outputs else [0]
            for number in rows:
                self._scalars(stage, number, taken)
        elif isinstance(stage, Pass):
            for number, row in enumerate(self.rows):
                if row[0].size:
                    self.run_pass(level, stage, number, row)

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

    def dtype_of(self, row):
        """Return the dtype of the arithmetic on one parameter's elements."""
        return compute_dtype(array.dtype for array, extent in zip(row, self.program.extents) if extent == ELEMENT)

    def keep(self, level, stage, number, values):
        """Reduce the tiles of what the reductions of a pass take of one parameter."""
        for index, ((op, _), value) in enumerate(zip(stage.reductions, values)):
            every = np.broadcast_to(value, self.rows[number][0].shape)
            self.partial[level, index, number] = partial_results(op, np.ravel(every))

    def _rounded(self, values, number, slot, place):
        storage, kept = self.rows[number][slot].dtype.name, self.kept[number][slot]
        if not kept:
            return nearest(values, storage)
        random = random_slices(self.seed, self.count, place, self.blocks[number], values.size, FORMATS[storage].word)
        return stochastic(values, storage, kept, random.reshape(values.shape))

    def _combine(self, stage):
        numbers, full = self.numbers, [number for number, row in enumerate(self.rows) if row[0].size]
        if stage.source < 0:
            found = {number: numbers[number, ~stage.source] for number in full}
        else:
            found = {number: combined(stage.op, self.partial[stage.level, stage.source, number]) for number in full}
        if stage.over == "step":
            numbers[:, stage.output] = combined(stage.op, [*found.values()])
        else:
            numbers[:, stage.output] = OPS[stage.op][1]
            for number, result in found.items():
                numbers[number, stage.output] = result

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
    """Run the stages of several updates of a step in their order; return how many passes over a parameter there were."""
    taken, passes = True, 0
    entries = [(place, step, stage) for step in steps for place, stage in step.program.order()]
    with np.errstate(all="ignore"):
        for place, step, stage in sorted(entries, key=lambda entry: entry[0]):
            if isinstance(stage, Verdict):
                taken = taken and step.is_true(stage.condition)
            elif taken or not stage.guarded:
                step.run(place[1], stage, taken)
                passes += isinstance(stage, Pass) * len(step.rows)
    return passes


class Reference(HostBackend):
    """The backend ``"reference"``: the same results as the others, by NumPy alone."""

    name = "reference"

    def prepare(self, updates):
        """Return a function that interprets the updates' programs, one stage after the other."""
        looked_at = [(update, *self.checked_columns(update), [tensor.storage for tensor in update.shared]) for update in updates]
        self.check_together(updates)

        def run(count):
            passes = run_stages([Interpreter(*given, self.rng_seed, count) for given in looked_at])
            self.launches += passes  # apart from the call, in which other threads count theirs

        return run

    def sum_last_axis(self, matrix):
        """Return the sums of the rows of a (m, n) array."""
        return tree_sum(matrix)

    def explain(self, update):
        """Return the update's program as text."""
        lines = [f"# {stage}" for _, stage in update.program.stages()]
        return ["\n".join(["# The reference interprets these stages with NumPy:", *lines, ""])]
