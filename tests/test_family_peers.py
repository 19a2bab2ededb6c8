"""The optimizers that are not neon's against PyTorch's and optax's own.

These must be installed: ``pip install torch optax``.
"""

import numpy as np
import pytest

import nbopt

STEPS = 20
SHAPES = [(30, 20), (7,), (3, 4, 5)]
ADAMS = {"beta_1": 0.8, "beta_2": 0.95}

# A label -> (our optimizer, PyTorch's name, its arguments). Each once with the defaults, which must be the
# same, and once with numbers whose places in the formula show: an epsilon of 1e-8 could stand anywhere.
TORCH = {
    "AdamW": (nbopt.AdamW(), "AdamW", {}),
    "AdamW, other numbers": (
        nbopt.AdamW(False, 0.01, **ADAMS, epsilon=0.1, wdecay=0.5), "AdamW",
        {"lr": 0.01, "eps": 0.1, "weight_decay": 0.5},
    ),
    "AMSGrad": (nbopt.AMSGrad(), "Adam", {"amsgrad": True}),
    "AMSGrad, other numbers": (
        nbopt.AMSGrad(False, 0.01, **ADAMS, epsilon=0.1), "Adam", {"amsgrad": True, "lr": 0.01, "eps": 0.1},
    ),
    "AdaMax": (nbopt.AdaMax(), "Adamax", {}),
    "AdaMax, other numbers": (
        nbopt.AdaMax(False, 0.01, **ADAMS, epsilon=0.1), "Adamax", {"lr": 0.01, "eps": 0.1},
    ),
    "NAdam": (nbopt.NAdam(), "NAdam", {}),
    "NAdam, other numbers": (
        nbopt.NAdam(False, 0.01, **ADAMS, epsilon=0.1, momentum_decay=0.3), "NAdam",
        {"lr": 0.01, "eps": 0.1, "momentum_decay": 0.3},
    ),
    "RAdam": (nbopt.RAdam(), "RAdam", {}),
    "RAdam, other numbers": (
        nbopt.RAdam(False, 0.01, **ADAMS, epsilon=0.1), "RAdam", {"lr": 0.01, "eps": 0.1},
    ),
    "Rprop": (nbopt.Rprop(), "Rprop", {}),
    "Rprop, other numbers": (
        nbopt.Rprop(False, 0.02, eta_minus=0.4, eta_plus=1.5, step_min=0.01, step_max=0.05), "Rprop",
        {"lr": 0.02, "etas": (0.4, 1.5), "step_sizes": (0.01, 0.05)},
    ),
    "ASGD": (nbopt.ASGD(), "ASGD", {}),
    "ASGD, other numbers": (
        nbopt.ASGD(False, 0.05, lambd=0.3, alpha=0.5, t0=5), "ASGD",
        {"lr": 0.05, "lambd": 0.3, "alpha": 0.5, "t0": 5},
    ),
    # PyTorch has epsilon beside the root alone, neon inside it too: without one they agree.
    "RMSProp": (
        nbopt.RMSProp(epsilon=0.0, momentum_coef=0.9), "RMSprop",
        {"lr": 2e-3, "alpha": 0.95, "eps": 0.0, "momentum": 0.9},
    ),
    "RMSProp, centered": (
        nbopt.RMSProp(epsilon=0.0, centered=True), "RMSprop",
        {"lr": 2e-3, "alpha": 0.95, "eps": 0.0, "centered": True},
    ),
    "RMSProp, centered with momentum": (
        nbopt.RMSProp(epsilon=0.0, centered=True, momentum_coef=0.9), "RMSprop",
        {"lr": 2e-3, "alpha": 0.95, "eps": 0.0, "centered": True, "momentum": 0.9},
    ),
}  # fmt: skip
# optax leaves the learning rate to its user.
OPTAX = {
    "Lion": (nbopt.Lion(), "lion", {"learning_rate": 1e-4}),
    "Lion, other numbers": (
        nbopt.Lion(False, 0.01, **ADAMS, wdecay=0.5), "lion",
        {"learning_rate": 0.01, "b1": 0.8, "b2": 0.95, "weight_decay": 0.5},
    ),
    "Yogi": (nbopt.Yogi(), "yogi", {"learning_rate": 1e-2}),
    "Yogi, other numbers": (
        nbopt.Yogi(False, 0.02, **ADAMS, epsilon=0.1), "yogi",
        {"learning_rate": 0.02, "b1": 0.8, "b2": 0.95, "eps": 0.1},
    ),
    "AdaBelief": (nbopt.AdaBelief(), "adabelief", {"learning_rate": 1e-3}),
    "AdaBelief, other numbers": (
        nbopt.AdaBelief(False, 0.01, **ADAMS, epsilon=0.1, epsilon_root=0.01), "adabelief",
        {"learning_rate": 0.01, "b1": 0.8, "b2": 0.95, "eps": 0.1, "eps_root": 0.01},
    ),
}  # fmt: skip

