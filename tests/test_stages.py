"""The cutter as a pure function: which passes a trace becomes, what stands in which, and what is left out."""

import numpy as np
import pytest
from rules import Centred, Lamb

import nbopt
from nbopt.interface.update import Update, decide_together
from nbopt.language.lines import ELEMENT, STEP, TENSOR, extents_of
from nbopt.language.stages import Combine, Pass, Scalars, Verdict
from nbopt.language.trace import Tracer
from nbopt.optimizers.tracing import Step


@pytest.fixture(autouse=True)
def be():
    with nbopt.use_backend("reference", rng_seed=0) as backend:
        yield backend


class Traced:
    """A tracer with slots p, g, m, v of elements, d of tensor extent, and s, n of step extent."""

    names = ("p", "g", "m", "v", "d", "s", "n")

    def __init__(self):
        self.tracer = Tracer(self.names, (ELEMENT,) * 4 + (TENSOR, STEP, STEP))
        self.p, self.g, self.m, self.v, self.d, self.s, self.n = self.slots = self.tracer.slots()
        self.step = Step(self.tracer, {}, 1.0)

    def program(self, guard=None, waits=()):
        return self.tracer.program(guard, waits)[0]

    def stored(self, guard=None):
        """Return for each slot that is stored, by name, in which passes or scalar stages: their levels."""
        found = {}
        for level, stage in self.program(guard).stages():
            for line in stage.code if isinstance(stage, (Pass, Scalars)) else ():
                if line[0] == "store":
                    found.setdefault(self.names[line[1]], []).append(level)
        return found


@pytest.fixture
def traced():
    return Traced()


def program_of(optimizer, **attributes):
    for name, value in attributes.items():
        setattr(optimizer, name, value)
    layers = [nbopt.Parameters((np.ones(3, np.float32), np.ones(3, np.float32)))]
    return optimizer.updates(nbopt.get_backend(), layers, 0)[0].program


def bytes_of(program):
    return program.bytes_moved([4] * len(program.names))


def kinds(program):
    """Return the kinds of stages of each level."""
    return [[type(stage).__name__ for stage in level] for level in program.levels]


CLIP = {"gradient_clip_norm": 1.0}
SKIP = {"skip_nonfinite": True}


@pytest.mark.parametrize(
    "optimizer, attributes, moved",
    [
        (nbopt.RMSProp, {}, [20]),
        (nbopt.RMSProp, {"gradient_clip_value": 1.0, "param_clip_value": 1.0}, [20]),
        (nbopt.RMSProp, CLIP, [4, 20]),
        (nbopt.RMSProp, SKIP, [4, 20]),
        (nbopt.RMSProp, {**CLIP, **SKIP, "param_clip_value": 1.0}, [4, 20]),
        (nbopt.Adam, {}, [28]),
        (nbopt.Adam, CLIP, [4, 28]),
        (nbopt.Adam, {**CLIP, **SKIP}, [4, 28]),
        (nbopt.GradientDescentMomentum, {"momentum_coef": 0.0}, [12]),
        (nbopt.GradientDescentMomentum, {"momentum_coef": 0.0, **CLIP}, [4, 12]),
        (Lamb, {}, [24, 16]),
        (Lamb, SKIP, [16, 28]),
        (Lamb, CLIP, [4, 24, 16]),
        (Lamb, {**CLIP, **SKIP}, [4, 24, 16]),
        (Centred, {}, [4, 20]),
        (Centred, CLIP, [4, 4, 20]),
    ],
    ids=lambda value: (
        value.__name__
        if isinstance(value, type)
        else None
        if isinstance(value, list)
        else ",".join(value) or "plain"
    ),
)
def test_bytes(optimizer, attributes, moved):
    """Passes, and the bytes that each moves for an element in float32."""
    own = {"learning_rate": 0.1, "momentum_coef": 0.0} if optimizer is nbopt.GradientDescentMomentum else {}
    assert bytes_of(program_of(optimizer(**own), **attributes)) == moved


def test_own_counts():
    """Adam whose parameters have counts of their own is one pass still."""
    optimizer = nbopt.Adam()
    optimizer.counts_each = True
    program = program_of(optimizer)
    assert kinds(program) == [["Scalars", "Pass"]]
    assert program.extents[program.names.index("step")] == TENSOR
    assert bytes_of(program) == [28]


