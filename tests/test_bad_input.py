"""Bad input: each mistake has an error of its own, which says what to do.

Nothing has changed when it comes.
"""

import itertools
import math
import os
import pathlib
import sys
from contextlib import contextmanager, suppress
from fractions import Fraction

import numpy as np
import pytest
from helpers import OPTIMIZERS, same_bits

import nbopt
from nbopt import errors

HUGE = 10**400  # an int that no float can hold


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def pair(param, grad, *states):
    """A layer of one parameter, with states left by an earlier step."""
    layer = nbopt.Parameters((param, grad))
    layer.states[0].extend(states)
    return layer


def named(be, values, name):
    tensor = be.wrap(values)
    tensor.name = name
    return tensor


def everything(be, optimizers, layers):
    """All that a step may change."""
    states = [state for layer in layers for states in layer.states for state in states]
    arrays = [param for layer in layers for param in layer.params] + [
        s.get() if isinstance(s, nbopt.Tensor) else s for s in states
    ]
    return (
        [np.array(a).tobytes() for a in arrays],
        [len(s) for layer in layers for s in layer.states],
        [o.t for o in optimizers],
        be.rng_get_state(),
    )


@contextmanager
def refused(error, words, be, optimizers=(), layers=()):
    """The block raises `error`, its message holds all of `words`, and nothing has changed afterwards."""
    before = everything(be, optimizers, layers)
    with pytest.raises(error) as caught:
        yield
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in the message: {caught.value}"
    assert everything(be, optimizers, layers) == before


def trained(be):
    """An optimizer and a layer with a step behind them.

    So there are states, counts and a plan that could change.
    """
    optimizer, layer = nbopt.RMSProp(), pair(ones(4), ones(4))
    optimizer.optimize([layer], 0)
    assert be.rng_get_state()["updates"] == 1
    return optimizer, layer


# --- layers that a step refuses ---


def strided(size, shape, strides):
    return np.lib.stride_tricks.as_strided(np.ones(size, np.float32), shape, strides)


def read_only(array):
    array.flags.writeable = False
    return array


def unaligned(size):
    return np.frombuffer(bytearray(4 * size + 1), np.uint8)[1:].view(np.float32)


def halves(array, *parts):
    """One layer for each part of the array, with gradients of their own."""
    return [pair(array[part], np.ones_like(array[part])) for part in parts]


def wrong_dtype(dtype):
    array = np.zeros(4, dtype)
    # A message says what was given, what is allowed, and what to type.
    words = [array.dtype.name, "float32", "float64", "astype"]
    return {
        f"a parameter of {dtype}": (lambda be: [pair(np.zeros(4, dtype), ones(4))], errors.DtypeError, words),
        f"a gradient of {dtype}": (lambda be: [pair(ones(4), np.zeros(4, dtype))], errors.DtypeError, words),
        f"a state of {dtype}": (
            lambda be: [pair(ones(4), ones(4), np.zeros(4, dtype))],
            errors.DtypeError,
            words,
        ),
    }


def same_list_of_states(be):
    layer = nbopt.Parameters((ones(4), ones(4)), (ones(4), ones(4)))
    layer.states = [[]] * 2
    return [layer]


def state_of_two(be, first=slice(None), second=slice(None)):
    memory = be.zeros(6)
    return [
        pair(p := ones(6)[first], np.ones_like(p), memory[first]),
        pair(q := ones(6)[second], np.ones_like(q), memory[second]),
    ]


def tied(be):
    w = ones(4)
    return [pair(w, ones(4)), pair(w, ones(4))]


def gradient_is_a_parameter(be):
    w = ones(4)
    return [pair(w, ones(4)), pair(ones(4), w)]


def gradient_overlaps_a_parameter(be):
    memory = ones(6)
    return [pair(memory[:4], ones(4)), pair(ones(4), memory[2:])]


def gradient_is_its_own_parameter(be):
    w = ones(4)
    return [pair(w, w)]


def two_dtypes_of_one_memory(be):
    memory = ones(8)
    return [pair(memory, ones(8)), pair(memory.view(np.float64), ones(4, dtype=np.float64))]


