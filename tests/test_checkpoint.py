"""Checkpoints: a run that is saved and loaded goes on with the same bits.

A checkpoint that is damaged, or another's, changes nothing.
"""

import copy
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from helpers import OPTIMIZERS, ROUNDED, in_one_storage, same_bits, special_values

import nbopt
from nbopt.checkpoints import file as checkpoint_file
from nbopt.errors import ArgumentError, CheckpointError, DescriptionError, LayerError, LayoutError, NboptError

safetensors = pytest.importorskip("safetensors", reason="checkpoints on disk are safetensors files")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

# A checkpoint is the host's business; how values come from a GPU and get there, device_checks.py has tests
# of.
pytestmark = pytest.mark.thorough("gpu")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STORAGES = {"float32": (np.float32, {}), "bfloat16": (BFLOAT16, {"stochastic_round": True})}
each_run = in_one_storage("storage", *STORAGES)


class Run:
    """An optimizer, its layers, and gradients that depend on the number of the step alone.

    Every run made alike is a twin.
    """

    def __init__(self, make, dtype=np.float32, shapes=((5, 3), (7,)), layer_names=("first", None)):
        rng = np.random.default_rng(5)
        pairs = [(rng.random(shape).astype(dtype), np.zeros(shape, dtype)) for shape in shapes]
        self.layers = [nbopt.Parameters(pair, name=name) for pair, name in zip(pairs, layer_names)]
        self.optimizer = make()
        self.steps = 0

    def go(self, steps, begin=None):
        first = self.steps if begin is None else begin
        self.steps = first + steps
        for step in range(first, first + steps):
            rng = np.random.default_rng(step)
            for layer in self.layers:
                for grad in layer.grads:
                    grad[...] = rng.standard_normal(grad.shape)
            self.optimizer.optimize(self.layers, step // 3)
        return self

    def values(self):
        """Copies of all parameters and states."""
        states = [state.get() for layer in self.layers for own in layer.states for state in own]
        return [np.array(param) for layer in self.layers for param in layer.params] + states

    def everything(self):
        """What a load may change, in a form that can be compared."""
        states = [
            (id(state), state.name, state.rounding)
            for layer in self.layers
            for own in layer.states
            for state in own
        ]
        counts = [state["t"] for state in self.optimizer.state_dict(self.layers)["optimizers"]]
        values = [(value.dtype, value.tobytes()) for value in self.values()]
        return values, states, counts, self.optimizer.get_description(), nbopt.get_backend().rng_get_state()


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert same_bits(one, other)


def by_file(tmp_path):
    path = tmp_path / "run.safetensors"
    return lambda run: nbopt.save(path, run.optimizer, run.layers), lambda run: nbopt.load(
        path, run.optimizer, run.layers
    )


def in_memory(tmp_path):
    kept = []
    return (
        lambda run: kept.append(run.optimizer.state_dict(run.layers)),
        lambda run: run.optimizer.load_state_dict(kept[-1], run.layers),
    )


each_way = pytest.mark.parametrize("way", [by_file, in_memory])


# --- the same bits ---


@each_way
@each_run
@pytest.mark.covering
@pytest.mark.rest("cpu-adam-*", "cpu-asgd-*")
def test_a_run_that_is_loaded_goes_on_as_if_nothing_had_happened(backend, tmp_path, name, storage, way):
    dtype, options = STORAGES[storage]

    def make():
        return OPTIMIZERS[name](**options)

    save, load = way(tmp_path)
    run = Run(make, dtype).go(4)
    save(run)
    expected = run.go(4).values()
    backend.rng_set_state({"seed": 99, "updates": 7})
    again = Run(make, dtype)
    load(again)
    assert_same(again.go(4, begin=4).values(), expected)
    assert again.optimizer.t == 8
    assert backend.rng_get_state() == {"seed": 0, "updates": 8}


@each_run
@pytest.mark.parametrize("there, here", [("cpu", "reference"), ("reference", "cpu")])
@pytest.mark.covering
def test_a_run_goes_on_with_the_same_bits_on_another_backend(tmp_path, name, storage, there, here):
    dtype, options = STORAGES[storage]
    save, load = by_file(tmp_path)
    with nbopt.use_backend(there, rng_seed=3):
        run = Run(lambda: OPTIMIZERS[name](**options), dtype).go(3)
        save(run)
        expected = run.go(3).values()
    with nbopt.use_backend(here):
        again = Run(lambda: OPTIMIZERS[name](**options), dtype)
        load(again)
        assert_same(again.go(3, begin=3).values(), expected)


RESUME = """
import sys
import numpy as np
import nbopt
from helpers import OPTIMIZERS, ROUNDED
from test_checkpoint import STORAGES, Run

folder, backend = sys.argv[1:]
nbopt.set_backend(backend)
for name in OPTIMIZERS:
    dtype, options = STORAGES["bfloat16" if name in ROUNDED else "float32"]
    run = Run(lambda: OPTIMIZERS[name](**options), dtype)
    nbopt.load(f"{folder}/{name}", run.optimizer, run.layers)
    run.go(3, begin=3)
    values = [v.view(np.uint16) if v.dtype.itemsize == 2 else v for v in run.values()]
    np.savez(f"{folder}/{name}.npz", *values)
"""


def test_runs_go_on_with_the_same_bits_in_a_new_process(host_backend, tmp_path):
    expected = {}
    for name, make in OPTIMIZERS.items():
        dtype, options = STORAGES["bfloat16" if name in ROUNDED else "float32"]
        run = Run(lambda make=make, options=options: make(**options), dtype).go(3)
        nbopt.save(tmp_path / name, run.optimizer, run.layers)
        expected[name] = run.go(3).values()
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [sys.executable, "-c", RESUME, tmp_path, host_backend.name],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    for name, values in expected.items():
        with np.load(tmp_path / f"{name}.npz") as found:
            assert_same([found[key].view(value.dtype) for key, value in zip(found.files, values)], values)


def three_optimizers():
    adam = nbopt.Adam(gradient_clip_norm=0.5)
    inner = nbopt.MultiOptimizer({"default": adam, "second": nbopt.RMSProp(schedule=nbopt.ExpSchedule(0.1))})
    return nbopt.MultiOptimizer(
        {"default": inner, "first": adam, "third": nbopt.GradientDescentMomentum(0.1, 0.9)}
    )


@each_way
@pytest.mark.rest
def test_the_counters_of_all_optimizers_in_a_multi_optimizer_come_back_each_once(backend, tmp_path, way):
    names, shapes = ("first", "second", "third"), ((4,), (2, 3), (5,))
    save, load = way(tmp_path)
    run = Run(three_optimizers, shapes=shapes, layer_names=names).go(2)
    run.optimizer.optimizer_mapping["third"].optimize(run.layers[2:], 0)  # one more step of one of them
    save(run)
    expected = run.go(3).values()
    again = Run(three_optimizers, shapes=shapes, layer_names=names)
    load(again)
    inner = again.optimizer.optimizer_mapping["default"]
    assert [
        each.t for each in (*inner.optimizer_mapping.values(), again.optimizer.optimizer_mapping["third"])
    ] == [2, 2, 3]
    assert_same(again.go(3, begin=2).values(), expected)
    listed = run.optimizer.state_dict(run.layers)["optimizers"]
    assert [member["path"] for member in listed] == [
        [],
        ["default"],
        ["first"],
        ["third"],
        ["default", "second"],
    ]


class NeonStyle(nbopt.Optimizer):
    """Overrides optimize, and keeps states that have no names, in a number and shape of its own."""

    def __init__(self, learning_rate=0.1, name=None):
        super().__init__(name=name)
        self.learning_rate = learning_rate

    def optimize(self, layer_list, epoch):
        self.t = self.t + 1
        for (param, grad), states in nbopt.get_param_list(layer_list):
            if not states:
                states += [self.be.zeros_like(grad), self.be.zeros((2,))]
            states[0][:] = states[0] * 0.9 + grad
            states[1][:] = states[1] + self.t
            param[:] = param - self.learning_rate * states[0]


@each_way
@pytest.mark.parametrize(
    "make", [NeonStyle, lambda: nbopt.MultiOptimizer({"default": nbopt.Adam(), "first": NeonStyle()})]
)
@pytest.mark.rest
def test_unnamed_states_of_an_optimizer_in_neons_way_come_back(backend, tmp_path, make, way):
    save, load = way(tmp_path)
    run = Run(make).go(3)
    save(run)
    expected = run.go(3).values()
    again = Run(make)
    load(again)
    assert [state.name for state in again.layers[0].states[0]] == [None, None]
    assert_same(again.go(3, begin=3).values(), expected)


class OwnLayer:
    """A layer that is no Parameters: one entry of raw arrays, not in a list."""

    def __init__(self, param):
        self.entry = (param, np.ones(param.shape, np.float32)), []

    def get_params(self):
        return self.entry


@each_way
def test_layers_of_raw_arrays_with_a_single_entry(backend, tmp_path, way):
    save, load = way(tmp_path)
    runs = [Run(nbopt.RMSProp) for _ in range(2)]
    for run in runs:
        run.layers = [OwnLayer(np.ones((3, 2), np.float32))]
    run, again = runs
    run.optimizer.optimize(run.layers, 0)
    save(run)
    load(again)
    for each in runs:
        each.optimizer.optimize(each.layers, 0)
    (one, _), states = run.layers[0].entry
    (other, _), loaded = again.layers[0].entry
    assert same_bits(one, other)
    assert_same([state.get() for state in loaded], [state.get() for state in states])


def test_a_load_into_a_running_optimizer_compiles_nothing(backend, tmp_path):
    save, load = by_file(tmp_path)
    run = Run(nbopt.Adam).go(2)
    save(run)
    expected = run.go(3).values()
    compilations, plans = backend.compilations, list(run.optimizer._kept.plans)
    load(run)
    assert_same(run.go(3, begin=2).values(), expected)
    assert backend.compilations == compilations
    assert all(one is other for one, other in zip(run.optimizer._kept.plans, plans))


# --- arrays ---


def strided(shape, dtype):
    return np.zeros((2 * shape[0], *shape[1:]), dtype)[::2]


def transposed(shape, dtype):
    return np.zeros(shape[::-1], dtype).T


LAYOUTS = {
    "C": np.zeros,
    "Fortran": lambda shape, dtype: np.zeros(shape, dtype, order="F"),
    "strided": strided,
    "transposed": transposed,
}


@each_way
@pytest.mark.parametrize("here", LAYOUTS)
@pytest.mark.parametrize("there", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16], ids=str)
@pytest.mark.covering
def test_values_come_back_into_the_users_own_memory_whatever_its_strides(
    backend, tmp_path, rng, dtype, there, here, way
):
    save, load = way(tmp_path)
    with np.errstate(over="ignore"):
        values = special_values(np.float32 if dtype == BFLOAT16 else dtype, rng, (6, 5)).astype(dtype)
    runs = []
    for layout in (there, here):
        run = Run(nbopt.Adagrad)
        array = LAYOUTS[layout]((6, 5), dtype)
        run.layers = [nbopt.Parameters((array, np.zeros((6, 5), np.float32)))]
        runs.append((run, array))
    (run, array), (again, target) = runs
    array[...] = values
    save(run)
    strides = target.strides
    load(again)
    assert again.layers[0].params[0] is target and target.strides == strides
    assert same_bits(np.array(target), values)


