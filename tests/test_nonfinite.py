"""Skipping steps whose gradients are not finite, and loss scales: on the host's side.

device_checks.py has what devices add.
"""

import copy
import pickle

import numpy as np
import pytest
from helpers import OPTIMIZERS, same_bits, thorough_but, values_of

import nbopt
from nbopt import errors

SHAPES = [(40, 3), (1000,), (), (9,)]


def layers_with(rng, dtype="float32", scale=1.0):
    arrays = [(rng.standard_normal(s), rng.standard_normal(s) * 0.1 * scale) for s in SHAPES]
    dtype = nbopt.get_backend().storage_dtype(dtype)
    return [nbopt.Parameters(*[(np.array(p, dtype), np.array(g, dtype)) for p, g in arrays])]


def assert_same(found, expected):
    assert len(found) == len(expected) and all(same_bits(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "dtype",
    thorough_but(["float32", "float64", "float16", "bfloat16"], "float32", "bfloat16", where=["compiled"]),
)
@pytest.mark.thorough("gpu")
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing_but_the_counters(backend, rng, dtype, bad):
    layers = layers_with(rng, dtype)
    optimizer = nbopt.Adam(learning_rate=0.1)
    optimizer.skip_nonfinite = True
    optimizer.optimize(layers, 0)
    before = values_of(layers)
    good = layers[0].grads[1][7].copy()
    layers[0].grads[1][7] = bad
    optimizer.optimize(layers, 0)
    assert_same(values_of(layers), before)
    assert optimizer.skipped == 1 and optimizer.t == 2
    layers[0].grads[1][7] = good
    optimizer.optimize(layers, 0)
    assert optimizer.skipped == 1 and optimizer.t == 3
    assert not any(same_bits(a, b) for a, b in zip(values_of(layers), before))


# Kernels know nothing of the option, so few are compiled.
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(
    "name", thorough_but(OPTIMIZERS, "momentum", "adadelta", "nadam", where=["compiled"])
)
@pytest.mark.covering
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-momentum-*")
def test_finite_steps_have_the_bits_of_steps_without_the_option(backend, name, clip):
    clips = {}
    if clip and name != "shift_adamax":  # which has none
        clips = {"gradient_clip_value": 0.3, "param_clip_value": 2.0} | (
            {"gradient_clip_norm": clip} if name != "adadelta" else {}
        )
    found = []
    for skip in (False, True):
        layers = layers_with(np.random.default_rng(4))
        optimizer = OPTIMIZERS[name](**clips)
        optimizer.skip_nonfinite = skip
        for epoch in range(3):
            optimizer.optimize(layers, epoch)
        found.append(values_of(layers))
    assert_same(*found)


@pytest.mark.rest
def test_with_the_norm_clip_a_bad_gradient_is_skipped_and_not_spread_to_all_parameters(backend, rng):
    layers = layers_with(rng)
    optimizer = nbopt.RMSProp(gradient_clip_norm=0.1)
    optimizer.skip_nonfinite = True
    optimizer.optimize(layers, 0)
    before = values_of(layers)
    norm = np.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in layers[0].grads))
    assert optimizer.grad_norm == pytest.approx(norm / nbopt.get_backend().bsz, rel=1e-5)
    layers[0].grads[0][0, 0] = np.nan
    optimizer.optimize(layers, 0)
    assert_same(values_of(layers), before)
    assert optimizer.skipped == 1 and np.isnan(optimizer.grad_norm)
    assert copy.deepcopy(optimizer).grad_norm is None


def test_norm():
    """The norm of the last call can be read if a clip or skipping needed it; of many optimizers, together."""
    with nbopt.use_backend("reference", batch_size=2):
        layer, other = (
            nbopt.Parameters((np.ones(2), np.array(grad)), name=name)
            for grad, name in (([6.0, 8.0], "a"), ([0.0, 24.0], "b"))
        )
        first, second = (nbopt.RMSProp(gradient_clip_norm=1.0) for _ in range(2))
        both = nbopt.MultiOptimizer({"default": first, "b": second})
        assert both.grad_norm is None and first.grad_norm is None
        first.loss_scale = 10.0
        both.optimize([layer, other], 0)
        assert (first.grad_norm, second.grad_norm) == (0.5, 12.0)
        assert both.grad_norm == pytest.approx(np.hypot(0.5, 12.0))
        second.gradient_clip_norm = None
        both.optimize([layer, other], 0)
        assert both.grad_norm == 0.5 and second.grad_norm is None and second.grad_norm_tensor is None