SHARED = ["share memory"]
ITSELF = ["share memory", "numpy.array(x)"]
READ_ONLY = ["read-only", "numpy.array(x)"]
REFUSED = {
    # name: (the layers, the error, words of its message)
    "a gradient of another size": (lambda be: [pair(ones(4), ones(5))], errors.ShapeError, ["(4,)", "(5,)"]),
    "a gradient that would broadcast": (
        lambda be: [pair(ones(3, 4), ones(4))],
        errors.ShapeError,
        ["(3, 4)", "(4,)"],
    ),
    "a gradient with the axes swapped": (
        lambda be: [pair(ones(3, 4), ones(4, 3))],
        errors.ShapeError,
        ["(3, 4)", "(4, 3)"],
    ),
    "a gradient of one element for none": (
        lambda be: [pair(ones(), ones(1))],
        errors.ShapeError,
        ["()", "(1,)"],
    ),
    "empty arrays of different shapes": (
        lambda be: [pair(ones(0, 3), ones(3, 0))],
        errors.ShapeError,
        ["(0, 3)", "(3, 0)"],
    ),
    "a state of another size": (
        lambda be: [pair(ones(4), ones(4), be.zeros(5))],
        errors.ShapeError,
        ["mean_square", "(4,)", "(5,)"],
    ),
    "a state that would broadcast": (
        lambda be: [pair(ones(3, 4), ones(3, 4), be.zeros(4))],
        errors.ShapeError,
        ["mean_square", "(3, 4)", "(4,)"],
    ),
    **wrong_dtype("int32"),
    **wrong_dtype("bool"),
    **wrong_dtype("complex64"),
    **wrong_dtype("object"),
    **wrong_dtype("longdouble"),
    "a read-only parameter": (
        lambda be: [pair(read_only(ones(4)), ones(4))],
        errors.LayoutError,
        ["param", *READ_ONLY],
    ),
    "a read-only state": (
        lambda be: [pair(ones(4), ones(4), read_only(ones(4)))],
        errors.LayoutError,
        ["mean_square", *READ_ONLY],
    ),
    "a parameter in two layers": (tied, errors.LayoutError, ["param number 1", "param number 2", *SHARED]),
    "overlapping parameters": (lambda be: halves(ones(6), slice(4), slice(2, 6)), errors.LayoutError, SHARED),
    "overlapping parameters, one reversed": (
        lambda be: halves(ones(6), slice(3), slice(None, None, -1)),
        errors.LayoutError,
        SHARED,
    ),
    "interleaved parameters that meet": (
        lambda be: halves(ones(9), slice(None, None, 2), slice(None, None, 3)),
        errors.LayoutError,
        SHARED,
    ),
    "parameters of two dtypes in one memory": (two_dtypes_of_one_memory, errors.LayoutError, SHARED),
    "a state of two parameters": (state_of_two, errors.LayoutError, ["mean_square", *SHARED]),
    "overlapping states": (
        lambda be: state_of_two(be, slice(4), slice(2, 6)),
        errors.LayoutError,
        ["mean_square", *SHARED],
    ),
    "a list of states for two parameters": (
        same_list_of_states,
        (errors.LayerError, errors.StateError, errors.LayoutError),
        ["states"],
    ),
    "a gradient that is another parameter": (
        gradient_is_a_parameter,
        errors.LayoutError,
        ["grad number 2", "param number 1", *SHARED],
    ),
    "a gradient that overlaps another parameter": (
        gradient_overlaps_a_parameter,
        errors.LayoutError,
        ["grad number 2", "param number 1", *SHARED],
    ),
    "a gradient that is its own parameter": (
        gradient_is_its_own_parameter,
        errors.LayoutError,
        ["grad number 1", "param number 1", *SHARED],
    ),
    "a self-overlapping parameter": (
        lambda be: [pair(strided(5, (3, 3), (4, 4)), ones(3, 3))],
        errors.LayoutError,
        ["param number 1", *ITSELF],
    ),
    "an unaligned parameter": (
        lambda be: [pair(unaligned(4), ones(4))],
        errors.LayoutError,
        ["aligned", "numpy.array(x)"],
    ),
    "an unaligned gradient": (
        lambda be: [pair(ones(4), unaligned(4))],
        errors.LayoutError,
        ["aligned", "numpy.array(x)"],
    ),
    "a byte-swapped parameter": (
        lambda be: [pair(ones(4).astype(">f4"), ones(4))],
        errors.LayoutError,
        ["byte-swapped", "newbyteorder"],
    ),
    "a byte-swapped gradient": (
        lambda be: [pair(ones(4), ones(4).astype(">f4"))],
        errors.LayoutError,
        ["byte-swapped", "newbyteorder"],
    ),
    "a masked parameter": (
        lambda be: [pair(np.ma.array(ones(4), mask=[0, 1, 0, 0]), ones(4))],
        errors.LayoutError,
        ["masked", "filled"],
    ),
    "a masked gradient": (
        lambda be: [pair(ones(4), np.ma.array(ones(4), mask=[0, 1, 0, 0]))],
        errors.LayoutError,
        ["masked", "filled"],
    ),
    "a list for a parameter": (
        lambda be: [pair([1.0], [1.0])],
        errors.OperandError,
        ["list", "nbopt.get_backend().array(x)"],
    ),
    "a word for a gradient": (
        lambda be: [pair(ones(4), "none")],
        errors.OperandError,
        ["the gradient of parameter 0", "str"],
    ),
    "Adam's states": (
        lambda be: [
            pair(ones(4), ones(4), named(be, ones(4), "Adam.mean"), named(be, ones(4), "Adam.mean_square"))
        ],
        errors.StateError,
        ["Adam.mean", "RMSProp", "Empty"],
    ),
    "a state of Adagrad's": (
        lambda be: [pair(ones(4), ones(4), named(be, ones(4), "Adagrad.sum"))],
        errors.StateError,
        ["Adagrad", "RMSProp"],
    ),
    "too many states": (
        lambda be: [pair(ones(4), ones(4), be.zeros(4), be.zeros(4))],
        errors.StateError,
        ["RMSProp", "1", "2"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_over_such_layers_is_refused_whole(backend, name):
    make, error, words = REFUSED[name]
    optimizer, good = trained(backend)
    layers = [good, *make(backend)]
    with refused(error, words, backend, [optimizer], layers):
        optimizer.optimize(layers, 0)


@pytest.mark.parametrize(
    "grad, error, words",
    [
        (lambda w: ones(5), errors.ShapeError, ["(4,)", "(5,)"]),
        (lambda w: ones(2, 2), errors.ShapeError, ["(4,)", "(2, 2)"]),
        (lambda w: np.ones(4, np.int64), errors.DtypeError, ["int64", "float32"]),
        (lambda w: ones(4).astype(">f4"), errors.LayoutError, ["byte-swapped"]),
        (lambda w: w, errors.LayoutError, SHARED),
        (lambda w: w[::-1], errors.LayoutError, SHARED),
    ],
    ids=["size", "dimensions", "dtype", "byte order", "the parameter", "the parameter reversed"],
)
def test_a_bad_gradient_is_refused_at_later_steps_too(backend, grad, error, words):
    optimizer, layer = trained(backend)
    layer.set_grad(0, ones(4))
    # The step with a new gradient of the same structure, whose plan the next step finds.
    optimizer.optimize([layer], 0)
    layer.set_grad(0, grad(layer.params[0]))
    with refused(error, words, backend, [optimizer], [layer]):
        optimizer.optimize([layer], 0)


def test_a_state_of_the_layer_before_is_refused_at_later_steps_too(backend):
    optimizer, layer = trained(backend)
    other = pair(ones(4), ones(4))
    optimizer.optimize([layer, other], 0)
    other.states[0][:] = layer.states[0]
    with refused(errors.LayoutError, ["mean_square", *SHARED], backend, [optimizer], [layer, other]):
        optimizer.optimize([layer, other], 0)


@pytest.mark.parametrize("name", ["adam", "adadelta", "momentum", "plain", "shift_adamax"])
def test_states_left_by_another_optimizer_are_refused(backend, name):
    first, layer = trained(backend)
    optimizer = OPTIMIZERS[name]()
    with refused(
        errors.StateError,
        ["RMSProp.mean_square", optimizer.classnm, "Empty"],
        backend,
        [first, optimizer],
        [layer],
    ):
        optimizer.optimize([layer], 0)


@pytest.mark.parametrize(
    "make",
    [tied, gradient_is_a_parameter, gradient_overlaps_a_parameter, state_of_two],
    ids=lambda make: make.__name__,
)
def test_memory_shared_between_two_optimizers_of_one_step_is_refused(backend, make):
    layers = make(backend)
    layers[1].name = "other"
    one, other = nbopt.RMSProp(), nbopt.RMSProp()
    multi = nbopt.MultiOptimizer({"default": one, "other": other})
    with refused(errors.LayoutError, SHARED, backend, [multi, one, other], layers):
        multi.optimize(layers, 0)


@pytest.mark.rest(where=["gpu"])
def test_memory_that_only_looks_shared_is_fine(backend):
    memory, grad = ones(5, 6), ones(5, 3)
    parts = [memory[:, ::2], memory[:, 1::2]]  # interleaved, never the same element
    swapped = np.asfortranarray(ones(3, 5))
    layers = [*(pair(part, read_only(grad)) for part in parts), pair(swapped[::-1], grad.T)]
    alone = pair(ones(5, 3), grad.copy())
    nbopt.RMSProp().optimize(layers, 0)
    nbopt.RMSProp().optimize([alone], 0)
    expected = alone.params[0]
    assert not same_bits(expected, ones(5, 3))
    assert [same_bits(part, expected) for part in (*parts, swapped.T)] == [True] * 3


def test_subclasses_of_numpys_array_are_updated_in_place(backend, tmp_path):
    mapped = np.memmap(tmp_path / "parameter", np.float32, "w+", shape=(2, 2))
    mapped[...] = 1
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix(ones(2, 2))
    plain = ones(2, 2)
    nbopt.RMSProp().optimize([pair(array, ones(2, 2)) for array in (mapped, matrix, plain)], 0)
    assert plain[0, 0] != 1
    assert same_bits(np.asarray(mapped), plain) and same_bits(np.asarray(matrix), plain)


# --- layer lists ---


PAIR = (ones(4), ones(4))


class NoLayer:
    pass


class AttributeForMethod:
    get_params = [((1, 2), [])]


def optimizers_of_lists():
    return {"RMSProp": nbopt.RMSProp(), "MultiOptimizer": nbopt.MultiOptimizer({"default": nbopt.RMSProp()})}


each_kind = pytest.mark.parametrize("kind", optimizers_of_lists())


@each_kind
def test_a_layer_listed_twice_is_refused(backend, kind):
    optimizer, layer = optimizers_of_lists()[kind], pair(ones(4), ones(4))
    with refused(errors.LayerError, ["twice"], backend, [optimizer], [layer]):
        optimizer.optimize([layer, pair(ones(4), ones(4)), layer], 0)


@each_kind
@pytest.mark.parametrize(
    "make",
    [NoLayer, AttributeForMethod, lambda: ones(4), lambda: PAIR],
    ids=["object", "attribute", "array", "pair"],
)
def test_what_has_no_get_params_is_no_layer(backend, kind, make):
    optimizer, good = optimizers_of_lists()[kind], pair(ones(4), ones(4))
    with refused(errors.LayerError, ["get_params", "nbopt.Parameters"], backend, [optimizer], [good]):
        optimizer.optimize([good, make()], 0)


@each_kind
def test_a_layer_alone_is_no_list(backend, kind):
    optimizer, layer = optimizers_of_lists()[kind], pair(ones(4), ones(4))
    with refused(errors.LayerError, ["Parameters", "[layer]"], backend, [optimizer], [layer]):
        optimizer.optimize(layer, 0)


@each_kind
def test_a_generator_of_layers_is_never_passed_over_in_silence(backend, kind):
    optimizer, layer = optimizers_of_lists()[kind], pair(ones(4), ones(4))
    # To take it and to refuse it are both fine; to do nothing, or to fail on len(), is not.
    with suppress(errors.LayerError):
        optimizer.optimize((each for each in [layer]), 0)
        assert not same_bits(layer.params[0], ones(4))


@pytest.mark.parametrize("entry", [None, 3, PAIR, (PAIR, ()), (PAIR, None), (PAIR, [], 1), [None]], ids=str)
def test_what_get_params_returns_is_checked(backend, entry):
    class Layer(nbopt.Parameters):
        def get_params(self):
            return entry

    optimizer, good = trained(backend)
    with refused(errors.LayerError, ["states"], backend, [optimizer], [good]):
        optimizer.optimize([good, Layer()], 0)


def test_an_error_inside_get_params_is_passed_on(backend):
    class Broken(nbopt.Parameters):
        def get_params(self):
            return self.missing

    with refused(AttributeError, ["missing"], backend):
        nbopt.RMSProp().optimize([Broken()], 0)


@pytest.mark.parametrize(
    "pairs",
    [(ones(4), ones(4)), ((ones(4),),), ((ones(4), ones(4), ones(4)),)],
    ids=["two arrays", "one", "three"],
)
def test_parameters_takes_pairs(pairs):
    with pytest.raises(errors.LayerError, match=r"pairs: Parameters\(\(W, dW\)"):
        nbopt.Parameters(*pairs)


def test_there_is_one_gradient_for_each_parameter():
    layer = nbopt.Parameters((ones(4), ones(4)))
    with pytest.raises(errors.LayerError, match="1 gradients are needed, not 2"):
        layer.grads = [ones(4), ones(4)]
    assert len(layer.grads) == 1


@each_kind
def test_an_empty_list_changes_nothing_at_all(backend, kind):
    optimizer = optimizers_of_lists()[kind]
    before = everything(backend, [optimizer], [])
    optimizer.optimize([], 0)
    optimizer.optimize([nbopt.Parameters()], 0)
    assert everything(backend, [optimizer], []) == before


@pytest.mark.parametrize("name", ["plain", "rmsprop", "adadelta"])
@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_tensors_without_elements_do_nothing(backend, name):
    clip = {} if name == "adadelta" else {"gradient_clip_norm": 0.5}
    with_empty, without = (
        [pair(ones(3, 0), ones(3, 0)), pair(ones(4), ones(4)), pair(ones(0), ones(0))],
        [pair(ones(4), ones(4))],
    )
    for layers in (with_empty, without, with_empty[::2]):
        OPTIMIZERS[name](**clip).optimize(layers, 0)
    assert not same_bits(without[0].params[0], ones(4))
    assert same_bits(with_empty[1].params[0], without[0].params[0])
    assert [layer.params[0].shape for layer in with_empty[::2]] == [(3, 0), (0,)]


@pytest.mark.rest(where=["gpu"])
def test_the_norm_of_no_elements_clips_nothing(backend):
    assert nbopt.RMSProp().clip_gradient_norm(nbopt.get_param_list([pair(ones(0), ones(0))]), 0.5) == 1.0


# --- backends ---


def use(name, **options):
    with nbopt.use_backend(name, **options):
        pass


each_door = pytest.mark.parametrize(
    "door", [nbopt.gen_backend, nbopt.set_backend, use], ids=["gen_backend", "set_backend", "use_backend"]
)


@each_door
@pytest.mark.parametrize("name", ["nope", "CPU", "", None, 3, ["cpu"]], ids=repr)
def test_an_unknown_backend_is_refused_and_the_known_ones_listed(backend, door, name):
    with refused(errors.UnknownBackendError, [repr(name), "cpu", "cuda", "reference", "mkl", "gpu"], backend):
        door(name)
    assert nbopt.get_backend() is backend


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("NBOPT_BACKEND", "nope")
    with pytest.raises(errors.UnknownBackendError, match=r"'nope'.*cpu"):
        nbopt.get_backend()


@pytest.fixture
def numba_cuda():
    return pytest.importorskip("numba.cuda")


@each_door
@pytest.mark.parametrize("name", ["cuda", "gpu"])
def test_cuda_without_a_gpu_says_what_to_install(backend, monkeypatch, numba_cuda, door, name):
    if nbopt.backends.backend_problem("cuda") is None:
        pytest.skip("needs a machine without a usable GPU")
    monkeypatch.setattr(numba_cuda, "is_available", lambda: False)
    with refused(errors.BackendError, [name, "GPU", "pip install", "numba-cuda"], backend):
        door(name)
    assert nbopt.get_backend() is backend
    assert "cuda" not in nbopt.available_backends()


@each_door
def test_cuda_without_numba_cuda_says_what_to_install(backend, monkeypatch, door):
    numba = pytest.importorskip("numba")
    monkeypatch.delattr(numba, "cuda", raising=False)
    monkeypatch.setitem(sys.modules, "numba.cuda", None)  # makes an import fail
    with refused(errors.BackendError, ["not installed", "pip install", "numba-cuda"], backend):
        door("cuda")
    assert nbopt.get_backend() is backend


@pytest.mark.parametrize("size", [0, -1, 1.5, 8.0, "8", None, True, math.nan], ids=repr)
def test_a_batch_size_below_1_is_refused(backend, size):
    backend.bsz = 8
    with refused(errors.ArgumentError, ["batch size", "from 1 on", repr(size)], backend):
        backend.bsz = size
    assert backend.bsz == 8
    with refused(errors.ArgumentError, ["batch size", "from 1 on", repr(size)], backend):
        nbopt.gen_backend(backend.name, batch_size=size)
    assert nbopt.get_backend() is backend


@pytest.mark.parametrize(
    "option, value, error",
    [
        ("rng_seed", -1, errors.ArgumentError),
        ("rng_seed", 2**64, errors.ArgumentError),
        ("rng_seed", 0.5, errors.ArgumentError),
        ("num_threads", 0, errors.ArgumentError),
        ("num_threads", "2", errors.ArgumentError),
        ("stochastic_round", -1, errors.ArgumentError),
        ("stochastic_round", "yes", errors.ArgumentError),
        ("fast_math", "no", errors.ArgumentError),
        ("datatype", "int32", errors.DtypeError),
        ("datatype", "single precision", errors.DtypeError),
    ],
)
def test_options_of_a_backend_are_checked(backend, option, value, error):
    with refused(error, [str(value)], backend):
        nbopt.gen_backend(backend.name, **{option: value})
    assert nbopt.get_backend() is backend


# --- hyper-parameters ---

NOT_NEGATIVE = [math.nan, -1, -1e-9, math.inf, HUGE, "1", True, 1j]
BELOW_1 = [*NOT_NEGATIVE, 1, 1.5]
UP_TO_1 = [*NOT_NEGATIVE, 1.5]
FINITE = [math.nan, math.inf, -math.inf, HUGE, "1", True, 1j]
SENSELESS = {
    "momentum": {
        "learning_rate": NOT_NEGATIVE,
        "momentum_coef": [*NOT_NEGATIVE, None],
        "wdecay": NOT_NEGATIVE,
        "nesterov": [1, "yes", None],
    },
    "rmsprop": {
        "learning_rate": NOT_NEGATIVE,
        "decay_rate": [*UP_TO_1, None],
        "epsilon": NOT_NEGATIVE,
        "gradient_clip_norm": NOT_NEGATIVE,
    },
    "adagrad": {
        "learning_rate": NOT_NEGATIVE,
        "epsilon": NOT_NEGATIVE,
        "gradient_clip_value": FINITE,
        "param_clip_value": FINITE,
    },
    "adadelta": {"decay": UP_TO_1, "epsilon": NOT_NEGATIVE},
    "adam": {
        "learning_rate": NOT_NEGATIVE,
        "beta_1": [*BELOW_1, None],
        "beta_2": [*BELOW_1, None],
        "epsilon": NOT_NEGATIVE,
    },
    "shift_adamax": {
        "learning_rate": NOT_NEGATIVE,
        "beta_1": BELOW_1,
        "beta_2": UP_TO_1,
        "epsilon": NOT_NEGATIVE,
    },
    "rmsprop_centered": {"centered": [1, "yes", None], "momentum_coef": [*NOT_NEGATIVE, None]},
    "adamw": {
        "learning_rate": NOT_NEGATIVE,
        "beta_1": BELOW_1,
        "beta_2": BELOW_1,
        "epsilon": NOT_NEGATIVE,
        "wdecay": NOT_NEGATIVE,
    },
    "nadam": {"momentum_decay": NOT_NEGATIVE},
    "lion": {"beta_1": BELOW_1, "beta_2": BELOW_1, "wdecay": NOT_NEGATIVE},
    "yogi": {"initial_accumulator_value": NOT_NEGATIVE},
    "adabelief": {"epsilon_root": NOT_NEGATIVE},
    "rprop": {
        "eta_minus": BELOW_1,
        "eta_plus": [*NOT_NEGATIVE, 0.5],
        "step_min": [*NOT_NEGATIVE, 0],
        "step_max": [*NOT_NEGATIVE, 0],
    },
    "asgd": {"lambd": NOT_NEGATIVE, "alpha": UP_TO_1, "t0": NOT_NEGATIVE},
}


@pytest.mark.parametrize(
    "name, parameter", [(name, parameter) for name, table in SENSELESS.items() for parameter in table]
)
def test_hyper_parameters_that_make_no_sense_are_refused(name, parameter):
    optimizer = OPTIMIZERS[name]()
    before = getattr(optimizer, parameter)
    for value in SENSELESS[name][parameter]:
        with pytest.raises(errors.ArgumentError, match=f"^{parameter} must be "):
            setattr(optimizer, parameter, value)
        assert getattr(optimizer, parameter) == before
        with pytest.raises(errors.ArgumentError, match=f"^{parameter} must be "):
            OPTIMIZERS[name](**{parameter: value})


def test_the_message_has_the_value_and_what_is_allowed():
    with pytest.raises(
        errors.ArgumentError, match="learning_rate must be a finite number from 0 on, not nan"
    ):
        nbopt.RMSProp(learning_rate=math.nan)


@pytest.mark.parametrize("how", ["constructor", "momentum later", "nesterov later"])
def test_nesterov_without_momentum_is_refused(backend, how):
    layer = pair(ones(4), ones(4))
    optimizer = nbopt.GradientDescentMomentum(
        0.1, 0.0 if how == "nesterov later" else 0.9, nesterov=how == "momentum later"
    )
    with refused(errors.ArgumentError, ["nesterov", "momentum_coef"], backend, [optimizer], [layer]):
        if how == "constructor":
            nbopt.GradientDescentMomentum(0.1, 0.0, nesterov=True)
        elif how == "momentum later":
            optimizer.momentum_coef = 0
        else:
            optimizer.nesterov = True
        optimizer.optimize([layer], 0)


@pytest.mark.parametrize(
    "number",
    [np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2)],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.rest(where=["gpu"])
def test_a_hyper_parameter_may_be_any_real_number(backend, number):
    layers = [pair(ones(4), ones(4)) for _ in range(2)]
    for layer, value in zip(layers, (0.5, number)):
        clips = dict.fromkeys(["gradient_clip_norm", "gradient_clip_value", "param_clip_value"], value)
        nbopt.RMSProp(learning_rate=value, decay_rate=value, epsilon=value, **clips).optimize([layer], 0)
    assert not same_bits(layers[0].params[0], ones(4))
    assert same_bits(layers[0].params[0], layers[1].params[0])


class ScheduleThatGives(nbopt.Schedule):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def get_learning_rate(self, learning_rate, epoch):
        return self.value


# Things that a step or a constructor may refuse, whichever comes first.
NONSENSE = {
    "a learning rate of None": lambda step: step(nbopt.GradientDescentMomentum(None, 0.9)),
    "a number for a schedule": lambda step: step(nbopt.RMSProp(schedule=0.1)),
    "a class for a schedule": lambda step: step(nbopt.RMSProp(schedule=nbopt.Schedule)),
    "an optimizer for a schedule": lambda step: step(nbopt.RMSProp(schedule=nbopt.RMSProp())),
    "a schedule that gives NaN": lambda step: step(nbopt.RMSProp(schedule=ScheduleThatGives(math.nan))),
    "a schedule that gives a negative rate": lambda step: step(
        nbopt.RMSProp(schedule=ScheduleThatGives(-1.0))
    ),
    "a schedule that gives nothing": lambda step: step(nbopt.RMSProp(schedule=ScheduleThatGives(None))),
    "no epoch": lambda step: step(nbopt.RMSProp(schedule=nbopt.PowerSchedule(2, 0.5)), None),
    "an epoch of NaN": lambda step: step(nbopt.RMSProp(schedule=nbopt.PowerSchedule(2, 0.5)), math.nan),
    "a word for an epoch": lambda step: step(nbopt.ShiftAdaMax(), "1"),
    "an epoch below 0": lambda step: step(nbopt.ShiftAdaMax(), -1),
    "states of no dtype": lambda step: step(nbopt.RMSProp(state_dtype="single precision")),
    "states of ints": lambda step: step(nbopt.RMSProp(state_dtype="int32")),
    "an optimizer's class in a mapping": lambda step: step(nbopt.MultiOptimizer({"default": nbopt.RMSProp})),
    "a number in a mapping": lambda step: step(nbopt.MultiOptimizer({"default": 0.1})),
    "a mapping without a default": lambda step: step(nbopt.MultiOptimizer({"linear": nbopt.RMSProp()})),
    "an optimizer for a mapping": lambda step: step(nbopt.MultiOptimizer(nbopt.RMSProp())),
    "rounding to -1 bits": lambda step: step(nbopt.RMSProp(stochastic_round=-1)),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_other_nonsense_is_refused_by_an_error_of_our_own(backend, name):
    layer = pair(ones(4), ones(4))
    with refused(errors.NboptError, [], backend, [], [layer]):
        NONSENSE[name](lambda optimizer, epoch=0: optimizer.optimize([layer], epoch))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nbopt.Schedule([1, 2], [0.1]),
        lambda: nbopt.Schedule([1], [0.1, 0.2]),
        lambda: nbopt.Schedule([], [0.1]),
        lambda: nbopt.StepSchedule([1, 2], [0.1]),
        lambda: nbopt.StepSchedule([1], [0.1, 0.2]),
    ],
)
def test_a_schedule_has_one_rate_for_each_epoch(make):
    with pytest.raises(
        errors.ArgumentError, match=r"\d epochs and change \d rates: there must be one rate for each epoch"
    ):
        make()


# --- rules ---


def branch_if(param, grad, m):
    if param > 0:
        param[:] = grad


def branch_else(param, grad, m):
    param[:] = grad if grad < 0 else -grad


def branch_and(param, grad, m):
    param[:] = (param > 0) and (grad > 0)


def branch_between(param, grad, m):
    param[:] = 0 < param < 1


def branch_max(param, grad, m):
    param[:] = max(param, grad)


def branch_late(param, grad, m):
    m[:] = grad
    param[:] = param - grad
    if not m == 0:
        m[:] = 0


def branch_on_the_factor(param, grad, m, step):
    param[:] = param - grad if step.scale < 1 else param


def optimizer_with(rule, **attributes):
    """An optimizer with one state and this rule, which takes the slots and, as its last, the step."""

    class Ruled(nbopt.Optimizer):
        state_names = ("m",)

        def rule(self, step, param, grad, m):
            rule(*(param, grad, m, step)[: rule.__code__.co_argcount])

    optimizer = Ruled()
    for name, value in attributes.items():
        setattr(optimizer, name, value)
    return optimizer


@pytest.mark.parametrize(
    "rule",
    [branch_if, branch_else, branch_and, branch_between, branch_max, branch_late],
    ids=lambda rule: rule.__name__,
)
def test_branching_on_a_symbolic_value_is_refused_with_the_mend(backend, rule):
    optimizer, layer = optimizer_with(rule), pair(ones(4), ones(4))
    with refused(errors.TraceError, ["truth value", "be.where", "be.maximum"], backend, [optimizer], [layer]):
        optimizer.optimize([layer], 0)


def test_branching_on_the_norm_factor_is_refused_with_the_mend(backend):
    optimizer, layer = optimizer_with(branch_on_the_factor, gradient_clip_norm=0.5), pair(ones(4), ones(4))
    with refused(errors.TraceError, ["an if needs to know", "be.where"], backend, [optimizer], [layer]):
        optimizer.optimize([layer], 0)


@pytest.mark.rest(where=["gpu"])
def test_branching_on_a_tensor_is_refused_with_the_mend(backend):
    tensor = backend.ones(4)
    with pytest.raises(errors.TraceError, match=r"be\.where.*\.get\(\)"):
        if tensor > 0:
            pass


def assigns_nothing(param, grad, m):
    return param - grad


def forgets_the_brackets(param, grad, m):
    param = param - 0.1 * grad


def assigns_the_gradient(param, grad, m):
    grad[:] = grad + param
    param[:] = grad


@pytest.mark.parametrize("rule", [assigns_nothing, forgets_the_brackets], ids=lambda rule: rule.__name__)
def test_a_rule_that_assigns_nothing_is_refused(backend, rule):
    optimizer, layer = optimizer_with(rule), pair(ones(4), ones(4))
    with refused(errors.TraceError, ["param[:] ="], backend, [optimizer], [layer]):
        optimizer.optimize([layer], 0)


def test_assigning_the_gradient_is_refused(backend):
    optimizer, layer = optimizer_with(assigns_the_gradient), pair(ones(4), ones(4))
    with refused(errors.NboptError, [], backend, [optimizer], [layer]):
        optimizer.optimize([layer], 0)


# --- the cache folder ---


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache folder for this test, and a function that forgets the kernels in memory.

    After its call they are compiled or loaded as in a new process.

    The loop over chunks stays, which takes far longer to compile; tests/test_source.py has processes that
    find that one damaged, too."""
    numba_cpu = pytest.importorskip("nbopt_backends.cpu.backend")
    cpu_step()
    folder = tmp_path / "cache"
    monkeypatch.setenv("NBOPT_CACHE_DIR", str(folder))

    def generated_modules():
        return [
            name
            for name in sys.modules
            if name.startswith("nbopt_") and not name.startswith("nbopt_backends")
        ]

    def new_process():
        monkeypatch.setattr(numba_cpu.NumbaCPU, "_kernels", {})
        for name in generated_modules():
            monkeypatch.delitem(sys.modules, name)

    new_process()
    yield folder, new_process
    # They belong to a folder that goes; monkeypatch brings back what was there before.
    for name in generated_modules():
        del sys.modules[name]


def cpu_step():
    """Run the smallest step on the CPU backend; returns how much was compiled from source."""
    with nbopt.use_backend("cpu") as be:
        layer = pair(ones(4), ones(4))
        nbopt.GradientDescentMomentum(0.5, 0).optimize([layer], 0)
        assert same_bits(layer.params[0], np.full(4, 0.5, np.float32))
        return be.compilations


def test_a_cache_folder_is_private_and_used_again(cache):
    folder, new_process = cache
    assert cpu_step() == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert any(file.suffix == ".py" for file in folder.iterdir())
    new_process()
    assert cpu_step() == 0


DAMAGE = {
    "garbage": lambda data: b"\x80\x04garbage" * 9,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.covering
def test_a_corrupted_cache_is_built_again_with_one_warning(cache, damage):
    folder, new_process = cache
    cpu_step()
    files = list(folder.rglob("*.object"))
    assert files
    for file in files:
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
    new_process()
    with pytest.warns(RuntimeWarning) as caught:
        cpu_step()
    assert [str(folder) in str(warning.message) for warning in caught] == [True]
    new_process()
    assert cpu_step() == 0  # what was built again serves the next process, without a warning


def test_text_in_the_cache_folder_is_never_run(cache):
    folder, new_process = cache
    cpu_step()
    for file in folder.glob("*.py"):
        file.write_text("raise SystemExit('this text was trusted')\n")
    new_process()
    cpu_step()
    assert not any("trusted" in file.read_text() for file in folder.glob("*.py"))


@contextmanager
def one_warning(folder, *words):
    """The block warns exactly once, about this folder, although it asks twice."""
    with pytest.warns(RuntimeWarning) as caught:
        yield
    assert len(caught) == 1, [str(warning.message) for warning in caught]
    assert all(word in str(caught[0].message) for word in (str(folder), *words)), caught[0].message


def steps_without_the_folder(cache, *words):
    """Two processes' steps, and the state of the folder before and after."""
    folder, new_process = cache
    before = sorted(folder.rglob("*")) if folder.is_dir() else None
    with one_warning(folder, *words):
        cpu_step()
        new_process()
        cpu_step()
    assert (sorted(folder.rglob("*")) if folder.is_dir() else None) == before


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o755, 0o701], ids=oct)
def test_a_cache_folder_that_others_can_enter_is_not_used(cache, mode):
    cache[0].mkdir()
    cache[0].chmod(mode)
    steps_without_the_folder(cache, f"{mode:04o}", f"chmod 700 {cache[0]}")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no owners of files")
