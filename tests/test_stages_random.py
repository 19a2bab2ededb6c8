"""Random traces: cut into stages and run by a backend they give the bits that they have line by line."""

import numpy as np
import pytest
from helpers import same_bits
from hypothesis import event, given, settings
from hypothesis import strategies as st
from line_by_line import Update as Plain
from line_by_line import run_step

import nbopt
from nbopt.interface.update import Update
from nbopt.language.lines import ELEMENT, STEP, TENSOR
from nbopt.language.trace import Tracer

SLOTS = {"a": ELEMENT, "b": ELEMENT, "c": ELEMENT, "each": TENSOR, "shared": STEP, "counter": STEP}
SHAPES = [(2, 3), (), (0, 4), (5,)]
BINARY = ["add", "subtract", "multiply", "divide", "maximum", "minimum", "less"]
UNARY = ["negative", "absolute", "sqrt", "sgn", "finite"]
SOURCES = {"lr": 0.25}

KINDS = (
    ["binary"] * 4
    + ["unary", "where", "number", "size"]
    + ["store"] * 4
    + ["reduce"] * 4
    + ["only_if"]
    + ["count", "count_shared", "count_value"]
)
lines = st.lists(st.tuples(st.sampled_from(KINDS), *[st.integers(0, 7)] * 4), min_size=12, max_size=30)
dtypes = st.tuples(*[st.sampled_from(["float64", "float32", "bfloat16"])] * 3)
updates = st.tuples(lines, dtypes, st.integers(0, 3), st.booleans())


class Generator:
    """Builds a trace of any integers: they pick among the values that may be used at that place."""

    def __init__(self, names):
        self.tracer = Tracer(names, [SLOTS[name] for name in names])
        *self.slots, self.counter = self.tracer.slots()
        self.values = [(slot, frozenset([slot.number])) for slot in self.slots]
        self.counted = False

    def pick(self, number, finest=ELEMENT):
        """Return the value that a number picks among those up to an extent, the last ones first."""
        fit = [value for value in self.values if not self.tracer.extent(value[0]) & ~finest]
        return fit[-1 - number % len(fit)]

    def add(self, value, reads):
        self.values.append((value, reads))

    def line(self, kind, first, second, third, fourth):
        tracer = self.tracer
        if kind == "number":
            self.add(tracer.source("lr", SOURCES["lr"]) if first % 2 else 0.5 * first - 1.0, frozenset())
        elif kind == "size":
            self.add(tracer.size(), frozenset())
        elif kind in ("binary", "unary", "where"):
            op, count = (BINARY, 2) if kind == "binary" else (UNARY, 1) if kind == "unary" else (["where"], 3)
            operands = [self.pick(number) for number in (first, second, third)[:count]]
            reads = frozenset().union(*(reads for _, reads in operands))
            self.add(tracer.apply(op[fourth % len(op)], [value for value, _ in operands]), reads)
        elif kind == "reduce":
            value, reads = self.pick(first)
            self.add(
                tracer.reduce(["sum", "max", "min"][second % 3], ["tensor", "step"][third % 2], value), reads
            )
        elif kind == "only_if":
            value, _ = self.pick(first, STEP)
            tracer.only_if(tracer.apply("less" if second % 2 else "finite", [value, 1.0][: 1 + second % 2]))
        elif kind == "store":
            slot = self.slots[first % len(self.slots)]
            slot[:], _ = self.pick(second, SLOTS[slot.name])
            self.values = [(value, reads) for value, reads in self.values if slot.number not in reads]
            self.add(slot, frozenset([slot.number]))
        elif not self.counted:
            self.counted = True
            counter, shared = self.counter, self.slots[-1]
            # What a skipped step would have stored is no value of a counter.
            unread = ("store", shared.number) not in {line[:2] for line in tracer.code}
            more = shared if kind == "count_shared" and unread else 1.0
            if kind == "count_value":
                value, _ = self.pick(first, STEP)
                counter[:] = tracer.apply("where", [tracer.taken(), value, counter])
            else:
                counter[:] = counter + more * (1.0 - tracer.taken())