@pytest.mark.rest
def test_a_first_step_that_is_skipped_leaves_states_of_zero(backend, rng):
    layers = layers_with(rng)
    layers[0].grads[3][:] = np.inf
    optimizer = nbopt.RMSProp()
    optimizer.skip_nonfinite = True
    before = [np.array(p) for p in layers[0].params]
    optimizer.optimize(layers, 0)
    assert_same([np.array(p) for p in layers[0].params], before)
    assert (
        all((state.get() == 0).all() for states in layers[0].states for state in states) and optimizer.t == 1
    )


@pytest.mark.thorough("gpu")
def test_the_option_can_be_switched_between_steps(backend, rng):
    layers = layers_with(rng)
    optimizer = nbopt.GradientDescentMomentum(0.1, 0.0)
    for skip in (False, True, False):
        optimizer.skip_nonfinite = skip
        layers[0].grads[1][0] = np.nan if skip else 0.5
        optimizer.optimize(layers, 0)
    assert optimizer.skipped == 1
    assert np.isfinite(layers[0].params[1]).all()
    layers[0].grads[1][0] = np.nan
    optimizer.optimize(layers, 0)
    assert np.isnan(layers[0].params[1][0]) and optimizer.skipped == 1


def test_the_counter_is_kept_by_copies_and_from_one_backend_to_another(rng):
    optimizer = nbopt.RMSProp()
    optimizer.skip_nonfinite = True
    for name in ("cpu", "reference"):
        with nbopt.use_backend(name):
            layers = layers_with(rng)
            layers[0].grads[0][1, 1] = np.inf
            optimizer.optimize(layers, 0)
    assert optimizer.skipped == 2
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.skipped == 2 and twin.skip_nonfinite
        twin.skipped = 0
    assert optimizer.skipped == 2


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_random_bits_go_on_over_skipped_steps(backend):
    """A skipped step takes its number of updates, so what follows does not depend on why nothing happened."""
    states = []
    for bad in (False, True):
        backend.rng_reset()
        layers = layers_with(np.random.default_rng(3), "bfloat16")
        layers[0].grads[0][0, 0] = np.nan if bad else 0
        optimizer = nbopt.RMSProp(stochastic_round=True)
        optimizer.skip_nonfinite = True
        optimizer.optimize(layers, 0)
        states.append(backend.rng_get_state())
    assert states[0] == states[1] and states[0]["updates"] > 0


@pytest.mark.rest(where=["gpu"])
def test_the_counter_is_part_of_a_checkpoint(backend, rng, tmp_path):
    layers = layers_with(rng)
    optimizer = nbopt.RMSProp()
    optimizer.skip_nonfinite = True
    layers[0].grads[0][1, 1] = np.nan
    optimizer.optimize(layers, 0)
    nbopt.save(tmp_path / "run", optimizer, layers)
    other = nbopt.RMSProp()
    nbopt.load(tmp_path / "run", other, layers)
    assert other.skipped == 1 and other.t == 1


# --- loss scales ---