@each_way
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1, 1, 1)], ids=str)
@pytest.mark.covering
def test_arrays_without_dimensions_or_elements_come_back(backend, tmp_path, shape, dtype, way):
    save, load = way(tmp_path)
    runs = [Run(nbopt.Adam, dtype, shapes=[shape]) for _ in range(2)]
    save(runs[0].go(1))
    load(runs[1])
    assert_same(runs[1].values(), runs[0].values())


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
@pytest.mark.rest("cpu-bfloat16")
def test_states_are_made_in_the_dtype_and_with_the_rounding_of_the_checkpoint(backend, tmp_path, dtype):
    save, load = by_file(tmp_path)
    run = Run(lambda: nbopt.Adam(state_dtype=dtype)).go(1)
    run.layers[0].states[0][0].rounding = True
    run.layers[0].states[0][1].rounding = 1
    save(run)
    again = Run(nbopt.Adam)
    load(again)
    mean, square = again.layers[0].states[0]
    assert [(state.name, state.dtype, state.rounding) for state in (mean, square)] == [
        ("Adam.mean", dtype, True),
        ("Adam.mean_square", dtype, 1),
    ]
    assert square.rounding is not True


def test_states_that_are_there_already_are_overwritten_in_place(backend, tmp_path):
    save, load = by_file(tmp_path)
    run = Run(nbopt.Adam).go(2)
    save(run)
    held, values = run.layers[0].states[0][0], run.values()
    run.go(2)
    load(run)
    assert run.layers[0].states[0][0] is held
    assert_same(run.values(), values)


