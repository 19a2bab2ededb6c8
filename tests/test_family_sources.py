"""The optimizers that people train with today, against the packages that they are from.

``pip install pytorch_optimizer prodigyopt schedulefree`` for the other side. Each case runs with gradients of
which some elements are always 0, with one step in which all are, and with a parameter that joins later.
"""

import pickle

import numpy as np
import pytest

import nbopt
from tests.helpers import OTHERS, same_bits, thorough_but, values_of

STEPS = 30
SHAPES = [(40, 30), (64,), (3, 5, 7)]
DECAY = {"weight_decay": 0.1}
COUPLED = {"weight_decay": 0.1, "weight_decouple": False}

# A label -> (our class, its arguments, where theirs is, its arguments).
SOURCES = {
    "LAMB": (nbopt.LAMB, {}, "pytorch_optimizer.Lamb", {}),
    "LAMB, decay": (nbopt.LAMB, {"wdecay": 0.1}, "pytorch_optimizer.Lamb", DECAY),
    "LAMB, coupled": (nbopt.LAMB, {"wdecay": 0.1, "decoupled": False}, "pytorch_optimizer.Lamb", COUPLED),
    "LAMB, other numbers": (
        nbopt.LAMB,
        {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 0.1, "grad_averaging": False},
        "pytorch_optimizer.Lamb", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.1, "grad_averaging": False},
    ),
    "LARS": (nbopt.LARS, {}, "pytorch_optimizer.LARS", {}),
    "LARS, other numbers": (
        nbopt.LARS,
        {"learning_rate": 0.1, "momentum_coef": 0.7, "wdecay": 0.1, "dampening": 0.2,
         "trust_coefficient": 0.1},
        "pytorch_optimizer.LARS",
        {"lr": 0.1, "momentum": 0.7, "dampening": 0.2, "trust_coefficient": 0.1, **DECAY},
    ),
    "LARS, nesterov": (
        nbopt.LARS, {"wdecay": 0.1, "nesterov": True}, "pytorch_optimizer.LARS", {"nesterov": True, **DECAY},
    ),
    "LARS, no momentum": (nbopt.LARS, {"momentum_coef": 0.0}, "pytorch_optimizer.LARS", {"momentum": 0.0}),
    "AdEMAMix": (nbopt.AdEMAMix, {}, "pytorch_optimizer.AdEMAMix", {}),
    "AdEMAMix, warmup and decay": (
        nbopt.AdEMAMix, {"warmup": 20, "wdecay": 0.1}, "pytorch_optimizer.AdEMAMix",
        {"t_alpha_beta3": 20, "weight_decouple": True, **DECAY},
    ),
    "AdEMAMix, coupled": (
        nbopt.AdEMAMix, {"wdecay": 0.1, "decoupled": False}, "pytorch_optimizer.AdEMAMix", COUPLED,
    ),
    "AdEMAMix, other numbers": (
        nbopt.AdEMAMix,
        {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "beta_3": 0.99, "epsilon": 0.1, "alpha": 2.0,
         "warmup": 50},
        "pytorch_optimizer.AdEMAMix",
        {"lr": 0.02, "betas": (0.8, 0.95, 0.99), "eps": 0.1, "alpha": 2.0, "t_alpha_beta3": 50},
    ),
    "ADOPT": (nbopt.ADOPT, {}, "pytorch_optimizer.ADOPT", {}),
    "ADOPT, decay": (
        nbopt.ADOPT, {"wdecay": 0.1}, "pytorch_optimizer.ADOPT", {"weight_decouple": True, **DECAY},
    ),
    "ADOPT, coupled": (nbopt.ADOPT, {"wdecay": 0.1, "decoupled": False}, "pytorch_optimizer.ADOPT", COUPLED),
    "ADOPT, other numbers": (
        nbopt.ADOPT,
        {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 0.1, "clip_exponent": None},
        "pytorch_optimizer.ADOPT", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.1, "clip_lambda": None},
    ),
    "Adan": (nbopt.Adan, {}, "pytorch_optimizer.Adan", {}),
    "Adan, decay": (nbopt.Adan, {"wdecay": 0.1}, "pytorch_optimizer.Adan", DECAY),
    "Adan, decoupled": (
        nbopt.Adan, {"wdecay": 0.1, "decoupled": True}, "pytorch_optimizer.Adan",
        {"weight_decouple": True, **DECAY},
    ),
    "Adan, other numbers": (
        nbopt.Adan, {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.7, "beta_3": 0.95, "epsilon": 0.1},
        "pytorch_optimizer.Adan", {"lr": 0.02, "betas": (0.8, 0.7, 0.95), "eps": 0.1},
    ),
    "Tiger": (nbopt.Tiger, {}, "pytorch_optimizer.Tiger", {}),
    "Tiger, coupled": (
        nbopt.Tiger, {"learning_rate": 0.02, "beta": 0.8, "wdecay": 0.1, "decoupled": False},
        "pytorch_optimizer.Tiger", {"lr": 0.02, "beta": 0.8, **COUPLED},
    ),
    "StableAdamW": (nbopt.StableAdamW, {}, "pytorch_optimizer.StableAdamW", {}),
    "StableAdamW, coupled": (
        nbopt.StableAdamW, {"wdecay": 0.1, "decoupled": False}, "pytorch_optimizer.StableAdamW", COUPLED,
    ),
    "StableAdamW, other numbers": (
        nbopt.StableAdamW,
        {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 0.1, "wdecay": 0.0},
        "pytorch_optimizer.StableAdamW", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.0},
    ),
    "MARS": (nbopt.MARS, {}, "pytorch_optimizer.MARS", {}),
    "MARS, vectors too": (
        nbopt.MARS, {"optimize_1d": True, "wdecay": 0.1}, "pytorch_optimizer.MARS",
        {"optimize_1d": True, **DECAY},
    ),
    "MARS, other numbers": (
        nbopt.MARS,
        {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.1, "gamma": 0.2, "rate_1d": 0.5,
         "beta_1_1d": 0.7, "beta_2_1d": 0.8, "wdecay_1d": 0.3},
        "pytorch_optimizer.MARS",
        {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.1, "gamma": 0.2, "lr_1d": 0.01, "betas_1d": (0.7, 0.8),
         "weight_decay_1d": 0.3},
    ),
    "Prodigy": (nbopt.Prodigy, {}, "prodigyopt.Prodigy", {}),
    "Prodigy, decay": (
        nbopt.Prodigy, {"wdecay": 0.1, "d0": 0.01}, "prodigyopt.Prodigy", {"weight_decay": 0.1, "d0": 0.01},
    ),
    "Prodigy, coupled": (
        nbopt.Prodigy, {"wdecay": 0.1, "decoupled": False, "growth_rate": 1.5},
        "prodigyopt.Prodigy", {"weight_decay": 0.1, "decouple": False, "growth_rate": 1.5},
    ),
    "Prodigy, other numbers": (
        nbopt.Prodigy,
        {"learning_rate": 0.5, "beta_1": 0.8, "beta_2": 0.95, "beta_3": 0.9, "epsilon": 0.1, "d0": 0.01,
         "d_coef": 2.0, "bias_correction": True, "safeguard_warmup": True},
        "prodigyopt.Prodigy",
        {"lr": 0.5, "betas": (0.8, 0.95), "beta3": 0.9, "eps": 0.1, "d0": 0.01, "d_coef": 2.0,
         "use_bias_correction": True, "safeguard_warmup": True},
    ),
    "DAdaptAdam": (nbopt.DAdaptAdam, {}, "pytorch_optimizer.DAdaptAdam", {}),
    "DAdaptAdam, decay": (
        nbopt.DAdaptAdam, {"wdecay": 0.1, "growth_rate": 1.5, "d0": 0.01},
        "pytorch_optimizer.DAdaptAdam", {"weight_decouple": True, "growth_rate": 1.5, "d0": 0.01, **DECAY},
    ),
    "DAdaptAdam, coupled": (
        nbopt.DAdaptAdam, {"wdecay": 0.1, "decoupled": False}, "pytorch_optimizer.DAdaptAdam", COUPLED,
    ),
    "DAdaptAdam, other numbers": (
        nbopt.DAdaptAdam,
        {"learning_rate": 0.5, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 0.1, "bias_correction": True,
         "d0": 0.01},
        "pytorch_optimizer.DAdaptAdam",
        {"lr": 0.5, "betas": (0.8, 0.95), "eps": 0.1, "bias_correction": True, "d0": 0.01},
    ),
    "ScheduleFreeSGD": (nbopt.ScheduleFreeSGD, {}, "schedulefree.SGDScheduleFree", {}),
    "ScheduleFreeSGD, other numbers": (
        nbopt.ScheduleFreeSGD,
        {"learning_rate": 0.1, "momentum_coef": 0.7, "wdecay": 0.1, "warmup": 10, "average_power": 1.5,
         "weight_lr_power": 1.0},
        "schedulefree.SGDScheduleFree",
        {"lr": 0.1, "momentum": 0.7, "warmup_steps": 10, "r": 1.5, "weight_lr_power": 1.0, **DECAY},
    ),
    "ScheduleFreeAdamW": (nbopt.ScheduleFreeAdamW, {}, "schedulefree.AdamWScheduleFree", {}),
    "ScheduleFreeAdamW, other numbers": (
        nbopt.ScheduleFreeAdamW,
        {"learning_rate": 0.1, "beta_1": 0.7, "beta_2": 0.95, "epsilon": 0.1, "wdecay": 0.1, "warmup": 10,
         "average_power": 1.5, "weight_lr_power": 1.0},
        "schedulefree.AdamWScheduleFree",
        {"lr": 0.1, "betas": (0.7, 0.95), "eps": 0.1, "warmup_steps": 10, "r": 1.5, "weight_lr_power": 1.0,
         **DECAY},
    ),
    "ScheduleFreeRAdam": (nbopt.ScheduleFreeRAdam, {}, "schedulefree.RAdamScheduleFree", {}),
    "ScheduleFreeRAdam, other numbers": (
        nbopt.ScheduleFreeRAdam,
        {"learning_rate": 0.1, "beta_1": 0.7, "beta_2": 0.95, "epsilon": 0.1, "wdecay": 0.1,
         "average_power": 1.5, "weight_lr_power": 1.0, "silent_sgd_phase": False},
        "schedulefree.RAdamScheduleFree",
        {"lr": 0.1, "betas": (0.7, 0.95), "eps": 0.1, "r": 1.5, "weight_lr_power": 1.0,
         "silent_sgd_phase": False, **DECAY},
    ),
    "Adafactor": (nbopt.Adafactor, {}, "torch.optim.Adafactor", {"eps": (2.0**-23, 1e-3)}),
    "Adafactor, other numbers": (
        nbopt.Adafactor,
        {"learning_rate": 0.3, "beta_2_decay": -0.5, "epsilon_1": 0.9, "epsilon_2": 1.5,
         "clip_threshold": 1.2, "wdecay": 0.1},
        "torch.optim.Adafactor", {"lr": 0.3, "beta2_decay": -0.5, "eps": (0.9, 1.5), "d": 1.2, **DECAY},
    ),
    "CAME": (nbopt.CAME, {}, "pytorch_optimizer.CAME", {}),
    "CAME, coupled": (nbopt.CAME, {"wdecay": 0.1, "decoupled": False}, "pytorch_optimizer.CAME", COUPLED),
    "CAME, other numbers": (
        nbopt.CAME,
        {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "beta_3": 0.9, "epsilon_1": 0.1,
         "epsilon_2": 0.01, "clip_threshold": 0.8, "wdecay": 0.1},
        "pytorch_optimizer.CAME",
        {"lr": 0.02, "betas": (0.8, 0.95, 0.9), "eps1": 0.1, "eps2": 0.01, "clip_threshold": 0.8, **DECAY},
    ),
    "SM3": (nbopt.SM3, {}, "pytorch_optimizer.SM3", {}),
    "SM3, other numbers": (
        nbopt.SM3, {"learning_rate": 0.02, "momentum_coef": 0.8, "beta": 0.9, "epsilon": 0.1},
        "pytorch_optimizer.SM3", {"lr": 0.02, "momentum": 0.8, "beta": 0.9, "eps": 0.1},
    ),
}  # fmt: skip
TOLERANCE = {"float64": 1e-9, "float32": 2e-5}
#: Class -> passes over elements, and bytes of an element in float32.
COSTS = {
    "LAMB": (2, 40), "LARS": (2, 28), "AdEMAMix": (1, 36), "ADOPT": (1, 28), "Adan": (1, 44),
    "Tiger": (1, 20), "StableAdamW": (2, 36), "MARS": (2, 44), "Prodigy": (2, 52), "DAdaptAdam": (1, 36),
    "ScheduleFreeSGD": (1, 20), "ScheduleFreeAdamW": (1, 28), "ScheduleFreeRAdam": (1, 28),
    "Adafactor": (3, 24), "CAME": (4, 32), "SM3": (1, 12),
}  # fmt: skip