# Both sides round each of 20 steps on parameters of magnitude up to 4 a few times, in another order of
# operations: 20 * 2^-24 * 4 is 5e-6. float64 shows that nothing but roundings is behind this.
TOLERANCE = {"float32": 5e-6, "float64": 1e-13}
# PyTorch keeps NAdam's product of momenta and ASGD's rate and share of the average in float32 even so.
NUMBERS_IN_FLOAT32 = 1e-7

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def drawn(dtype):
    rng = np.random.default_rng(11)
    params = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    return params, [[rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(STEPS)]


def ours(optimizer, params, grads):
    """Return what a fresh copy of the optimizer makes of copies of the parameters."""
    optimizer = type(optimizer).gen_class(optimizer.get_description())
    with nbopt.use_backend("cpu"):
        layer = nbopt.Parameters(*((p.copy(), np.zeros_like(p)) for p in params))
        for row in grads:
            layer.grads = row
            optimizer.optimize([layer], 0)
        return [np.array(p) for p in layer.params]


def assert_close(found, wanted, tolerance):
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert np.abs(a - b).max() <= tolerance


@each_dtype
@pytest.mark.parametrize("label", TORCH)
def test_20_steps_end_where_pytorchs_do(label, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch's optimizers are the other side: pip install torch")
    optimizer, name, options = TORCH[label]
    if "other numbers" in label and hasattr(optimizer, "beta_1"):
        options = {**options, "betas": (0.8, 0.95)}
    params, grads = drawn(dtype)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    torch_optimizer = getattr(torch.optim, name)(theirs, **options)
    for row in grads:
        for p, g in zip(theirs, row):
            p.grad = torch.from_numpy(g.copy())
        torch_optimizer.step()
    tolerance = max(TOLERANCE[dtype], NUMBERS_IN_FLOAT32) if name in ("NAdam", "ASGD") else TOLERANCE[dtype]
    assert_close(ours(optimizer, params, grads), [p.detach().numpy() for p in theirs], tolerance)


@each_dtype
def test_asgds_average_is_pytorchs(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch's optimizers are the other side: pip install torch")
    params, grads = drawn(dtype)
    theirs = torch.nn.Parameter(torch.from_numpy(params[0].copy()))
    torch_optimizer = torch.optim.ASGD([theirs], lr=0.05, t0=5)
    with nbopt.use_backend("cpu"):
        layer = nbopt.Parameters((params[0].copy(), grads[0][0]))
        optimizer = nbopt.ASGD(learning_rate=0.05, t0=5)
        for row in grads:
            theirs.grad = torch.from_numpy(row[0].copy())
            torch_optimizer.step()
            layer.grads = row[:1]
            optimizer.optimize([layer], 0)
        average = layer.states[0][0].get()
    assert np.abs(average - layer.params[0]).max() > 0.1
    assert_close(
        [average], [torch_optimizer.state[theirs]["ax"].numpy()], max(TOLERANCE[dtype], NUMBERS_IN_FLOAT32)
    )


@each_dtype
@pytest.mark.parametrize("label", OPTAX)
@pytest.mark.rest("*-float32")
def test_20_steps_end_where_optaxs_do(label, dtype):
    jax = pytest.importorskip("jax", reason="optax's optimizers are the other side: pip install optax")
    optax = pytest.importorskip("optax", reason="optax's optimizers are the other side: pip install optax")
    optimizer, name, options = OPTAX[label]
    params, grads = drawn(dtype)
    with jax.enable_x64(dtype == "float64"):
        rule = getattr(optax, name)(**options)
        theirs = [jax.numpy.asarray(p) for p in params]
        state = rule.init(theirs)
        if name == "yogi":  # optax starts the mean at 1e-6 too, the paper and we at 0
            state = (state[0]._replace(mu=[jax.numpy.zeros_like(p) for p in theirs]), *state[1:])
        for row in grads:
            changes, state = rule.update([jax.numpy.asarray(g) for g in row], state, theirs)
            theirs = optax.apply_updates(theirs, changes)
        theirs = [np.asarray(p) for p in theirs]
    assert_close(ours(optimizer, params, grads), theirs, TOLERANCE[dtype])