@pytest.mark.parametrize("what", ["dtype", "rounding", "name", "shape"])
def test_a_state_of_another_kind_is_replaced_and_not_written(backend, what):
    run = Run(NeonStyle).go(2)
    state = run.optimizer.state_dict(run.layers)
    values = run.values()
    states = run.layers[0].states[0]
    old = states[0]
    if what == "rounding":
        old.rounding = 3
    else:
        old = states[0] = backend.ones(
            **{
                "shape": (5, 3),
                "dtype": np.float32,
                what: {"dtype": np.float64, "name": "x", "shape": 4}[what],
            }
        )
    before = old.get()
    run.optimizer.load_state_dict(state, run.layers)
    assert run.layers[0].states[0] is states and states[0] is not old
    assert same_bits(old.get(), before)
    assert_same(run.values(), values)


def test_states_that_are_not_in_the_checkpoint_are_removed(backend):
    run = Run(nbopt.Adam)
    state = run.optimizer.state_dict(run.layers)
    expected = Run(nbopt.Adam).go(3).values()
    run.go(2)
    run.optimizer.load_state_dict(state, run.layers)
    assert run.layers[0].states == [[]]
    assert_same(run.go(3, begin=0).values(), expected)


def test_a_state_in_memory_shares_nothing_with_the_run_and_is_not_changed_by_a_load(backend):
    run = Run(nbopt.Adam).go(2)
    state = run.optimizer.state_dict(run.layers)
    kept = copy.deepcopy(state)
    run.go(2)
    for _ in range(2):
        run.optimizer.load_state_dict(state, run.layers)
        run.go(1, begin=2)
    assert_equal_states(state, kept)