def test_bytes_of_mixed_sizes(traced):
    """What a pass moves goes by the sizes of its slots; what it only rounds for moves nothing."""
    traced.m[:] = traced.g * 0.5
    traced.step.only_if(traced.step.sum(traced.m))
    program = traced.program()
    assert [line[0] for line in program.passes()[0].code] == ["load", "multiply", "round"]
    assert program.bytes_moved([4, 8, 2, 4, 8, 8, 8]) == [8, 10]
    assert program.passes()[0].used() == [1, 2] and program.passes()[0].moved() == [1]


def test_one_pass(traced):
    """Without reductions all is one pass, in the order of the trace, and each slot is loaded once."""
    traced.m[:] = 0.9 * traced.m + traced.g
    traced.p[:] = traced.p - traced.m - traced.m * traced.g
    program = traced.program()
    assert kinds(program) == [["Pass"]]
    (one,) = program.passes()
    assert [line[:2] for line in one.code if line[0] in ("load", "store")] == [
        ("load", 2),
        ("load", 1),
        ("store", 2),
        ("load", 0),
        ("store", 0),
    ]
    assert one.read() == [0, 1, 2] and one.written() == [0, 2] == program.written() and one.reductions == ()
    assert (
        program.n_given == program.n_numbers == 1
        and program.size is None
        and program.verdict is None
        and program.ends == ()
    )


def test_reductions_of_one_level_share_a_pass(be, traced):
    """Whatever they reduce over; and a number of each parameter is combined without a pass."""
    largest = be.max(traced.g)
    traced.p[:] = traced.p * traced.step.sum(traced.p) * be.min(traced.p) * largest * traced.step.sum(largest)
    program = traced.program()
    assert kinds(program) == [["Pass"], ["Combine"] * 3, ["Combine", "Pass"]] or kinds(program)[0] == ["Pass"]
    assert [reduction[0] for reduction in program.passes()[0].reductions] == ["max", "sum", "min"]
    combines = [stage for _, stage in program.stages() if isinstance(stage, Combine)]
    assert sorted((stage.op, stage.over) for stage in combines) == [
        ("max", "tensor"),
        ("min", "tensor"),
        ("sum", "step"),
        ("sum", "step"),
    ]
    assert len(program.passes()) == 2
    (of_numbers,) = [stage for stage in combines if stage.source < 0]
    (of_largest,) = [stage for stage in combines if stage.op == "max"]
    assert ~of_numbers.source == of_largest.output


def test_three_levels(be, traced):
    """Reductions over reductions: each needs a pass of its own where elements are reduced."""
    mean = be.mean(traced.g)
    spread = be.mean(be.square(traced.g - mean))
    fourth = be.mean(be.square(be.square(traced.g - mean)) / spread)
    traced.p[:] = traced.p - fourth
    program = traced.program()
    assert bytes_of(program) == [4, 4, 4, 8]
    assert [type(stages[0]) for stages in program.levels[1:]] == [Combine] * 3
    assert traced.tracer.extent(fourth) == TENSOR


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_chains_of_numbers(be, traced, levels):
    """Reductions over numbers of parameters need no pass."""
    value = be.norm(traced.g)
    for _ in range(levels):
        value = be.sqrt(traced.step.sum(value) / traced.tracer.size())
    traced.d[:] = value
    assert bytes_of(traced.program()) == [4]
    assert len(traced.program().levels) == 2 + levels


# --- extents ---


def test_extents(be, traced):
    """An operation has the largest extent of its operands, a reduction a smaller one, and a slot its own."""
    extent, step, t = traced.tracer.extent, traced.step, traced
    one, each = step.norm(t.g), be.norm(t.g)
    expected = [
        (one, STEP), (each, TENSOR), (t.g, ELEMENT), (t.g * one, ELEMENT), (one * each, TENSOR),
        (one + 1.0, STEP), (2.0, STEP), (t.d, TENSOR), (t.s, STEP), (t.d * t.s, TENSOR), (t.p.size, TENSOR),
        (step.sum(each), STEP), (be.where(one, t.g, 0.0), ELEMENT), (be.where(t.g, one, 0.0), ELEMENT),
        (t.tracer.source("lr", 0.1), STEP), (step.max(t.d), STEP), (step.sum(t.p.size), STEP),
    ]  # fmt: skip
    assert [extent(value) for value, _ in expected] == [found for _, found in expected]
    t.p[:] = one
    t.d[:] = one
    # A store is as fine as its slot.
    assert [extent(t.p), extent(t.d), extent(t.p * 1.0)] == [ELEMENT, TENSOR, ELEMENT]
    assert extents_of(t.tracer.code, t.tracer.slot_extents) == [
        t.tracer._extent(line) for line in range(len(t.tracer.code))
    ]