def test_a_cache_folder_of_somebody_else_is_not_used(cache, monkeypatch):
    cache[0].mkdir(mode=0o700)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)  # only root could give the folder away
    steps_without_the_folder(cache, "another user")


def test_a_read_only_cache_folder_is_not_used(cache, monkeypatch):
    folder = cache[0]
    folder.mkdir(mode=0o700)
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # root writes everywhere: refuse it in the system's place
        real = os.open

        def guarded(path, flags, *args, **options):
            if flags & (os.O_WRONLY | os.O_RDWR) and folder in (
                pathlib.Path(path),
                *pathlib.Path(path).parents,
            ):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, flags, *args, **options)

        monkeypatch.setattr(os, "open", guarded)
    steps_without_the_folder(cache)


def test_a_cache_folder_that_is_a_file_is_not_used(cache):
    cache[0].write_text("a file")
    steps_without_the_folder(cache)
    assert cache[0].read_text() == "a file"


# --- tensors and expressions ---


@pytest.mark.parametrize(
    "value", [None, 1j, "1", [1.0] * 4, object(), HUGE], ids=lambda value: type(value).__name__
)
def test_operands_are_tensors_expressions_and_real_numbers(backend, value):
    tensor = backend.ones(4)
    uses = [
        lambda: tensor + value,
        lambda: value * tensor,
        lambda: tensor > value,
        lambda: backend.maximum(tensor, value),
        lambda: backend.sqrt(value),
        lambda: tensor.__setitem__(slice(None), value),
    ]
    for use in uses:
        with refused(errors.NboptError, [], backend):
            use()
    assert same_bits(tensor.get(), ones(4))