def assert_equal_states(one, other):
    if isinstance(one, np.ndarray):
        assert same_bits(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_states(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_equal_states(*pair)
    else:
        assert one == other


@pytest.mark.filterwarnings("ignore:no layer has the name or class")
def test_a_state_is_made_of_plain_values_and_arrays(backend):
    run = Run(three_optimizers).go(1)

    def check(value):
        if isinstance(value, (dict, list)):
            for item in value.values() if isinstance(value, dict) else value:
                check(item)
        else:
            assert type(value) in (np.ndarray, str, int, float, bool, type(None)), value

    check(run.optimizer.state_dict(run.layers))


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_copies_in_another_order_are_saved_by_their_values(host_backend, tmp_path, monkeypatch, dtype):
    save, load = by_file(tmp_path)
    run = Run(nbopt.Adam, dtype).go(1)
    with monkeypatch.context() as patch:
        patch.setattr(host_backend, "to_numpy", lambda tensor: np.array(tensor.storage, order="F"))
        save(run)
    again = Run(nbopt.Adam, dtype)
    load(again)
    assert_same(again.values(), run.values())


# --- hyper-parameters ---


@each_way
@pytest.mark.rest
def test_hyper_parameters_become_the_checkpoints(backend, tmp_path, way):
    save, load = way(tmp_path)
    saved = Run(
        lambda: nbopt.Adam(
            learning_rate=0.3,
            schedule=nbopt.StepSchedule([2], [0.1]),
            stochastic_round=4,
            gradient_clip_norm=1.0,
        )
    ).go(1)
    save(saved)
    expected = saved.go(3).values()
    again = Run(lambda: nbopt.Adam(name="mine"))
    load(again)
    assert again.optimizer.name == "mine"
    assert again.optimizer.get_description(skip=["name"]) == saved.optimizer.get_description(skip=["name"])
    assert type(again.optimizer.schedule) is nbopt.StepSchedule
    assert_same(again.go(3, begin=1).values(), expected)


def test_hyper_parameters_stay_the_callers_if_asked(backend, tmp_path):
    run = Run(lambda: nbopt.RMSProp(learning_rate=0.3)).go(2)
    nbopt.save(tmp_path / "run", run.optimizer, run.layers)
    again = Run(lambda: nbopt.RMSProp(learning_rate=0.4))
    nbopt.load(tmp_path / "run", again.optimizer, again.layers, hyperparameters=False)
    assert again.optimizer.learning_rate == 0.4
    assert again.optimizer.t == 2
    assert_same(again.values(), run.values())


def test_a_multi_optimizer_keeps_its_optimizers_and_they_take_the_checkpoints_hyper_parameters(backend):
    run = Run(three_optimizers)
    run.optimizer.optimizer_mapping["third"].learning_rate = 7.0
    state = run.optimizer.state_dict(run.layers)
    again = Run(three_optimizers)
    mapping = dict(again.optimizer.optimizer_mapping)
    again.optimizer.load_state_dict(state, again.layers)
    assert all(again.optimizer.optimizer_mapping[key] is value for key, value in mapping.items())
    assert mapping["third"].learning_rate == 7.0


class Forgetful(nbopt.Optimizer):
    def __init__(self, rate):
        super().__init__()
        self.learning_rate = rate


class DuckSchedule:
    def get_learning_rate(self, learning_rate, epoch):
        return learning_rate


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Forgetful(1.0), "'rate'.*attribute of the same name"),
        (lambda: nbopt.Adam(schedule=DuckSchedule()), r"Adam\.schedule.*derives from nbopt\.Schedule"),
        (lambda: nbopt.MultiOptimizer({"default": nbopt.Adam(), 3: nbopt.Adam()}), "must be strings"),
    ],
)
def test_a_hyper_parameter_that_cant_be_kept_is_named_when_it_is_saved(backend, tmp_path, make, message):
    run = Run(make)
    with pytest.raises(CheckpointError, match=message):
        nbopt.save(tmp_path / "run", run.optimizer, run.layers)
    assert not list(tmp_path.iterdir())


# --- whole or not at all ---


class AnotherAdam(nbopt.Adam):
    pass


def multi(**mapping):
    return lambda: nbopt.MultiOptimizer(
        {"default": nbopt.Adam(), **{key: make() for key, make in mapping.items()}}
    )


def shared():
    adam = nbopt.Adam()
    return nbopt.MultiOptimizer({"default": adam, "first": adam})


MISMATCHES = {
    "another class": (
        (nbopt.Adam, {}),
        (nbopt.RMSProp, {}),
        r"saved with nbopt\.Adam.*here is nbopt\.RMSProp.*same class",
    ),
    "a derived class": ((nbopt.Adam, {}), (AnotherAdam, {}), "AnotherAdam"),
    "inside a MultiOptimizer": ((nbopt.Adam, {}), (multi(), {}), r"default: nbopt\.Adam"),
    "other keys": (
        (multi(first=nbopt.Adam), {}),
        (multi(second=nbopt.Adam), {}),
        "first: .*second: .*same keys",
    ),
    "another class under a key": (
        (multi(first=nbopt.Adam), {}),
        (multi(first=nbopt.RMSProp), {}),
        r"first: nbopt\.RMSProp",
    ),
    "not shared": ((shared, {}), (multi(first=nbopt.Adam), {}), "shared among them"),
    "fewer layers": ((nbopt.Adam, {}), (nbopt.Adam, {"layer_names": ["first"]}), "2 layers, and 1 are given"),
    "another shape": (
        (nbopt.Adam, {}),
        (nbopt.Adam, {"shapes": ((5, 3), (8,))}),
        r"parameter 0 of layer 1 has shape \(7,\).*\(8,\) here",
    ),
    "a transposed shape": (
        (nbopt.Adam, {}),
        (nbopt.Adam, {"shapes": ((3, 5), (7,))}),
        r"layer first has shape \(5, 3\).*\(3, 5\) here",
    ),
    "another dtype": (
        (nbopt.Adam, {}),
        (nbopt.Adam, {"dtype": np.float64}),
        "float32 in the checkpoint, and float64 here",
    ),
    "16 bits": (
        (nbopt.Adam, {"dtype": BFLOAT16}),
        (nbopt.Adam, {"dtype": np.float16}),
        "bfloat16 in the checkpoint, and float16 here",
    ),
    "another name": (
        (nbopt.Adam, {}),
        (nbopt.Adam, {"layer_names": ("one", None)}),
        "'first' in the checkpoint, and 'one' here",
    ),
    "another optimizer by the name": (
        (multi(second=nbopt.RMSProp), {"layer_names": ("first", None)}),
        (multi(second=nbopt.RMSProp), {"layer_names": ("first", "second")}),
        r"layer second has the states Adam\.mean, Adam\.mean_square.*RMSProp.*keeps",
    ),
}


