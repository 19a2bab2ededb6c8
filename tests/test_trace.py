"""Tracing: from a rule to a program.

Nothing here runs a kernel, but for what is said about assignments outside rules at the end.
"""

import inspect
import math
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import EVERY, OTHERS, same_bits

import nbopt
from nbopt.errors import OperandError, TraceError
from nbopt.language.lines import ELEMENT
from nbopt.language.ops import PRIMITIVES
from nbopt.language.trace import Tracer


class Words(nbopt.Backend):
    """A backend with ops and nothing behind them: all that tracing needs."""

    name = "words"

    @classmethod
    def storage_dtype(cls, dtype):
        return np.dtype(dtype)

    def array(self, values, dtype=None, name=None):
        """Stand for a state of the whole step: no kernel runs that could read it."""

    def wrap(self, obj):
        """Stand for a parameter, likewise."""
        return SimpleNamespace(dtype=np.dtype("float32"))


@pytest.fixture
def be():
    with nbopt.use_backend(Words()) as words:
        yield words


class Traced:
    """What a trace of a rule without reductions becomes: one pass, and the values of its numbers."""

    def __init__(self, tracer):
        program, scalars = tracer.program()
        (only,) = program.passes()
        self.numbers, _ = scalars.function()(tracer.numbers)
        self.names, self.code, self.written, self.moved = only.names, code_of(only), only.written, only.moved


def trace(rule, names=("p", "g", "s")):
    """Run `rule` over one slot for each name."""
    tracer = Tracer(names)
    rule(*tracer.slots())
    return Traced(tracer)


def code_of(one):
    """Return the lines of a pass, without the numbers of the stores."""
    return tuple(line[:3] if line[0] == "store" else line for line in one.code)


def ops_of(one):
    """Count the lines of a pass by their op."""
    return Counter(line[0] for line in one.code)


class SymbolicLayer:
    """A layer for tracing only: it has one parameter, and no arrays."""

    def get_params(self):
        return [(("param", "grad"), [])]


def traced_step(optimizer, epoch=0):
    """Return the program and the numbers of one step of `optimizer`."""
    (update,) = optimizer.updates(nbopt.get_backend(), [SymbolicLayer()], epoch)
    return update.program, update.numbers


# --- structure ---


def test_a_program_is_straight_line_code_in_the_order_of_evaluation():
    def rule(p, g):
        p[:] = p - 0.5 * g

    program = trace(rule, ("p", "g"))
    assert program.code == (
        ("load", 1),
        ("multiply", ~0, 0),
        ("load", 0),
        ("subtract", 2, 1),
        ("store", 0, 3),
    )
    assert program.names == ("p", "g")
    assert program.numbers == [0.5]
    assert (program.written(), program.moved()) == ([0], [0, 1])


def test_a_slot_is_loaded_once_however_often_it_is_read():
    def rule(p, g, s):
        s[:] = g * g + g / s
        p[:] = p - g * p + g

    assert ops_of(trace(rule))["load"] == 3


def test_a_slot_that_is_never_read_is_not_loaded():
    def rule(p, g, s):
        p[:] = 2.0 * g

    program = trace(rule)
    assert [line for line in program.code if line[0] == "load"] == [("load", 1)]
    assert program.moved() == [0, 1]


def test_a_value_that_is_used_twice_is_computed_once():
    def rule(p, g, s):
        square = g * g
        s[:] = s + square
        p[:] = p - square

    assert ops_of(trace(rule))["multiply"] == 1


def test_reading_after_an_assignment_sees_the_stored_value_without_a_load():
    def rule(p, g, s):
        s[:] = s + 1.0
        p[:] = s * 2.0

    assert trace(rule).code == (
        ("load", 2),
        ("add", 0, ~0),
        ("store", 2, 1),
        ("multiply", 2, ~1),
        ("store", 0, 3),
    )


def test_a_slot_under_another_name_is_still_the_slot():
    def rule(p, g, s):
        alias, same = s, s[:]
        s[:] = g
        p[:] = alias + same

    store, add = trace(rule).code[1:3]
    assert store == ("store", 2, 0)
    assert add == ("add", 1, 1)  # both are what was stored


