"""Random traces: cut into stages and run by a backend they give the bits that they have line by line."""

import numpy as np
import pytest
from helpers import STAGED, same_bits
from hypothesis import event, given
from hypothesis import strategies as st
from line_by_line import Update as Plain
from line_by_line import run_step

import nbopt
from nbopt.interface.update import Update
from nbopt.language.stages import ELEMENT, STEP, TENSOR
from nbopt.language.trace import Tracer

NAMES = ("a", "b", "c", "per_tensor", "shared", "counter")
EXTENTS = (ELEMENT, ELEMENT, ELEMENT, TENSOR, STEP, STEP)
COUNTER = len(NAMES) - 1
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


class Generator:
    """Builds a trace of any integers: they pick among the values that may be used at that place."""

    def __init__(self):
        self.tracer = Tracer(NAMES, EXTENTS)
        self.slots = self.tracer.slots()
        self.values = [(slot, frozenset([number])) for number, slot in enumerate(self.slots[:COUNTER])]
        self.counted = False

    def pick(self, number, finest=ELEMENT):
        """Return the value that a number picks among those up to an extent, the last ones first."""
        fit = [value for value in self.values if self.tracer.extent(value[0]) <= finest]
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
            slot = first % COUNTER
            value, _ = self.pick(second, EXTENTS[slot])
            self.slots[slot][:] = value
            self.values = [(value, reads) for value, reads in self.values if slot not in reads]
            self.add(self.slots[slot], frozenset([slot]))
        elif not self.counted:
            self.counted = True
            counter, shared = self.slots[COUNTER], NAMES.index("shared")
            # What a skipped step would have stored is no value of a counter.
            unread = ("store", shared) not in {line[:2] for line in tracer.code}
            more = self.slots[shared] if kind == "count_shared" and unread else 1.0
            if kind == "count_value":
                value, _ = self.pick(first, STEP)
                counter[:] = tracer.apply("where", [tracer.taken(), value, counter])
            else:
                counter[:] = counter + more * (1.0 - tracer.taken())


def generated(given_lines):
    """Return the tracer of such lines, after which what came last is stored, so that little is left out."""
    generator = Generator()
    for line in given_lines:
        generator.line(*line)
    for slot in range(COUNTER):
        generator.line("store", slot, slot, 0, 0)
    return generator.tracer


def memory_of(slot_dtypes, seed):
    """Return random arrays of each slot, by parameter; small whole numbers among them meet each other."""
    rng = np.random.default_rng(seed)
    memory = []
    for slot, extent in enumerate(EXTENTS):
        shared = rng.integers(-2, 3, 1).astype(np.float64)
        columns = []
        for shape in SHAPES:
            values = np.where(rng.random(shape) < 0.3, rng.integers(-2, 3, shape), rng.normal(size=shape))
            dtype = nbopt.get_backend().storage_dtype(slot_dtypes[slot]) if extent == ELEMENT else np.float64
            columns.append(
                shared
                if extent == STEP
                else np.asarray(values, dtype)
                if extent == ELEMENT
                else rng.normal(size=1)
            )
        memory.append(columns)
    return memory


def prepared(be, plain):
    """Return the update of a backend that does what `plain` does line by line, and its memory."""
    tracer, memory = plain.tracer, plain.copies()
    program, scalars = tracer.program()
    numbers, _ = scalars.function()(tracer.numbers, SOURCES["lr"])
    columns = [
        [be.wrap(array) for array in column] for column, extent in zip(memory, EXTENTS) if extent != STEP
    ]
    shared = [be.wrap(column[0]) for column, extent in zip(memory, EXTENTS) if extent == STEP]

    def recut(guard):
        return tracer.program(guard)[0]

    rounding = plain.stochastic_round
    update = Update(
        program,
        numbers,
        None,
        lambda update: columns,
        plans=[],
        stochastic_round=rounding,
        shared=shared,
        recut=recut,
    )
    return update, memory


def check(be, plains):
    """Run a step both ways and compare all memory."""
    made = [prepared(be, plain) for plain in plains]
    be.rng_reset()
    be.update(*(update for update, _ in made))
    taken = run_step(plains, be.rng_seed)
    event(f"taken: {taken}")
    event(f"passes: {[len(update.program.passes()) for update, _ in made]}")
    for plain, (update, memory) in zip(plains, made):
        for name, expected, found in zip(NAMES, plain.memory, memory):
            for one, other in zip(expected, found):
                assert same_bits(one, other), (
                    f"{name} is {other}, and line by line {one}\n{plain.tracer.code}\n{update.program}"
                )


@pytest.fixture(params=STAGED)
def be(request):
    with nbopt.use_backend(request.param, rng_seed=0) as backend:
        yield backend


@given(lines, st.integers(0, 3))
def test_float64(be, given_lines, seed):
    check(be, [Plain(generated(given_lines), SOURCES, memory_of(["float64"] * 3, seed))])


@given(lines, dtypes, st.booleans(), st.integers(0, 3))
def test_rounded(be, given_lines, slot_dtypes, stochastic_round, seed):
    """Narrow slots: what was stored counts from then on, also if its pass comes later. Random bits repeat."""
    check(be, [Plain(generated(given_lines), SOURCES, memory_of(slot_dtypes, seed), stochastic_round)])


@given(lines, lines, dtypes, st.integers(0, 3))
def test_together(be, first, second, slot_dtypes, seed):
    """Two updates of a step: those that have conditions are skipped together."""
    check(
        be,
        [
            Plain(generated(given), SOURCES, memory_of(slot_dtypes, seed + place))
            for place, given in enumerate((first, second))
        ],
    )
