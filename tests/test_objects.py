"""Names and descriptions, copies, MultiOptimizer, and the choice of a backend.

There are also optimizers written in neon's own way.
"""

import copy
import json
import pickle
import sys
import threading

import numpy as np
import pytest
from helpers import OPTIMIZERS, layers_of, same_bits, thorough_but, values_of

import nbopt
from nbopt.errors import (
    ArgumentError,
    BackendError,
    DescriptionError,
    LayerError,
    NboptError,
    UnknownBackendError,
)


class SignMomentum(nbopt.Optimizer):
    """A user's own optimizer."""

    state_names = ("momentum",)

    def __init__(self, learning_rate=1e-3, decay=0.9, name=None):
        super().__init__(name=name)
        self.learning_rate, self.decay = learning_rate, decay

    def rule(self, step, param, grad, momentum):
        momentum[:] = self.decay * momentum + (1 - self.decay) * grad
        param[:] = param - step.lr * self.be.sgn(momentum)


SCHEDULES = {
    "constant": lambda: nbopt.Schedule(),
    "every_k": lambda: nbopt.Schedule(3, 0.5),
    "at_steps": lambda: nbopt.Schedule([1, 4], 0.5),
    "lists": lambda: nbopt.Schedule([1, 4], [0.5, 0.25]),
    "step": lambda: nbopt.StepSchedule([1, 4], [0.5, 0.25]),
    "power": lambda: nbopt.PowerSchedule(2, 0.5),
    "exp": lambda: nbopt.ExpSchedule(0.5),
    "poly": lambda: nbopt.PolySchedule(10, 0.5),
    "shift": lambda: nbopt.ShiftSchedule(2, 3),
}

CLIPS = {"gradient_clip_norm": 0.05, "gradient_clip_value": 0.02, "param_clip_value": 0.9}
MANY = {**OPTIMIZERS, "sign_momentum": SignMomentum}


def multi_optimizer():
    shared = nbopt.Adam(name="shared", schedule=nbopt.ExpSchedule(0.1))
    return nbopt.MultiOptimizer(
        {"default": nbopt.RMSProp(), "a": shared, "b": shared, "Parameters": SignMomentum(decay=0.5)},
        name="several",
    )


DESCRIBED = {
    **MANY,
    **{f"schedule_{name}": make for name, make in SCHEDULES.items()},
    "clipped": lambda: nbopt.RMSProp(
        **CLIPS,
        name="clipped",
        schedule=nbopt.StepSchedule([1], [0.5]),
        state_dtype="float64",
        stochastic_round=True,
    ),
    "multi": multi_optimizer,
    "multi_of_multi": lambda: nbopt.MultiOptimizer(
        {"default": nbopt.Adagrad(schedule=nbopt.PolySchedule(3, 1)), "inner": multi_optimizer()}
    ),
}
each_described = pytest.mark.parametrize("make", DESCRIBED.values(), ids=DESCRIBED)


def all_same_bits(a, b):
    return len(a) == len(b) and all(map(same_bits, a, b))


def train(optimizer, layers, epochs=range(3)):
    for epoch in epochs:
        optimizer.optimize(layers, epoch)
    return values_of(layers)


# --- names ---


def test_classnm_and_modulenm_are_the_class_and_its_public_path():
    assert (nbopt.RMSProp().classnm, nbopt.RMSProp().modulenm) == ("RMSProp", "nbopt.RMSProp")
    assert (nbopt.Schedule().classnm, nbopt.Schedule().modulenm) == ("Schedule", "nbopt.Schedule")
    assert (SignMomentum().classnm, SignMomentum().modulenm) == ("SignMomentum", f"{__name__}.SignMomentum")
    assert nbopt.Parameters().classnm == "Parameters"


def test_a_name_is_kept_and_without_one_each_object_gets_its_own():
    assert nbopt.RMSProp(name="mine").name == "mine"
    assert nbopt.Parameters(name="layer").name == "layer"
    names = {nbopt.RMSProp().name for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("RMSProp") for name in names)


def test_the_optimizers_stand_under_both_paths():
    for name in nbopt.optimizers.__all__:
        if name != "Step":
            assert getattr(nbopt, name) is getattr(nbopt.optimizers, name)


# --- descriptions ---


def test_a_description_has_all_arguments_but_names_that_nobody_chose():
    assert nbopt.RMSProp(learning_rate=0.5, schedule=nbopt.StepSchedule([1], [0.25])).get_description() == {
        "type": "nbopt.RMSProp",
        "config": {
            "stochastic_round": False,
            "decay_rate": 0.95,
            "learning_rate": 0.5,
            "epsilon": 1e-6,
            "gradient_clip_norm": None,
            "gradient_clip_value": None,
            "param_clip_value": None,
            "schedule": {"type": "nbopt.StepSchedule", "config": {"step_config": [1], "change": [0.25]}},
            "centered": False,
            "momentum_coef": 0.0,
            "ema_decay": None,
            "centralize": False,
            "adaptive_clip": None,
            "param_decay": None,
            "mirror_dtype": None,
            "state_dtype": None,
        },
    }
    assert nbopt.RMSProp(name="mine").get_description()["config"]["name"] == "mine"
    assert SignMomentum(0.5).get_description() == {
        "type": f"{__name__}.SignMomentum",
        "config": {"learning_rate": 0.5, "decay": 0.9},
    }


