"""The optimizers that are not neon's equal their formulas.

These are written here in float64, as their papers and PyTorch or optax have them.
"""

import math
import pickle

import numpy as np
import pytest
from helpers import same_bits, thorough_but, values_of

import nbopt
from nbopt.language.ops import PRIMITIVES

# On a GPU the bits are those of the reference (device_checks.py), which equals the formulas.
pytestmark = pytest.mark.thorough("gpu")

BSZ = 16
SHAPES = [(30, 20), (7,), (), (3, 4, 5)]


# --- the formulas ---
# Each makes one step, from (p, g, states by name, t, learning rate, hyper-parameters) to the new p.
# It changes the states.


def _moments(g, s, h):
    s["mean"] = h["beta_1"] * s["mean"] + (1 - h["beta_1"]) * g
    s["mean_square"] = h["beta_2"] * s["mean_square"] + (1 - h["beta_2"]) * g * g


def adamw(p, g, s, t, lr, h):
    _moments(g, s, h)
    m, v = s["mean"] / (1 - h["beta_1"] ** t), s["mean_square"] / (1 - h["beta_2"] ** t)
    p = p - lr * h["wdecay"] * p
    return p - lr * m / (np.sqrt(v) + h["epsilon"])


def amsgrad(p, g, s, t, lr, h):
    _moments(g, s, h)
    s["largest"] = np.maximum(s["largest"], s["mean_square"])
    m, v = s["mean"] / (1 - h["beta_1"] ** t), s["largest"] / (1 - h["beta_2"] ** t)
    return p - lr * m / (np.sqrt(v) + h["epsilon"])


def adamax(p, g, s, t, lr, h):
    s["mean"] = h["beta_1"] * s["mean"] + (1 - h["beta_1"]) * g
    s["largest"] = np.maximum(h["beta_2"] * s["largest"], np.abs(g) + h["epsilon"])
    return p - lr / (1 - h["beta_1"] ** t) * s["mean"] / s["largest"]


def nadam(p, g, s, t, lr, h):
    _moments(g, s, h)
    mu = [h["beta_1"] * (1 - 0.5 * 0.96 ** (i * h["momentum_decay"])) for i in range(1, t + 2)]
    m = mu[t] * s["mean"] / (1 - math.prod(mu)) + (1 - mu[t - 1]) * g / (1 - math.prod(mu[:-1]))
    return p - lr * m / (np.sqrt(s["mean_square"] / (1 - h["beta_2"] ** t)) + h["epsilon"])


def radam(p, g, s, t, lr, h):
    _moments(g, s, h)
    m = s["mean"] / (1 - h["beta_1"] ** t)
    n = 2 / (1 - h["beta_2"]) - 1
    n_t = n - 2 * t * h["beta_2"] ** t / (1 - h["beta_2"] ** t)
    if n_t <= 5:
        return p - lr * m
    rectification = math.sqrt((n_t - 4) * (n_t - 2) * n / ((n - 4) * (n - 2) * n_t))
    return p - lr * m * rectification * math.sqrt(1 - h["beta_2"] ** t) / (
        np.sqrt(s["mean_square"]) + h["epsilon"]
    )


def lion(p, g, s, t, lr, h):
    direction = np.sign(h["beta_1"] * s["momentum"] + (1 - h["beta_1"]) * g)
    s["momentum"] = h["beta_2"] * s["momentum"] + (1 - h["beta_2"]) * g
    return p - lr * (direction + h["wdecay"] * p)


def yogi(p, g, s, t, lr, h):
    s["mean"] = h["beta_1"] * s["mean"] + (1 - h["beta_1"]) * g
    v = np.full_like(p, h["initial_accumulator_value"]) if t == 1 else s["mean_square"]
    s["mean_square"] = v - (1 - h["beta_2"]) * np.sign(v - g * g) * g * g
    m, v = s["mean"] / (1 - h["beta_1"] ** t), s["mean_square"] / (1 - h["beta_2"] ** t)
    return p - lr * m / (np.sqrt(v) + h["epsilon"])


