"""Random rules with slices, against NumPy's broadcasting in float64; and the same bits on the CPU."""

import numpy as np
import pytest
from helpers import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import nbopt
from nbopt.interface.update import Update
from nbopt.language.lines import ELEMENT, TENSOR, along
from nbopt.language.trace import Tracer

SHAPES = {2: [(3, 4), (5, 1), (2, 130), (70, 3)], 3: [(2, 3, 4), (1, 40, 5), (3, 1, 2)]}
NUMPY = {"add": np.add, "subtract": np.subtract, "maximum": np.maximum, "minimum": np.minimum}
REDUCED = {"sum": np.sum, "max": np.max, "min": np.min}
#: What is done in a line: a kind, and numbers that pick its operands.
lines = st.lists(
    st.tuples(st.sampled_from(["binary", "binary", "reduce", "reduce", "store"]), *[st.integers(0, 40)] * 4),
    min_size=2,
    max_size=14,
)


def slots_of(ndim):
    """Return slots of every extent."""
    return {
        "a": ELEMENT,
        "b": ELEMENT,
        "row": along(range(ndim - 1)),
        "column": along([ndim - 1]),
        "first": along([0]),
        "each": TENSOR,
    }


class Both:
    """A rule over symbols, and the same over arrays of each shape."""

    def __init__(self, ndim):
        self.ndim, self.extents, shapes = ndim, slots_of(ndim), SHAPES[ndim]
        rng = np.random.default_rng(0)
        self.memory = [
            [rng.integers(-3, 4, self.shape_of(extent, shape)) / 4 for shape in shapes]
            for extent in self.extents.values()
        ]
        self.first = [[array.copy() for array in column] for column in self.memory]
        self.tracer = Tracer(self.extents, [*self.extents.values()], ndim)
        self.values = [
            (slot, column, {slot.number}) for slot, column in zip(self.tracer.slots(), self.memory)
        ]
        self.slots = [slot for slot, _, _ in self.values]

    def shape_of(self, extent, shape):
        return tuple(
            length if extent == ELEMENT or extent & 2 << axis else 1 for axis, length in enumerate(shape)
        )

    def pick(self, number):
        return self.values[-1 - number % len(self.values)]

    def line(self, kind, first, second, third, fourth):
        value, arrays, reads = self.pick(first)
        if kind == "binary":
            other, others, more = self.pick(second)
            op = [*NUMPY][third % len(NUMPY)]
            self.values.append(
                (self.tracer.apply(op, [value, other]), [*map(NUMPY[op], arrays, others)], reads | more)
            )
        elif kind == "reduce":
            op, axes = [*REDUCED][third % 3], tuple(axis for axis in range(self.ndim) if second >> axis & 1)
            found = value.reduce(op, axes or None)
            if found is value:
                return
            gone = axes or tuple(range(self.ndim))
            self.values.append(
                (found, [REDUCED[op](array, axis=gone, keepdims=True) for array in arrays], set())
            )
        else:
            slot = self.slots[second % len(self.slots)]
            if self.tracer.extent(value) & ~self.extents[slot.name]:
                return
            slot[:] = value
            for number, (target, array) in enumerate(zip(self.memory[slot.number], arrays)):
                self.memory[slot.number][number] = np.array(np.broadcast_to(array, target.shape))
            # What was computed from the slot before is not to be used any more.
            self.values = [one for one in self.values if slot.number not in one[2] or one[0] is slot]
            self.values = [
                (slot, self.memory[slot.number], {slot.number}) if one[0] is slot else one
                for one in self.values
            ]


def traced(ndim, given_lines):
    both = Both(ndim)
    for line in given_lines:
        both.line(*line)
    for number in range(len(both.slots)):
        both.line("store", number, number, 0, 0)
    return both


def run(be, both):
    """Run the program on a backend; return the memory."""
    program, scalars = both.tracer.program()
    numbers, _ = scalars.function()(both.tracer.numbers)
    memory = [[array.copy() for array in column] for column in both.first]
    columns = [[be.wrap(array) for array in column] for column in memory]
    be.update(
        Update(
            program,
            numbers,
            None,
            lambda update: columns,
            plans=[],
            recut=lambda guard, waits: both.tracer.program(guard, waits)[0],
        )
    )
    return memory


def check(be, both):
    for name, found, wanted in zip(both.extents, run(be, both), both.memory):
        for one, other in zip(found, wanted):
            np.testing.assert_allclose(
                one, other, rtol=1e-12, atol=1e-12, err_msg=f"{name}\n{both.tracer.code}"
            )


@pytest.fixture
def reference():
    with nbopt.use_backend("reference", rng_seed=0) as be:
        yield be


@given(st.sampled_from([*SHAPES]), lines)
def test_numpy(reference, ndim, given_lines):
    """What a rule says is what NumPy's broadcasting makes of it."""
    check(reference, traced(ndim, given_lines))


@settings(max_examples=20)
@given(st.sampled_from([*SHAPES]), lines)
@pytest.mark.thorough("compiled")
def test_cpu(ndim, given_lines):
    """The CPU gives the reference's bits. Each example compiles some kernels."""
    both, found = traced(ndim, given_lines), []
    for name in ("reference", "cpu"):
        with nbopt.use_backend(name, rng_seed=0) as be:
            found.append(run(be, both))
    for reference, cpu in zip(*found):
        assert all(map(same_bits, reference, cpu))