def test_skipped_arguments_are_left_out():
    description = nbopt.RMSProp(name="mine").get_description(skip=["learning_rate", "name", "schedule"])
    assert not {"learning_rate", "name", "schedule"} & set(description["config"])
    assert description["config"]["decay_rate"] == 0.95
    assert nbopt.RMSProp.gen_class(description) == nbopt.RMSProp()


def test_a_description_tells_the_values_of_now():
    optimizer = nbopt.Adam()
    optimizer.learning_rate = np.float32(0.5)
    optimizer.t = 7  # state, not an argument
    assert optimizer.get_description()["config"]["learning_rate"] == 0.5
    assert "t" not in optimizer.get_description()["config"]
    assert optimizer == nbopt.Adam(learning_rate=0.5)


@each_described
@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda description: json.loads(json.dumps(description))], ids=["dict", "json"]
)
def test_an_object_can_be_rebuilt_from_its_description(make, through):
    original = make()
    description = through(original.get_description())
    for cls in (type(original), nbopt.NervanaObject):
        rebuilt = cls.gen_class(description)
        assert type(rebuilt) is type(original)
        assert rebuilt == original
        assert hash(rebuilt) == hash(original)
        assert rebuilt.get_description() == original.get_description()


@each_described
def test_gen_class_does_not_change_its_argument_and_keeps_nothing_of_it(make):
    description = make().get_description()
    before = copy.deepcopy(description)
    rebuilt = nbopt.NervanaObject.gen_class(description)
    assert description == before
    for value in description["config"].values():
        if isinstance(value, (list, dict)):
            value.clear()
    assert rebuilt == make()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-adam")
def test_a_rebuilt_optimizer_trains_to_the_same_bits(backend, rng, name):
    options = {} if name == "adadelta" else {"schedule": nbopt.ExpSchedule(0.5)}
    layers, optimizer = layers_of([(4, 3)], rng), OPTIMIZERS[name](**options)
    rebuilt = nbopt.NervanaObject.gen_class(optimizer.get_description())
    assert all_same_bits(train(rebuilt, copy.deepcopy(layers)), train(optimizer, layers))


def test_gen_class_takes_a_plain_config_too():
    config = {"learning_rate": 0.5, "schedule": {"type": "nbopt.ExpSchedule", "config": {"decay": 0.1}}}
    assert nbopt.RMSProp.gen_class(config) == nbopt.RMSProp(
        learning_rate=0.5, schedule=nbopt.ExpSchedule(0.1)
    )


def test_equal_objects_are_those_with_equal_descriptions():
    assert nbopt.RMSProp() == nbopt.RMSProp()
    assert nbopt.RMSProp() != nbopt.RMSProp(epsilon=1e-5)
    assert nbopt.RMSProp() != nbopt.RMSProp(schedule=nbopt.ExpSchedule(0.1))
    assert nbopt.RMSProp() != nbopt.RMSProp(name="mine")
    assert nbopt.Schedule() != nbopt.RMSProp()
    assert nbopt.RMSProp() != "nbopt.RMSProp"
    assert len({nbopt.RMSProp(), nbopt.RMSProp(), nbopt.Adam()}) == 2


def test_recursive_gen_replaces_descriptions_in_place_and_leaves_the_rest():
    pdict = {
        "opt": nbopt.Adam(learning_rate=0.5).get_description(),
        "schedule": nbopt.Schedule(),
        "lr": 0.5,
        "options": {"type": "x", "other": 1},
    }
    schedule, options = pdict["schedule"], copy.deepcopy(pdict["options"])
    for key in list(pdict):
        nbopt.NervanaObject.recursive_gen(pdict, key)
    assert pdict["opt"] == nbopt.Adam(learning_rate=0.5)
    assert pdict["schedule"] is schedule
    assert (pdict["lr"], pdict["options"]) == (0.5, options)


NEON_CLASSES = [
    "GradientDescentMomentum",
    "RMSProp",
    "Adagrad",
    "Adadelta",
    "Adam",
    "ShiftAdaMax",
    "MultiOptimizer",
]
NEON_SCHEDULES = ["Schedule", "StepSchedule", "PowerSchedule", "ExpSchedule", "PolySchedule", "ShiftSchedule"]
REQUIRED = {
    "GradientDescentMomentum": {"learning_rate": 0.1, "momentum_coef": 0.9},
    "MultiOptimizer": {
        "optimizer_mapping": {"default": {"type": "neon.optimizers.optimizer.Adam", "config": {}}}
    },
    "StepSchedule": {"step_config": [1], "change": [0.5]},
    "PowerSchedule": {"step_config": 1, "change": 0.5},
    "ExpSchedule": {"decay": 0.5},
    "PolySchedule": {"total_epochs": 3, "power": 1},
    "ShiftSchedule": {"interval": 2},
}


@pytest.mark.parametrize("name", [*NEON_CLASSES, *NEON_SCHEDULES])
@pytest.mark.parametrize("module", ["neon.optimizers.optimizer", "neon.optimizers"])
def test_neons_paths_are_understood(module, name):
    description = {"type": f"{module}.{name}", "config": REQUIRED.get(name, {})}
    assert type(nbopt.NervanaObject.gen_class(description)) is getattr(nbopt, name)


