"""What the engine promises from the second step on, on "cpu".

Nothing compiles, nothing grows, nothing is kept alive, and there is one launch.
"""

import copy
import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from helpers import OPTIMIZERS, layers_of, same_bits, thorough_but, values_of

import nbopt
from nbopt.errors import NboptError
from nbopt_backends.cpu.backend import NumbaCPU
from nbopt_backends.plans.compiled import MOST_LAYOUTS
from nbopt_backends.plans.layout import Layout


@pytest.fixture
def cpu():
    with nbopt.use_backend("cpu", rng_seed=0, batch_size=4) as be:
        yield be


@pytest.fixture
def kernels(monkeypatch):
    """The kernels that the process has made since the test began.

    Those of other tests are forgotten for its duration.
    """
    found = {}
    monkeypatch.setattr(NumbaCPU, "_kernels", found)
    return found


@pytest.fixture
def live_layouts(monkeypatch):
    """The layouts made since the test began that are still alive."""
    alive = weakref.WeakSet()
    make = Layout.__init__

    def noted(self, *args, **options):
        make(self, *args, **options)
        alive.add(self)

    monkeypatch.setattr(Layout, "__init__", noted)
    return alive


class RawLayer:
    """A user's own layer: it gives whatever arrays it holds at the moment, unwrapped."""

    def __init__(self, param, grad):
        self.param, self.grad, self.states = param, grad, []

    def get_params(self):
        return (self.param, self.grad), self.states


def compiled(be):
    """Return all that grows when something is compiled."""
    return be.compilations, set(NumbaCPU._kernels), set(NumbaCPU._functions)


def all_same_bits(a, b):
    return len(a) == len(b) and all(map(same_bits, a, b))


def gradients(rng, layers):
    """Give every layer new gradient arrays."""
    for layer in layers:
        layer.grads = [rng.standard_normal(p.shape).astype(p.dtype) * p.dtype.type(0.1) for p in layer.params]


def reference_step(optimizer, layers, epoch, batch_size):
    """Return what one step makes of copies of these layers on the reference, which keeps no plans."""
    layers = copy.deepcopy(layers)
    with nbopt.use_backend("reference", batch_size=batch_size):
        copy.deepcopy(optimizer).optimize(layers, epoch)
    return values_of(layers)


# --- changed hyper-parameters ---

CLIPS = {"gradient_clip_norm": 0.5, "gradient_clip_value": 0.02, "param_clip_value": 0.95}
NEW_CLIPS = {"gradient_clip_norm": 0.1, "gradient_clip_value": 0.004, "param_clip_value": 0.8}
VALUE_CLIPS = ("gradient_clip_value", "param_clip_value")
ADAMS = {"learning_rate": 0.05, "beta_1": 0.5, "beta_2": 0.5, "epsilon": 1e-2}