def test_each_of_several_assignments_to_a_slot_is_kept():
    def rule(p, g, s):
        p[:] = g
        p[:] = p + 1.0
        p[:] = p + 1.0

    assert trace(rule).code == (
        ("load", 1),
        ("store", 0, 0),
        ("add", 1, ~0),
        ("store", 0, 2),
        ("add", 3, ~1),
        ("store", 0, 4),
    )


def test_a_number_alone_can_be_assigned():
    def rule(p, g, s):
        p[:] = 3

    tracer = trace(rule)
    assert tracer.code == (("store", 0, ~0),)
    assert tracer.numbers == [3.0]


@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_loads_each_slot_once_and_stores_each_once(be, name):
    program, _ = traced_step(EVERY[name]())
    stores = Counter()
    for one in program.passes():
        accesses = Counter(line[:2] for line in one.code if line[0] in ("load", "store"))
        assert set(accesses.values()) == {1}
        stores.update(access for access in accesses if access[0] == "store")
        assert {("load", 0), ("load", 1)} <= set(accesses) or len(program.passes()) > 1
    # Everything but the gradient is written, and but for a copy of what a parameter began with.
    kept = {"grad", "start"}
    assert stores == {
        ("store", slot): 1
        for slot, name in enumerate(program.names)
        if name not in kept and program.extents[slot] == ELEMENT
    }


@pytest.mark.parametrize("name", EVERY)
def test_programs_hold_primitives_loads_and_stores_and_refer_backwards_only(be, name):
    program, _ = traced_step(EVERY[name]())
    for index, (op, *operands) in enumerate(code_of(program.passes()[0])):
        assert op in ("load", "store") or len(operands) == PRIMITIVES[op].arity
        values = operands if op in PRIMITIVES else operands[1:]
        assert all(-program.n_numbers <= value < index for value in values)


# --- numbers are run-time scalars ---


def defaults_of(kind):
    """The defaults of a constructor's arguments."""
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