def test_nothing_to_reduce(be, traced):
    """A reduction of what does not vary over it is the value itself."""
    one, each, step = traced.step.sum(traced.g), be.max(traced.g), traced.step
    for reduced in (step.sum, step.max, step.min):
        assert reduced(one) is one
    assert be.sum(each) is each and be.max(one) is one
    assert step.sum(2.0) == 2.0


# --- where stores stand ---


def test_store_in_the_first_pass(be, traced):
    """A store stands where its value is known, if no later pass has to load anything for that."""
    traced.m[:] = traced.m + traced.g
    traced.p[:] = traced.p - traced.m * be.norm(traced.m)
    assert traced.stored() == {"m": [0], "p": [1]}
    assert bytes_of(traced.program()) == [12, 12]


def test_store_with_the_slots_that_it_reads(traced):
    """It moves to a later pass that reads the same slots anyway, where that moves fewer bytes."""
    norm = traced.step.norm(traced.g)
    traced.m[:] = traced.m + traced.g
    traced.v[:] = traced.v + traced.g
    traced.p[:] = traced.p - traced.g * traced.m * traced.v / norm
    assert traced.stored() == {"m": [1], "v": [1], "p": [1]}
    assert bytes_of(traced.program()) == [4, 28]


def test_reduction_with_the_slots_that_it_reads(be, traced):
    """A reduction waits for a pass that loads its slot anyway."""
    traced.m[:] = traced.m + traced.g / traced.step.norm(traced.g)
    traced.p[:] = traced.p - traced.m * be.norm(traced.p) / be.norm(traced.m * traced.p)
    assert bytes_of(traced.program()) == [4, 16, 12]


def test_guarded_stores_wait(be, traced):
    """Behind the condition; and what reads the new value before is rounded as the store rounds."""
    traced.m[:] = traced.m + traced.g
    norm = traced.step.norm(traced.m)
    traced.step.only_if(be.finite(norm))
    traced.d[:] = be.sum(traced.g)
    traced.s[:] = traced.s + 1.0
    program = traced.program()
    assert program.verdict == 1
    assert traced.stored() == {"m": [1], "d": [1], "s": [1]}
    assert [stage.guarded for _, stage in program.stages() if isinstance(stage, Pass)] == [False, True]
    assert "round" in [line[0] for line in program.passes()[0].code] and program.passes()[0].written() == []
    assert all(
        stage.guarded for _, stage in program.stages() if isinstance(stage, Scalars) and not stage.outputs
    )


def test_condition_of_the_host(traced):
    """A condition of numbers that the host knows guards the first pass."""
    traced.step.only_if(traced.tracer.source("lr", 0.1) > 0)
    traced.p[:] = traced.p + 1.0
    program = traced.program()
    assert kinds(program) == [["Verdict", "Pass"]] and program.passes()[0].guarded
    assert (
        program.levels[0][0] == Verdict(program.levels[0][0].condition)
        and program.levels[0][0].condition < program.n_given
    )


def test_conditions_together(traced):
    """Several conditions have one verdict, at the level of the last."""
    traced.step.only_if(traced.step.sum(traced.g))
    traced.p[:] = traced.p + traced.g
    second = traced.step.sum(traced.g / traced.step.sum(traced.g))
    traced.step.only_if(second)
    program = traced.program()
    assert program.verdict == 2
    assert [type(stage) for stage in program.levels[2] if isinstance(stage, Verdict)] == [Verdict] * 2
    assert traced.stored() == {"p": [2]}


def test_after_the_condition(be, traced):
    """What comes after the verdict is guarded, reductions included."""
    total = traced.step.sum(traced.g)
    traced.step.only_if(total)
    traced.m[:] = traced.m + total * traced.g
    traced.p[:] = traced.p - be.norm(traced.m) * traced.m
    stages = [(level, stage) for level, stage in traced.program().stages() if not isinstance(stage, Verdict)]
    assert [stage.guarded for level, stage in stages if isinstance(stage, Pass)] == [False, True, True]
    assert [stage.guarded for level, stage in stages if isinstance(stage, Combine)] == [False, True]
    assert [stage.guarded for level, stage in stages if isinstance(stage, Scalars)] == [True]