@pytest.mark.parametrize(
    "path",
    [
        "os.system", "subprocess.Popen", "this.Zen", "nbopt.NoSuchOptimizer", "nbopt.Parameters",
        "nbopt.NervanaObject", "nbopt.Backend", "nbopt.optimizers.adam.Adam",
        "neon.optimizers.optimizer.NoSuch", "neon.layers.layer.RMSProp", "RMSProp", "", None, 5,
        ["nbopt.RMSProp"],
    ],
    ids=repr,
)  # fmt: skip
def test_a_description_of_a_class_outside_the_registry_is_refused_and_imports_nothing(path):
    sys.modules.pop("this", None)
    description = {"type": path, "config": {}}
    for refused in (description, {"type": "nbopt.RMSProp", "config": {"schedule": description}}):
        with pytest.raises(DescriptionError, match=r"not a known Optimizer or Schedule.*nbopt\.RMSProp"):
            nbopt.NervanaObject.gen_class(refused)
    assert "this" not in sys.modules


def test_a_description_must_fit_the_class_and_its_constructor():
    with pytest.raises(DescriptionError, match=r"RMSProp.*Adam"):
        nbopt.Adam.gen_class(nbopt.RMSProp().get_description())
    with pytest.raises(DescriptionError, match="takes no speed"):
        nbopt.RMSProp.gen_class({"speed": 3})
    with pytest.raises(DescriptionError, match="takes no be"):
        nbopt.RMSProp.gen_class({"be": 3})
    with pytest.raises(DescriptionError, match="momentum_coef"):
        nbopt.GradientDescentMomentum.gen_class({"learning_rate": 0.1})
    with pytest.raises(NboptError, match="learning_rate"):
        nbopt.RMSProp.gen_class({"learning_rate": -1})


def test_redefining_a_class_replaces_its_entry():
    """As when a notebook's cell is run again."""

    def define(default):
        class Mine(nbopt.Optimizer):
            def __init__(self, learning_rate=default):
                super().__init__()
                self.learning_rate = learning_rate

        return Mine

    first, second = define(0.1), define(0.2)
    description = first().get_description()
    assert description["type"] == second().get_description()["type"]
    assert type(nbopt.NervanaObject.gen_class(description)) is second
    assert nbopt.NervanaObject.gen_class({**description, "config": {}}).learning_rate == 0.2


# --- copies ---

COPIES = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}
each_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@each_copy
@each_described
def test_a_copy_is_equal_and_another_object(make, copied):
    original = make()
    again = copied(original)
    assert again is not original
    assert again == original
    assert again.name == original.name


@each_copy
@pytest.mark.parametrize("name", MANY)
@pytest.mark.covering
@pytest.mark.thorough("gpu")
def test_a_copied_run_goes_on_as_the_original_does(backend, rng, name, copied):
    layers, optimizer = layers_of([(4, 3), (7,)], rng), MANY[name]()
    train(optimizer, layers)
    layers_again, optimizer_again = copied((layers, optimizer))
    before = values_of(layers)
    went_on = train(optimizer_again, layers_again, range(3, 6))
    assert all_same_bits(values_of(layers), before)  # the copy has memory of its own
    assert not all_same_bits(went_on, before)
    assert all_same_bits(train(optimizer, layers, range(3, 6)), went_on)
    assert optimizer_again.t == optimizer.t == 6


@each_copy
@pytest.mark.rest(where=["gpu"])
def test_a_copied_multi_optimizer_shares_what_was_shared(backend, rng, copied):
    original = multi_optimizer()
    layers = [nbopt.Parameters((rng.random(3), rng.random(3)), name=name) for name in "abc"]
    train(original, layers)
    again = copied(original)
    assert again.optimizer_mapping["a"] is again.optimizer_mapping["b"]
    assert again.optimizer_mapping["a"] is not original.optimizer_mapping["a"]
    assert again.optimizer_mapping["a"].t == 3


@each_copy
def test_copied_parameters_still_share_memory_with_the_arrays_they_were_made_of(backend, rng, copied):
    W, dW = rng.random((3, 4), np.float32), rng.random((3, 4), np.float32)
    layer = nbopt.Parameters((W, dW), name="linear")
    nbopt.Adam().optimize([layer], 0)
    before = W.copy()
    W_again, dW_again, again = copied((W, dW, layer))
    assert (again.name, len(again)) == ("linear", 1)
    assert again.params[0] is W_again
    assert again.grads[0] is dW_again
    assert [state.name for state in again.states[0]] == [state.name for state in layer.states[0]]
    assert all_same_bits(values_of([again]), values_of([layer]))
    nbopt.Adam().optimize([again], 0)
    assert not np.array_equal(W_again, before)
    assert np.array_equal(W, before)


@each_copy
def test_parameters_made_of_tensors_can_be_copied_and_train(backend, rng, copied):
    layer = nbopt.Parameters((backend.array(rng.random(5)), backend.array(rng.random(5))))
    nbopt.RMSProp().optimize([layer], 0)
    again = copied(layer)
    before = layer.params[0].get()
    assert same_bits(again.params[0].get(), before)
    nbopt.RMSProp().optimize([again], 0)
    assert same_bits(layer.params[0].get(), before)
    assert not same_bits(again.params[0].get(), before)