def adabelief(p, g, s, t, lr, h):
    s["mean"] = h["beta_1"] * s["mean"] + (1 - h["beta_1"]) * g
    s["variance"] = h["beta_2"] * s["variance"] + (1 - h["beta_2"]) * (g - s["mean"]) ** 2 + h["epsilon_root"]
    m, v = s["mean"] / (1 - h["beta_1"] ** t), s["variance"] / (1 - h["beta_2"] ** t)
    return p - lr * m / (np.sqrt(v) + h["epsilon"])


def rprop(p, g, s, t, lr, h):
    if t == 1:
        s["size"] = np.full_like(p, lr)
    kept, turned = np.sign(g) * s["direction"] > 0, np.sign(g) * s["direction"] < 0
    s["size"] = np.clip(
        np.where(kept, h["eta_plus"], np.where(turned, h["eta_minus"], 1)) * s["size"],
        h["step_min"],
        h["step_max"],
    )
    s["direction"] = np.where(turned, 0, np.sign(g))
    return p - s["direction"] * s["size"]


def asgd(p, g, s, t, lr, h):
    eta = lr / (1 + h["lambd"] * lr * (t - 1)) ** h["alpha"]
    p = p - eta * (g + h["lambd"] * p)
    # Averages are of parameters within their bounds.
    bounded = (
        p if h["param_clip_value"] is None else np.clip(p, -h["param_clip_value"], h["param_clip_value"])
    )
    s["average"] = s["average"] + (bounded - s["average"]) / max(1, t - 1 - h["t0"])
    return p


def rmsprop(p, g, s, t, lr, h):
    factor = h["factor"]  # neon's: of the step, not of the gradient
    s["mean_square"] = r = h["decay_rate"] * s["mean_square"] + (1 - h["decay_rate"]) * g * g
    if h["centered"]:
        s["mean"] = h["decay_rate"] * s["mean"] + (1 - h["decay_rate"]) * g
        r = r - s["mean"] ** 2
    change = factor * g / (np.sqrt(r + h["epsilon"]) + h["epsilon"])
    if h["momentum_coef"]:
        s["velocity"] = change = h["momentum_coef"] * s["velocity"] + change
    return p - lr * change


_ADAMS = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}
_RMSPROP = {
    "learning_rate": 2e-3,
    "decay_rate": 0.95,
    "epsilon": 1e-6,
    "centered": False,
    "momentum_coef": 0.0,
}