#: Hyper-parameters of which half the default is structure, or not allowed.
KEPT = {"weight_lr_power", "clip_threshold"}
# Values of one optimizer that give the same structure: odd ones among them, which a simplifier would take
# away.
SAME_STRUCTURE = {
    "momentum": [
        {"learning_rate": 0.0, "momentum_coef": 1.0, "wdecay": 0.0},
        {"learning_rate": 1.0, "momentum_coef": 0.9, "wdecay": 1.0},
    ],
    "nesterov": [{"learning_rate": 1.0, "momentum_coef": 1.0}, {"learning_rate": 0.0, "wdecay": 0.5}],
    "plain": [{"learning_rate": 1.0, "wdecay": 0.0}, {"learning_rate": 0.0, "wdecay": 1.0}],
    "rmsprop": [
        {"decay_rate": 0.0, "epsilon": 0.0},
        {"decay_rate": 1.0, "learning_rate": 1.0, "epsilon": 1.0},
    ],
    "adagrad": [{"learning_rate": 0.0, "epsilon": 0}, {"learning_rate": 1, "epsilon": 1}],
    "adadelta": [{"decay": 0.0, "epsilon": 0.0}, {"decay": 1.0, "epsilon": 1.0}],
    "adam": [
        {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0},
        {"beta_1": 0.5, "beta_2": 0.5, "learning_rate": 0.5, "epsilon": 0.5},
    ],
    "shift_adamax": [
        {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0},
        {"learning_rate": 1.0, "beta_2": 1.0, "epsilon": 1.0},
    ],
    "rmsprop_momentum": [
        {"decay_rate": 0.0, "epsilon": 0.0},
        {"momentum_coef": 1.0, "learning_rate": 1.0, "epsilon": 1.0},
    ],
    "rmsprop_centered": [
        {"decay_rate": 0.0, "epsilon": 0.0},
        {"momentum_coef": 1.0, "learning_rate": 1.0, "epsilon": 1.0},
    ],
    "adamw": [
        {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0, "wdecay": 0.0},
        {"learning_rate": 0.0, "wdecay": 1.0},
    ],
    "amsgrad": [{"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0}, {"learning_rate": 0.0, "epsilon": 1.0}],
    "adamax": [{"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0}, {"learning_rate": 0.0, "epsilon": 1.0}],
    "nadam": [{"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0}, {"learning_rate": 0.0, "momentum_decay": 0.0}],
    # With these beta_2 the branch for the first steps is that for all steps.
    "radam": [{"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0}, {"beta_2": 0.5, "learning_rate": 1.0}],
    "lion": [{"beta_1": 0.0, "beta_2": 0.0, "wdecay": 0.0}, {"learning_rate": 0.0, "wdecay": 1.0}],
    "yogi": [
        {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0},
        {"learning_rate": 0.0, "initial_accumulator_value": 0.0},
    ],
    "adabelief": [
        {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0},
        {"learning_rate": 0.0, "epsilon_root": 0.0},
    ],
    "rprop": [{"eta_minus": 0.0, "eta_plus": 1.0}, {"learning_rate": 0.0, "step_min": 1.0, "step_max": 1.0}],
    "asgd": [{"lambd": 0.0, "alpha": 0.0, "t0": 0.0}, {"learning_rate": 0.0, "alpha": 1.0, "t0": 1e6}],
    # Whether a number is 0 may be structure there: each is halved.
    **{
        name: [
            {
                key: value / 2
                for key, value in defaults_of(kind).items()
                if type(value) is float and key not in KEPT
            }
        ]
        for name, kind in OTHERS.items()
    },
}


@pytest.mark.parametrize("name", EVERY)
def test_hyper_parameters_and_batch_size_and_epoch_and_t_are_no_structure(be, name):
    program, scalars = traced_step(EVERY[name]())
    for values in SAME_STRUCTURE[name]:
        be.bsz += 1
        optimizer = EVERY[name](**values)
        optimizer.t = 6
        other_program, other_scalars = traced_step(optimizer, epoch=4)
        assert other_program == program
        assert hash(other_program) == hash(program)
        assert len(other_scalars) == program.n_given
        assert other_scalars != scalars


def test_the_bounds_of_clips_are_no_structure(be):
    def program(**clips):
        return traced_step(nbopt.RMSProp(**clips))[0]

    on = {"gradient_clip_norm": 1.0, "gradient_clip_value": 1.0, "param_clip_value": 1.0}
    assert program(**on) == program(gradient_clip_norm=5.0, gradient_clip_value=-3.0, param_clip_value=1e-9)
    assert program() == program(gradient_clip_norm=0, gradient_clip_value=0.0, param_clip_value=0)


def test_what_is_present_or_absent_is_structure(be):
    variants = [
        nbopt.GradientDescentMomentum(0.1, 0.9),
        nbopt.GradientDescentMomentum(0.1, 0.9, nesterov=True),
        nbopt.GradientDescentMomentum(0.1, 0.0),
        nbopt.GradientDescentMomentum(0.1, 0.9, gradient_clip_norm=1.0),
        nbopt.GradientDescentMomentum(0.1, 0.9, gradient_clip_value=1.0),
        nbopt.GradientDescentMomentum(0.1, 0.9, param_clip_value=1.0),
    ]
    assert len({traced_step(optimizer)[0] for optimizer in variants}) == len(variants)


def test_the_norm_clip_is_stages_of_the_program(be):
    """With a norm clip the squares of the gradients are summed in a pass of their own.

    Without one there is none.
    """
    program, numbers = traced_step(nbopt.RMSProp(gradient_clip_norm=1.0))
    first, second = program.passes()
    assert (first.reductions, first.written()) == ((("sum", 1),), [])
    assert (second.reductions, second.written()) == ((), [0, 2])
    assert len(numbers) == program.n_given < program.n_numbers
    assert len(traced_step(nbopt.RMSProp())[0].passes()) == 1


def test_nothing_is_simplified_away():
    def rule(p, g, s):
        p[:] = ((p + 0) * 1 - 0.0) / 1.0
        s[:] = 0 * s

    tracer = trace(rule)
    assert ops_of(tracer) == {"load": 2, "store": 2, "add": 1, "multiply": 2, "subtract": 1, "divide": 1}
    assert tracer.numbers == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_equal_numbers_are_separate_scalars():
    """Else the structure would change when two hyper-parameters happen to be equal."""

    def rule(first, second):
        def run(p, g, s):
            p[:] = first * p + second * g

        return run

    same, different = trace(rule(0.5, 0.5)), trace(rule(0.5, 0.25))
    assert same.code == different.code
    assert same.numbers == [0.5, 0.5]


@pytest.mark.parametrize(
    "number",
    [2, -0.0, math.inf, True, np.float32(0.1), np.float64(0.1), np.int8(-3), np.bool_(True), Fraction(1, 4)],
    ids=repr,
)
def test_any_real_number_becomes_a_float64_scalar_on_either_side(number):
    def rule(p, g, s):
        p[:] = p * number
        s[:] = number - s

    tracer = trace(rule)
    assert tracer.numbers == [float(number)] * 2
    assert all(type(scalar) is float for scalar in tracer.numbers)
    assert math.copysign(1, tracer.numbers[0]) == math.copysign(1, float(number))
    assert ops_of(tracer) == {"load": 2, "multiply": 1, "subtract": 1, "store": 2}


def test_ops_on_numbers_alone_give_numbers_and_no_instruction(be):
    def rule(p, g, s):
        p[:] = p * be.sqrt(4.0) + be.maximum(1, 3)

    tracer = trace(rule)
    assert tracer.numbers == [2.0, 3.0]
    assert ops_of(tracer) == {"load": 1, "multiply": 1, "add": 1, "store": 1}


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [
        (-4, {"multiply": 2, "divide": 1}),
        (-1, {"divide": 1}),
        (1, {}),
        (2, {"multiply": 1}),
        (np.int64(3), {"multiply": 2}),
        (4, {"multiply": 2}),
        (5, {"power": 1}),
        (-5, {"power": 1}),
        (2.0, {"power": 1}),
        (np.float64(3.0), {"power": 1}),
    ],
)
def test_an_int_exponent_from_minus_4_to_4_is_structure_and_any_other_a_scalar(exponent, expected):
    def rule(p, g, s):
        p[:] = g**exponent

    assert ops_of(trace(rule)) == {"load": 1, "store": 1, **expected}


def test_a_rule_may_branch_on_host_numbers_and_each_structure_is_a_program(be):
    class WarmUp(nbopt.Optimizer):
        learning_rate = 0.1

        def rule(self, step, param, grad):
            if step.epoch < 2:
                param[:] = param - step.lr * grad
            else:
                param[:] = param - step.lr * be.sgn(grad)

    programs = [traced_step(WarmUp(), epoch)[0] for epoch in range(4)]
    assert programs[0] == programs[1] != programs[2] == programs[3]


# --- stale expressions ---


def whole(p, g, s):
    new = p - g
    p[:] = new
    s[:] = new


def nested(p, g, s):
    before = p * g
    p[:] = p - g
    s[:] = 1.0 + 2.0 * (g - before)


def shared_and_evaluated_before(p, g, s):
    shared = p * g
    s[:] = s + shared
    p[:] = p - g
    s[:] = s + shared


def shared_inside_a_fresh_expression(p, g, s):
    shared = p * g
    s[:] = shared
    p[:] = p - g
    s[:] = (g + 1.0) * (g - shared)


def stale_after_the_second_of_two_assignments(p, g, s):
    shared = p * g
    s[:] = shared + s
    s[:] = shared + s  # s is not in it, so it is still good here
    p[:] = shared
    s[:] = shared


def deep(p, g, s):
    value = p + g
    for _ in range(50):
        value = value * 0.5
    p[:] = g
    s[:] = value


def built_before_and_never_used_until_after(p, g, s):
    difference = g - 2.0 * p
    p[:] = 0.0
    p[:] = difference


STALE = [
    whole, nested, shared_and_evaluated_before, shared_inside_a_fresh_expression,
    stale_after_the_second_of_two_assignments, deep, built_before_and_never_used_until_after,
]  # fmt: skip


@pytest.mark.parametrize("rule", STALE, ids=lambda rule: rule.__name__)
def test_a_stale_expression_is_refused_and_the_slot_named(rule):
    with pytest.raises(TraceError, match=r"\bparam\b.*after param was assigned.*param\[:\] = "):
        trace(rule, ("param", "grad", "state"))


def test_the_message_names_the_slot_that_was_assigned_and_no_other():
    def rule(p, g, s):
        both = p + s
        s[:] = g
        p[:] = both

    with pytest.raises(TraceError, match="built from state is used after state was assigned") as caught:
        trace(rule, ("param", "grad", "state"))
    assert "param" not in str(caught.value)


def test_a_stale_expression_inside_an_op_or_a_clip_is_found(be):
    def rule(p, g, s):
        root = be.sqrt(be.maximum(s, 0.0))
        s[:] = g
        p[:] = be.clip(be.where(g > 0, root, g), -1, 1)

    with pytest.raises(TraceError, match="after s was assigned"):
        trace(rule)


def test_an_expression_that_reads_nothing_assigned_stays_good_and_is_not_computed_again():
    def rule(p, g, s):
        square = g * g
        s[:] = s + square
        p[:] = p - square
        s[:] = s - square

    assert ops_of(trace(rule)) == {"load": 3, "multiply": 1, "add": 1, "subtract": 2, "store": 3}


def test_an_expression_built_after_the_assignment_is_good():
    def rule(p, g, s):
        half = g * 0.5
        p[:] = p - half
        later = half * p  # p is the new one
        s[:] = later

    *_, store, multiply, last = trace(rule).code
    assert store == ("store", 0, 3)
    assert multiply == ("multiply", 1, 4)  # instruction 1 is half, 4 is the store
    assert last == ("store", 2, 5)


# --- what can't become a kernel ---


@pytest.mark.parametrize(
    "branch",
    [
        lambda p, g: 1 if g > 0 else 0,
        lambda p, g: p and g,
        lambda p, g: not p,
        lambda p, g: max(p, g),
        lambda p, g: 0 < g < 1,
        lambda p, g: bool(p * 2),
        lambda p, g: p in [g],
        lambda p, g: [1 for _ in range(3) if g == 0],
    ],
    ids=["if", "and", "not", "max", "chained", "bool", "in", "filter"],
)
def test_branching_on_a_symbolic_value_is_refused_with_the_mend(branch):
    with pytest.raises(TraceError, match=r"truth value.*be\.where.*be\.maximum"):
        trace(lambda p, g, s: branch(p, g))


@pytest.mark.parametrize(
    "convert",
    [float, int, math.sqrt, range, lambda x: [0, 1][x]],
    ids=["float", "int", "math", "range", "index"],
)
def test_a_symbolic_value_is_no_number(convert):
    with pytest.raises(TraceError, match="not a number"):
        trace(lambda p, g, s: convert(g * 2))


@pytest.mark.parametrize(
    "use",
    [
        np.sqrt,
        lambda x: np.ones(3) * x,
        lambda x: x + np.ones(3),
        lambda x: "a" + x,
        lambda x: x * 1j,
        lambda x: x - None,
        list,
    ],
    ids=["ufunc", "array on the left", "array on the right", "str", "complex", "None", "iteration"],
)
def test_arrays_and_other_foreign_operands_are_refused(use):
    with pytest.raises(TypeError):
        trace(lambda p, g, s: use(p))


def test_an_array_in_a_rule_is_pointed_to_numbers_and_states():
    with pytest.raises(OperandError, match=r"float\(x\).*state_names"):
        trace(lambda p, g, s: p * np.ones(3))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_places_in_a_rule_are_refused(be, name):
    """A rule reduces to values, not to places."""
    with pytest.raises(TraceError, match=rf"be\.sum.*not be\.{name}"):
        trace(lambda p, g, s: getattr(be, name)(g))


def test_a_tensor_in_a_rule_is_refused_and_states_are_named_as_the_mend(be):
    mask = nbopt.Tensor(be, np.ones(3, np.float32), "mask")

    def rule(p, g, s):
        p[:] = p - g * mask

    with pytest.raises(TraceError, match=r"'mask'.*state_names"):
        trace(rule)


def test_a_reduction_of_a_tensor_in_a_rule_is_refused(be):
    mask = nbopt.Tensor(be, np.ones((3, 1), np.float32), "mask")

    def rule(p, g, s):
        p[:] = p - g * be.sum(mask)

    with pytest.raises(TraceError, match="is neither"):
        trace(rule)


@pytest.mark.parametrize("kept", ["slot", "expression"])
def test_slots_of_another_step_are_refused(kept):
    saved = []

    def rule(p, g, s):
        saved.append({"slot": g, "expression": g * 2.0}[kept])
        p[:] = p - saved[0]

    trace(rule)
    with pytest.raises(TraceError, match="of another step"):
        trace(rule)


@pytest.mark.parametrize("key", [0, slice(0, 2), (slice(None), 0), Ellipsis], ids=repr)
def test_parts_of_a_slot_can_be_neither_assigned_nor_read(key):
    def assign(p, g, s):
        p[key] = g

    with pytest.raises(TraceError, match=r"p\[:\] = "):
        trace(assign)
    with pytest.raises(TraceError, match="g stands for a tensor of any shape"):
        trace(lambda p, g, s: g[key])


def test_augmented_assignment_to_a_slot_stores_once():
    def rule(p, g, s):
        p[:] -= g

    assert trace(rule).code == (("load", 0), ("load", 1), ("subtract", 0, 1), ("store", 0, 2))


# --- size ---


def nest(value, depth):
    for _ in range(depth):
        value = value + 1.0
    return value


def square_repeatedly(value, times):
    """x = x*x, `times` times: as many nodes, and 2**times paths to the leaf."""
    for _ in range(times):
        value = value * value
    return value


def test_a_hundred_nested_operations_are_fine():
    def rule(p, g, s):
        p[:] = nest(g, 100)

    assert ops_of(trace(rule)) == {"load": 1, "add": 100, "store": 1}


def test_nesting_beyond_pythons_stack_is_fine_inside_a_rule():
    def rule(p, g, s):
        p[:] = nest(g, 20_000)

    assert ops_of(trace(rule)) == {"load": 1, "add": 20_000, "store": 1}


def test_nesting_too_deeply_outside_a_rule_is_the_same_error():
    with nbopt.use_backend("reference") as reference:
        out, x = reference.zeros(3), reference.ones(3)
        for make in (
            lambda: nest(x, 20_000),
            lambda: nest(reference.sum(x), 20_000),
            lambda: reference.sum(nest(x, 20_000)),
        ):
            with pytest.raises(TraceError, match="nested too deeply: assign parts of it"):
                out[:] = make()
        assert same_bits(out.get(), np.zeros(3, np.float32))


def test_shared_parts_are_visited_once():
    def rule(p, g, s):
        p[:] = square_repeatedly(g, 60)

    assert ops_of(trace(rule)) == {"load": 1, "multiply": 60, "store": 1}


def test_shared_parts_are_visited_once_after_each_assignment():
    def rule(p, g, s):
        value = square_repeatedly(g, 60)
        for _ in range(5):
            p[:] = p + value

    assert ops_of(trace(rule)) == {"load": 2, "multiply": 60, "add": 5, "store": 5}


def test_shared_parts_are_visited_once_outside_rules():
    with nbopt.use_backend("reference") as reference:
        out, x = reference.zeros((2, 2)), reference.ones((2, 2))
        out[:] = square_repeatedly(x, 60)
        assert same_bits(out.get(), np.ones((2, 2), np.float32))
        out[:] = reference.sum(square_repeatedly(x, 60)) + square_repeatedly(reference.max(x), 60)
        assert same_bits(out.get(), np.full((2, 2), 5, np.float32))


@pytest.mark.parametrize("scale", [4.0, np.array([4.0], np.float32)], ids=["number", "memory"])
@pytest.mark.rest("cpu-number")
def test_loss_scale(host_backend, scale):
    """A rule may read the loss scale, a number or in memory; another value traces nothing."""
    runs = []

    class Scaled(nbopt.Optimizer):
        learning_rate = 1.0

        def rule(self, step, param, grad):
            runs.append(1)
            param[:] = param - step.lr * grad * step.loss_scale

    values, optimizer = np.ones(3, np.float32), Scaled()
    layer = nbopt.Parameters((values, np.full(3, 0.5, np.float32)))
    for factor in (1.0, 2.0):
        optimizer.loss_scale = scale * np.float32(factor)
        values[:] = 1.0
        optimizer.optimize([layer], 0)
        assert (values == 0.5).all()
    assert len(runs) == 1