@each_copy
@pytest.mark.parametrize(
    "make",
    [
        lambda be: be.array(np.arange(6.0).reshape(2, 3), name="Adam.mean"),
        lambda be: be.array([1.5, -0.0, np.nan, np.inf], dtype=np.float64),
        lambda be: be.array(3.0),
        lambda be: be.zeros((0, 3)),
        lambda be: be.wrap(np.arange(12, dtype=np.float32).reshape(3, 4).T),
        lambda be: be.array(np.arange(12.0).reshape(3, 4))[:, ::2],
    ],
    ids=["named", "float64", "0d", "empty", "transposed", "view"],
)
@pytest.mark.rest(where=["gpu"])
def test_a_copied_tensor_has_the_same_values_and_its_own_memory(backend, make, copied):
    tensor = make(backend)
    tensor.rounding = True
    again = copied(tensor)
    assert same_bits(again.get(), tensor.get())
    assert (again.name, again.rounding, again.be) == (tensor.name, True, backend)
    before = tensor.get()
    again[:] = again + 1.0
    assert same_bits(tensor.get(), before)
    assert same_bits(again.get(), before + before.dtype.type(1))


def test_backends_and_plans_are_left_out_of_a_pickle(backend, rng):
    layers, optimizer = (
        layers_of([(4, 3)], rng),
        nbopt.MultiOptimizer({"default": nbopt.RMSProp(gradient_clip_norm=1.0)}),
    )
    small = len(pickle.dumps((layers, optimizer)))
    train(optimizer, layers)
    text = pickle.dumps((layers, optimizer))
    assert b"nbopt_backends" not in text
    assert b"plan" not in text.lower()
    assert len(text) < small + 1000  # a state of 48 bytes, and what names it


def test_a_pickle_is_loaded_to_the_backend_that_is_current_there(rng):
    with nbopt.use_backend("cpu"):
        layers, optimizer = layers_of([(4, 3)], rng), nbopt.Adam()
        train(optimizer, layers)
        text = pickle.dumps((layers, optimizer))
        expected = train(optimizer, layers, range(3, 6))
    with nbopt.use_backend("reference") as reference:
        layers, optimizer = pickle.loads(text)
        assert all(state.be is reference for state in layers[0].states[0])
        assert all_same_bits(train(optimizer, layers, range(3, 6)), expected)


# --- MultiOptimizer ---


class Conv(nbopt.Parameters):
    """A layer class of the user's."""


class Plain:
    """A layer that is no NervanaObject: it has a class, and perhaps a name."""

    def __init__(self, rng, name=None):
        self.param, self.grad, self.states = rng.random(5, np.float32), rng.random(5, np.float32), []
        if name is not None:
            self.name = name

    def get_params(self):
        return (self.param, self.grad), self.states


def pair(rng):
    return rng.random(5, np.float32), rng.random(5, np.float32)


def test_the_layers_name_wins_over_its_class_and_that_over_the_default(backend, rng):
    mapping = {
        key: nbopt.GradientDescentMomentum(1.0, 0) for key in ("default", "Conv", "Plain", "first", "second")
    }
    layers = {
        "first": [Conv(pair(rng), name="first")],
        "second": [Plain(rng, "second")],
        "Conv": [Conv(pair(rng)), Conv(pair(rng), name="third")],
        "Plain": [Plain(rng), Plain(rng, "fourth")],
        "default": [nbopt.Parameters(pair(rng)), nbopt.Parameters(pair(rng), name="fifth")],
    }
    multi = nbopt.MultiOptimizer(mapping)
    flat = [layer for group in layers.values() for layer in group]
    assert all(multi.optimizer_of(layer) is mapping[key] for key, group in layers.items() for layer in group)
    # By what they do as well: each optimizer has a learning rate of its own.
    for rate, optimizer in enumerate(mapping.values(), 1):
        optimizer.learning_rate = rate / 8
    before = [
        np.copy(layer.get_params()[0][0][0].get() if isinstance(layer, nbopt.Parameters) else layer.param)
        for layer in flat
    ]
    multi.optimize(flat, 0)
    for layer, old in zip(flat, before):
        param, grad = (
            (layer.params[0], layer.grads[0])
            if isinstance(layer, nbopt.Parameters)
            else (layer.param, layer.grad)
        )
        np.testing.assert_allclose(old - param, multi.optimizer_of(layer).learning_rate * grad, atol=1e-6)


@pytest.mark.filterwarnings("ignore:no layer has the name or class")
def test_layers_of_one_optimizer_are_updated_in_one_call_and_one_without_layers_in_none(backend, rng):
    shared, idle, rest = nbopt.Adam(), nbopt.Adam(), nbopt.Adam()
    multi = nbopt.MultiOptimizer({"a": shared, "Conv": shared, "default": rest, "nobody": idle})
    layers = [
        Conv(pair(rng)),
        nbopt.Parameters(pair(rng)),
        nbopt.Parameters(pair(rng), name="a"),
        Conv(pair(rng)),
    ]
    train(multi, layers, range(2))
    assert (shared.t, rest.t, idle.t) == (2, 2, 0)


def test_equal_optimizers_that_are_different_objects_are_separate_calls(backend, rng):
    one, other = nbopt.Adam(), nbopt.Adam()
    assert one == other
    multi = nbopt.MultiOptimizer({"a": one, "default": other})
    multi.optimize([nbopt.Parameters(pair(rng), name="a")], 0)
    multi.optimize([nbopt.Parameters(pair(rng), name="a"), nbopt.Parameters(pair(rng))], 0)
    assert (one.t, other.t) == (2, 1)


@pytest.mark.rest(where=["gpu"])
def test_the_norm_clip_is_over_the_layers_of_one_call_in_list_order(backend, rng):
    def clipped():
        return nbopt.RMSProp(gradient_clip_norm=0.01)

    layers = [nbopt.Parameters(pair(rng), name=name) for name in "abcab"]
    expected = copy.deepcopy(layers)
    nbopt.MultiOptimizer({"default": clipped(), "a": clipped()}).optimize(layers, 0)
    clipped().optimize([expected[0], expected[3]], 0)
    clipped().optimize([expected[1], expected[2], expected[4]], 0)
    assert all_same_bits(values_of(layers), values_of(expected))


