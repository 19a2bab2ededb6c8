"""The CPU backend equals the reference bit for bit, for every optimizer.

It does on any number of threads, whatever the values and layouts.
"""

import functools

import numba
import numpy as np
import pytest
from helpers import NEON, OPTIMIZERS, same_bits, special_values, thorough_but
from hypothesis import given
from hypothesis import strategies as st

import nbopt

ALL = list(OPTIMIZERS)
# The norm is the same to every rule; tests/test_family.py has the others' clips.
WITH_NORM_CLIP = [name for name in NEON if name not in ("adadelta", "shift_adamax")]
VALUE_CLIPS = {"gradient_clip_value": 0.25, "param_clip_value": 0.5}
NORM_CLIP = {"gradient_clip_norm": 1e-3}
# The plain run compiles the clips of these; test_plans.py clips others.
CLIPPED = ("nesterov", "adadelta", "asgd")
# The plain run compiles these in float64 too.
DOUBLE = ("nesterov", "adadelta", "shift_adamax", "radam", "rprop")
THREADS = (1, 2)

# One thread is used up to 16384 elements; chunks have 16384, tiles of a sum 4096, pieces of a strided tensor
# 1024.
SIZES = {
    "1 tensor": [1_000_003],
    "7 tensors": [1, 7, 1023, 8192, 8193, 16_385, 40_003],
    "300 tensors": [1, 2, 3, 16_384, 20_000, *(1 + 37 * k % 700 for k in range(295))],
}

DTYPE = [np.float32, np.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPE, ids=["float32", "float64"])
single = pytest.mark.parametrize("dtype", thorough_but(DTYPE, np.float32), ids=["float32", "float64"])


def with_dtypes(names):
    """Pairs of each name and each dtype.

    The plain run takes every name in float32, and some in float64.
    """
    pairs = [(name, dtype) for name in names for dtype in (np.float32, np.float64)]
    usual = [(name, dtype) for name, dtype in pairs if dtype == np.float32 or name in DOUBLE]
    return pytest.mark.parametrize(("name", "dtype"), thorough_but(pairs, *usual, several=True))


@functools.cache
def drawn_values(dtype, special):
    values = special_values(dtype, np.random.default_rng(2026), 1_100_003)
    return values if special else np.where(np.abs(values) < 1e3, values, dtype(0.5)) * dtype(0.01)


class Values:
    """Arrays that are cheap to make: windows into one pool of random values, at another place for each array.

    With ``special=False`` there are no infinities, no NaN and no values whose squares overflow, so that a
    norm of them is a number; signed zeros and subnormals stay.
    """

    def __init__(self, dtype, special=True):
        self._pool = drawn_values(dtype, special)
        self._place = 0

    def array(self, shape):
        size = int(np.prod(shape))
        if self._place + size > self._pool.size:
            self._place %= 1009
        start = self._place
        self._place += size + 61
        return self._pool[start : start + size].reshape(shape).copy()


def number_of_states(name):
    return len(OPTIMIZERS[name]().states_in_use())


def layers_of(values, shapes, n_states):
    """Return a maker of one layer for each shape, with all values drawn from `values`."""
    drawn = [[values.array(shape) for _ in range(2 + n_states)] for shape in shapes]

    def make(be):
        layers = [nbopt.Parameters((p.copy(), dW)) for p, dW, *_ in drawn]
        for layer, (_, _, *states) in zip(layers, drawn):
            layer.states[0].extend(be.array(state, dtype=state.dtype) for state in states)
        return layers, [layer.params[0] for layer in layers]

    return make


def stepped(backend, make_layers, make_optimizer, **options):
    """Return what two steps leave in fresh layers: the arrays that hold the parameters, then the states.

    ``make_layers(be)`` returns the layers, and a list of arrays that hold their parameters.
    """
    own = {"rng_seed": 0, "batch_size": 3, **options} if isinstance(backend, str) else {}
    with nbopt.use_backend(backend, **own) as be:
        layers, memory = make_layers(be)
        optimizer = make_optimizer()
        for epoch in range(2):
            optimizer.optimize(layers, epoch)
        return memory + [t.get() for layer in layers for states in layer.states for t in states]