@each_way
@pytest.mark.parametrize("hyperparameters", [True, False])
@pytest.mark.parametrize("case", MISMATCHES)
@pytest.mark.filterwarnings("ignore:no layer has the name or class")
def test_a_checkpoint_of_something_else_is_refused_and_changes_nothing(
    backend, tmp_path, case, hyperparameters, way
):
    (make, options), (make_here, options_here), message = MISMATCHES[case]
    saved = Run(make, **options).go(2)
    run = Run(make_here, **options_here).go(3)
    before = run.everything()
    with pytest.raises(CheckpointError, match=message):
        if way is by_file:
            nbopt.save(tmp_path / "run", saved.optimizer, saved.layers)
            before = run.everything()
            nbopt.load(tmp_path / "run", run.optimizer, run.layers, hyperparameters)
        else:
            run.optimizer.load_state_dict(
                saved.optimizer.state_dict(saved.layers), run.layers, hyperparameters
            )
    assert run.everything() == before


def test_a_layer_with_another_number_of_parameters_is_refused(backend):
    run, other = Run(nbopt.Adam), Run(nbopt.Adam)
    other.layers[1] = nbopt.Parameters(
        *[(np.zeros(7, np.float32), np.zeros(7, np.float32)) for _ in range(2)]
    )
    before = other.everything()
    with pytest.raises(CheckpointError, match="layer 1 has 1 parameters in the checkpoint, and 2 here"):
        other.optimizer.load_state_dict(run.optimizer.state_dict(run.layers), other.layers)
    assert other.everything() == before


def edited(state, *path, value):
    state = copy.deepcopy(state)
    place = state
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return state


EDITS = [
    (("version",), 2, "format 2.*knows format 1"),
    (("version",), None, "no state"),
    (("optimizer", "config"), 3, "no state"),
    (("optimizer", "config", "learning_rate"), -1.0, "learning_rate must be"),
    (("optimizer", "config", "schedule"), {"type": "os.system", "config": {}}, "os.system"),
    (("optimizer", "type"), "nbopt.RMSProp", "takes no|not that of its optimizers"),
    (("optimizer", "type"), "nbopt.Schedule", "not of a Optimizer"),
    (("optimizers", 0, "t"), "5", "no state"),
    (("optimizers",), [], "saved with"),
    (("rng", "seed"), -1, "seed"),
    (("rng",), {}, "no state"),
    (("layers", 0, "parameters", 0, "values"), [[1.0]], "no state"),
    (("layers", 0, "parameters", 0, "states", 0, "name"), "RMSProp.mean_square", "RMSProp.mean_square"),
    (
        ("layers", 0, "parameters", 0, "states", 1, "values"),
        np.zeros(3, np.float32),
        r"state of shape \(3,\)",
    ),
    (("layers", 0, "parameters", 0, "states", 1, "values"), np.zeros((5, 3), np.int32), "int32"),
    (("layers", 0, "parameters", 0, "states", 1, "rounding"), -3, "rounding"),
    (("layers", 1, "parameters", 0, "states"), [], None),
]


@pytest.mark.parametrize("path, value, message", EDITS)
def test_an_edited_state_is_refused_or_loaded_and_never_half(backend, path, value, message):
    run = Run(nbopt.Adam).go(2)
    state = edited(run.optimizer.state_dict(run.layers), *path, value=value)
    run.go(1)
    before = run.everything()
    if message is None:
        run.optimizer.load_state_dict(state, run.layers)
        assert run.everything() != before
    else:
        with pytest.raises(NboptError, match=message):
            run.optimizer.load_state_dict(state, run.layers)
        assert run.everything() == before


@pytest.mark.parametrize("state", [None, [], {}, {"version": 1}, "run.safetensors"], ids=str)
def test_what_is_no_state_is_refused(backend, state):
    run = Run(nbopt.Adam)
    with pytest.raises(CheckpointError, match=r"pass what optimizer\.state_dict\(layers\) returned"):
        run.optimizer.load_state_dict(state, run.layers)


def test_what_is_no_optimizer_or_no_layers_is_refused(backend, tmp_path):
    run = Run(nbopt.Adam)
    with pytest.raises(CheckpointError, match="the optimizer comes before the layers"):
        nbopt.save(tmp_path / "run", run.layers, run.optimizer)
    with pytest.raises(CheckpointError, match=r"derive its class from nbopt\.Optimizer"):
        nbopt.save(tmp_path / "run", "Adam", run.layers)
    with pytest.raises(LayerError, match=r"\[layer\]"):
        nbopt.save(tmp_path / "run", run.optimizer, 3)
    with pytest.raises(LayerError, match="listed twice"):
        nbopt.save(tmp_path / "run", run.optimizer, run.layers[:1] * 2)
    assert not list(tmp_path.iterdir())


def test_a_description_of_a_class_that_is_not_known_here_imports_nothing(backend):
    run = Run(nbopt.Adam)
    state = edited(
        run.optimizer.state_dict(run.layers),
        "optimizer",
        "config",
        "schedule",
        value={"type": "antigravity.Schedule"},
    )
    with pytest.raises(DescriptionError, match="antigravity"):
        run.optimizer.load_state_dict(state, run.layers)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("what", ["parameter", "state"])