def test_a_replaced_mapping_and_new_layers_take_effect_at_once(backend, rng):
    """neon kept the map of layers by their id(), which a new layer can have again."""
    first, second = nbopt.Adam(), nbopt.Adam()
    multi = nbopt.MultiOptimizer({"default": first})
    for number in range(20):
        multi.optimize([nbopt.Parameters(pair(rng), name=f"layer{number % 2}")], 0)
    assert first.t == 20
    multi.optimizer_mapping["layer1"] = second
    for number in range(20):
        multi.optimize([nbopt.Parameters(pair(rng), name=f"layer{number % 2}")], 0)
    assert (first.t, second.t) == (30, 10)


def test_one_optimizer_in_nested_mappings_updates_all_its_layers_in_one_call(backend, rng):
    shared = nbopt.Adam()
    inner = nbopt.MultiOptimizer({"default": shared})
    multi = nbopt.MultiOptimizer({"default": shared, "inner": inner})
    layers = [nbopt.Parameters(pair(rng), name=name) for name in ("inner", "outer")]
    expected = copy.deepcopy(layers)
    assert all_same_bits(train(multi, layers), train(nbopt.Adam(), expected))
    assert shared.t == 3


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_an_optimizer_with_a_loop_of_its_own_can_be_one_of_several(backend, rng):
    layers = [nbopt.Parameters(pair(rng), name=name) for name in "ab"]
    expected = copy.deepcopy(layers)
    train(nbopt.MultiOptimizer({"default": nbopt.Adam(), "a": NeonRMSProp()}), layers)
    train(nbopt.RMSProp(), expected[:1])
    train(nbopt.Adam(), expected[1:])
    assert all_same_bits(values_of(layers), values_of(expected))


def test_a_mapping_without_a_default_or_with_something_else_in_it_is_refused(backend, rng):
    for mapping in (
        {"a": nbopt.Adam()},
        {},
        [nbopt.Adam()],
        {"default": "Adam"},
        {"default": None},
        {"default": nbopt.Adam(), "a": 1},
    ):
        with pytest.raises(ArgumentError):
            nbopt.MultiOptimizer(mapping)
    layer = nbopt.Parameters(pair(rng))
    with pytest.raises(LayerError, match="twice"):
        nbopt.MultiOptimizer({"default": nbopt.Adam()}).optimize([layer, layer], 0)


# --- the choice of a backend ---


def test_gen_backend_and_set_backend_set_the_backend_of_all_objects():
    assert nbopt.gen_backend is nbopt.backends.gen_backend
    for choose in (
        lambda: nbopt.gen_backend("reference"),
        lambda: nbopt.set_backend("cpu"),
        nbopt.gen_backend,
    ):
        be = choose()
        assert nbopt.NervanaObject.be is be
        assert nbopt.get_backend() is be
        assert nbopt.RMSProp().be is be
        assert nbopt.Parameters().be is be
    assert be.name == "cpu"
    made = nbopt.set_backend("reference")
    nbopt.set_backend("cpu")
    assert nbopt.set_backend(made) is made is nbopt.get_backend()


def test_options_reach_the_backend():
    be = nbopt.gen_backend(
        "cpu",
        rng_seed=5,
        datatype=np.float64,
        batch_size=32,
        stochastic_round=True,
        num_threads=1,
        fast_math=True,
    )
    assert (be.rng_seed, be.datatype, be.bsz, be.stochastic_round, be.num_threads, be.fast_math) == (
        5,
        np.float64,
        32,
        True,
        1,
        True,
    )
    assert (be.zeros(2).dtype, be.zeros(2).rounding) == (np.float64, True)
    defaults = nbopt.set_backend("cpu")
    assert (defaults.datatype, defaults.bsz, defaults.stochastic_round, defaults.fast_math) == (
        np.float32,
        1,
        False,
        False,
    )
    with pytest.raises(ArgumentError, match="batch_size"):
        nbopt.set_backend(be, batch_size=2)
    assert nbopt.get_backend() is defaults


def test_where_none_is_set_the_cpu_backend_is_installed(monkeypatch, rng):
    monkeypatch.delenv("NBOPT_BACKEND", raising=False)
    nbopt.RMSProp().optimize(layers_of([(3,)], rng), 0)
    assert nbopt.NervanaObject.be.name == "cpu"
    assert nbopt.get_backend() is nbopt.NervanaObject.be


@pytest.mark.parametrize(("value", "name"), [("reference", "reference"), ("mkl", "cpu"), ("", "cpu")])
def test_nbopt_backend_names_the_one_that_is_installed(monkeypatch, rng, value, name):
    monkeypatch.setenv("NBOPT_BACKEND", value)
    nbopt.RMSProp().optimize(layers_of([(3,)], rng), 0)
    assert nbopt.NervanaObject.be.name == name


def test_nbopt_backend_is_looked_at_only_where_none_is_set(monkeypatch):
    monkeypatch.setenv("NBOPT_BACKEND", "nonsense")
    with pytest.raises(UnknownBackendError, match=r"nonsense.*reference"):
        nbopt.get_backend()
    be = nbopt.set_backend("reference")
    assert nbopt.get_backend() is be


