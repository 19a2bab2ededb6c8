"""Every optimizer equals its formula, evaluated in float64 by tests/formulas.py."""

import inspect

import formulas
import numpy as np
import pytest
from helpers import OPTIMIZERS
from hypothesis import given
from hypothesis import strategies as st

import nbopt

# On a GPU the bits are those of the reference (device_checks.py), which equals the formulas.
pytestmark = pytest.mark.thorough("gpu")

SHAPE = (200, 128)
BSZ = 128

# For each optimizer of helpers.OPTIMIZERS its formula, the hyper-parameters in which that table departs from
# the constructor's defaults (formulas.py has the defaults), and the number of its states.
FORMULAS = {
    "momentum": (
        formulas.gradient_descent_momentum,
        {"learning_rate": 0.1, "momentum_coef": 0.9, "wdecay": 0.01},
        1,
    ),
    "nesterov": (
        formulas.gradient_descent_momentum,
        {"learning_rate": 0.1, "momentum_coef": 0.9, "nesterov": True},
        1,
    ),
    "plain": (
        formulas.gradient_descent_momentum,
        {"learning_rate": 0.1, "momentum_coef": 0, "wdecay": 0.01},
        0,
    ),
    "rmsprop": (formulas.rmsprop, {}, 1),
    "adagrad": (formulas.adagrad, {}, 1),
    "adadelta": (formulas.adadelta, {}, 3),
    "adam": (formulas.adam, {}, 2),
    "shift_adamax": (formulas.shift_ada_max, {}, 3),
}
ALL = list(FORMULAS)
# Gradients in [0, 0.01) are below 8e-5 once divided by BSZ, the norm of two tensors of them is 0.01, and
# parameters are in [0, 1): each of these bounds cuts (test_each_clip_changes_the_result makes sure).
NORM, GRADIENT, PARAMETER = (
    {"gradient_clip_norm": 0.003},
    {"gradient_clip_value": 4e-5},
    {"param_clip_value": 0.5},
)
CLIPS = {
    "off": {},
    "norm": NORM,
    "gradient": GRADIENT,
    "parameter": PARAMETER,
    "all": {**NORM, **GRADIENT, **PARAMETER},
}


def takes(name, clips):
    """Whether the optimizer has these clips.

    Adadelta has no learning rate and no norm clip. ShiftAdaMax clips to [-1, 1] only.
    """
    return {"adadelta": "gradient_clip_norm" not in clips, "shift_adamax": not clips}.get(name, True)


CASES = [
    pytest.param(name, clips, id=f"{name}-{id}")
    for name in ALL
    for id, clips in CLIPS.items()
    if takes(name, clips)
]
each_name = pytest.mark.parametrize("name", ALL)
each_clips = pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)


def draw(rng, name, dtype=np.float64, shape=SHAPE, count=2):
    """Random [p, dW, states] of `count` tensors: parameters in [0, 1), gradients and states in [0, 0.01)."""
    small = 1 + FORMULAS[name][2]
    return [
        [
            np.asarray(rng.random(shape), dtype),
            *(np.asarray(rng.random(shape) * 0.01, dtype) for _ in range(small)),
        ]
        for _ in range(count)
    ]


def layer_of(be, tensors, name=None, cls=nbopt.Parameters):
    """One layer over copies of [p, dW, *states] tensors."""
    layer = cls(*((p.copy(), dW.copy()) for p, dW, *_ in tensors), name=name)
    for own, (_, _, *states) in zip(layer.states, tensors):
        own.extend(be.array(state, dtype=state.dtype) for state in states)
    return layer


def results(layer):
    """[p, *states] of each tensor of a layer."""
    return [[p, *(state.get() for state in states)] for p, states in zip(layer.params, layer.states)]


def expected(name, tensors, *, bsz=BSZ, t=1, epoch=0, gradient_clip_norm=None, **hyper):
    """[p, *states] of each tensor after one step of the formula, in float64."""
    formula, defaults, _ = FORMULAS[name]
    grads = [np.float64(dW) for _, dW, *_ in tensors]
    call = {"t": t, "epoch": epoch, "s": formulas.norm_scale(grads, bsz, gradient_clip_norm)}
    taken = inspect.signature(formula).parameters
    hyper = {**defaults, **hyper, **{key: value for key, value in call.items() if key in taken}}
    stepped = [formula(p, grad / bsz, states, **hyper) for (p, _, *states), grad in zip(tensors, grads)]
    return [[p, *states] for p, states in stepped]


def assert_close(actual, wanted, tolerance):
    """Compare [p, *states] lists; the tolerance is absolute up to magnitude 1, and relative above."""
    for got, want in zip(actual, wanted, strict=True):
        for x, y in zip(got, want, strict=True):
            error = np.abs(np.float64(x) - y) / np.maximum(1, np.abs(y))
            assert error.max() <= tolerance


