"""What several test files need."""

import numpy as np
import pytest

import nbopt

#: neon's optimizers: name -> constructor. tests/formulas.py has their formulas.
NEON = {
    "momentum": lambda **k: nbopt.GradientDescentMomentum(
        **{"learning_rate": 0.1, "momentum_coef": 0.9, "wdecay": 0.01, **k}
    ),
    "nesterov": lambda **k: nbopt.GradientDescentMomentum(
        **{"learning_rate": 0.1, "momentum_coef": 0.9, "nesterov": True, **k}
    ),
    "plain": lambda **k: nbopt.GradientDescentMomentum(
        **{"learning_rate": 0.1, "momentum_coef": 0.0, "wdecay": 0.01, **k}
    ),
    "rmsprop": lambda **k: nbopt.RMSProp(**k),
    "adagrad": lambda **k: nbopt.Adagrad(**k),
    "adadelta": lambda **k: nbopt.Adadelta(**k),
    "adam": lambda **k: nbopt.Adam(**k),
    "shift_adamax": lambda **k: nbopt.ShiftAdaMax(**k),
}
#: The optimizers that most files test; tests/test_family.py has the others' formulas.
OPTIMIZERS = {
    **NEON,
    "rmsprop_momentum": lambda **k: nbopt.RMSProp(**{"momentum_coef": 0.9, **k}),
    "rmsprop_centered": lambda **k: nbopt.RMSProp(**{"centered": True, "momentum_coef": 0.9, **k}),
    "adamw": lambda **k: nbopt.AdamW(**k),
    "amsgrad": lambda **k: nbopt.AMSGrad(**k),
    "adamax": lambda **k: nbopt.AdaMax(**k),
    "nadam": lambda **k: nbopt.NAdam(**k),
    "radam": lambda **k: nbopt.RAdam(**k),
    "lion": lambda **k: nbopt.Lion(**k),
    "yogi": lambda **k: nbopt.Yogi(**k),
    "adabelief": lambda **k: nbopt.AdaBelief(**k),
    "rprop": lambda **k: nbopt.Rprop(**k),
    "asgd": lambda **k: nbopt.ASGD(**{"t0": 1.0, **k}),
}
#: Those that take matrices alone: tests/test_muon.py has their formulas.
WHOLE = {"muon", "normuon", "adamuon"}
#: Every other class, found by itself. tests/test_family_sources.py compares them with the packages that they
#: are from.
OTHERS = {
    kind.__name__.lower(): kind
    for kind in nbopt.optimizers.every()
    if isinstance(kind, type)
    and issubclass(kind, nbopt.Optimizer)
    and kind not in (nbopt.Optimizer, nbopt.MultiOptimizer)
    if kind.__name__.lower()
    not in {name.replace("_", "") for name in OPTIMIZERS} | {"gradientdescentmomentum"} | WHOLE
}
#: All of them.
EVERY = {**OPTIMIZERS, **OTHERS}


#: Those that differ most in what a kernel has to do where it rounds: 0 to 3 states, one that is read again
#: after it was stored, one assignment under a condition, and `shift`. The reference runs all of them in 16
#: bits; each is compiled in float32 or float64 in tests/test_same_bits.py.
ROUNDED = ("plain", "momentum", "adadelta", "shift_adamax", "rmsprop_centered", "rprop", "asgd")


def in_one_storage(parameter, usual, rounded):
    """Parametrize by each optimizer and each of two storages.

    What compiles takes one of them in the plain run: `rounded` for `ROUNDED`.
    """
    cases = [
        (name, storage, (storage == rounded) == (name in ROUNDED))
        for name in OPTIMIZERS
        for storage in (usual, rounded)
    ]
    left_out = pytest.mark.thorough("compiled")
    return pytest.mark.parametrize(
        ("name", parameter), [pytest.param(*case, marks=() if plain else left_out) for *case, plain in cases]
    )


def thorough_but(values, *usual, where=(), several=False):
    """Parameters of which the plain run takes the usual ones only (see conftest.py).

    The usual ones differ most in what a kernel has to do. With ``several`` each value is a tuple, for several
    names.
    """
    assert all(value in values for value in usual)
    left_out = pytest.mark.thorough(*where)
    return [
        value if value in usual else pytest.param(*(value if several else (value,)), marks=left_out)
        for value in values
    ]


def same_bits(a, b):
    """Whether two arrays have the same dtype, shape and bits, all NaN being equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    nan = np.isnan(a.astype(np.float64)) & np.isnan(b.astype(np.float64))
    return bool(
        ((np.ascontiguousarray(a).view(unsigned) == np.ascontiguousarray(b).view(unsigned)) | nan).all()
    )


def ulp_distance(a, b):
    """How many floating-point numbers lie between the elements of two arrays of one dtype.

    Two NaN have the distance 0.
    """
    signed = np.dtype(f"i{a.dtype.itemsize}")

    def ordered(x):
        bits = np.ascontiguousarray(x).view(signed).astype(object)
        return np.where(bits < 0, -(2 ** (8 * x.dtype.itemsize - 1)) - bits, bits)

    distance = abs(ordered(a) - ordered(b))
    return np.where(np.isnan(a) & np.isnan(b), 0, distance)


def special_values(dtype, rng, size):
    """Random values of `dtype` among which are signed zeros, subnormals, huge values, infinities and NaN."""
    info = np.finfo(dtype)
    values = rng.standard_normal(size).astype(dtype)
    special = np.array(
        [
            0.0,
            -0.0,
            info.smallest_subnormal,
            -info.smallest_subnormal,
            info.tiny / 2,
            info.max,
            -info.max,
            np.inf,
            -np.inf,
            np.nan,
            1.0,
            -1.0,
        ],
        dtype,
    )
    chosen = rng.random(size) < 0.25
    return np.where(chosen, rng.choice(special, size), values).astype(dtype)


def layers_of(shapes, rng, dtype=np.float32):
    """One `Parameters` for each shape, parameters in [0, 1) and gradients in [0, 0.01)."""
    return [
        nbopt.Parameters((rng.random(s).astype(dtype), (rng.random(s) * 0.01).astype(dtype))) for s in shapes
    ]


def values_of(layers):
    """Copies of all parameters and states, in order."""
    return [np.array(p) for layer in layers for p in layer.params] + [
        t.get() for layer in layers for states in layer.states for t in states
    ]


def drawn(steps, shapes=((8, 5), (7,), ()), dtype="float64"):
    """Return parameters, and their gradients in each of some steps."""
    rng = np.random.default_rng(4)
    params, *grads = (
        [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes] for _ in range(steps + 1)
    )
    return params, grads


def layer_of(params):
    """Return a layer of copies of parameters."""
    return nbopt.Parameters(*((param.copy(), np.zeros_like(param)) for param in params))


def trained(optimizer, layer, grads):
    """Take a step with each list of gradients, and return the layer."""
    for row in grads:
        layer.grads = row
        optimizer.optimize([layer], 0)
    return layer