# Name -> (class, formula, the defaults that the class must have, hyper-parameters of the test).
FAMILY = {
    "adamw": (nbopt.AdamW, adamw, {"learning_rate": 1e-3, **_ADAMS, "wdecay": 0.01}, {}),
    "adamw, large epsilon": (
        nbopt.AdamW, adamw, {"learning_rate": 1e-3, **_ADAMS, "wdecay": 0.01},
        {"epsilon": 0.1, "wdecay": 0.5},
    ),
    "amsgrad": (nbopt.AMSGrad, amsgrad, {"learning_rate": 1e-3, **_ADAMS}, {"beta_2": 0.8, "epsilon": 1e-3}),
    "adamax": (nbopt.AdaMax, adamax, {"learning_rate": 2e-3, **_ADAMS}, {"beta_2": 0.8, "epsilon": 1e-3}),
    "nadam": (
        nbopt.NAdam, nadam, {"learning_rate": 2e-3, **_ADAMS, "momentum_decay": 4e-3},
        {"momentum_decay": 0.3, "epsilon": 1e-3},
    ),
    "radam": (nbopt.RAdam, radam, {"learning_rate": 1e-3, **_ADAMS}, {"epsilon": 1e-3}),
    "lion": (
        nbopt.Lion, lion, {"learning_rate": 1e-4, "beta_1": 0.9, "beta_2": 0.99, "wdecay": 1e-3},
        {"wdecay": 0.5},
    ),
    "yogi": (
        nbopt.Yogi, yogi,
        {"learning_rate": 1e-2, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-3,
         "initial_accumulator_value": 1e-6},
        {"beta_2": 0.7, "initial_accumulator_value": 0.1},
    ),
    "adabelief": (
        nbopt.AdaBelief, adabelief,
        {"learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-16, "epsilon_root": 1e-16},
        {"epsilon": 1e-3, "epsilon_root": 1e-4},
    ),
    "rprop": (
        nbopt.Rprop, rprop,
        {"learning_rate": 0.01, "eta_minus": 0.5, "eta_plus": 1.2, "step_min": 1e-6, "step_max": 50.0},
        {"step_min": 0.004},
    ),
    "asgd": (
        nbopt.ASGD, asgd, {"learning_rate": 0.01, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6},
        {"lambd": 0.3, "t0": 5},
    ),
    "asgd, average not begun": (
        nbopt.ASGD, asgd, {"learning_rate": 0.01, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6}, {},
    ),
    "rmsprop with momentum": (nbopt.RMSProp, rmsprop, _RMSPROP, {"momentum_coef": 0.9, "epsilon": 1e-2}),
    "rmsprop centered": (nbopt.RMSProp, rmsprop, _RMSPROP, {"centered": True, "epsilon": 1e-2}),
    "rmsprop centered with momentum": (
        nbopt.RMSProp, rmsprop, _RMSPROP, {"centered": True, "momentum_coef": 0.9, "epsilon": 1e-2},
    ),
}  # fmt: skip
NO_CLIPS = dict.fromkeys(("gradient_clip_norm", "gradient_clip_value", "param_clip_value"))
CLIPS = {"gradient_clip_norm": 2.0, "gradient_clip_value": 0.1, "param_clip_value": 0.7}
SCHEDULE = nbopt.ExpSchedule(0.25)

each_member = pytest.mark.parametrize("name", FAMILY)
with_and_without_clips = pytest.mark.parametrize("clips", [NO_CLIPS, CLIPS], ids=["free", "clipped"])


def drawn(rng, steps=20, dtype=np.float64, scale=1.0):
    """Parameters in [0, 1), and for each step gradients of both signs, some of them 0."""

    def gradient(shape):
        return np.asarray(scale * rng.standard_normal(shape) * (rng.random(shape) > 0.1), dtype)

    return [np.asarray(rng.random(shape), dtype) for shape in SHAPES], [
        [gradient(shape) for shape in SHAPES] for _ in range(steps)
    ]


def made(name, clips=NO_CLIPS, **options):
    cls, _, _, hyper = FAMILY[name]
    return cls(**{**hyper, **clips, **options})


def trained(optimizer, params, grads, epochs=lambda t: (t - 1) // 4):
    """Train copies of the parameters on the current backend and return their layer."""
    layer = nbopt.Parameters(*((p.copy(), np.zeros_like(p)) for p in params))
    for t, row in enumerate(grads, 1):
        layer.grads = row
        optimizer.optimize([layer], epochs(t))
    return layer


def expected(name, clips, params, grads, state_names, lr):
    """Return [p, state, ...] for each parameter after all steps of the formula."""
    cls, formula, defaults, hyper = FAMILY[name]
    h = {**defaults, **hyper, **clips}
    params = list(params)
    states = [{key: np.zeros_like(p) for key in state_names} for p in params]
    for t, row in enumerate(grads, 1):
        row = [g / BSZ for g in row]
        factor = 1.0
        if clips["gradient_clip_norm"]:
            bound = clips["gradient_clip_norm"]
            factor = bound / max(math.sqrt(sum((g * g).sum() for g in row)), bound)
        if clips["gradient_clip_value"]:
            row = [np.clip(g, -clips["gradient_clip_value"], clips["gradient_clip_value"]) for g in row]
        if cls is nbopt.RMSProp:
            h["factor"] = factor
        else:
            row = [factor * g for g in row]
        rate = lr / (1 + 0.25 * ((t - 1) // 4))  # SCHEDULE
        for k, g in enumerate(row):
            params[k] = formula(params[k], g, states[k], t, rate, h)
            if clips["param_clip_value"]:
                params[k] = np.clip(params[k], -clips["param_clip_value"], clips["param_clip_value"])
    return [[p, *s.values()] for p, s in zip(params, states)]


# --- formulas ---


@each_member
def test_defaults_are_the_references(name):
    cls, _, defaults, _ = FAMILY[name]
    optimizer = cls()
    assert {key: getattr(optimizer, key) for key in defaults} == defaults
    assert all(not getattr(optimizer, clip) for clip in NO_CLIPS)


@with_and_without_clips
@each_member
@pytest.mark.thorough("compiled")  # whose bits are the reference's
def test_20_steps_in_float64_equal_the_formula(backend, rng, name, clips):
    backend.bsz = BSZ
    params, grads = drawn(rng, scale=10.0)
    optimizer = made(name, clips, schedule=SCHEDULE)
    layer = trained(optimizer, params, grads)
    wanted = expected(name, clips, params, grads, optimizer.states_in_use(), optimizer.learning_rate)
    for p, states, (q, *others) in zip(layer.params, layer.states, wanted):
        assert len(states) == len(others)
        for found, right in zip([p, *(state.get() for state in states)], [q, *others]):
            np.testing.assert_allclose(found, right, rtol=1e-11, atol=1e-12)


@each_member
def test_the_clips_of_that_test_change_the_result(rng, name):
    params, grads = drawn(rng, scale=10.0)
    lr, names = made(name).learning_rate, made(name).states_in_use()
    free = expected(name, NO_CLIPS, params, grads, names, lr)
    for clip, bound in CLIPS.items():
        clipped = expected(name, {**NO_CLIPS, clip: bound}, params, grads, names, lr)
        same = all(np.array_equal(a[0], b[0]) for a, b in zip(free, clipped))
        assert same == (name == "rprop" and clip != "param_clip_value"), clip


@each_member
def test_rules_are_made_of_exact_operations(backend, name):
    optimizer = made(name, CLIPS)
    for optimizer.t in (0, 10):
        (update,) = optimizer.updates(backend, [nbopt.Parameters((np.ones(3), np.ones(3)))], 0)
        lines = [
            line
            for one in update.program.passes()
            for line in one.code
            if line[0] not in ("load", "store", "round")
        ]
        assert lines
        assert all(PRIMITIVES[op].exact for op, *_ in lines)


# The others stand in tests/test_same_bits.py.
@with_and_without_clips
@pytest.mark.parametrize("name", thorough_but(FAMILY, "adamax", "nadam", "rmsprop centered with momentum"))
@pytest.mark.covering
def test_20_steps_in_float32_have_the_references_bits_and_one_launch_each(rng, name, clips):
    params, grads = drawn(rng, dtype=np.float32)
    params[0], found = params[0].T, {}
    for row in grads:
        row[0] = row[0].T
    for backend in ("reference", "cpu"):
        with nbopt.use_backend(backend, batch_size=3) as be:
            layer = trained(made(name, clips), params, grads)
            found[backend] = values_of([layer])
            # A norm is a launch of its own.
            assert backend == "reference" or be.launches == 20 * (2 if clips["gradient_clip_norm"] else 1)
    assert all(map(same_bits, found["cpu"], found["reference"]))


# --- what depends on t alone ---


@each_member
@pytest.mark.rest
def test_a_run_goes_on_from_t_the_states_and_the_hyper_parameters_alone(backend, rng, name):
    params, grads = drawn(rng, 14, np.float32)
    through = values_of([trained(made(name), params, grads, lambda t: 0)])
    layer = trained(made(name), params, grads[:7], lambda t: 0)
    resumed = made(name)
    resumed.t = 7
    for row in grads[7:]:
        layer.grads = row
        resumed.optimize([layer], 0)
    assert all(map(same_bits, values_of([layer]), through))


def test_nadams_product_of_momenta_does_not_depend_on_how_it_was_come_by():
    fresh = [nbopt.NAdam()._product(t) for t in range(1, 600)]
    kept = nbopt.NAdam()
    assert [kept._product(t) for t in range(1, 600)] == fresh
    again = pickle.loads(pickle.dumps(kept))
    assert [again._product(t) for t in (3, 599, 4, 4, 400, 2)] == [
        fresh[t - 1] for t in (3, 599, 4, 4, 400, 2)
    ]
    kept.beta_1 = 0.5
    assert kept._product(9) == nbopt.NAdam(beta_1=0.5)._product(9) != fresh[8]
    kept.momentum_decay = 0.5
    assert kept._product(9) == nbopt.NAdam(beta_1=0.5, momentum_decay=0.5)._product(9)


def test_nadam_goes_on_from_any_t_at_once(backend, rng):
    optimizer = nbopt.NAdam()
    optimizer.t = 10**15
    layer = trained(optimizer, *drawn(rng, 1))
    assert all(np.isfinite(value).all() for value in values_of([layer]))


def test_radam_is_one_program(rng):
    """RAdam has one program, for its first steps as for the later ones."""
    params, grads = drawn(rng, dtype=np.float32)
    with nbopt.use_backend("cpu", num_threads=1):
        optimizer = nbopt.RAdam()
        layer = nbopt.Parameters(*zip(params, grads[0]))
        programs = []
        for row in grads:
            layer.grads = row
            programs.append(optimizer.updates(nbopt.get_backend(), [layer], 0)[0].program)
            optimizer.optimize([layer], 0)
    # With beta_2 = 0.999 it divides from the sixth step on.
    assert len(set(programs)) == 1 and len(programs) > 6


# --- states that do not start from 0 ---


@pytest.mark.parametrize("name", ["rprop", "yogi", "asgd"])
@pytest.mark.rest("cpu-rprop")
def test_the_states_of_a_layer_that_joins_later_begin_where_they_should(backend, rng, name):
    (param, *_), ((grad, *_), *_) = drawn(rng, 1)
    early, late = nbopt.Parameters((np.ones(3), np.ones(3))), nbopt.Parameters((param, grad))
    optimizer = made(name)
    for _ in range(8):
        optimizer.optimize([early], 0)
    optimizer.optimize([early, late], 0)
    wanted = {
        "rprop": np.full_like(param, optimizer.learning_rate),
        "yogi": 0.1 - 0.3 * np.sign(0.1 - grad**2) * grad**2,
        "asgd": param,  # no zero is averaged in, though averages have begun
    }
    np.testing.assert_allclose(late.states[0][-1].get(), wanted[name], rtol=1e-12)
    assert not np.allclose(early.states[0][-1].get(), early.params[0])


def test_rprop_grows_where_signs_agree_and_shrinks_and_waits_where_they_do_not(backend):
    layer = nbopt.Parameters((np.zeros(4), np.zeros(4)))
    optimizer = nbopt.Rprop(learning_rate=1.0)
    moves = []
    for gradient in ([1, 1, 0, -1], [1, -1, 0, -2], [1, -1, 3, 0], [1, -1, 3, -2]):
        before = layer.params[0].copy()
        layer.grads = [np.array(gradient, np.float64)]
        optimizer.optimize([layer], 0)
        moves.append(layer.params[0] - before)
    wanted = [
        [-1, -1, 0, 1],
        [-1.2, 0, 0, 1.2],  # the second has changed its sign: half as far, and not now
        # Nothing is known of the second any more, so its size stays. A zero gradient moves nothing, and
        # forgets the direction.
        [-1.44, 0.5, -1, 0],
        [-1.728, 0.6, -1.2, 1.2],
    ]
    np.testing.assert_allclose(moves, wanted, rtol=1e-12)


def test_rprop_sees_signs_of_gradients_whose_product_underflows(backend):
    layer = nbopt.Parameters((np.zeros(2, np.float32), np.full(2, 1e-30, np.float32)))
    optimizer = nbopt.Rprop(learning_rate=1.0)
    optimizer.optimize([layer], 0)
    optimizer.optimize([layer], 0)
    assert (layer.states[0][1].get() == np.float32(1.2)).all()


def test_rprop_keeps_its_steps_within_their_bounds(backend):
    layer = nbopt.Parameters((np.zeros(2), np.array([1.0, 1.0])))
    optimizer = nbopt.Rprop(learning_rate=1.0, step_min=0.4, step_max=1.5)
    for t in range(9):
        # In pairs: the step after a change of sign knows no direction.
        layer.grads = [np.array([1.0, (-1.0) ** (t // 2)])]
        optimizer.optimize([layer], 0)
    assert layer.states[0][1].get().tolist() == [1.5, 0.4]


# --- edges ---


@pytest.mark.rest
def test_the_first_step_of_those_that_correct_their_means_is_the_learning_rate(backend):
    gradient = np.array([1e-3, -5.0, 200.0])
    for cls in (nbopt.AMSGrad, nbopt.AdaMax, nbopt.AdamW, nbopt.Yogi):
        options = (
            {"wdecay": 0.0}
            if cls is nbopt.AdamW
            else {"initial_accumulator_value": 0.0}
            if cls is nbopt.Yogi
            else {}
        )
        layer = nbopt.Parameters((np.zeros(3), gradient))
        cls(learning_rate=0.5, epsilon=0.0, **options).optimize([layer], 0)
        np.testing.assert_allclose(layer.params[0], -0.5 * np.sign(gradient), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@each_member
@pytest.mark.thorough("compiled")  # whose bits are the reference's
def test_zero_gradients_leave_finite_values_whatever_the_states_dtype(backend, name, dtype):
    """AdaMax keeps epsilon in a state, where float16 rounds it to 0."""
    layer = nbopt.Parameters((np.ones(5, np.float32), np.zeros(5, np.float32)))
    optimizer = (
        made(name, epsilon=1e-8, state_dtype=dtype)
        if hasattr(made(name), "epsilon")
        else made(name, state_dtype=dtype)
    )
    for _ in range(3):
        optimizer.optimize([layer], 0)
    assert all(np.isfinite(value.astype(np.float64)).all() for value in values_of([layer]))


def test_centered_rmsprop_survives_a_variance_that_rounding_makes_negative(backend, rng):
    gradient = (1e3 * (1 + rng.random(200))).astype(np.float32)
    layer = nbopt.Parameters((np.zeros(200, np.float32), gradient))
    optimizer, variances = nbopt.RMSProp(centered=True, decay_rate=0.9), []
    for _ in range(300):
        optimizer.optimize([layer], 0)
        mean_square, mean = (state.get() for state in layer.states[0])
        variances.append((mean_square - mean * mean).min())
    assert min(variances) < -1e-3  # far more negative than epsilon could mend
    assert np.isfinite(layer.params[0]).all()


@pytest.mark.parametrize("change", [{"centered": True}, {"momentum_coef": 0.5}])
@pytest.mark.rest("cpu-change0")
def test_rmsprops_states_are_decided_at_the_first_step(backend, change):
    layer = nbopt.Parameters((np.ones(3), np.ones(3)))
    plain, other = nbopt.RMSProp(), nbopt.RMSProp(**change)
    plain.optimize([layer], 0)
    for first, second in ((plain, other), (other, plain)):
        layer.states[0].clear()
        first.optimize([layer], 0)
        with pytest.raises(nbopt.errors.StateError, match=r"RMSProp keeps \d states .* Empty the list"):
            second.optimize([layer], 0)


def test_rmsprops_states_carry_the_names_of_what_they_are(backend):
    layer = nbopt.Parameters((np.ones(3), np.ones(3)))
    nbopt.RMSProp(momentum_coef=0.9).optimize([layer], 0)
    assert [state.name for state in layer.states[0]] == ["RMSProp.mean_square", "RMSProp.velocity"]


def test_rprops_bounds_that_are_the_wrong_way_round_are_refused_at_the_step(backend):
    w = np.ones(3, np.float32)
    layer, optimizer = nbopt.Parameters((w, w.copy())), nbopt.Rprop(step_min=1.0, step_max=0.1)
    with pytest.raises(
        nbopt.errors.ArgumentError, match=r"step_min must be at most step_max, and they are 1.0 and 0.1"
    ):
        optimizer.optimize([layer], 0)
    assert (w == 1).all() and optimizer.t == 0 and not layer.states[0]