def test_reader_of_the_old_value(traced):
    """A store waits for a later pass in which the slot's value of before is read."""
    norm = traced.step.norm(traced.g)
    traced.v[:] = traced.m * norm
    traced.m[:] = traced.g + 1.0
    assert traced.stored() == {"v": [1], "m": [1]}
    code = traced.program().passes()[1].code
    assert code.index(("load", 2)) < next(
        place for place, line in enumerate(code) if line[:2] == ("store", 2)
    )


def test_reader_by_another_store(traced):
    """The same where the reader is a store that had to move."""
    traced.v[:] = traced.m * 2.0
    traced.m[:] = traced.g + 1.0
    traced.step.only_if(traced.step.sum(traced.v))
    assert traced.stored() == {"v": [1], "m": [1]}


def test_reader_before_a_store(traced):
    """What a stored value was computed from is not read again by those who read that value later."""
    traced.m[:] = traced.p + traced.g
    traced.v[:] = traced.m * traced.step.norm(traced.g)
    traced.p[:] = traced.p * 0.5 + traced.g
    assert traced.stored() == {"m": [0], "p": [0], "v": [1]}


def test_stores_of_one_slot_stay_in_order(traced):
    """A second store does not overtake the first."""
    traced.m[:] = traced.m * traced.step.norm(traced.g)
    traced.m[:] = 2.0
    traced.s[:] = traced.step.norm(traced.g)
    traced.s[:] = 3.0
    assert traced.stored() == {"m": [1, 1], "s": [1, 1]}


def test_stored_value_is_loaded_again(be, traced):
    """A later pass loads what is in memory by then, and computes again what is not."""
    traced.m[:] = 0.9 * traced.m + traced.g
    change = traced.m * traced.m
    traced.p[:] = traced.p - change / be.norm(change)
    first, second = traced.program().passes()
    assert [line[0] for line in first.code] == [
        "load",
        "multiply",
        "load",
        "add",
        "store",
        "multiply",
        "multiply",
    ]
    assert [line[:2] for line in second.code if line[0] == "load"] == [("load", 2), ("load", 0)]
    assert [line[0] for line in second.code].count("multiply") == 1


def test_slots_of_numbers_need_no_pass(traced):
    """Slots below the extent of elements are read and stored by scalar stages."""
    traced.d[:] = traced.d + traced.s
    traced.s[:] = traced.s * 2.0
    program = traced.program()
    assert program.passes() == [] and traced.stored() == {"d": [0], "s": [0]}
    loads = [
        place
        for place, (_, stage) in enumerate(program.stages())
        if any(line[0] == "load" for line in stage.code)
    ]
    stores = [
        place
        for place, (_, stage) in enumerate(program.stages())
        if any(line[0] == "store" for line in stage.code)
    ]
    assert max(loads) < min(stores)


# --- counters ---


def counted(traced, more=1.0):
    traced.n[:] = traced.n + more * (1.0 - traced.tracer.taken())


def test_counters_come_last(traced):
    """Whatever their place in the trace, and guarded by nothing."""
    counted(traced)
    traced.step.only_if(traced.step.sum(traced.g))
    traced.p[:] = traced.p + traced.g
    program = traced.program()
    assert program.stages()[-1] == (len(program.levels), program.ends[0])
    assert (
        not program.ends[0].guarded and program.ends[0].outputs == () and ("taken",) in program.ends[0].code
    )
    assert traced.stored() == {"p": [1], "n": [2]}


def test_counter_of_each_parameter(traced):
    """A parameter's own count of the steps that were taken, beside one for the step."""
    counted(traced)
    traced.d[:] = traced.d + traced.tracer.taken()
    last = [
        stage for _, stage in traced.program().stages() if isinstance(stage, Scalars) and not stage.outputs
    ]
    stored = {line[1]: stage.extent for stage in last for line in stage.code if line[0] == "store"}
    assert stored == {traced.n.number: STEP, traced.d.number: TENSOR}


def test_counter_alone(traced):
    """A counter without a condition."""
    counted(traced)
    assert traced.program().passes() == [] and traced.stored() == {"n": [len(traced.program().levels)]}


def test_counter_reads_what_another_store_replaces(traced):
    """A counter that is computed from a slot takes the value of before the slot is stored."""
    counted(traced, traced.s * 2.0)
    traced.s[:] = 5.0
    program = traced.program()
    assert ("load", traced.s.number) not in program.ends[0].code
    assert [
        stage.code[0] for _, stage in program.stages() if isinstance(stage, Scalars) and stage.outputs
    ] == [("load", traced.s.number)]