def test_memory_that_cant_be_written_is_refused_before_anything_is(host_backend, monkeypatch, what):
    run = Run(NeonStyle)
    last = run.layers[1]
    last.states[0][:] = [np.ones(7, np.float32)]
    state = run.optimizer.state_dict(run.layers)
    for layer in run.layers:
        layer.params[0][...] = 5
    (last.params[0] if what == "parameter" else last.states[0][0]).flags.writeable = False
    written = []
    monkeypatch.setattr(host_backend, "set_values", lambda *arguments: written.append(arguments))
    with pytest.raises(LayoutError, match="read-only"):
        run.optimizer.load_state_dict(state, run.layers)
    assert not written and all((layer.params[0] == 5).all() for layer in run.layers)


@each_way
@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_load_that_fails_in_its_middle_changes_nothing(backend, monkeypatch, tmp_path, error, number, way):
    save, load = way(tmp_path)
    run = Run(lambda: nbopt.Adam(learning_rate=0.1)).go(2)
    save(run)
    run.go(2)
    run.optimizer.learning_rate = 0.2
    backend.rng_set_state({"seed": 1, "updates": 1})
    before, calls, real = run.everything(), [], type(backend).set_values

    def fail_once(tensor, values):
        calls.append(tensor)
        real(backend, tensor, values)
        if len(calls) == number:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(backend, "set_values", fail_once)
        with pytest.raises(error):
            load(run)
    assert len(calls) >= number
    assert run.everything() == before


def test_an_allocation_that_fails_changes_nothing(backend, monkeypatch, tmp_path):
    save, load = by_file(tmp_path)
    save(Run(nbopt.Adam).go(2))
    run = Run(nbopt.Adam)
    before, real, calls = run.everything(), backend.allocate, []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "allocate", fail)
        with pytest.raises(MemoryError):
            load(run)
    assert run.everything() == before


def test_ctrl_c_takes_effect_after_the_load(backend, monkeypatch, tmp_path):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("this test needs the main thread")
    save, load = by_file(tmp_path)
    saved = Run(nbopt.Adam).go(2)
    save(saved)
    run = Run(nbopt.Adam).go(1)
    real, calls = type(backend).set_values, []

    def press_ctrl_c(tensor, values):
        real(backend, tensor, values)
        calls.append(tensor)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "set_values", press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            load(run)
    assert len(calls) == 6
    assert run.optimizer.t == 2
    assert_same(run.values(), saved.values())


# --- files ---


def test_any_reader_of_safetensors_finds_the_tensors_under_sensible_names(backend, tmp_path):
    run = Run(
        nbopt.Adam,
        BFLOAT16,
        shapes=[(5, 3), (2,), (1,), (4,), (3,)],
        layer_names=("linear", None, "2", "a/b", "linear"),
    ).go(1)
    run.layers[3].states[0][1].name = "Adam.mean"  # so that it is not unique
    nbopt.save(tmp_path / "run.safetensors", run.optimizer, run.layers)
    found = safetensors_numpy.load_file(tmp_path / "run.safetensors")
    names = [f"{layer}/0{state}" for layer in range(5) for state in ("", "/Adam.mean", "/Adam.mean_square")]
    assert sorted(found) == sorted([*names[:10], "3/0/0", "3/0/1", *names[12:]])
    assert same_bits(found["0/0"].view(BFLOAT16), run.layers[0].params[0])
    assert same_bits(found["4/0/Adam.mean"], run.layers[4].states[0][0].get())
    run.layers = run.layers[:2]
    nbopt.save(tmp_path / "run.safetensors", run.optimizer, run.layers)
    assert {
        name.rpartition("/0")[0] for name in safetensors_numpy.load_file(tmp_path / "run.safetensors")
    } == {"linear", "1"}


def test_no_layers_at_all_are_a_checkpoint_too(backend, tmp_path):
    nbopt.save(tmp_path / "run", nbopt.Adam(learning_rate=0.5), [])
    optimizer = nbopt.Adam()
    nbopt.load(tmp_path / "run", optimizer, [])
    assert optimizer.learning_rate == 0.5


@pytest.mark.filterwarnings("ignore:no layer has the name or class")
def test_two_saves_of_one_run_hold_the_same_metadata_and_tensors(backend, tmp_path):
    run = Run(three_optimizers).go(1)
    files = []
    for name in "ab":
        nbopt.save(tmp_path / name, run.optimizer, run.layers)
        with opened(tmp_path / name) as file:
            files.append((file.metadata(), {key: file.get_tensor(key).tobytes() for key in file.keys()}))
    assert files[0] == files[1]