def generated(be, given_lines):
    """Return the tracer of such lines, after which what came last is stored, so that little is left out."""
    generator = Generator([*SLOTS])
    for line in given_lines:
        generator.line(*line)
    for slot in range(len(generator.slots)):
        generator.line("store", slot, slot, 0, 0)
    return generator.tracer


def memory_of(be, tracer, slot_dtypes, seed):
    """Return random arrays of each slot, by parameter; small whole numbers among them meet each other."""
    rng = np.random.default_rng(seed)

    def made(shape, dtype):
        values = np.where(rng.random(shape) < 0.3, rng.integers(-2, 3, shape), rng.normal(size=shape))
        return np.asarray(values, be.storage_dtype(dtype))

    dtypes = [*slot_dtypes, *["float64"] * len(SLOTS)]
    memory = []
    for extent, dtype in zip(tracer.slot_extents, dtypes):
        if extent == STEP:
            memory.append([made(1, dtype)] * len(SHAPES))
        else:
            memory.append([made(shape if extent == ELEMENT else 1, dtype) for shape in SHAPES])
    return memory


def plain_of(be, given_lines, slot_dtypes, seed, stochastic_round=False):
    tracer = generated(be, given_lines)
    return Plain(tracer, SOURCES, memory_of(be, tracer, slot_dtypes, seed), stochastic_round)


def prepared(be, plain):
    """Return the update of a backend that does what `plain` does line by line, and its memory."""
    tracer, memory = plain.tracer, plain.copies()
    program, scalars = tracer.program()
    try:
        numbers, _ = scalars.function()(tracer.numbers, SOURCES["lr"])
    except ArithmeticError:  # as a step does
        numbers, _ = scalars.exactly(tracer.numbers, SOURCES["lr"])
    slots = list(zip(memory, tracer.slot_extents))
    columns = [[be.wrap(array) for array in column] for column, extent in slots if extent != STEP]
    shared = [be.wrap(column[0]) for column, extent in slots if extent == STEP]

    def recut(guard, waits):
        return tracer.program(guard, waits)[0]

    more = {"plans": [], "stochastic_round": plain.stochastic_round, "shared": shared, "recut": recut}
    return Update(program, numbers, None, lambda update: columns, **more), memory


def check(be, plains):
    """Run a step both ways and compare all memory."""
    made = [prepared(be, plain) for plain in plains]
    be.rng_reset()
    be.update(*(update for update, _ in made))
    taken = run_step(plains, be.rng_seed)
    event(f"taken: {taken}")
    event(f"passes: {[len(update.program.passes()) for update, _ in made]}")
    for plain, (update, memory) in zip(plains, made):
        for name, expected, found in zip(plain.tracer.names, plain.memory, memory):
            for one, other in zip(expected, found):
                told = f"{name} is {other}, and line by line {one}\n{plain.tracer.code}\n{update.program}"
                assert same_bits(one, other), told


@pytest.fixture
def reference():
    with nbopt.use_backend("reference", rng_seed=0) as be:
        yield be


@given(lines, st.integers(0, 3))
def test_float64(reference, given_lines, seed):
    check(reference, [plain_of(reference, given_lines, ["float64"] * 3, seed)])


@given(updates)
def test_rounded(reference, drawn):
    """Narrow slots: what was stored counts from then on, also if its pass comes later. Random bits repeat."""
    check(reference, [plain_of(reference, *drawn)])


@given(st.lists(updates, min_size=2, max_size=2))
@pytest.mark.rest
def test_together(reference, drawn):
    """Two updates of a step: those that have conditions are skipped together."""
    check(reference, [plain_of(reference, *one) for one in drawn])


@settings(max_examples=40)
@given(st.lists(updates, min_size=1, max_size=2))
@pytest.mark.thorough("compiled")
def test_backends(host_backend, drawn):
    """The same on each backend. Each example compiles some kernels."""
    check(host_backend, [plain_of(host_backend, *one) for one in drawn])