@pytest.mark.thorough("gpu")
@pytest.mark.parametrize(
    "clip", [{}, {"gradient_clip_norm": 0.3, "gradient_clip_value": 0.05}], ids=["no clip", "clips"]
)
@pytest.mark.rest
def test_a_loss_scale_that_is_a_power_of_two_undoes_itself_exactly(backend, clip):
    found = []
    for scale in (1.0, 1024.0):
        layers = layers_with(np.random.default_rng(4), scale=scale)
        optimizer = nbopt.Adam(**clip)
        optimizer.loss_scale = scale
        for epoch in range(3):
            optimizer.optimize(layers, epoch)
        found.append(values_of(layers))
    assert_same(*found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("param", ["float32", "float64"])
@pytest.mark.parametrize("clip", [{}, {"gradient_clip_norm": 0.3}], ids=["no clip", "norm clip"])
@pytest.mark.covering
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-no clip-*")
def test_a_scale_in_an_array_has_the_bits_of_the_number_and_is_read_at_every_step(
    backend, clip, param, dtype
):
    scales = [np.array([s], dtype) for s in (3.3, 1000.7, 0.1)]
    found = []
    for in_array in (False, True):
        nbopt.get_backend().bsz = 7
        layers = layers_with(np.random.default_rng(4), param)
        optimizer = nbopt.RMSProp(**clip)
        array = np.ones(1, dtype)
        for scale in scales:
            array[:] = scale
            optimizer.loss_scale = array if in_array else float(scale[0])
            optimizer.optimize(layers, 0)
        found.append(values_of(layers))
    assert_same(*found)


@pytest.mark.parametrize(
    "make", [lambda be: be.array([8.0]), lambda be: np.array(8.0, np.float32)], ids=["tensor", "0-d array"]
)
@pytest.mark.rest("*-0-d array")
def test_what_a_scale_can_be(backend, make):
    found = []
    for scale in (8.0, make(backend)):
        layers = layers_with(np.random.default_rng(4))
        optimizer = nbopt.GradientDescentMomentum(0.1, 0.9)
        optimizer.loss_scale = scale
        optimizer.optimize(layers, 0)
        found.append(values_of(layers))
        factor = optimizer.clip_gradient_norm(layers[0].get_params(), 0.01)
        expected = np.linalg.norm(np.concatenate([g.ravel() for g in layers[0].grads])) / 8
        assert factor == pytest.approx(0.01 / expected, rel=1e-5)
    assert_same(*found)


def test_a_scale_changes_at_the_next_step_and_compiles_nothing(backend, rng):
    layers = layers_with(rng)
    optimizer = nbopt.RMSProp()
    optimizer.optimize(layers, 0)
    before = backend.compilations
    for scale in (2.0, 3.0, 65536.0):
        optimizer.loss_scale = scale
        optimizer.optimize(layers, 0)
    assert backend.compilations == before


@pytest.mark.rest
def test_a_scale_that_grows_and_backs_off_without_the_host_looking(backend, rng):
    """What a loss scaler does, written with the backend's ops: docs/sixteen-bits.md shows it."""
    layers = layers_with(rng)
    optimizer = nbopt.RMSProp()
    optimizer.skip_nonfinite = True
    scale = optimizer.loss_scale = backend.array([1024.0])
    before = backend.zeros(1, "float64")
    optimizer.skipped = 0
    for step in range(4):
        layers[0].grads[1][3] = np.inf if step == 2 else 0.25
        optimizer.optimize(layers, 0)
        skipped = optimizer.skipped_tensor
        scale[:] = backend.where(backend.equal(skipped, before), scale * 2.0, scale * 0.5)
        before[:] = skipped
    assert scale.get().tolist() == [1024.0 * 2 * 2 / 2 * 2] and optimizer.skipped == 1


@pytest.mark.parametrize(
    "bad", [0, -1.0, np.inf, np.nan, None, "8", True, np.ones(2), np.ones((0,))], ids=repr
)
def test_no_loss_scale(bad):
    optimizer = nbopt.RMSProp()
    with pytest.raises(errors.ArgumentError, match="loss_scale"):
        optimizer.loss_scale = bad
    assert optimizer.loss_scale == 1.0


@pytest.mark.parametrize("bad", [1, None, "yes"])
def test_no_flag(bad):
    with pytest.raises(errors.ArgumentError, match="skip_nonfinite"):
        nbopt.RMSProp().skip_nonfinite = bad


def test_an_array_scale_of_a_dtype_that_is_none_is_refused_at_the_step(backend, rng):
    layers = layers_with(rng)
    optimizer = nbopt.RMSProp()
    optimizer.loss_scale = np.array([2])
    with pytest.raises(errors.NboptError, match="loss scale"):
        optimizer.optimize(layers, 0)
    assert optimizer.t == 0


@pytest.mark.parametrize("bad", [-1, 1.5, "1", None, True, np.nan], ids=repr)
def test_no_count_of_skipped_steps(bad):
    with pytest.raises(errors.ArgumentError, match="skipped must be an int from 0 on"):
        nbopt.RMSProp().skipped = bad


def test_a_shallow_copy_counts_its_own_skipped_steps(backend, rng):
    optimizer = nbopt.RMSProp()
    optimizer.skip_nonfinite = True
    optimizer.optimize(layers_with(rng), 0)
    twin = copy.copy(optimizer)
    layers = layers_with(rng)
    layers[0].grads[0][0, 0] = np.nan
    twin.optimize(layers, 0)
    assert (optimizer.skipped, twin.skipped) == (0, 1)


def several(rng, skipping, **options):
    """Three layers, each with an optimizer of its own; whether each of these skips."""
    optimizers = [
        nbopt.RMSProp(**options),
        nbopt.Adam(**options),
        nbopt.GradientDescentMomentum(0.1, 0.9, **options),
    ]
    for optimizer, skips in zip(optimizers, skipping):
        optimizer.skip_nonfinite = skips
    layers = [
        nbopt.Parameters(*[(rng.standard_normal(s), rng.standard_normal(s)) for s in SHAPES[:2]], name=str(k))
        for k in range(3)
    ]
    return (
        nbopt.MultiOptimizer({"default": optimizers[0], "1": optimizers[1], "2": optimizers[2]}),
        optimizers,
        layers,
    )


@pytest.mark.parametrize("options", [{}, {"gradient_clip_norm": 0.1}], ids=["no clip", "norm clip"])
@pytest.mark.parametrize("bad", range(3))
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-0-no clip")
def test_the_optimizers_of_a_step_are_skipped_together(backend, rng, bad, options):
    multi, optimizers, layers = several(rng, (True, True, True), **options)
    multi.optimize(layers, 0)
    before = values_of(layers)
    good = layers[bad].grads[1][7]
    layers[bad].grads[1][7] = np.nan
    multi.optimize(layers, 1)
    assert_same(values_of(layers), before)
    assert [optimizer.skipped for optimizer in optimizers] == [1, 1, 1] and [
        optimizer.t for optimizer in optimizers
    ] == [2, 2, 2]
    layers[bad].grads[1][7] = good
    multi.optimize(layers, 2)
    assert [optimizer.skipped for optimizer in optimizers] == [1, 1, 1]
    assert not any(same_bits(a, b) for a, b in zip(values_of(layers), before))


@pytest.mark.thorough("gpu")
def test_optimizers_that_do_not_skip_go_on_and_stop_no_others(backend, rng):
    multi, optimizers, layers = several(rng, (True, False, True))
    multi.optimize(layers, 0)
    before = [values_of([layer]) for layer in layers]
    layers[1].grads[0][0, 0] = np.inf
    multi.optimize(layers, 1)
    assert [optimizer.skipped for optimizer in optimizers] == [0, 0, 0]
    layers[2].grads[0][0, 0] = np.inf
    middle = [values_of([layer]) for layer in layers]
    multi.optimize(layers, 2)
    assert [optimizer.skipped for optimizer in optimizers] == [1, 0, 1]
    after = [values_of([layer]) for layer in layers]
    for number in (0, 2):
        assert_same(after[number], middle[number])
        assert not same_bits(middle[number][0], before[number][0])
    assert not same_bits(after[1][0], middle[1][0])


@pytest.mark.rest
def test_what_is_skipped_together_once_is_on_its_own_at_another_time(backend, rng):
    multi, optimizers, layers = several(rng, (True, True, True))
    layers[0].grads[0][0, 0] = np.nan
    multi.optimize(layers, 0)
    before = values_of(layers[1:2])
    optimizers[1].optimize(layers[1:2], 1)
    assert [optimizer.skipped for optimizer in optimizers] == [1, 1, 1]
    assert not same_bits(values_of(layers[1:2])[0], before[0])
    multi.optimize(layers[1:], 2)
    assert [optimizer.skipped for optimizer in optimizers] == [1, 1, 1]


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_finite_steps_of_several_optimizers_have_the_bits_of_steps_without_the_option(backend):
    found = []
    for skip in (False, True):
        multi, _, layers = several(np.random.default_rng(5), (skip, skip, skip), gradient_clip_norm=0.1)
        for epoch in range(3):
            multi.optimize(layers, epoch)
        found.append(values_of(layers))
    assert_same(*found)


@pytest.mark.rest(where=["gpu"])
def test_optimizers_that_skip_together_are_prepared_together(backend, rng):
    multi, _, layers = several(rng, (True, True, False))
    nbopt.compile(multi, layers)
    before = backend.compilations
    multi.optimize(layers, 0)
    assert backend.compilations == before


@pytest.mark.parametrize(
    "name, value",
    [("loss_scale", 2.0), ("skip_nonfinite", True), ("learning_rate", 0.1), ("gradient_clip_norm", 1.0)],
)
def test_a_hyper_parameter_of_a_multi_optimizer_would_do_nothing_and_is_refused(name, value):
    optimizer = nbopt.MultiOptimizer({"default": nbopt.RMSProp()})
    with pytest.raises(
        errors.ArgumentError, match=f"MultiOptimizer has no {name} of its own.*set it on each"
    ):
        setattr(optimizer, name, value)