def assert_same(make_layers, make_optimizer, threads=THREADS):
    """Check the CPU's results against the reference's on each number of threads; returns them."""
    wanted = stepped("reference", make_layers, make_optimizer)
    for num_threads in threads:
        got = stepped("cpu", make_layers, make_optimizer, num_threads=num_threads)
        differ = [index for index, (x, y) in enumerate(zip(got, wanted, strict=True)) if not same_bits(x, y)]
        assert not differ, f"on {num_threads} threads, of {len(got)} arrays these differ: {differ[:9]}"
    return wanted


def test_two_threads_are_two():
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("Numba has one thread here, so the tests of this file compare one thread with itself")
    assert nbopt.set_backend("cpu", num_threads=2).report()["threads"].startswith("2 of ")


# --- special values, many sizes ---


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@with_dtypes(NEON)
@pytest.mark.covering
@pytest.mark.rest("nesterov-*")
def test_special_values(name, dtype, sizes):
    result = assert_same(layers_of(Values(dtype), sizes, number_of_states(name)), OPTIMIZERS[name])
    values = np.concatenate([array.ravel() for array in result])
    # Not all values became NaN, which would equal anything.
    assert np.isnan(values).any() and np.isfinite(values).mean() > 0.2


# Lists are the same to every rule, too.
@with_dtypes([name for name in ALL if name not in NEON])
def test_special_values_of_the_others(name, dtype):
    assert_same(layers_of(Values(dtype), SIZES["7 tensors"], number_of_states(name)), OPTIMIZERS[name])


@single
@pytest.mark.parametrize("name", thorough_but([name for name in ALL if name != "shift_adamax"], *CLIPPED))
@pytest.mark.rest("nesterov-*")
def test_value_clips_of_special_values(name, dtype):
    assert_same(
        layers_of(Values(dtype), SIZES["7 tensors"], number_of_states(name)),
        lambda: OPTIMIZERS[name](**VALUE_CLIPS),
    )


@each_dtype
def test_shifts_to_subnormal_values(dtype):
    tiny = np.finfo(dtype).tiny
    grads = Values(dtype).array((40_003,))

    def make(be):
        layer = nbopt.Parameters((np.zeros_like(grads), grads))
        return [layer], list(layer.params)

    param, *_ = assert_same(make, lambda: nbopt.ShiftAdaMax(learning_rate=float(tiny) / 1000))
    assert ((param != 0) & (np.abs(param) < tiny)).mean() > 0.2


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("name", "dtype"),
    thorough_but(
        [(name, dtype) for name in WITH_NORM_CLIP for dtype in DTYPE],
        ("nesterov", np.float32),
        ("adam", np.float64),
        several=True,
    ),
)
@pytest.mark.covering
@pytest.mark.rest("nesterov-*")
def test_norm_clip(name, dtype, sizes):
    # States start at 0, since a special value among them could make NaN.
    result = assert_same(
        layers_of(Values(dtype, special=False), sizes, 0),
        lambda: OPTIMIZERS[name](**VALUE_CLIPS, **NORM_CLIP),
    )
    assert all(np.isfinite(array).all() for array in result)


@single
def test_norm_clip_of_special_values(dtype):
    sizes = SIZES["7 tensors"]
    result = assert_same(layers_of(Values(dtype), sizes, 1), lambda: nbopt.RMSProp(**NORM_CLIP))
    # A NaN in one gradient is in the norm, and so in every parameter.
    assert all(np.isnan(array).all() for array in result[: len(sizes)])
    assert np.isfinite(result[-1]).any()  # the states don't depend on the norm


@pytest.mark.parametrize("value", ["max", "tiny"])
@each_dtype
@pytest.mark.covering
def test_norm_whose_squares_overflow_or_underflow(dtype, value):
    def make(be):
        grads = [np.full(n, getattr(np.finfo(dtype), value)) for n in (5, 9000)]
        layers = [nbopt.Parameters((np.ones_like(grad), grad)) for grad in grads]
        return layers, [layer.params[0] for layer in layers]

    result = assert_same(make, lambda: nbopt.GradientDescentMomentum(0.1, 0.0, **NORM_CLIP))
    assert all((array == 1).all() for array in result)  # the factor is 0, or the step too small to be seen


