"""Traces without stages: a step is run line by line over whole arrays, and reductions go by recursion.

It is what the cutter and a backend together have to equal bit for bit. It knows no levels, passes or partial
results: a load reads memory, a store writes it at once, and a step with a condition runs on a copy, of which
all is kept, or the counters alone.
"""

import functools
import math
import operator

import numpy as np

from nbopt.language.lines import ELEMENT, STEP, TENSOR, operands_of
from nbopt.language.ops import PRIMITIVES, compute_dtype
from nbopt_backends.meaning.rounding import FORMATS, kept_bits, nearest, stochastic
from nbopt_backends.meaning.xoroshiro import first_blocks, random_slices

TILE = 4096
#: What reductions over nothing give.
OVER_NOTHING = {"sum": 0.0, "max": -math.inf, "min": math.inf}


def join(op, a, b):
    """Join two scalars, which have a dtype."""
    if op == "sum":
        return a + b
    if a != a or b != b:
        return type(a)(math.nan)
    first = a if a < b or (a == b and math.copysign(1.0, a) < 0) else b
    return first if op == "min" else b if first is a else a


def tree(op, values):
    """Reduce scalars: the even places and the odd places apart, then the two results."""
    return values[0] if len(values) == 1 else join(op, tree(op, values[::2]), tree(op, values[1::2]))


def tiles(op, values):
    """Return the results of the tiles of a flat array, as float64."""
    return [np.float64(tree(op, list(values[start : start + TILE]))) for start in range(0, len(values), TILE)]


def over_tensor(op, values):
    """Reduce one parameter's array to a float64."""
    return over_numbers(op, tiles(op, values.ravel()))


def over_numbers(op, numbers):
    """Reduce float64 scalars, of which there may be none."""
    return tree(op, numbers) if numbers else np.float64(OVER_NOTHING[op])


class Update:
    """One update of a step: a trace and the memory that it works on.

    Attributes
    ----------
    tracer : Tracer
    sources : dict of str to float
    memory : list of list of numpy.ndarray
        The arrays of each slot, by parameter. A slot of extent STEP has the same array for all of them.
    stochastic_round : bool
        As an optimizer's: it holds for slot 0 and for 16-bit slots of elements.
    """

    def __init__(self, tracer, sources, memory, stochastic_round=False):
        self.tracer, self.sources, self.memory, self.stochastic_round = (
            tracer,
            sources,
            memory,
            stochastic_round,
        )
        self.sizes = [array.size for array in memory[0]]
        elements = [column for column, extent in zip(memory, tracer.slot_extents) if extent == ELEMENT]
        self.dtypes = [compute_dtype(array.dtype.name for array in row) for row in zip(*elements)]

    def copies(self):
        """Return the memory copied; what was one array is one array there."""
        found: dict = {}
        return [[found.setdefault(id(array), array.copy()) for array in column] for column in self.memory]

    def run(self, memory, taken, seed, count):
        """Run all lines on `memory`; return the conditions, and the slots of counters."""
        rows, slots, code = range(len(self.sizes)), self.tracer.slot_extents, self.tracer.code
        values: list = []  # by line, then by parameter
        extents: list = []
        knows: list = []
        conditions, counters, stores = [], set(), 0
        for line in code:
            op, *rest = line
            operands = operands_of(line)
            extent = functools.reduce(operator.or_, (extents[operand] for operand in operands), STEP)
            knows.append(op == "taken" or any(knows[operand] for operand in operands))
            if op == "number":
                new = [np.float64(self.tracer.numbers[rest[0]]) for _ in rows]
            elif op == "source":
                new = [np.float64(self.sources[rest[0]]) for _ in rows]
            elif op == "size":
                extent, new = TENSOR, [np.float64(size) for size in self.sizes]
            elif op == "taken":
                new = [np.float64(taken) for _ in rows]
            elif op in ("load", "store"):
                extent = slots[rest[0]]
                if op == "store":
                    for row in rows:
                        self._store(
                            memory[rest[0]][row],
                            rest[0],
                            row,
                            self._wide(values[rest[1]][row], row, extent),
                            stores,
                            seed,
                            count,
                        )
                    stores += 1
                    if knows[-1]:
                        counters.add(rest[0])
                new = [self._loaded(memory[rest[0]][row], row, extent) for row in rows]
            elif op == "reduce":
                kind, over, operand = rest
                full = [row for row in rows if self.sizes[row]]
                if extents[operand] == ELEMENT:
                    new = [over_tensor(kind, values[operand][row]) for row in rows]
                else:
                    new = values[operand]
                extent = TENSOR
                if over == "step":
                    extent, new = STEP, [over_numbers(kind, [new[row] for row in full])] * len(rows)
            elif op == "only_if":
                new = values[rest[0]]
                conditions.append(new[0])
            else:
                new = [
                    PRIMITIVES[op].numpy(
                        *(self._wide(values[operand][row], row, extent) for operand in operands)
                    )
                    for row in rows
                ]
                new = new if extent == ELEMENT else [np.float64(value) for value in new]
            values.append(new)
            extents.append(extent)
        return conditions, counters

    def _wide(self, value, row, extent):
        """Return an operand in the arithmetic of a line of this extent."""
        return np.asarray(value, self.dtypes[row]) if extent == ELEMENT else np.float64(value)

    def _loaded(self, array, row, extent):
        return array.astype(self.dtypes[row]) if extent == ELEMENT else np.float64(array.reshape(()))

    def _store(self, array, slot, row, value, number, seed, count):
        name, element = array.dtype.name, self.tracer.slot_extents[slot] == ELEMENT
        ruled = self.stochastic_round and element and (slot == 0 or array.dtype.itemsize == 2)
        kept = kept_bits(name, True) if ruled else 0
        if kept:
            value = np.broadcast_to(value, array.shape)
            random = random_slices(
                seed, count, number, first_blocks(self.sizes)[row], array.size, FORMATS[name].word
            )
            array[...] = stochastic(value, name, kept, random.reshape(array.shape))
        else:
            array[...] = nearest(value, name)


def run_step(updates, seed=0, count=0):
    """Run the updates of one step. If a condition is 0 or NaN, those that have one store counters alone."""
    with np.errstate(all="ignore"):
        conditions = [update.run(update.copies(), True, seed, count)[0] for update in updates]
        taken = all(value == value and value != 0 for values in conditions for value in values)
        for update, own in zip(updates, conditions):
            scratch = update.copies()
            _, counters = update.run(scratch, taken, seed, count)
            for slot, column in enumerate(update.memory):
                if taken or not own or slot in counters:
                    for array, new in zip(column, scratch[slot]):
                        array[...] = new
    return taken