# --- what is left out ---


def test_dead_lines(be, traced):
    """Lines, loads, reductions and numbers of the host that nothing needs."""
    be.exp(traced.v) * traced.tracer.source("lr", 0.1)
    be.norm(traced.v) + traced.step.max(traced.g)
    traced.p[:] = traced.p + traced.g
    program, scalars = traced.tracer.program()
    assert kinds(program) == [["Pass"]] and [line[0] for line in program.passes()[0].code] == [
        "load",
        "load",
        "add",
        "store",
    ]
    assert program.n_numbers == 0 and scalars.outputs == ()


def test_dead_reader_moves_nothing(be, traced):
    """A store does not wait for a pass that is left out."""
    be.sum(traced.p * be.norm(traced.m))
    traced.p[:] = traced.p + traced.g
    assert kinds(traced.program()) == [["Pass"]]


def test_unused_clip():
    """If a rule uses neither the scale nor a scaled gradient, no norm is summed."""

    class Shrinks(nbopt.Optimizer):
        def rule(self, step, param, grad):
            param[:] = param * 0.5

    assert bytes_of(program_of(Shrinks(), **CLIP)) == [8]


def test_empty_trace(traced):
    """Nothing is stored: no stage at all."""
    be_nothing = traced.p * 2.0
    assert traced.tracer.extent(be_nothing) == ELEMENT
    assert traced.program().stages() == [] and traced.program().written() == []


# --- numbers ---


def test_numbering(traced):
    """Stores have the numbers of the trace, wherever they stand, and also where they are only rounded."""
    traced.p[:] = traced.p * traced.step.norm(traced.g)
    counted(traced)
    traced.m[:] = traced.m + traced.g
    traced.v[:] = traced.m * traced.step.sum(traced.m)
    traced.step.only_if(traced.step.sum(traced.v))
    found = {}
    for one in traced.program().passes():
        for line in one.code:
            if line[0] in ("store", "round"):
                found.setdefault(line[1], set()).add(line[3])
    assert found == {0: {0}, 2: {2}, 3: {3}}
    assert next(line for line in traced.program().ends[0].code if line[0] == "store")[3] == 1
    assert any(line[0] == "round" for one in traced.program().passes() for line in one.code)


def test_numbers_are_no_structure(be):
    """Other Python numbers give the same program: kernels are shared."""

    def program(number):
        traced = Traced()
        traced.p[:] = traced.p - number * traced.g / be.norm(traced.g)
        return traced.program()

    assert program(0.5) == program(0.25) and hash(program(0.5)) == hash(program(0.25))


def test_numbers_of_a_parameter(be, traced):
    """First the host's, then what stages give; a pass says which it uses."""
    lr = traced.tracer.source("lr", 0.1)
    traced.p[:] = traced.p - lr * traced.g / be.norm(traced.g) + traced.p.size
    program, scalars = traced.tracer.program()
    (combine,) = [stage for _, stage in program.stages() if isinstance(stage, Combine)]
    (root,) = [stage for _, stage in program.stages() if isinstance(stage, Scalars)]
    assert (program.n_given, program.n_numbers) == (1, 4) and len(scalars.outputs) == 1
    assert {0, combine.output, root.outputs[0][1], program.size} == {0, 1, 2, 3}
    assert (
        program.passes()[1].scalars() == sorted({0, 1, 2, 3} - {combine.output})
        and program.passes()[0].scalars() == []
    )


# --- reductions by name ---

NUMBERS = {
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "norm": lambda x: np.sqrt((x * x).sum()),
    "max": lambda x: x.max(),
    "min": lambda x: x.min(),
}


@pytest.mark.parametrize(
    "name, over",
    [
        *((name, "tensor") for name in ("sum", "mean", "norm", "max", "min", "var", "std")),
        *((name, "step") for name in NUMBERS),
    ],
)
def test_by_name(be, name, over, rng):
    """be.mean and its like over a parameter, step.mean and its like over all, against NumPy."""

    def apply(data):
        return NUMBERS[name](data) if name in NUMBERS else getattr(np, name)(data)

    class Stores(nbopt.Optimizer):
        def rule(self, step, param, grad):
            given = self.be if over == "tensor" else step
            found = getattr(given, name)(grad)
            param[:] = found + 0.0 * param

    arrays = [(np.zeros(shape), rng.normal(size=shape)) for shape in [(5, 4), (), (7,)]]
    Stores().optimize([nbopt.Parameters(*arrays)], 0)
    everything = np.concatenate([np.ravel(grad) for _, grad in arrays])
    for param, grad in arrays:
        np.testing.assert_allclose(
            param,
            np.full(param.shape, apply(grad if over == "tensor" else everything)),
            rtol=1e-12,
            atol=1e-15,
        )