@single
def test_norm_over_more_tensors_than_a_tile_of_sums_holds(dtype):
    values = Values(dtype, special=False)
    pairs = [(values.array(n), values.array(n)) for n in (1 + k % 3 for k in range(8200))]
    factors = []
    for backend in ("reference", "cpu"):
        with nbopt.use_backend(backend, batch_size=3):
            factors.append(
                nbopt.RMSProp().clip_gradient_norm(nbopt.get_param_list([nbopt.Parameters(*pairs)]), 1e-6)
            )
    assert factors[0] == factors[1] < 1


# --- layouts and dtypes ---

# The shape of the memory -> the view of it that is the parameter.
LAYOUTS = [
    ((50, 60), lambda x: x),
    ((50, 120), lambda x: x[:, ::2]),
    ((60, 50), lambda x: x.T),
    ((7, 9, 11), lambda x: x.transpose(2, 0, 1)),
    ((4000,), lambda x: x[::-1]),
    ((90, 100), lambda x: x[::-3, 5::-1]),
    ((3, 40, 50), lambda x: x[1, 3:30, ::-7]),
    ((6, 1, 5), lambda x: x[::2, :, None, 1:]),
    ((), lambda x: x),
    ((0, 3), lambda x: x),
    ((5, 7), lambda x: x[2, 3:4]),
    ((40_000,), lambda x: x[::2]),
]
DTYPES = [
    (np.float32, np.float32),
    (np.float64, np.float64),
    (np.float64, np.float32),
    (np.float32, np.float64),
]


def spread_out(array):
    """A copy in which every other element, backwards, is used."""
    view = np.zeros([2 * n for n in array.shape], array.dtype)[
        (..., *(slice(None, None, -2) for _ in array.shape))
    ]
    view[...] = array
    return view


def layers_of_layouts(values, n_states, state_dtype=None):
    """Return a maker of layers: each of `LAYOUTS` with each of `DTYPES`, all in one list.

    States and gradients have other layouts again.
    """
    drawn = []
    for shape, view in LAYOUTS:
        for param_dtype, grad_dtype in DTYPES:
            base = values.array(shape).astype(param_dtype)
            used = view(base).shape
            states = [values.array(used).astype(state_dtype or param_dtype) for _ in range(n_states)]
            drawn.append((base, view, np.array(values.array(used), grad_dtype, order="F"), states))

    def make(be):
        memory = [base.copy() for base, *_ in drawn]
        layers = [nbopt.Parameters((view(base), grad)) for base, (_, view, grad, _) in zip(memory, drawn)]
        for index, (layer, (*_, states)) in enumerate(zip(layers, drawn)):
            layer.states[0].extend(
                be.wrap(spread_out(state) if index % 3 else state.copy()) for state in states
            )
        # All of the memory: if an element beside a view changed, that would be seen.
        return layers, memory

    return make


@pytest.mark.parametrize("name", thorough_but(ALL, "shift_adamax"))  # adadelta below
def test_strided_and_mixed_lists_of_special_values(name):
    assert_same(layers_of_layouts(Values(np.float32), number_of_states(name)), OPTIMIZERS[name])


@pytest.mark.parametrize("name", thorough_but(WITH_NORM_CLIP, "nesterov"))
@pytest.mark.rest
def test_norm_clip_of_strided_and_mixed_lists(name):
    result = assert_same(
        layers_of_layouts(Values(np.float32, special=False), 0),
        lambda: OPTIMIZERS[name](**VALUE_CLIPS, **NORM_CLIP),
    )
    assert all(np.isfinite(array).all() for array in result)