# Optimizer -> (what it is made with, what its hyper-parameters are changed to).
CHANGES = {
    "momentum": (CLIPS, {"learning_rate": 0.3, "momentum_coef": 0.5, "wdecay": 0.2, **NEW_CLIPS}),
    "nesterov": (CLIPS, {"learning_rate": 0.3, "momentum_coef": 0.5, "wdecay": 0.2, **NEW_CLIPS}),
    "plain": (CLIPS, {"learning_rate": 0.3, "wdecay": 0.2, **NEW_CLIPS}),
    "rmsprop": (CLIPS, {"decay_rate": 0.5, "learning_rate": 0.05, "epsilon": 1e-2, **NEW_CLIPS}),
    "adagrad": (CLIPS, {"learning_rate": 0.05, "epsilon": 1e-2, **NEW_CLIPS}),
    "adadelta": (
        {k: CLIPS[k] for k in VALUE_CLIPS},
        {"decay": 0.5, "epsilon": 1e-2, **{k: NEW_CLIPS[k] for k in VALUE_CLIPS}},
    ),
    "adam": (CLIPS, {"learning_rate": 0.05, "beta_1": 0.5, "beta_2": 0.5, "epsilon": 1e-2, **NEW_CLIPS}),
    "shift_adamax": ({}, {"learning_rate": 0.05, "beta_1": 0.5, "beta_2": 0.5, "epsilon": 0.5}),
    "rmsprop_momentum": (
        CLIPS,
        {"decay_rate": 0.5, "learning_rate": 0.05, "epsilon": 1e-2, "momentum_coef": 0.5, **NEW_CLIPS},
    ),
    "rmsprop_centered": (
        CLIPS,
        {"decay_rate": 0.5, "learning_rate": 0.05, "epsilon": 1e-2, "momentum_coef": 0.5, **NEW_CLIPS},
    ),
    "adamw": (CLIPS, {**ADAMS, "wdecay": 0.2, **NEW_CLIPS}),
    "amsgrad": (CLIPS, {**ADAMS, **NEW_CLIPS}),
    "adamax": (CLIPS, {**ADAMS, **NEW_CLIPS}),
    "nadam": (CLIPS, {**ADAMS, "momentum_decay": 0.1, **NEW_CLIPS}),
    # RAdam has no use for epsilon in its first steps, nor Yogi for where it starts from after its first, nor
    # Rprop for the learning rate. The next step has the last one's gradients, of which none has changed its
    # sign.
    "radam": (CLIPS, {"learning_rate": 0.05, "beta_1": 0.5, "beta_2": 0.5, **NEW_CLIPS}),
    "lion": (CLIPS, {"learning_rate": 0.05, "beta_1": 0.5, "beta_2": 0.5, "wdecay": 0.2, **NEW_CLIPS}),
    "yogi": (CLIPS, {**ADAMS, **NEW_CLIPS}),
    "adabelief": (CLIPS, {**ADAMS, "epsilon_root": 0.1, **NEW_CLIPS}),
    "rprop": (
        CLIPS,
        {
            "eta_plus": 2.0,
            "step_min": 0.5,
            "step_max": 1e-3,
            "param_clip_value": NEW_CLIPS["param_clip_value"],
        },
    ),
    "asgd": (
        {**CLIPS, "lambd": 0.5},
        {"learning_rate": 0.05, "lambd": 0.2, "alpha": 0.25, "t0": 0.0, **NEW_CLIPS},
    ),
}


# Of which optimizers the plain run compiles kernels with clips. The clips' values are the same base class's
# business in all of them.
CLIPPED = ("nesterov", "adadelta", "nadam", "asgd")


def trained(name, be, rng, clipped=False, **options):
    """Return an optimizer and its layers after two steps."""
    made = {
        key: value
        for key, value in CHANGES[name][0].items()
        if clipped or name in CLIPPED or key not in CLIPS
    }
    optimizer, layers = OPTIMIZERS[name](**{**made, **options}), layers_of([(20, 10), (7,)], rng)
    for _ in range(2):
        gradients(rng, layers)
        optimizer.optimize(layers, 0)
    return optimizer, layers


def check_change(be, optimizer, layers, change, epoch=0):
    """Assert that `change` alters the next step, rightly, and that nothing is compiled for it."""
    unchanged = reference_step(optimizer, layers, 0, be.bsz)
    before = compiled(be)
    change()
    expected = reference_step(optimizer, layers, epoch, be.bsz)
    optimizer.optimize(layers, epoch)
    assert all_same_bits(values_of(layers), expected)
    assert not all_same_bits(expected, unchanged)
    assert compiled(be) == before


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        pytest.param(
            name, parameter, marks=pytest.mark.thorough if parameter in CLIPS and name not in CLIPPED else ()
        )
        for name, (_, new) in CHANGES.items()
        for parameter in new
    ],
)
def test_a_changed_hyper_parameter_takes_effect_at_the_next_step_and_compiles_nothing(
    cpu, rng, name, parameter
):
    optimizer, layers = trained(name, cpu, rng, parameter in CLIPS)
    check_change(cpu, optimizer, layers, lambda: setattr(optimizer, parameter, CHANGES[name][1][parameter]))


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "rprop"])
def test_a_changed_batch_size_takes_effect_at_the_next_step_and_compiles_nothing(cpu, rng, name):
    optimizer, layers = trained(name, cpu, rng)
    check_change(cpu, optimizer, layers, lambda: setattr(cpu, "bsz", 64))


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ("adadelta", "rprop")])
def test_the_epoch_and_its_schedule_take_effect_at_once_and_compile_nothing(cpu, rng, name):
    optimizer, layers = trained(name, cpu, rng, schedule=nbopt.ExpSchedule(0.5))
    check_change(cpu, optimizer, layers, lambda: None, epoch=6)
    check_change(
        cpu,
        optimizer,
        layers,
        lambda: setattr(optimizer, "schedule", nbopt.StepSchedule([3], [0.7])),
        epoch=6,
    )