def test_shapes_that_do_not_fit_are_refused(backend):
    four, three, matrix = backend.ones(4), backend.ones(3), backend.ones((3, 4))
    uses = [
        lambda: four.__setitem__(slice(None), three),
        lambda: four.__setitem__(slice(None), four + three),
        lambda: four.__setitem__(slice(None), matrix * 2),
        lambda: four.__setitem__(slice(None), np.ones(3)),
        lambda: four.set(np.ones(3)),
        lambda: backend.add(four, 1, out=three),
        lambda: backend.sum(matrix, axis=1, out=four),
        lambda: backend.mean(four + three),
    ]
    for use in uses:
        with refused(errors.ShapeError, ["(3"], backend):
            use()
    assert all(same_bits(tensor.get(), np.ones(tensor.shape, np.float32)) for tensor in (four, three, matrix))


@pytest.mark.parametrize("axis", [2, -1, 1.0, "rows", (0, 1)], ids=repr)
def test_a_wrong_axis_is_refused_when_it_is_named(backend, axis):
    matrix = backend.ones((3, 4))
    for name in ("sum", "mean", "max", "min", "var", "std", "argmax", "argmin"):
        with pytest.raises(errors.ShapeError, match="axis must be None or an int from 0 to 1"):
            getattr(backend, name)(matrix, axis=axis)