# Adadelta reads each state again after it was stored, rounded; momentum reads its state to write the
# parameter.
@pytest.mark.parametrize("state_dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["momentum", "adadelta"])
@pytest.mark.covering
@pytest.mark.rest("momentum-*")
def test_states_of_another_dtype_than_the_parameter(name, state_dtype):
    result = assert_same(
        layers_of_layouts(Values(np.float32), 0), lambda: OPTIMIZERS[name](state_dtype=state_dtype)
    )
    assert result[-1].dtype == state_dtype


@pytest.mark.parametrize("name", thorough_but(WITH_NORM_CLIP, "nesterov", "adam"))
@pytest.mark.thorough("gpu")
def test_layout_does_not_change_the_result(name, backend):
    values = Values(np.float32, special=False)
    pairs = [(values.array(shape), values.array(shape)) for shape in ((130, 170), (5000,), (3, 4, 5))]

    def result(copy):
        layers = [nbopt.Parameters((copy(p), copy(dW))) for p, dW in pairs]
        make_layers = lambda be: (layers, [layer.params[0] for layer in layers])  # noqa: E731
        return stepped(
            type(backend)(rng_seed=0, batch_size=3),
            make_layers,
            lambda: OPTIMIZERS[name](**VALUE_CLIPS, **NORM_CLIP),
        )

    wanted = result(np.copy)
    for copy in (lambda x: np.array(x, order="F"), spread_out):
        assert all(same_bits(x, y) for x, y in zip(result(copy), wanted, strict=True))


# --- hyper-parameters ---

_any = st.floats(0, 1e300) | st.floats(0, 2) | st.sampled_from([0.0, 1e-45, 1e-40, 1e38, 1e39])
_fraction = st.floats(0, 1)
_below_one = st.floats(0, 1, exclude_max=True)
_adams = {"learning_rate": _any, "beta_1": _below_one, "beta_2": _below_one, "epsilon": _any}
HYPER = {
    "momentum": {"learning_rate": _any, "momentum_coef": _any.filter(bool), "wdecay": _any},
    "nesterov": {"learning_rate": _any, "momentum_coef": _any.filter(bool), "wdecay": _any},
    "plain": {"learning_rate": _any, "wdecay": _any},
    "rmsprop": {"learning_rate": _any, "decay_rate": _fraction, "epsilon": _any},
    "adagrad": {"learning_rate": _any, "epsilon": _any},
    "adadelta": {"decay": _fraction, "epsilon": _any},
    "adam": {"learning_rate": _any, "beta_1": _below_one, "beta_2": _below_one, "epsilon": _any},
    "shift_adamax": {"learning_rate": _any, "beta_1": _below_one, "beta_2": _fraction, "epsilon": _any},
    "rmsprop_momentum": {
        "learning_rate": _any,
        "decay_rate": _fraction,
        "epsilon": _any,
        "momentum_coef": _any.filter(bool),
    },
    "rmsprop_centered": {
        "learning_rate": _any,
        "decay_rate": _fraction,
        "epsilon": _any,
        "momentum_coef": _any.filter(bool),
    },
    "adamw": {**_adams, "wdecay": _any},
    "amsgrad": _adams,
    "adamax": _adams,
    "nadam": {**_adams, "momentum_decay": _any},
    "radam": _adams,
    "lion": {"learning_rate": _any, "beta_1": _below_one, "beta_2": _below_one, "wdecay": _any},
    "yogi": {**_adams, "initial_accumulator_value": _any},
    "adabelief": {**_adams, "epsilon_root": _any},
    "rprop": {
        "learning_rate": _any,
        "eta_minus": _below_one,
        "eta_plus": _any.map(lambda x: 1 + x),
        "step_min": st.floats(1e-30, 50.0),
    },
    "asgd": {"learning_rate": _any, "lambd": _any, "alpha": _fraction, "t0": _any},
}


FREE = [(name, False) for name in ALL]
BOUNDED = [(name, True) for name in ALL]


@pytest.mark.parametrize(
    ("name", "bounded"),
    thorough_but(
        [*FREE, *BOUNDED],
        *FREE,
        *[(name, bounded) for name, bounded in BOUNDED if name in CLIPPED],
        several=True,
    ),
)
@single
@given(data=st.data())
def test_any_hyper_parameters(name, dtype, bounded, data):
    hyper = data.draw(st.fixed_dictionaries(HYPER[name]))
    if bounded and name != "shift_adamax":
        hyper |= VALUE_CLIPS
    assert_same(
        layers_of(Values(dtype), [(311,)], number_of_states(name)),
        lambda: OPTIMIZERS[name](**hyper),
        threads=(1,),
    )