def test_adams_count_of_calls_compiles_nothing(cpu, rng):
    optimizer, layers = trained("adam", cpu, rng)
    check_change(cpu, optimizer, layers, lambda: setattr(optimizer, "t", 100))
    assert optimizer.t == 101


@pytest.mark.parametrize(
    ("name", "parameter", "on", "off"),
    [
        ("rmsprop", "gradient_clip_norm", 0.1, None),
        ("rmsprop", "gradient_clip_value", 0.004, 0),
        ("rmsprop", "param_clip_value", 0.5, None),
        ("momentum", "momentum_coef", 0.9, 0),
    ],
)
def test_what_is_turned_on_or_off_is_compiled_once_for_each_and_then_found_again(
    cpu, rng, kernels, name, parameter, on, off
):
    optimizer, layers = OPTIMIZERS[name](**{parameter: off}), layers_of([(20, 10)], rng)
    counts = []
    for value in (off, on, off, on, off):
        setattr(optimizer, parameter, value)
        gradients(rng, layers)
        expected = reference_step(optimizer, layers, 0, cpu.bsz)
        compilations = cpu.compilations
        optimizer.optimize(layers, 0)
        assert all_same_bits(values_of(layers), expected)
        compiled = cpu.compilations - compilations
        counts.append(len(kernels))
        assert compiled <= counts[-1] - ([0, *counts])[-2]
    # With a norm clip four stages more: the sum, the factor, the update that takes it, and the norm's store.
    more = 4 if parameter == "gradient_clip_norm" else 1
    assert counts == [1, 1 + more, 1 + more, 1 + more, 1 + more]


def test_none_and_0_are_one_structure(cpu, rng, kernels):
    optimizer, layers = nbopt.RMSProp(), layers_of([(20, 10)], rng)
    for off in (None, 0, 0.0):
        for parameter in CLIPS:
            setattr(optimizer, parameter, off)
        optimizer.optimize(layers, 0)
    assert len(kernels) == 1


# --- launches ---


def launches(be, optimizer, layers):
    """Return how many kernels the second step starts."""
    optimizer.optimize(layers, 0)
    before = be.launches
    optimizer.optimize(layers, 0)
    return be.launches - before