@pytest.mark.parametrize("values", [1j, "1", None, [None], [HUGE]], ids=repr)
def test_values_that_are_no_real_numbers_make_no_tensor(backend, values):
    with pytest.raises(errors.DtypeError, match="values of dtype"):
        backend.array(values)


@pytest.mark.parametrize("value", ["1", None, 1j, HUGE], ids=lambda value: type(value).__name__)
def test_fill_takes_a_real_number(backend, value):
    tensor = backend.ones(4)
    with refused(errors.NboptError, [], backend):
        tensor.fill(value)
    assert same_bits(tensor.get(), ones(4))


KEYS = [[0, 1], np.array([0, 1]), np.array([True, False, True, False]), True, None, 1.0, "a"]


@pytest.mark.parametrize("key", KEYS, ids=["list", "array", "mask", "bool", "None", "float", "str"])
def test_a_tensor_is_indexed_by_what_gives_views(backend, key):
    """Any other index would give a copy, and an assignment to it would be lost."""
    tensor = backend.ones(4)
    with pytest.raises(errors.OperandError, match="slices and integers"):
        tensor[key]
    with pytest.raises(errors.OperandError, match="slices and integers"):
        tensor[key] = 2.0


@pytest.mark.rest(where=["gpu"])
def test_a_self_overlapping_tensor_is_no_target_of_an_assignment(backend):
    tensor = backend.wrap(strided(5, (3, 3), (4, 4)))
    with refused(errors.LayoutError, ITSELF, backend):
        tensor[:] = backend.ones((3, 3)) * 2
    assert (tensor.get() == 1).all()


