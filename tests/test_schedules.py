"""Schedules: pure functions of the learning rate and the epoch."""

import copy
import math
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbopt

LR = 0.25  # not a rate that any schedule below sets, so that a mix-up shows

# Each schedule beside its formula, written out once more in plain Python.
CASES = [
    pytest.param(make, formula, id=name)
    for name, make, formula in [
        ("constant", lambda: nbopt.Schedule(), lambda lr, e: lr),
        ("constant_with_change", lambda: nbopt.Schedule(change=0.5), lambda lr, e: lr),
        ("every_k", lambda: nbopt.Schedule(3, 0.5), lambda lr, e: lr * 0.5 ** (e // 3)),
        (
            "at_steps",
            lambda: nbopt.Schedule([2, 5, 6], 0.1),
            lambda lr, e: lr * 0.1 ** ((e >= 2) + (e >= 5) + (e >= 6)),
        ),
        (
            "lists",
            lambda: nbopt.Schedule([2, 5], [0.125, 0.75]),
            lambda lr, e: 0.75 if e >= 5 else 0.125 if e >= 2 else lr,
        ),
        (
            "step",
            lambda: nbopt.StepSchedule([2, 5], [0.125, 0.75]),
            lambda lr, e: 0.75 if e >= 5 else 0.125 if e >= 2 else lr,
        ),
        ("power", lambda: nbopt.PowerSchedule(4, 0.9), lambda lr, e: lr * 0.9 ** (e // 4)),
        ("exp", lambda: nbopt.ExpSchedule(0.3), lambda lr, e: lr / (1 + 0.3 * e)),
        ("poly", lambda: nbopt.PolySchedule(10, 2), lambda lr, e: lr * max(0, 1 - e / 10) ** 2),
        (
            "poly_fraction",
            lambda: nbopt.PolySchedule(total_epochs=7, power=0.5),
            lambda lr, e: lr * max(0, 1 - e / 7) ** 0.5,
        ),
        ("shift", lambda: nbopt.ShiftSchedule(3), lambda lr, e: lr / 2 ** (e // 3)),
        (
            "shift_by_2",
            lambda: nbopt.ShiftSchedule(interval=2, shift_size=2),
            lambda lr, e: lr / 4 ** (e // 2),
        ),
    ]
]
each_schedule = pytest.mark.parametrize(("make", "formula"), CASES)


def rate(value):
    """Return an approximation of ``value`` that lets a power be computed in another way."""
    return pytest.approx(value, rel=1e-12, abs=0)


@each_schedule
def test_formula_at_every_epoch(make, formula):
    schedule = make()
    for epoch in range(25):
        assert schedule.get_learning_rate(LR, epoch) == rate(formula(LR, epoch))


@each_schedule
@given(epochs=st.lists(st.integers(0, 60), max_size=12), lr=st.floats(1e-6, 10.0))
def test_epochs_may_come_in_any_order(make, formula, epochs, lr):
    schedule = make()
    for epoch in epochs:
        assert schedule.get_learning_rate(lr, epoch) == rate(formula(lr, epoch))


@each_schedule
def test_no_state_is_kept_between_calls(make, formula):
    schedule = make()
    description = copy.deepcopy(schedule.get_description())
    epochs = list(range(30)) * 2
    random.Random(0).shuffle(epochs)
    rates = [schedule.get_learning_rate(LR, epoch) for epoch in epochs]
    assert rates == [make().get_learning_rate(LR, epoch) for epoch in epochs]
    assert schedule.get_description() == description


@each_schedule
def test_numpy_numbers_are_as_good_as_pythons(make, formula):
    value = make().get_learning_rate(np.float64(LR), np.int64(5))
    assert isinstance(value, float)
    assert value == rate(formula(LR, 5))


def test_schedule_without_steps_gives_the_rate_itself():
    assert nbopt.Schedule().get_learning_rate(0.1, 1000) == 0.1


def test_steps_count_from_the_epoch_they_name():
    schedule = nbopt.StepSchedule([3], [0.5])
    assert schedule.get_learning_rate(LR, 2) == LR
    assert schedule.get_learning_rate(LR, 3) == 0.5


def test_lists_given_to_schedule_equal_step_schedule():
    one, other = nbopt.Schedule([1, 4], [0.5, 0.0]), nbopt.StepSchedule([1, 4], [0.5, 0.0])
    for epoch in (5, 0, 3, 1, 4):
        assert one.get_learning_rate(LR, epoch) == other.get_learning_rate(LR, epoch)


# neon's faults, mended


@pytest.mark.parametrize("kind", ["Schedule", "StepSchedule"])
def test_a_step_to_zero_is_zero(kind):
    """neon took 0 for "not set yet" and went back to the first learning rate."""
    schedule = getattr(nbopt, kind)([2, 6], [0.0, 0.5])
    assert [schedule.get_learning_rate(LR, e) for e in (1, 2, 5, 6)] == [LR, 0.0, 0.0, 0.5]


@pytest.mark.parametrize("kind", ["Schedule", "StepSchedule"])
def test_a_step_at_epoch_zero_holds_at_once(kind):
    assert getattr(nbopt, kind)([0], [0.5]).get_learning_rate(LR, 0) == 0.5


@pytest.mark.parametrize("kind", ["Schedule", "StepSchedule"])
def test_a_run_resumed_between_steps_has_the_rate_of_the_last_step(kind):
    """neon changed the rate only in a call at exactly the epoch of a step."""
    assert getattr(nbopt, kind)([2, 5], [0.125, 0.75]).get_learning_rate(LR, 9) == 0.75


def test_poly_schedule_divides_ints_truly():
    """neon's int division held the rate until the last epoch, then dropped it to 0."""
    schedule = nbopt.PolySchedule(total_epochs=4, power=1)
    assert [schedule.get_learning_rate(1.0, e) for e in range(5)] == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("power", [1, 2, 3, 0.5])
def test_poly_schedule_is_zero_after_its_last_epoch(power):
    """An even power must not bring the rate back, nor a fraction make it complex."""
    schedule = nbopt.PolySchedule(total_epochs=4, power=power)
    for epoch in (4, 5, 100):
        value = schedule.get_learning_rate(LR, epoch)
        assert isinstance(value, float)
        assert value == 0


@given(st.floats(1e-6, 10.0), st.integers(1, 20), st.integers(0, 5), st.integers(0, 200))
def test_shift_schedule_is_exact(lr, interval, shift_size, epoch):
    schedule = nbopt.ShiftSchedule(interval, shift_size)
    expected = math.ldexp(lr, -shift_size * (epoch // interval))
    assert schedule.get_learning_rate(lr, epoch) == expected


# Bad input


@pytest.mark.parametrize("kind", ["Schedule", "StepSchedule"])
@pytest.mark.parametrize(
    ("steps", "changes"), [([10, 40, 90], [0.5, 0.1]), ([10], [0.5, 0.1]), ([], [0.5]), ([10], [])]
)
def test_lists_of_different_length_are_refused(kind, steps, changes):
    with pytest.raises(ValueError, match="step_config"):
        getattr(nbopt, kind)(steps, changes)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("Schedule", (0, 0.5)),
        ("Schedule", (-2, 0.5)),
        ("Schedule", (2, math.nan)),
        ("StepSchedule", ([2, 5], [0.5, math.nan])),
        ("StepSchedule", ([2, 5], [0.5, -0.1])),
        ("PowerSchedule", (0, 0.5)),
        ("PowerSchedule", (4, math.nan)),
        ("ExpSchedule", (math.nan,)),
        ("ExpSchedule", (-0.1,)),
        ("PolySchedule", (0, 1)),
        ("PolySchedule", (-10, 1)),
        ("PolySchedule", (10, math.nan)),
        ("ShiftSchedule", (0,)),
        ("ShiftSchedule", (-3, 1)),
    ],
)
def test_numbers_that_make_no_sense_are_refused(kind, arguments):
    """At once, and not as a ZeroDivisionError or a NaN in the weights hours later."""
    with pytest.raises(ValueError):
        getattr(nbopt, kind)(*arguments)


# Descriptions and copies


@each_schedule
def test_description_round_trip(make, formula):
    schedule = make()
    description = schedule.get_description()
    assert description["type"] == f"nbopt.{type(schedule).__name__}"
    kept = copy.deepcopy(description)
    twin = type(schedule).gen_class(description)
    assert description == kept, "gen_class changed its argument"
    assert type(twin) is type(schedule)
    assert twin.get_description() == kept
    assert twin == schedule
    assert twin.get_learning_rate(LR, 5) == schedule.get_learning_rate(LR, 5)


def test_schedules_that_differ_are_not_equal():
    made = [case.values[0]() for case in CASES]
    assert all(a != b for i, a in enumerate(made) for b in made[:i])


def test_a_description_shares_no_list_with_its_schedule():
    """Otherwise an edited description would change the schedule that it came from."""
    schedule = nbopt.StepSchedule([2, 5], [0.5, 0.1])
    twin = nbopt.StepSchedule.gen_class(schedule.get_description())
    schedule.get_description()["config"]["change"][0] = 9.0
    assert schedule.get_learning_rate(LR, 3) == 0.5
    assert twin.get_learning_rate(LR, 3) == 0.5


@each_schedule
@pytest.mark.parametrize(
    "duplicate",
    [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy, copy.copy],
    ids=["pickle", "deepcopy", "copy"],
)
def test_copies_are_equal(make, formula, duplicate):
    schedule = make()
    twin = duplicate(schedule)
    assert type(twin) is type(schedule)
    assert twin is not schedule
    assert twin == schedule
    for epoch in (7, 0, 3):
        assert twin.get_learning_rate(LR, epoch) == schedule.get_learning_rate(LR, epoch)