def drawn(dtype, steps=STEPS, shapes=SHAPES, late=True):
    """Return parameters, and gradients of each step.

    The last parameter has none in the first steps if it is late.
    """
    rng = np.random.default_rng(19)
    params = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    zero = [rng.random(shape) < 0.1 for shape in shapes]
    grads = [
        [np.where(where, 0, rng.standard_normal(where.shape)).astype(dtype) for where in zero]
        for _ in range(steps)
    ]
    grads[steps // 2] = [np.zeros_like(grad) for grad in grads[0]]
    for row in grads[: late * steps // 3]:
        row[-1] = None
    return params, grads


def ours(optimizer, params, grads, dtype=None):
    """Train copies of the parameters and return their layer."""
    layer = nbopt.Parameters(*((param.copy(), np.zeros_like(param)) for param in params))
    for row in grads:
        layer.grads = row
        optimizer.optimize([layer], 0)
    return layer


def theirs(place, options, params, grads):
    """Return what the optimizer of another package makes of copies of the parameters."""
    torch = pytest.importorskip("torch", reason="the other side is made of PyTorch: pip install torch")
    package, name = place.rsplit(".", 1)
    package = pytest.importorskip(package, reason=f"it is the other side: pip install {package}")
    found = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
    torch.set_default_dtype(found[0].dtype)  # which some keep their sums in
    try:
        optimizer = getattr(package, name)(found, **options)
        if hasattr(optimizer, "train"):
            optimizer.train()
        for row in grads:
            for param, grad in zip(found, row):
                param.grad = None if grad is None else torch.from_numpy(grad.copy())
            optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    return [param.detach().numpy() for param in found]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("label", SOURCES)
@pytest.mark.rest("*-float32")
def test_source(label, dtype):
    """30 steps end where the source's do."""
    kind, options, place, their_options = SOURCES[label]
    # PyTorch's own count the steps of each parameter; in nbopt that is for nbopt.torch to do.
    params, grads = drawn(dtype, late=not place.startswith("torch."))
    wanted = theirs(place, their_options, params, grads)
    with nbopt.use_backend("reference"):
        found = ours(kind(**options), params, grads).params
    for a, b, start in zip(found, wanted, params, strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert not np.array_equal(a, start)


def test_all():
    """No class is left out."""
    names = {kind.__name__ for kind in OTHERS.values()}
    assert names == set(COSTS) == {kind.__name__ for kind, *_ in SOURCES.values()}


@pytest.mark.parametrize("name", COSTS)
def test_zero(name):
    """Nothing is divided by zero, if all gradients are 0 from the start or the learning rate is 0."""
    params, grads = drawn("float64", 4)
    still = [[None if grad is None else 0.0 * grad for grad in row] for row in grads]
    with nbopt.use_backend("reference"):
        for rate, rows in ((0.0, grads), (1.0, still), (1.0, still + grads)):
            layer = ours(getattr(nbopt, name)(learning_rate=rate), params, rows)
            assert all(np.isfinite(value).all() for value in values_of([layer]))
            assert rate or all(map(np.array_equal, layer.params, params))


@pytest.mark.parametrize("resume", ["state_dict", "file", "pickle"])
@pytest.mark.parametrize("name", COSTS)
def test_resumes(name, resume, tmp_path):
    """A run that was saved, or copied, goes on with the same bits."""
    params, grads = drawn("float32", 6)
    with nbopt.use_backend("reference"):
        optimizer = getattr(nbopt, name)()
        layer = ours(optimizer, params, grads[:3])
        if resume == "pickle":
            other, twin = pickle.loads(pickle.dumps((optimizer, layer)))
        else:
            other, twin = (
                type(optimizer).gen_class(optimizer.get_description()),
                nbopt.Parameters(*zip(params, params)),
            )
            assert other == optimizer
            if resume == "file":
                nbopt.save(tmp_path / "run.safetensors", optimizer, [layer])
                nbopt.load(tmp_path / "run.safetensors", other, [twin])
            else:
                other.load_state_dict(optimizer.state_dict([layer]), [twin])
        for run, own in ((optimizer, layer), (other, twin)):
            for row in grads[3:]:
                own.grads = row
                run.optimize([own], 0)
        assert all(map(same_bits, values_of([layer]), values_of([twin])))


@pytest.mark.parametrize("label", SOURCES)
def test_torch(label):
    """The rule runs for PyTorch, too, with the same bits."""
    torch = pytest.importorskip("torch", reason="the door to PyTorch: pip install torch")
    import nbopt.torch

    kind, options, *_ = SOURCES[label]
    params, grads = drawn("float32", 4, late=False)
    found = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
    optimizer = nbopt.torch.Optimizer(found, kind(**options), backend="reference")
    for row in grads:
        for param, grad in zip(found, row):
            param.grad = torch.from_numpy(grad.copy())
        optimizer.step()
    with nbopt.use_backend("reference"):
        layer = ours(kind(**options), params, grads)
    assert all(same_bits(param.detach().numpy(), own) for param, own in zip(found, layer.params))


FACTORED = [(name, backend) for name in ("CAME", "Adafactor", "SM3") for backend in ("reference", "cpu")]


@pytest.mark.parametrize(
    ("name", "backend"), thorough_but(FACTORED, *FACTORED[::2], ("CAME", "cpu"), several=True)
)
@pytest.mark.rest
def test_rows_and_columns_without_gradients(name, backend):
    """A row and a column whose gradients are 0, as dead inputs and outputs have, stay finite in float32."""
    values, grad = np.ones((6, 5), np.float32), np.full((6, 5), 0.01, np.float32)
    grad[2] = grad[:, 3] = 0.0
    with nbopt.use_backend(backend):
        optimizer, layer = getattr(nbopt, name)(), nbopt.Parameters((values, grad))
        for _ in range(3):
            optimizer.optimize([layer], 0)
    assert np.isfinite(values).all()
    assert (values[0, 0] < 1.0) and values[2, 3] == 1.0


@pytest.mark.parametrize("name", ["CAME", "Adafactor"])
@pytest.mark.parametrize("scale", [0.0, 1e-18, 1.0, 1e18])
def test_range(name, scale):
    """Tiny and huge gradients, and rows and columns without any, step in float32 as in float64."""
    params, grads = drawn("float64", 3, [(6, 5), (3, 4, 2, 3), (7, 1)], late=False)
    for row in grads:
        row[0][2] = row[0][:, 3] = row[1][1, 2] = 0.0
    found = {}
    with nbopt.use_backend("reference"):
        for dtype in TOLERANCE:
            scaled = [[(scale * grad).astype(dtype) for grad in row] for row in grads]
            found[dtype] = ours(
                getattr(nbopt, name)(), [param.astype(dtype) for param in params], scaled, dtype
            ).params
    for exact, single in zip(found["float64"], found["float32"], strict=True):
        np.testing.assert_allclose(single, exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("label", ["Adafactor", "Adafactor, other numbers"])
def test_matrices_of_one_element(label):
    """Those of convolutions of one pixel go by elements, with PyTorch's result and shapes of states."""
    kind, options, place, their_options = SOURCES[label]
    shapes = [(6, 5, 1, 1), (1, 1), (2, 3, 1, 5), (7, 1)]
    params, grads = drawn("float64", shapes=shapes, late=False)
    for row in grads[3::4]:
        row[:] = [1e-9 * grad for grad in row]
    wanted = theirs(place, their_options, params, grads)
    with nbopt.use_backend("reference") as be:
        optimizer = kind(**options)
        layer = ours(optimizer, params, grads)
        assert [state.shape for state in layer.states[0]] == [(6, 5, 1, 1)] * 2
        (update,) = optimizer.updates(be, [nbopt.Parameters((params[0], grads[0][0]))], 0)
        moved = update.program.bytes_moved([4] * len(update.program.names))
    assert [one for one in moved if one] == [24, 20]
    for a, b in zip(layer.params, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def made():
    """Return one label for each class."""
    return {kind.__name__: label for label, (kind, *_) in reversed(SOURCES.items())}


@pytest.mark.parametrize("name", COSTS)
def test_costs(name):
    """Passes over elements and bytes moved are those that the mathematics needs."""
    with nbopt.use_backend("cpu") as be:
        layer = nbopt.Parameters((np.ones((8, 8), np.float32), np.ones((8, 8), np.float32)))
        (update,) = getattr(nbopt, name)().updates(be, [layer], 0)
        moved = [one for one in update.program.bytes_moved([4] * len(update.program.names)) if one]
        assert (len(moved), sum(moved)) == COSTS[name]


def test_costs_of_a_clip():
    """The norm of all gradients costs LAMB one pass more, in which the gradient is read once more."""
    with nbopt.use_backend("cpu") as be:
        layer = nbopt.Parameters((np.ones((8, 8), np.float32), np.ones((8, 8), np.float32)))
        (update,) = nbopt.LAMB(gradient_clip_norm=1.0).updates(be, [layer], 0)
        moved = [one for one in update.program.bytes_moved([4] * len(update.program.names)) if one]
        assert (len(moved), sum(moved)) == (3, 44)


@pytest.mark.rest
def test_states_of_rows_in_16_bits():
    """Passes over elements read states of rows and columns in the states' dtype, whatever rows are like."""
    found = {}
    for backend in ("reference", "cpu"):
        with nbopt.use_backend(backend, rng_seed=3):
            params, grads = drawn("float32", 3, [(40, 30), (5, 3, 70)], late=False)
            layer = ours(nbopt.SM3(state_dtype="bfloat16", stochastic_round=True), params, grads)
            found[backend] = values_of([layer])
    assert all(map(same_bits, found["reference"], found["cpu"]))


def assert_bits(name, dtype, rounding, shapes):
    """Check that the CPU backend gives the reference's bits."""
    kind, options, *_ = SOURCES[made()[name]]
    found = {}
    for backend in ("reference", "cpu"):
        with nbopt.use_backend(backend, rng_seed=3) as be:
            params, grads = drawn("float32", 3, shapes)
            storage = be.storage_dtype(dtype)
            params, grads = (
                [p.astype(storage) for p in params],
                [[g if g is None else g.astype(storage) for g in row] for row in grads],
            )
            layer = ours(kind(stochastic_round=rounding, **options), params, grads)
            found[backend] = [*layer.params, *(state.get() for states in layer.states for state in states)]
    assert all(map(same_bits, found["reference"], found["cpu"]))


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", False), ("bfloat16", True)])
@pytest.mark.covering
def test_bits(name, dtype, rounding):
    """The CPU backend gives the reference's bits."""
    # Each number of axes has kernels of its own where rows and columns are reduced.
    assert_bits(name, dtype, rounding, [(40, 30), (6, 50)])


@pytest.mark.parametrize("name", ["CAME", "Adafactor", "SM3"])
@pytest.mark.rest
def test_bits_of_any_axes(name):
    """Rules with rows and columns give them beside vectors, and for three axes."""
    assert_bits(name, "bfloat16", True, SHAPES)