def test_every_exception_is_ours_and_of_the_built_in_kind_that_users_expect():
    ours = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(error, errors.NboptError) for error in ours)
    expected = {
        "ArgumentError": ValueError,
        "ShapeError": ValueError,
        "LayoutError": ValueError,
        "DtypeError": TypeError,
        "OperandError": TypeError,
    }
    for name, kind in itertools.chain(
        expected.items(), [("UnknownBackendError", ValueError), ("BackendError", RuntimeError)]
    ):
        assert issubclass(getattr(errors, name), kind)


@pytest.mark.parametrize("bad", [-1, 1.5, "1", None, True, math.nan, HUGE], ids=lambda bad: f"{bad!r:.8}")
def test_a_number_of_steps_that_is_none_is_refused(backend, bad):
    optimizer, layer = trained(backend)
    with refused(errors.ArgumentError, ["t must be an int from 0 on"], backend, [optimizer], [layer]):
        optimizer.t = bad
    optimizer.t = np.int64(7)
    assert optimizer.t == 7 and type(optimizer.t) is int


@pytest.mark.parametrize("function", [nbopt.explain, nbopt.compile])
@pytest.mark.parametrize("given", [nbopt.RMSProp, None, "RMSProp"], ids=repr)
def test_what_is_no_optimizer_has_no_kernels(function, given):
    with pytest.raises(errors.ArgumentError, match=r"must be one of nbopt's, such as nbopt.RMSProp\(\)"):
        function(given, [pair(ones(4), ones(4))])


@pytest.mark.parametrize("dtype", ["int8", np.int32, 5, ">f4", object()], ids=lambda dtype: f"{dtype!r:.12}")
def test_a_dtype_of_states_that_is_none_is_named_as_such(dtype):
    with pytest.raises(
        errors.DtypeError, match=r'state_dtype must be a dtype that .* stores, such as "bfloat16"'
    ):
        nbopt.RMSProp(state_dtype=dtype)