def test_use_backend_restores_the_one_before_whatever_happens():
    outer = nbopt.set_backend("reference")
    with nbopt.use_backend("cpu", batch_size=3) as inner:
        assert nbopt.get_backend() is inner
        assert inner.bsz == 3
        with nbopt.use_backend(outer) as again:
            assert nbopt.get_backend() is again is outer
        assert nbopt.get_backend() is inner
    assert nbopt.get_backend() is outer
    with pytest.raises(KeyError), nbopt.use_backend("cpu"):
        raise KeyError
    assert nbopt.get_backend() is outer
    with pytest.raises(UnknownBackendError), nbopt.use_backend("nonsense"):
        pass
    assert nbopt.get_backend() is outer


def test_the_backend_is_process_wide():
    be = nbopt.set_backend("reference")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(nbopt.get_backend()))
    thread.start()
    thread.join()
    assert seen == [be]


def test_available_backends_can_be_used():
    names = nbopt.available_backends()
    assert {"cpu", "reference"} <= set(names)
    assert [nbopt.set_backend(name).name for name in names] == names


def test_neons_names_are_aliases():
    assert type(nbopt.gen_backend("mkl")) is type(nbopt.gen_backend("cpu"))
    if "cuda" in nbopt.available_backends():
        assert type(nbopt.gen_backend("gpu")) is type(nbopt.gen_backend("cuda"))
    else:
        messages = []
        for name in ("gpu", "cuda"):
            with pytest.raises(BackendError, match=r"can't be used here") as caught:
                nbopt.gen_backend(name)
            messages.append(str(caught.value).replace(repr(name), ""))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("name", ["nonsense", "CPU", "", 5, None, np.float32])
def test_an_unknown_name_is_refused_with_those_that_are_known(name):
    be = nbopt.set_backend("reference")
    for choose in (nbopt.gen_backend, nbopt.set_backend):
        with pytest.raises(UnknownBackendError) as caught:
            choose(name)
        assert all(known in str(caught.value) for known in ("cpu", "mkl", "cuda", "gpu", "reference"))
    assert nbopt.get_backend() is be


@pytest.mark.parametrize("argument", ["max_devices", "compat_mode", "deterministic_update", "deterministic"])
def test_neons_other_arguments_are_accepted_with_a_warning(argument):
    with pytest.warns(UserWarning, match=f"{argument} .*does nothing") as caught:
        be = nbopt.gen_backend("reference", **{argument: 1})
    assert caught[0].filename == __file__
    assert nbopt.get_backend() is be


def test_a_backend_of_another_package_comes_through_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "toybox.py").write_text(
        "from nbopt_backends import Reference\nclass Toy(Reference):\n    name = 'toy'\nclass NoBackend:\n"
        "    pass\n"
    )
    info = tmp_path / "toybox-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toybox\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[nbopt.backends]\ntoy = toybox:Toy\nbroken = toybox:Missing\nodd = toybox:NoBackend\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "toy" in nbopt.available_backends()
    assert not {"broken", "odd"} & set(nbopt.available_backends())
    assert nbopt.set_backend("toy").name == "toy"
    for name in ("broken", "odd"):
        with pytest.raises(BackendError, match=name):
            nbopt.set_backend(name)
    with pytest.raises(UnknownBackendError, match="toy"):
        nbopt.set_backend("nonsense")


# --- the state of the random numbers ---


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_the_state_counts_steps_and_assignments_and_nothing_else(backend, rng):
    layers, optimizer = layers_of([(3,), (4,)], rng), nbopt.RMSProp()
    assert backend.rng_get_state() == {"seed": 0, "updates": 0}
    train(optimizer, layers, range(2))
    assert backend.rng_get_state()["updates"] == 2
    t = backend.zeros(3)
    t[:] = t + backend.sum(t * 2) / backend.max(t + 1)
    assert backend.rng_get_state()["updates"] == 3
    nbopt.compile(optimizer, layers)
    optimizer.optimize([], 0)
    t.get()
    with pytest.raises(NboptError):
        t[:] = backend.zeros(4) * 2
    assert backend.rng_get_state()["updates"] == 3


def test_a_multi_optimizers_step_is_one_update(backend, rng):
    a, b = layers_of([(3,), (4,)], rng)
    nbopt.MultiOptimizer({"default": nbopt.Adam(), a.name: nbopt.RMSProp()}).optimize([a, b], 0)
    assert backend.rng_get_state()["updates"] == 1


def test_the_state_can_be_set_and_reset(backend):
    other = {"seed": 2**64 - 1, "updates": 12}
    backend.rng_set_state(other)
    assert backend.rng_get_state() == other
    t = backend.zeros(3)
    t[:] = t + 1
    assert backend.rng_get_state() == {"seed": 2**64 - 1, "updates": 13}
    assert other["updates"] == 12
    backend.rng_reset()
    assert backend.rng_get_state() == {"seed": 0, "updates": 0}  # as after construction
    json.dumps(backend.rng_get_state())