SHAPES = [(20, 10), (7,), (1,), (3, 4, 5), (1, 1)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_one_launch_for_all_tensors(cpu, rng, name):
    assert launches(cpu, OPTIMIZERS[name](), layers_of(SHAPES, rng)) == 1


def test_a_step_is_one_launch_for_each_combination_of_dtypes(cpu, rng):
    double, single = layers_of(SHAPES, rng, np.float64), layers_of(SHAPES, rng)
    assert launches(cpu, nbopt.RMSProp(), [*double, *single, *layers_of(SHAPES, rng, np.float64)]) == 2


def test_strided_and_0_dimensional_tensors_are_in_the_same_launch(cpu, rng):
    strided = nbopt.Parameters(
        (np.ones((6, 8), np.float32)[:, ::2], np.ones((4, 6), np.float32).T),
        (np.array(1, np.float32), np.array(1, np.float32)),
    )
    assert launches(cpu, nbopt.RMSProp(), [*layers_of(SHAPES, rng), strided]) == 1


def test_the_norm_clip_takes_one_launch_more(cpu, rng):
    assert launches(cpu, nbopt.RMSProp(gradient_clip_norm=0.1), layers_of(SHAPES, rng)) == 2


@pytest.mark.filterwarnings("ignore:no layer has the name or class")
def test_each_optimizer_of_a_multi_optimizer_is_one_launch(cpu, rng):
    a, b, *rest = layers_of(SHAPES, rng)
    multi = nbopt.MultiOptimizer(
        {"default": nbopt.RMSProp(), a.name: nbopt.Adam(), "NoSuchLayer": nbopt.Adagrad()}
    )
    assert launches(cpu, multi, [b, a, *rest]) == 2


def test_an_assignment_is_one_launch(cpu):
    out, a, b = cpu.zeros((3, 4)), cpu.ones((3, 4)), cpu.ones((4,))
    before = cpu.launches
    out[:] = a * 2 + cpu.sqrt(b)
    assert cpu.launches - before == 1


@pytest.mark.parametrize("shapes", [[], [(0,), (3, 0)]], ids=["no layers", "no elements"])
def test_nothing_to_update_launches_nothing(cpu, rng, shapes):
    assert launches(cpu, nbopt.RMSProp(gradient_clip_norm=0.1), layers_of(shapes, rng)) == 0


# --- new arrays at every step ---


def steps_of_parameters(rng):
    """A step of an optimizer over `Parameters` that are given new gradients by assignment."""
    layers, optimizer = layers_of([(50, 20), (20,)], rng), nbopt.RMSProp(gradient_clip_norm=0.1)
    grads = [[layer.grads[0] for layer in layers] for _ in range(2)]

    def step(number):
        for layer, grad in zip(layers, grads[number % 2]):
            layer.grads = [grad + np.float32(number)]
        optimizer.optimize(layers, number)

    return step


def steps_of_raw_layers(rng):
    """A step of an optimizer over layers that return new, unwrapped gradients and keep none."""
    layers, optimizer = [RawLayer(np.ones((50, 20), np.float32), None) for _ in range(2)], nbopt.Adam()

    def step(number):
        for layer in layers:
            layer.grad = np.full((50, 20), number, np.float32)
        optimizer.optimize(layers, number)

    return step


def steps_of_assignments(rng):
    """Assignments outside an optimizer, of new arrays and new numbers."""
    be = nbopt.get_backend()
    out = be.zeros((50, 20))

    def step(number):
        grad = be.wrap(np.full((50, 20), number, np.float32))
        out[:] = out * 0.5 + grad * number

    return step


@pytest.mark.parametrize(
    "make",
    thorough_but(
        [steps_of_parameters, steps_of_raw_layers, steps_of_assignments],
        steps_of_parameters,
        steps_of_assignments,
    ),
    ids=lambda make: make.__name__,
)
def test_new_gradients_at_each_of_1000_steps_compile_nothing_and_memory_stays_flat(cpu, rng, make):
    step = make(rng)
    for number in range(20):
        step(number)
    before = compiled(cpu)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(300):
            step(number)
        gc.collect()
        early = tracemalloc.get_traced_memory()[0]
        for number in range(300, 1000):
            step(number)
        gc.collect()
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert compiled(cpu) == before
    # 700 gradients would be 2.8 MB. What Python and NumPy keep for later use comes and goes by some 20 kB.
    assert late - early < 50_000


@pytest.fixture
def no_collector():
    """Let objects die by their reference counts alone.

    Garbage that waits for the collector is memory that grows.
    """
    gc.disable()
    yield
    gc.enable()


def test_a_replaced_gradient_dies_at_once(cpu, rng, no_collector):
    layer, optimizer = layers_of([(20, 10)], rng)[0], nbopt.RMSProp(gradient_clip_norm=0.1)
    for replace in (lambda grad: layer.set_grad(0, grad), lambda grad: setattr(layer, "grads", [grad])):
        grad = rng.random((20, 10), np.float32)
        replace(grad)
        for _ in range(2):
            optimizer.optimize([layer], 0)
        old = weakref.ref(grad)
        del grad
        assert old() is not None  # it is the layer's
        replace(rng.random((20, 10), np.float32))
        assert old() is None


def test_a_gradient_that_its_layer_gives_up_dies_at_once(cpu, rng, no_collector):
    layer, optimizer = (
        RawLayer(rng.random(50, np.float32), rng.random(50, np.float32)),
        nbopt.Adam(gradient_clip_norm=0.1),
    )
    optimizer.optimize([layer], 0)
    old = weakref.ref(layer.grad)
    layer.grad = None
    assert old() is None


def test_tensors_of_an_assignment_die_at_once(cpu, rng, no_collector):
    out, array = cpu.zeros((50,)), rng.random(50, np.float32)
    out[:] = cpu.wrap(array) * 2.0 + cpu.sum(cpu.wrap(array) * 3.0)
    old = weakref.ref(array)
    del array
    assert old() is None


def test_a_failed_step_keeps_no_gradient_alive(cpu, rng):
    layer, optimizer = layers_of([(20, 10)], rng)[0], nbopt.RMSProp()
    optimizer.optimize([layer], 0)
    layer.set_grad(0, rng.random((10, 20), np.float32))
    with pytest.raises(nbopt.errors.ShapeError):
        optimizer.optimize([layer], 0)
    old = weakref.ref(layer.grads[0])
    layer.set_grad(0, rng.random((20, 10), np.float32))
    gc.collect()  # the exception's traceback holds frames
    assert old() is None


def test_an_optimizer_keeps_no_layer_alive(cpu, rng):
    (layer,), optimizer = layers_of([(20, 10)], rng), nbopt.RMSProp()
    optimizer.optimize([layer], 0)
    refs = [weakref.ref(x) for x in (layer, layer.params[0], layer.grads[0], layer.states[0][0])]
    del layer
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4


# --- layouts ---


def test_tensors_may_change_shape_between_steps(cpu, rng):
    optimizer = OPTIMIZERS["plain"](gradient_clip_norm=0.1)
    layers = [RawLayer(None, None), RawLayer(None, None)]
    for number in [1, 2, 3, 1, 2, 3, 50, 1]:
        for layer, shape in zip(layers, [(number, 5), (7, number)]):
            layer.param, layer.grad = rng.random(shape, np.float32), rng.random(shape, np.float32)
        expected = copy.deepcopy(layers)
        with nbopt.use_backend("reference", batch_size=cpu.bsz):
            copy.deepcopy(optimizer).optimize(expected, 0)
        optimizer.optimize(layers, 0)
        assert all_same_bits([layer.param for layer in layers], [layer.param for layer in expected])


def test_dtypes_and_strides_may_change_between_steps(cpu, rng):
    optimizer, layer = OPTIMIZERS["plain"](), RawLayer(None, None)
    views = [
        lambda x: x,
        lambda x: x.T,
        lambda x: x[::2],
        lambda x: x[:, ::-1],
        lambda x: x.astype(np.float64),
        lambda x: x,
    ]
    for view in views:
        layer.param, layer.grad = view(rng.random((6, 6), np.float32)), view(rng.random((6, 6), np.float32))
        expected = copy.deepcopy(layer)
        with nbopt.use_backend("reference", batch_size=cpu.bsz):
            copy.deepcopy(optimizer).optimize([expected], 0)
        optimizer.optimize([layer], 0)
        assert same_bits(np.array(layer.param), np.array(expected.param))


def test_new_gradients_may_have_other_strides_and_dtypes(cpu, rng):
    layers, optimizer = layers_of([(6, 6), (6, 6)], rng), nbopt.RMSProp(gradient_clip_norm=0.1)
    views = [
        lambda x: x,
        lambda x: x.T,
        lambda x: x[::-1],
        lambda x: x.astype(np.float64),
        lambda x: x,
        lambda x: np.asfortranarray(x),
    ]
    for view in views:
        for _ in range(2):
            layers[1].set_grad(0, view(rng.random((6, 6), np.float32)))
            expected = reference_step(optimizer, layers, 0, cpu.bsz)
            optimizer.optimize(layers, 0)
            assert all_same_bits(values_of(layers), expected)


def test_layers_may_swap_and_share_gradients(cpu, rng):
    layers, optimizer = layers_of([(4, 5), (4, 5)], rng), nbopt.RMSProp()
    a, b = (layer.grads[0] for layer in layers)
    for grads in [(a, b), (b, a), (a, a), (b, b), (a, b)]:
        for layer, grad in zip(layers, grads):
            layer.set_grad(0, grad)
        expected = reference_step(optimizer, layers, 0, cpu.bsz)
        optimizer.optimize(layers, 0)
        assert all_same_bits(values_of(layers), expected)


def test_new_gradients_are_looked_at_as_closely_as_the_first(cpu, rng):
    memory = rng.random(100, np.float32)
    layers, optimizer = (
        [nbopt.Parameters((memory[start : start + 20], rng.random(20, np.float32))) for start in (0, 40)],
        nbopt.RMSProp(),
    )
    optimizer.optimize(layers, 0)
    before = values_of(layers)
    state = layers[0].states[0][0].storage
    for wrong in (
        memory[:20],
        memory[40:60],
        memory[59:79],
        memory[21:41],
        state,
        rng.random(21, np.float32),
        np.ones(20, np.int32),
    ):
        layers[1].set_grad(0, wrong)
        with pytest.raises(NboptError):
            optimizer.optimize(layers, 0)
        assert all_same_bits(values_of(layers), before)
        assert optimizer.t == 1
    layers[1].set_grad(0, memory[20:40])  # between the two parameters
    expected = reference_step(optimizer, layers, 0, cpu.bsz)
    optimizer.optimize(layers, 0)
    assert all_same_bits(values_of(layers), expected)


def test_the_list_of_layers_may_change_between_steps(cpu, rng):
    optimizer, layers = nbopt.RMSProp(), layers_of([(4, 5), (4, 5), (7,), (4, 5)], rng)
    for chosen in ([0, 1], [1, 0], [0, 1, 2, 3], [3], [3, 2, 1], [0, 1], [2], [0, 1, 2, 3]):
        now = [layers[index] for index in chosen]
        gradients(rng, now)
        others = [values_of([layer]) for layer in layers if layer not in now]
        expected = reference_step(optimizer, now, 0, cpu.bsz)
        optimizer.optimize(now, 0)
        assert all_same_bits(values_of(now), expected)
        assert all(
            all_same_bits(old, values_of([layer]))
            for old, layer in zip(others, (x for x in layers if x not in now))
        )


def test_at_most_8_layouts_are_kept(cpu, rng, live_layouts):
    assert MOST_LAYOUTS == 8
    optimizer, layer = OPTIMIZERS["plain"](gradient_clip_norm=0.1), RawLayer(None, None)
    for sizes, kept in ((range(1, 6), 5), (range(1, 9), 8), (range(1, 30), 8), (range(1, 5), 8)):
        for size in sizes:
            layer.param, layer.grad = np.ones(size, np.float32), np.ones(size, np.float32)
            optimizer.optimize([layer], 0)
        gc.collect()
        assert len(live_layouts) == kept


def test_at_most_8_layouts_of_an_assignment_are_kept(cpu, live_layouts):
    for size in range(1, 20):
        out = cpu.zeros((size,))
        out[:] = cpu.ones((size,)) * 2.0
        assert same_bits(out.get(), np.full(size, 2, np.float32))
    gc.collect()
    assert len(live_layouts) <= 8


def test_the_same_structure_is_the_same_layout_whatever_the_arrays(cpu, rng, live_layouts):
    optimizer = nbopt.RMSProp()
    for _ in range(5):
        optimizer.optimize(layers_of([(20, 10), (7,)], rng), 0)
    gc.collect()
    assert len(live_layouts) == 1


def test_deleting_the_optimizer_frees_its_plans(cpu, rng, live_layouts):
    layers = layers_of([(20, 10), (7,)], rng)
    optimizer = nbopt.MultiOptimizer(
        {"default": nbopt.RMSProp(gradient_clip_norm=0.1), layers[0].name: nbopt.Adam()}
    )
    for _ in range(3):
        optimizer.optimize(layers, 0)
    assert len(live_layouts) == 2
    del optimizer
    gc.collect()
    assert len(live_layouts) == 0


# --- a plan is never taken for another step's ---


def equal_to_a_fresh_start(cpu, optimizer, layer, start, steps=3):
    """Assert that steps from here are those of a new optimizer on the values `start` and new states."""
    fresh = copy.deepcopy(layer)
    fresh.params[0][...] = start
    fresh.states[0].clear()
    new = nbopt.RMSProp()
    with nbopt.use_backend("reference", batch_size=cpu.bsz):
        for _ in range(steps):
            new.optimize([fresh], 0)
    for _ in range(steps):
        optimizer.optimize([layer], 0)
        assert len(layer.states[0]) == 1
    assert all_same_bits(values_of([layer]), values_of([fresh]))


# Small on purpose: where a plan wrongly writes to states that are freed, NumPy still has their memory in its
# cache.
SMALL = [(10,)]


@pytest.mark.parametrize("prepare", [nbopt.compile, nbopt.explain], ids=["compile", "explain"])
def test_states_are_made_by_the_first_step_after_it_was_prepared(cpu, rng, prepare):
    (layer,), optimizer = layers_of(SMALL, rng), nbopt.RMSProp()
    prepare(optimizer, [layer])
    assert layer.states == [[]]
    equal_to_a_fresh_start(cpu, optimizer, layer, np.array(layer.params[0]))


@pytest.mark.parametrize("steps", [1, 2])
def test_emptying_the_states_starts_afresh(cpu, rng, steps):
    (layer,), optimizer = layers_of(SMALL, rng), nbopt.RMSProp()
    for _ in range(steps):
        optimizer.optimize([layer], 0)
    layer.states[0].clear()
    equal_to_a_fresh_start(cpu, optimizer, layer, np.array(layer.params[0]))


def test_states_are_made_by_the_first_step_after_a_failed_one(cpu, rng):
    (layer,), optimizer = layers_of(SMALL, rng), nbopt.RMSProp()
    wrong = nbopt.Parameters((np.ones(3, np.float32), np.ones(4, np.float32)), name="wrong")
    multi = nbopt.MultiOptimizer({"default": optimizer, "wrong": nbopt.Adam()})
    with pytest.raises(NboptError):
        multi.optimize([layer, wrong], 0)
    assert layer.states == [[]]
    equal_to_a_fresh_start(cpu, optimizer, layer, np.array(layer.params[0]))


def test_replaced_states_are_the_ones_that_are_used(cpu, rng):
    (layer,), optimizer = layers_of(SMALL, rng), nbopt.RMSProp()
    for _ in range(3):
        optimizer.optimize([layer], 0)
        layer.states[0][:] = [cpu.array(rng.random(10), name=layer.states[0][0].name)]
        expected = reference_step(optimizer, [layer], 0, cpu.bsz)
        optimizer.optimize([layer], 0)
        assert all_same_bits(values_of([layer]), expected)


def test_a_rule_whose_slots_come_and_go_gets_plans_of_its_own(cpu, rng, kernels):
    """The state is read and never written, so the two structures write the same slots."""

    class Scaled(nbopt.Optimizer):
        state_names = ("scale",)
        learning_rate = 0.1
        scaled = True

        def states_in_use(self):
            return self.state_names if self.scaled else ()

        def rule(self, step, param, grad, scale=None):
            param[:] = param - step.lr * (grad if scale is None else grad * scale)

    (layer,), optimizer = layers_of(SMALL, rng), Scaled()
    layer.states[0].append(cpu.array(rng.random(10), name="Scaled.scale"))
    for scaled in (False, True, False, True, True):
        optimizer.scaled = scaled
        expected = reference_step(optimizer, [layer], 0, cpu.bsz)
        optimizer.optimize([layer], 0)
        assert all_same_bits(values_of([layer]), expected)
    assert len(kernels) == 2


# --- backends swapped in mid-run ---


@pytest.mark.parametrize("clips", [False, True], ids=["free", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.covering
@pytest.mark.rest("adam-*", "momentum-*")
def test_a_run_goes_on_with_the_same_bits_on_another_backend(rng, name, clips):
    options = CHANGES[name][0] if clips else {}
    layers = layers_of([(20, 10), (7,)], rng)
    grads = [
        [rng.standard_normal(layer.params[0].shape).astype(np.float32) for layer in layers] for _ in range(8)
    ]

    def run(backends):
        run_layers, optimizer = copy.deepcopy(layers), OPTIMIZERS[name](**options)
        for grad, backend in zip(grads, backends):
            with nbopt.use_backend(backend, batch_size=4):
                for layer, g in zip(run_layers, grad):
                    layer.set_grad(0, g)
                optimizer.optimize(run_layers, 0)
        return values_of(run_layers)

    swapped = ["cpu", "reference", "reference", "cpu", "cpu", "reference", "cpu", "cpu"]
    assert all_same_bits(run(swapped), run(["reference"] * 8))
    assert all_same_bits(run(swapped[::-1]), run(["cpu"] * 8))


def test_two_backends_of_one_kind_alternate(rng):
    """Plans belong to the optimizer, and what differs between two backends must not be taken from them."""
    (layer,), optimizer = layers_of([(20, 10)], rng), nbopt.RMSProp(gradient_clip_norm=0.1)
    backends = [
        nbopt.gen_backend("cpu", batch_size=2),
        nbopt.gen_backend("cpu", batch_size=64, fast_math=True),
    ]
    for number in range(6):
        be = backends[number % 2]
        expected = reference_step(optimizer, [layer], 0, be.bsz)
        before = [b.launches for b in backends]
        with nbopt.use_backend(be):
            optimizer.optimize([layer], 0)
        after = [b.launches for b in backends]
        assert [y - x for x, y in zip(before, after)] == [2 * (b is be) for b in backends]
        # fast_math may change the last bits; a batch size that is mixed up changes all of them.
        for value, exact in zip(values_of([layer]), expected):
            np.testing.assert_allclose(value, exact, rtol=1e-5)


# --- traces that are kept ---


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_kept_trace_is_used_only_where_nothing_has_changed(name, rng):
    """The library's own rules are not traced again while all that they depend on is the same.

    The values must not show it.
    """
    with nbopt.use_backend(
        "reference", batch_size=4
    ) as be:  # traces are the same to every backend, and here nothing is compiled
        kept, fresh = OPTIMIZERS[name](), OPTIMIZERS[name]()
        layers, expected = (layers_of([(5, 3), (7,)], np.random.default_rng(3)) for _ in range(2))
        changes = {
            2: ("epsilon", 1e-3),
            4: ("learning_rate", 0.02),
            6: ("param_clip_value", 0.5),
            8: ("gradient_clip_value", 0.001),
        }
        for epoch in range(10):
            attribute, value = changes.get(epoch, ("", 0.0))
            for optimizer in (kept, fresh):
                if hasattr(optimizer, attribute):
                    setattr(optimizer, attribute, value)
            be.bsz = 4 if epoch < 9 else 3
            kept.optimize(layers, epoch // 3)
            fresh._cache().inputs = None  # as if it had been traced never before
            fresh.optimize(expected, epoch // 3)
            assert all(same_bits(a, b) for a, b in zip(values_of(layers), values_of(expected)))


def test_a_users_rule_is_traced_once():
    """So is one that inherits one of the library's, and calls it."""
    traces = []

    class Mine(nbopt.RMSProp):
        def rule(self, step, param, grad, mean_square):
            traces.append(step)
            super().rule(step, param, grad, mean_square)

    with nbopt.use_backend("cpu"):
        optimizer, layers = Mine(), layers_of([(3,)], np.random.default_rng(1))
        for _ in range(3):
            optimizer.optimize(layers, 0)
    assert len(traces) == 1