@pytest.mark.parametrize("name", NUMBERS)
def test_step_of_numbers(name, rng):
    """Of a number of each parameter, a reduction over the step is over the parameters that have elements."""

    class Stores(nbopt.Optimizer):
        def rule(self, step, param, grad):
            param[:] = getattr(step, name)(self.be.max(grad)) + 0.0 * param

    arrays = [(np.zeros(shape), rng.normal(size=shape)) for shape in [(5, 4), (0, 3), (), (7,)]]
    Stores().optimize([nbopt.Parameters(*arrays)], 0)
    expected = NUMBERS[name](np.array([grad.max() for _, grad in arrays if grad.size]))
    for param, _ in arrays:
        np.testing.assert_allclose(param, np.full(param.shape, expected), rtol=1e-12)


@pytest.mark.parametrize("name", NUMBERS)
def test_step_of_one_number(name, rng):
    """Of a number of the step, a reduction over the step is over this one number."""

    class Stores(nbopt.Optimizer):
        def rule(self, step, param, grad):
            param[:] = getattr(step, name)(step.sum(grad)) + 0.0 * param

    arrays = [(np.zeros(shape), rng.normal(size=shape)) for shape in [(5, 4), (7,)]]
    Stores().optimize([nbopt.Parameters(*arrays)], 0)
    total = sum(grad.sum() for _, grad in arrays)
    for param, _ in arrays:
        np.testing.assert_allclose(
            param, np.full(param.shape, abs(total) if name == "norm" else total), rtol=1e-12
        )


# --- several updates of a step ---


def update_of(traced):
    return Update(traced.program(), [], None, None, recut=traced.program)


def test_decide_together():
    """What must wait for a partner's verdict is stored in the later pass; what has no condition is not."""
    early, late, free = Traced(), Traced(), Traced()
    for traced in (early, late, free):
        traced.m[:] = traced.m + traced.g
    early.step.only_if(early.step.sum(early.g))
    late.step.only_if(late.step.sum(late.g / late.step.sum(late.g)))
    updates = [update_of(traced) for traced in (early, late, free)]
    assert [update.program.verdict for update in updates] == [1, 2, None]
    before = updates[2].program
    decide_together(updates)
    assert [update.program.verdict for update in updates] == [2, 2, None]
    assert updates[2].program is before
    assert (
        early.stored(2) == late.stored() == {"m": [2]}
        and early.stored() == {"m": [1]}
        and free.stored() == {"m": [0]}
    )
    assert [one.guarded for one in updates[0].program.passes()] == [False, True]
    assert bytes_of(updates[0].program) == [4, 12]


def test_decided_at_one_level():
    """Programs that agree are not cut again."""
    pair = Traced(), Traced()
    for traced in pair:
        traced.step.only_if(traced.step.sum(traced.g))
        traced.p[:] = traced.p + traced.g
    updates = [update_of(traced) for traced in pair]
    before = [update.program for update in updates]
    decide_together(updates)
    assert all(update.program is program for update, program in zip(updates, before))


def test_multi_optimizer(rng):
    """A member whose condition is known early waits for the partner whose condition is known late."""

    class Late(nbopt.Optimizer):
        def rule(self, step, param, grad):
            step.only_if(self.be.finite(step.sum(grad / step.norm(grad))))
            param[:] = param - grad

    late, early = Late(), nbopt.RMSProp()
    early.skip_nonfinite = True
    both = nbopt.MultiOptimizer({"default": early, "late": late})
    for bad, changed in ((0.0, True), (np.nan, False), (1.0, True)):
        arrays = [(np.ones(3), rng.normal(size=3)) for _ in range(2)]
        arrays[1][1][0] += bad
        first, second = nbopt.Parameters(arrays[0]), nbopt.Parameters(arrays[1], name="late")
        both.optimize([first, second], 0)
        assert [(param != 1.0).any() for param, _ in arrays] == [changed] * 2
    assert early.skipped == 1 and both.t == 3