@pytest.mark.parametrize(
    "state",
    [
        None, 5, {}, {"seed": 1}, {"seed": -1, "updates": 0}, {"seed": 2**64, "updates": 0},
        {"seed": 1, "updates": -1}, {"seed": "1", "updates": 0}, {"seed": 1.5, "updates": 0},
        {"seed": 1, "updates": 0.5},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_state_is_refused(backend, state):
    with pytest.raises(ArgumentError, match="rng_get_state"):
        backend.rng_set_state(state)
    assert backend.rng_get_state() == {"seed": 0, "updates": 0}


def test_without_a_seed_one_is_drawn_and_can_be_read_back():
    seeds = {nbopt.gen_backend("reference").rng_get_state()["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert nbopt.gen_backend("reference", rng_seed=2**64 - 1).rng_get_state()["seed"] == 2**64 - 1


# --- neon's own way: a loop over the parameters, with assignments ---


class NeonMomentum(nbopt.GradientDescentMomentum):
    def optimize(self, layer_list, epoch):
        lrate = self.schedule.get_learning_rate(self.learning_rate, epoch)
        param_list = nbopt.get_param_list(layer_list)
        scale_factor = self.clip_gradient_norm(param_list, self.gradient_clip_norm)
        for (param, grad), states in param_list:
            param.rounding = self.stochastic_round
            if len(states) == 0 and self.momentum_coef != 0:
                states.append(self.be.zeros_like(grad))
            grad = grad / self.be.bsz
            grad = self.clip_value(grad, self.gradient_clip_value)
            if self.momentum_coef == 0:
                change = -lrate * scale_factor * grad
                param[:] = self.clip_value(change + (1 - lrate * self.wdecay) * param, self.param_clip_value)
                continue
            grad = scale_factor * grad + self.wdecay * param
            velocity = states[0]
            velocity[:] = self.momentum_coef * velocity - lrate * grad
            if self.nesterov:
                param[:] = self.clip_value(
                    param + (self.momentum_coef * velocity - lrate * grad), self.param_clip_value
                )
            else:
                param[:] = self.clip_value(param + velocity, self.param_clip_value)


class NeonRMSProp(nbopt.RMSProp):
    def optimize(self, layer_list, epoch):
        lrate = self.schedule.get_learning_rate(self.learning_rate, epoch)
        epsilon, decay = self.epsilon, self.decay_rate
        param_list = nbopt.get_param_list(layer_list)
        scale_factor = self.clip_gradient_norm(param_list, self.gradient_clip_norm)
        for (param, grad), states in param_list:
            param.rounding = self.stochastic_round
            if len(states) == 0:
                states.append(self.be.zeros_like(grad))
            grad = grad / self.be.bsz
            grad = self.clip_value(grad, self.gradient_clip_value)
            state = states[0]
            state[:] = decay * state + self.be.square(grad) * (1.0 - decay)
            param[:] = self.clip_value(
                param - (scale_factor * grad * lrate) / (self.be.sqrt(state + epsilon) + epsilon),
                self.param_clip_value,
            )


class NeonAdagrad(nbopt.Adagrad):
    def optimize(self, layer_list, epoch):
        lrate, epsilon = self.learning_rate, self.epsilon
        param_list = nbopt.get_param_list(layer_list)
        scale_factor = self.clip_gradient_norm(param_list, self.gradient_clip_norm)
        for (param, grad), states in param_list:
            param.rounding = self.stochastic_round
            if len(states) == 0:
                states.append(self.be.zeros_like(grad))
            grad = grad / self.be.bsz
            grad = self.clip_value(grad, self.gradient_clip_value)
            state = states[0]
            state[:] = state + self.be.square(grad)
            param[:] = self.clip_value(
                param - (scale_factor * grad * lrate) / self.be.sqrt(state + epsilon), self.param_clip_value
            )


class NeonAdadelta(nbopt.Adadelta):
    def optimize(self, layer_list, epoch):
        epsilon, decay = self.epsilon, self.decay
        for (param, grad), states in nbopt.get_param_list(layer_list):
            param.rounding = self.stochastic_round
            if len(states) == 0:
                states.extend(self.be.zeros_like(grad) for _ in range(3))
            grad = grad / self.be.bsz
            mean_grad, mean_update, update = states
            mean_grad[:] = mean_grad * decay + (1.0 - decay) * (grad * grad)
            update[:] = self.be.sqrt((mean_update + epsilon) / (mean_grad + epsilon)) * grad
            mean_update[:] = mean_update * decay + (1.0 - decay) * (update * update)
            param[:] = self.clip_value(param - update, self.param_clip_value)


class NeonAdam(nbopt.Adam):
    def optimize(self, layer_list, epoch):
        self.t = self.t + 1
        rate = self.learning_rate * self.be.sqrt(1 - self.beta_2**self.t) / (1 - self.beta_1**self.t)
        param_list = nbopt.get_param_list(layer_list)
        scale_factor = self.clip_gradient_norm(param_list, self.gradient_clip_norm)
        for (param, grad), states in param_list:
            param.rounding = self.stochastic_round
            if len(states) == 0:
                states.append(self.be.zeros_like(grad))
                states.append(self.be.zeros_like(grad))
            grad = grad / self.be.bsz
            grad = self.clip_value(grad, self.gradient_clip_value)
            m, v = states
            m[:] = m * self.beta_1 + (1.0 - self.beta_1) * grad
            v[:] = v * self.beta_2 + (1.0 - self.beta_2) * self.be.square(grad)
            param[:] = self.clip_value(
                param - (scale_factor * rate * m) / (self.be.sqrt(v) + self.epsilon), self.param_clip_value
            )


class NeonShiftAdaMax(nbopt.ShiftAdaMax):
    def optimize(self, layer_list, epoch):
        lrate = self.schedule.get_learning_rate(self.learning_rate, epoch) / (1 - self.beta_1 ** (epoch + 1))
        for (param, grad), states in nbopt.get_param_list(layer_list):
            param.rounding = self.stochastic_round
            if len(states) == 0:
                for _ in range(3):
                    states.append(self.be.zeros_like(grad))
            grad = grad / self.be.bsz
            m, v, inv_v = states
            m[:] = m * self.beta_1 + (1.0 - self.beta_1) * grad
            v[:] = self.be.maximum(v * self.beta_2, self.be.absolute(grad))
            inv_v[:] = 1.0 / (v + self.epsilon)
            param[:] = self.be.clip(param - self.be.shift(self.be.shift(m, inv_v), lrate), -1.0, 1.0)


MOMENTUM = {"learning_rate": 0.1, "momentum_coef": 0.9, "wdecay": 0.01}
VALUE_CLIPS = {"param_clip_value": 0.9, "gradient_clip_value": 0.002}
ALL_CLIPS = {**VALUE_CLIPS, "gradient_clip_norm": 0.02}
SCHEDULE = {"schedule": nbopt.ExpSchedule(0.5)}

# Our class, neon's loop, arguments. Where the norm's factor meets a number first (-lr * s, s * l), our
# kernels multiply them in the arithmetic's type, without reading the factor back, and neon's loop multiplies
# on the host: these two are compared with the norm clip off. Without momentum neon multiplies by 1 - lr *
# wdecay, which loses small decays, and we subtract the decay: compared with none.
NEON = {
    "momentum": (nbopt.GradientDescentMomentum, NeonMomentum, {**MOMENTUM, **ALL_CLIPS, **SCHEDULE}),
    "nesterov": (
        nbopt.GradientDescentMomentum,
        NeonMomentum,
        {**MOMENTUM, "nesterov": True, **ALL_CLIPS, **SCHEDULE},
    ),
    "plain": (
        nbopt.GradientDescentMomentum,
        NeonMomentum,
        {**MOMENTUM, "momentum_coef": 0, "wdecay": 0.0, **VALUE_CLIPS, **SCHEDULE},
    ),
    "rmsprop": (nbopt.RMSProp, NeonRMSProp, {**ALL_CLIPS, **SCHEDULE}),
    "adagrad": (nbopt.Adagrad, NeonAdagrad, ALL_CLIPS),
    "adadelta": (nbopt.Adadelta, NeonAdadelta, {"param_clip_value": 0.9}),
    "adam": (nbopt.Adam, NeonAdam, VALUE_CLIPS),
    "shift_adamax": (nbopt.ShiftAdaMax, NeonShiftAdaMax, SCHEDULE),
}
each_neon = pytest.mark.parametrize(
    "name", thorough_but(NEON, "nesterov", "rmsprop", "shift_adamax", where=["compiled"])
)


def neon_layers(rng, dtype=np.float32):
    """Return layers whose gradients are large enough for every clip."""
    layers = layers_of([(20, 10), (7,)], rng, dtype)
    for layer in layers:
        layer.grads = [rng.standard_normal(p.shape).astype(dtype) * dtype(0.1) for p in layer.params]
    return layers


@each_neon
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-rmsprop")
def test_neons_loops_give_the_same_bits_as_our_classes(backend, rng, name):
    ours, neons, options = NEON[name]
    backend.bsz = 16
    layers = neon_layers(rng)
    expected = copy.deepcopy(layers)
    start = values_of(layers)
    assert all_same_bits(train(neons(**options), layers), train(ours(**options), expected))
    assert not any(map(same_bits, values_of(layers), start))


@pytest.mark.parametrize("name", ["rmsprop", "shift_adamax"])
@pytest.mark.thorough("compiled")
def test_neons_loops_give_the_same_bits_in_float64(backend, rng, name):
    ours, neons, options = NEON[name]
    layers = neon_layers(rng, np.float64)
    expected = copy.deepcopy(layers)
    assert all_same_bits(train(neons(**options), layers), train(ours(**options), expected))
    assert {state.dtype for layer in layers for state in layer.states[0]} == {np.dtype(np.float64)}


@pytest.mark.parametrize("name", ["plain", "adam"])
@pytest.mark.thorough("compiled")
def test_neons_loops_with_the_factor_multiplied_on_the_host_differ_by_roundings_only(backend, rng, name):
    ours, neons, options = NEON[name]
    layers = neon_layers(rng)
    expected = copy.deepcopy(layers)
    options = {**options, "gradient_clip_norm": 0.02}
    for value, other in zip(train(neons(**options), layers), train(ours(**options), expected)):
        np.testing.assert_allclose(value, other, rtol=1e-6, atol=1e-9)  # a few roundings of 6e-8


@each_neon
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-nesterov")
def test_our_classes_go_on_from_the_unnamed_states_of_neons_loops(backend, rng, name):
    ours, neons, options = NEON[name]
    layers = neon_layers(rng)
    expected = copy.deepcopy(layers)
    train(neons(**options), layers)
    ahead, optimizer = ours(**options), ours(**options)
    train(ahead, expected)
    optimizer.t = ahead.t
    assert all_same_bits(train(optimizer, layers, range(3, 5)), train(ahead, expected, range(3, 5)))


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_a_loop_of_assignments_can_be_described_and_copied_too(backend, rng):
    optimizer, layers = NeonAdam(learning_rate=0.5), neon_layers(rng)
    assert nbopt.NervanaObject.gen_class(optimizer.get_description()) == optimizer
    train(optimizer, layers)
    layers_again, optimizer_again = copy.deepcopy((layers, optimizer))
    assert all_same_bits(train(optimizer_again, layers_again), train(optimizer, layers))