# --- one step ---


@each_clips
@each_name
@pytest.mark.thorough("compiled")  # whose bits are the reference's, see test_same_bits.py
def test_one_step_in_float64_equals_the_formula(backend, rng, name, clips):
    clips = {key: value for key, value in clips.items() if takes(name, {key: value})}
    backend.bsz = BSZ
    tensors = draw(rng, name)
    layer = layer_of(backend, tensors)
    OPTIMIZERS[name](**clips).optimize([layer], epoch=0)
    assert_close(results(layer), expected(name, tensors, **clips), 1e-12)


@pytest.mark.parametrize("on", [False, True], ids=["off", "clips"])
@each_name
@pytest.mark.covering
def test_one_step_in_float32_equals_the_formula(backend, rng, name, on):
    clips = {key: value for key, value in CLIPS["all"].items() if on and takes(name, {key: value})}
    backend.bsz = BSZ
    tensors = draw(rng, name, np.float32)
    layer = layer_of(backend, tensors)
    OPTIMIZERS[name](**clips).optimize([layer], epoch=0)
    # A shift doubles where its operand passes an odd power of sqrt(2). The formula's operand may have passed
    # one from which float32's is a rounding away; with the fixed seed of `rng` none matters.
    assert_close(results(layer), expected(name, tensors, **clips), 1e-4 if name == "shift_adamax" else 1e-7)


@pytest.mark.parametrize(("name", "clips"), CASES)
def test_each_clip_changes_the_result(rng, name, clips):
    tensors = draw(rng, name)
    clipped, unclipped = expected(name, tensors, **clips), expected(name, tensors)
    same = all(np.array_equal(x, y) for x, y in zip(clipped[0], unclipped[0]))
    assert same == (not clips)


@each_name
@pytest.mark.thorough("compiled")  # whose bits are the reference's
def test_first_step_starts_from_states_of_zero(backend, rng, name):
    backend.bsz = BSZ
    tensors = draw(rng, name)
    layer = layer_of(backend, [tensor[:2] for tensor in tensors])
    OPTIMIZERS[name]().optimize([layer], epoch=0)
    zeros = [[p, dW, *(np.zeros_like(p) for _ in states)] for p, dW, *states in tensors]
    assert_close(results(layer), expected(name, zeros), 1e-12)


@pytest.mark.parametrize("off", [None, 0, 0.0])
@pytest.mark.parametrize("name", ["plain", "rmsprop", "adadelta"])
@pytest.mark.covering
def test_none_and_zero_turn_a_clip_off(backend, rng, name, off):
    tensors = draw(rng, name)
    layer = layer_of(backend, tensors)
    backend.bsz = BSZ
    optimizer = OPTIMIZERS[name](gradient_clip_value=off, param_clip_value=off)
    optimizer.gradient_clip_norm = off
    optimizer.optimize([layer], epoch=0)
    assert_close(results(layer), expected(name, tensors), 1e-12)


@pytest.mark.parametrize("name", ["momentum", "plain", "adam"])
@pytest.mark.rest("cpu-momentum")
def test_the_magnitude_of_a_clip_value_is_its_bound(backend, rng, name):
    tensors = draw(rng, name)
    for tensor in tensors:  # both bounds are needed
        tensor[0] -= 0.5
        tensor[1] -= 0.005
    layer = layer_of(backend, tensors)
    backend.bsz = BSZ
    OPTIMIZERS[name](gradient_clip_value=-2e-5, param_clip_value=-0.25).optimize([layer], epoch=0)
    assert_close(
        results(layer), expected(name, tensors, gradient_clip_value=2e-5, param_clip_value=0.25), 1e-12
    )
    assert min(p.min() for p in layer.params) == -0.25 and max(p.max() for p in layer.params) == 0.25


def test_momentum_0_keeps_no_state(backend, rng):
    layer = layer_of(backend, draw(rng, "plain"))
    OPTIMIZERS["plain"]().optimize([layer], epoch=0)
    assert layer.states == [[], []]


def test_nesterov_needs_momentum():
    with pytest.raises(nbopt.errors.ArgumentError, match="momentum_coef"):
        nbopt.GradientDescentMomentum(0.1, 0.0, nesterov=True)


# --- several steps ---