def opened(path):
    return safetensors.safe_open(path, framework="numpy")


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(backend, tmp_path, umask, mask):
    umask(mask)
    nbopt.save(tmp_path / "run", nbopt.Adam(), [])
    assert stat.S_IMODE(os.stat(tmp_path / "run").st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_a_file_that_is_replaced_keeps_its_permissions(backend, tmp_path, umask, mode):
    path = tmp_path / "run"
    for _ in range(2):
        nbopt.save(path, nbopt.Adam(), [])
        path.chmod(mode)
    nbopt.save(path, nbopt.Adam(), [])
    assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_a_link_stays_a_link_and_its_target_is_replaced(backend, tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "run", tmp_path / "latest"
    nbopt.save(target, nbopt.Adam(), [])
    link.symlink_to(target)
    nbopt.save(link, nbopt.Adam(learning_rate=0.5), [])
    optimizer = nbopt.Adam()
    nbopt.load(target, optimizer, [])
    assert link.is_symlink() and optimizer.learning_rate == 0.5


def test_a_path_relative_to_the_working_directory(backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nbopt.save("run", nbopt.Adam(), [])
    nbopt.load("run", nbopt.Adam(), [])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", ["save_file", "fsync", "chmod", "replace"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_beside_it(
    backend, tmp_path, monkeypatch, where, error
):
    path = tmp_path / "run"
    nbopt.save(path, nbopt.Adam(), [])
    old = path.read_bytes()
    owner = safetensors_numpy if where == "save_file" else os

    def fail(*arguments):
        raise error(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, fail)
        with pytest.raises(error):
            nbopt.save(path, nbopt.Adam(learning_rate=0.5), [])
    assert [each.name for each in tmp_path.iterdir()] == ["run"]
    assert path.read_bytes() == old


def test_the_file_and_then_its_name_are_flushed_to_the_disk(backend, tmp_path, monkeypatch):
    log = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (
            log.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file") or fsync(handle)
        ),
    )
    monkeypatch.setattr(os, "replace", lambda *paths: log.append("replace") or replace(*paths))
    nbopt.save(tmp_path / "run", nbopt.Adam(), [])
    assert log == ["file", "replace", "folder"]


def test_a_file_that_is_not_there_or_cant_be_written_is_an_os_error(backend, tmp_path):
    with pytest.raises(FileNotFoundError):
        nbopt.load(tmp_path / "none", nbopt.Adam(), [])
    with pytest.raises(FileNotFoundError):
        nbopt.save(tmp_path / "no folder" / "run", nbopt.Adam(), [])
    with pytest.raises(IsADirectoryError):
        nbopt.load(tmp_path, nbopt.Adam(), [])


# --- damage ---


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The bytes of a small file of a run after two steps."""
    path = tmp_path_factory.mktemp("small") / "run"
    with nbopt.use_backend("reference", rng_seed=0):
        run = Run(nbopt.Adam).go(2)
        nbopt.save(path, run.optimizer, run.layers)
    return path.read_bytes()


def check_damaged(path, data):
    """The file is refused and nothing changes, or the right values are loaded.

    Returns whether it was refused.
    """
    path.write_bytes(data)
    expected = Run(nbopt.Adam).go(2)
    run = Run(nbopt.Adam).go(3)
    nbopt.get_backend().rng_set_state({"seed": 4, "updates": 4})
    before = run.everything()
    try:
        nbopt.load(path, run.optimizer, run.layers)
    except CheckpointError as error:
        assert "older checkpoint" in str(error)
        assert run.everything() == before
        return True
    assert_same(run.values(), expected.values())
    assert run.optimizer.t == 2 and run.optimizer == expected.optimizer
    assert nbopt.get_backend().rng_get_state() == {"seed": 0, "updates": 2}
    return False


@pytest.fixture
def reference():
    with nbopt.use_backend("reference", rng_seed=0) as be:
        yield be


def test_a_truncated_file_is_refused(reference, tmp_path, small):
    rng = random.Random(1)
    for length in [0, 1, 7, 8, 9, len(small) - 1, *(rng.randrange(len(small)) for _ in range(94))]:
        assert check_damaged(tmp_path / "run", small[:length]), length


@pytest.mark.rest
def test_a_flipped_byte_is_refused_or_does_no_harm(reference, tmp_path, small):
    rng = random.Random(2)
    refused = 0
    for _ in range(200):
        data = bytearray(small)
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        refused += check_damaged(tmp_path / "run", bytes(data))
    assert refused > 190  # the others hit the blanks that fill up the header


@pytest.mark.rest
def test_every_byte_of_the_header_is_checked(reference, tmp_path, small):
    length = int.from_bytes(small[:8], "little")
    rng = random.Random(3)
    for place in rng.sample(range(8, 8 + length), 200):
        data = bytearray(small)
        data[place] ^= 1 << rng.randrange(7)
        check_damaged(tmp_path / "run", bytes(data))


def rewritten(path, change):
    """Change a file's tensors and its state (as JSON), and make the digest of the latter right again."""
    tensors = safetensors_numpy.load_file(path)
    with opened(path) as file:
        state = json.loads(file.metadata()["nbopt"])
    change(tensors, state)
    text = json.dumps(state)
    digest = checkpoint_file._digest(np.frombuffer(text.encode(), np.uint8))
    safetensors_numpy.save_file(tensors, path, {"nbopt": text, "digest": digest})


def swap(tensors, state):
    tensors["first/0/Adam.mean"], tensors["first/0/Adam.mean_square"] = (
        tensors["first/0/Adam.mean_square"],
        tensors["first/0/Adam.mean"],
    )


def of_first(key, value, state=None):
    def change(tensors, whole):
        parameter = whole["layers"][0]["parameters"][0]
        (parameter if state is None else parameter["states"][state])["values"][key] = value

    return change


FORGERIES = {
    "tensors swapped": swap,
    "a tensor more": lambda tensors, state: tensors.update(more=np.zeros(3)),
    "a tensor less": lambda tensors, state: tensors.pop("1/0"),
    "a dtype of the same size": lambda tensors, state: tensors.update({"1/0": tensors["1/0"].view(np.int32)}),
    "a shape of the same size": lambda tensors, state: tensors.update(
        {"first/0": tensors["first/0"].reshape(3, 5)}
    ),
    "a huge parameter": of_first("shape", [2**40, 2**40]),
    "a huge state": of_first("shape", [2**40], state=0),
    "a negative size": of_first("shape", [-5, -3]),
    "a shape that is none": of_first("shape", 3),
    "an unknown dtype": of_first("dtype", "object"),
    "a dtype that is none": of_first("dtype", ["float32"]),
    "no digest": of_first("digest", None),
    "no state": lambda tensors, state: state.clear(),
    "another format": lambda tensors, state: state.update(version=7),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_file_is_refused_before_an_array_is_made(reference, monkeypatch, tmp_path, small, forgery):
    (tmp_path / "run").write_bytes(small)
    rewritten(tmp_path / "run", FORGERIES[forgery])
    run = Run(nbopt.Adam)
    before = run.everything()
    monkeypatch.setattr(reference, "allocate", None)
    with pytest.raises(CheckpointError):
        nbopt.load(tmp_path / "run", run.optimizer, run.layers)
    assert run.everything() == before


def test_metadata_that_are_nested_without_end_are_refused(reference, tmp_path):
    text = "[" * 200_000
    digest = checkpoint_file._digest(np.frombuffer(text.encode(), np.uint8))
    safetensors_numpy.save_file({"x": np.zeros(1)}, tmp_path / "run", {"nbopt": text, "digest": digest})
    with pytest.raises(CheckpointError, match="no checkpoint"):
        nbopt.load(tmp_path / "run", nbopt.Adam(), [])


def test_another_safetensors_file_is_no_checkpoint(reference, tmp_path):
    safetensors_numpy.save_file({"x": np.zeros(1)}, tmp_path / "run")
    with pytest.raises(CheckpointError, match="no checkpoint of nbopt"):
        nbopt.load(tmp_path / "run", nbopt.Adam(), [])


KILLED_SAVES = """
import glob, os, random, signal, sys, time
import numpy as np
import nbopt
import safetensors.numpy

path = sys.argv[1]
nbopt.set_backend("reference", rng_seed=0)
layer = nbopt.Parameters(*[(np.zeros(200_000, np.float32), np.zeros(200_000, np.float32)) for _ in range(3)])
optimizer = nbopt.RMSProp(name="rms")
optimizer.optimize([layer], 0)


def save_forever(number):
    while True:
        number += 1
        for values in (*layer.params, *(state.storage for states in layer.states for state in states)):
            values[...] = number
        optimizer.t = number
        nbopt.save(path, optimizer, [layer])


nbopt.save(path, optimizer, [layer])
rng = random.Random(0)
started = time.perf_counter()
nbopt.save(path, optimizer, [layer])
one_save = time.perf_counter() - started
number, advanced = optimizer.t, 0
for _ in range(50):
    child = os.fork()
    if child == 0:
        save_forever(number)
    time.sleep(rng.random() * 3 * one_save)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    nbopt.load(path, optimizer, [layer])
    values = [*layer.params, *(state.get() for states in layer.states for state in states)]
    if number > 1 or optimizer.t > 1:
        assert {float(x) for array in values for x in np.unique(array)} == {float(optimizer.t)}, optimizer.t
    assert optimizer.t >= number
    advanced += optimizer.t > number
    number = optimizer.t
print(advanced, len(glob.glob(os.path.join(os.path.dirname(path), ".nbopt-save-*"))))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_SAVES, tmp_path / "run"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    advanced, cut_short = map(int, done.stdout.split())
    # Files were replaced, and saves were killed at work.
    assert advanced > 5 and cut_short > 5


@pytest.mark.parametrize("path", [None, 1, True, "", b"", 1.5], ids=repr)
def test_what_is_no_path_is_refused_and_no_open_file_is_touched(path):
    run = Run(nbopt.RMSProp).go(1)
    with pytest.raises(ArgumentError, match="the path comes first"):
        nbopt.save(path, run.optimizer, run.layers)
    with pytest.raises(ArgumentError, match="the path comes first"):
        nbopt.load(path, run.optimizer, run.layers)
    os.fstat(1)  # where path was 1


def test_paths_can_be_bytes_and_path_objects(tmp_path):
    run = Run(nbopt.RMSProp).go(1)
    for path in (tmp_path / "run", os.fsencode(tmp_path / "run")):
        nbopt.save(path, run.optimizer, run.layers)
        run.optimizer.t = 7
        nbopt.load(path, run.optimizer, run.layers)
        assert run.optimizer.t == 1


def test_a_folder_and_a_file_in_no_folder_are_named_by_the_error(tmp_path):
    run = Run(nbopt.RMSProp).go(1)
    with pytest.raises(IsADirectoryError, match="a checkpoint is a file, and this is a folder"):
        nbopt.save(tmp_path, run.optimizer, run.layers)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        nbopt.save(tmp_path / "none" / "run", run.optimizer, run.layers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [None, "False", 1])
def test_whether_hyper_parameters_are_loaded_is_a_flag(bad):
    run = Run(nbopt.RMSProp).go(1)
    state, before = run.optimizer.state_dict(run.layers), run.everything()
    with pytest.raises(ArgumentError, match="hyperparameters must be True or False"):
        run.optimizer.load_state_dict(state, run.layers, bad)
    assert run.everything() == before