@each_name
@pytest.mark.thorough("compiled")  # whose bits are the reference's
def test_20_steps_in_float64_equal_the_formula(backend, rng, name):
    backend.bsz = BSZ
    tensors = draw(rng, name)
    layer, optimizer, values = layer_of(backend, tensors), OPTIMIZERS[name](), tensors
    for t in range(1, 21):
        layer.grads = [dW for _, dW, *_ in draw(rng, name)]
        values = [[p, dW, *states] for dW, (p, _, *states) in zip(layer.grads, values)]
        values = [[p, None, *states] for p, *states in expected(name, values, t=t, epoch=t // 4)]
        optimizer.optimize([layer], epoch=t // 4)
    assert_close(results(layer), [[p, *states] for p, _, *states in values], 1e-12)


def test_20_nesterov_steps_in_float32_stay_within_1e_6(backend, rng):
    backend.bsz = BSZ
    tensors = draw(rng, "nesterov", np.float32)
    layer, optimizer, values = layer_of(backend, tensors), OPTIMIZERS["nesterov"](), tensors
    for _ in range(20):
        layer.grads = [dW for _, dW, *_ in draw(rng, "nesterov", np.float32)]
        values = [
            [p, None, *v]
            for p, *v in expected("nesterov", [[p, dW, *v] for dW, (p, _, *v) in zip(layer.grads, values)])
        ]
        optimizer.optimize([layer], epoch=0)
    assert_close(results(layer), [[p, *v] for p, _, *v in values], 1e-6)


def test_a_step_counts_once_whatever_the_number_of_tensors(backend, rng):
    layers = [layer_of(backend, [tensor[:2] for tensor in draw(rng, "adam", shape=(3,))]) for _ in range(3)]
    optimizer = nbopt.Adam()
    for t in range(1, 4):
        optimizer.optimize(layers, epoch=0)
        assert optimizer.t == t


@pytest.mark.parametrize(
    ("name", "schedule", "rate"),
    [
        ("momentum", nbopt.Schedule([1, 4], 0.5), lambda lr, e: lr * 0.5 ** ((e >= 1) + (e >= 4))),
        (
            "nesterov",
            nbopt.StepSchedule([2, 4], [0.3, 0.05]),
            lambda lr, e: 0.05 if e >= 4 else 0.3 if e >= 2 else lr,
        ),
        ("plain", nbopt.PowerSchedule(2, 0.5), lambda lr, e: lr * 0.5 ** (e // 2)),
        ("rmsprop", nbopt.ExpSchedule(0.25), lambda lr, e: lr / (1 + 0.25 * e)),
        ("adagrad", nbopt.PolySchedule(8, 2), lambda lr, e: lr * (1 - e / 8) ** 2),
        ("adam", nbopt.Schedule(3, 0.1), lambda lr, e: lr * 0.1 ** (e // 3)),
        ("shift_adamax", nbopt.ShiftSchedule(1), lambda lr, e: lr / 2**e),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.thorough("compiled")  # whose bits are the reference's
def test_the_schedule_sets_the_learning_rate_of_the_epoch(backend, rng, name, schedule, rate):
    backend.bsz = BSZ
    optimizer = OPTIMIZERS[name](schedule=schedule)
    for t, epoch in enumerate((5, 0, 2), start=1):  # in any order: the epoch alone counts
        tensors = draw(rng, name)
        layer = layer_of(backend, tensors)
        optimizer.optimize([layer], epoch=epoch)
        wanted = expected(name, tensors, t=t, epoch=epoch, learning_rate=rate(optimizer.learning_rate, epoch))
        assert_close(results(layer), wanted, 1e-12)


# --- the norm clip ---


def test_clip_gradient_norm_gives_the_formulas_factor(backend, rng):
    backend.bsz = BSZ
    tensors = [draw(rng, "plain", np.float64, shape, count=1)[0] for shape in (SHAPE, (7,), (3, 5, 2), ())]
    layers = [layer_of(backend, [tensor]) for tensor in tensors]
    optimizer = nbopt.RMSProp()
    for clip_norm in (1e-4, 0.003, 1.0):
        factor = optimizer.clip_gradient_norm(nbopt.get_param_list(layers), clip_norm)
        assert type(factor) is float
        assert factor == pytest.approx(
            formulas.norm_scale([dW for _, dW in tensors], BSZ, clip_norm), rel=1e-13
        )
    assert factor == 1.0  # the last bound was above the norm


@pytest.mark.parametrize("clip_norm", [None, 0])
def test_clip_gradient_norm_is_1_when_off(backend, rng, clip_norm):
    layer = layer_of(backend, draw(rng, "plain", shape=(3,)))
    assert nbopt.RMSProp().clip_gradient_norm(nbopt.get_param_list([layer]), clip_norm) == 1.0


def test_the_norm_is_over_all_layers_of_a_call(backend, rng):
    backend.bsz = BSZ
    tensors = draw(rng, "rmsprop", count=3)
    layers = [layer_of(backend, [tensor]) for tensor in tensors]
    OPTIMIZERS["rmsprop"](**NORM).optimize(layers, epoch=0)
    assert_close(
        [entry for layer in layers for entry in results(layer)], expected("rmsprop", tensors, **NORM), 1e-12
    )


# --- MultiOptimizer ---


class Bias(nbopt.Parameters):
    pass


class Linear(nbopt.Parameters):
    pass


def test_multi_optimizer_chooses_by_layer_name_then_class_then_default(backend, rng):
    backend.bsz = BSZ
    chosen = [  # (layer class, layer name, the optimizer that the mapping below gives it)
        (Linear, "first", "momentum"),
        (Bias, "b1", "adam"),
        (Linear, "head", "rmsprop"),
        (Bias, "head", "rmsprop"),
        (Linear, "other", "momentum"),
    ]
    optimizers = {
        "default": OPTIMIZERS["momentum"](),
        "Bias": OPTIMIZERS["adam"](),
        "head": OPTIMIZERS["rmsprop"](),
    }
    drawn = [draw(rng, name) for _, _, name in chosen]
    layers = [
        layer_of(backend, tensors, name=layer_name, cls=cls)
        for (cls, layer_name, _), tensors in zip(chosen, drawn)
    ]
    multi = nbopt.MultiOptimizer(optimizers)
    multi.optimize(layers, epoch=0)
    for layer, tensors, (_, _, name) in zip(layers, drawn, chosen):
        assert_close(results(layer), expected(name, tensors), 1e-12)


@pytest.mark.filterwarnings("ignore:no layer has the name or class")
@pytest.mark.rest
def test_multi_optimizer_updates_the_layers_of_one_optimizer_in_one_call(backend, rng):
    backend.bsz = BSZ
    shared, other, unused = OPTIMIZERS["adam"](**NORM), OPTIMIZERS["plain"](**NORM), nbopt.Adam()
    multi = nbopt.MultiOptimizer({"default": other, "Bias": shared, "head": shared, "nobody": unused})
    names = ["adam", "plain", "adam"]
    drawn = [draw(rng, name) for name in names]
    layers = [
        layer_of(backend, drawn[0], name="b", cls=Bias),
        layer_of(backend, drawn[1], name="l", cls=Linear),
        layer_of(backend, drawn[2], name="head", cls=Linear),
    ]
    multi.optimize(layers, epoch=0)
    # One norm over the first and the last layer, another over the middle one.
    adam = expected("adam", drawn[0] + drawn[2], **NORM)
    assert_close(results(layers[0]) + results(layers[2]), adam, 1e-12)
    assert_close(results(layers[1]), expected("plain", drawn[1], **NORM), 1e-12)
    assert (shared.t, other.t, unused.t) == (1, 1, 0)


# --- hyper-parameters ---

_rates = st.floats(0, 10)
_fractions = st.floats(0, 1)
_below_one = st.floats(0, 0.999)
_epsilons = st.floats(1e-12, 1)
_bounds = {
    "gradient_clip_norm": st.floats(1e-6, 10),
    "gradient_clip_value": st.floats(-0.1, -1e-6) | st.floats(1e-6, 0.1),
    "param_clip_value": st.floats(-2, -0.1) | st.floats(0.1, 2),
}
HYPER = {
    "momentum": {
        "learning_rate": _rates,
        "momentum_coef": st.floats(0.001, 2),
        "wdecay": _fractions,
        **_bounds,
    },
    "nesterov": {
        "learning_rate": _rates,
        "momentum_coef": st.floats(0.001, 2),
        "wdecay": _fractions,
        **_bounds,
    },
    "plain": {"learning_rate": _rates, "wdecay": _fractions, **_bounds},
    "rmsprop": {"learning_rate": _rates, "decay_rate": _fractions, "epsilon": _epsilons, **_bounds},
    "adagrad": {"learning_rate": _rates, "epsilon": _epsilons, **_bounds},
    "adadelta": {
        "decay": _fractions,
        "epsilon": _epsilons,
        **{k: v for k, v in _bounds.items() if k != "gradient_clip_norm"},
    },
    "adam": {
        "learning_rate": _rates,
        "beta_1": _below_one,
        "beta_2": _below_one,
        "epsilon": _epsilons,
        **_bounds,
    },
    "shift_adamax": {
        "learning_rate": _rates,
        "beta_1": _below_one,
        "beta_2": _fractions,
        "epsilon": _epsilons,
    },
}


@each_name
@pytest.mark.thorough("compiled")  # test_same_bits.py has compiled kernels with any hyper-parameters
@given(data=st.data(), bsz=st.integers(1, 10_000), epoch=st.integers(0, 1000), seed=st.integers(0, 99))
def test_any_hyper_parameters_give_the_formula(backend, name, data, bsz, epoch, seed):
    hyper = data.draw(st.fixed_dictionaries(HYPER[name]))
    tensors = draw(np.random.default_rng(seed), name, shape=(5, 3))
    backend.bsz = bsz
    layer = layer_of(backend, tensors)
    OPTIMIZERS[name](**hyper).optimize([layer], epoch=epoch)
    assert_close(results(layer), expected(name, tensors, bsz=bsz, epoch=epoch, **hyper), 1e-12)
