"""nbopt.torch.LAMB and its kin, against the packages that they are from.

``pip install pytorch_optimizer prodigyopt schedulefree`` for the other side.
"""

import copy
import functools
import inspect
import io
import pickle
import re

import numpy as np
import pytest

import nbopt
from tests.test_family_sources import drawn

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402

DECAY = {"weight_decay": 0.1}
COUPLED = {"weight_decay": 0.1, "weight_decouple": False}
DECOUPLED = {"weight_decay": 0.1, "weight_decouple": True}
ADAMS = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.1}
#: Class -> where the source is, and arguments to try.
SOURCES = {
    "LAMB": ("pytorch_optimizer.Lamb", [{}, DECAY, COUPLED, {**ADAMS, "grad_averaging": False,
    "maximize": True}]),
    "LARS": ("pytorch_optimizer.LARS", [
        {}, {"momentum": 0.0}, {"nesterov": True, **DECAY},
        {"lr": 0.1, "momentum": 0.7, "dampening": 0.2, "trust_coefficient": 0.1, "maximize": True, **DECAY},
    ]),
    "AdEMAMix": ("pytorch_optimizer.AdEMAMix", [
        {}, DECOUPLED, COUPLED, {"lr": 0.02, "betas": (0.8, 0.95, 0.99), "eps": 0.1, "alpha": 2.0,
        "t_alpha_beta3": 20, "maximize": True},
    ]),
    "ADOPT": ("pytorch_optimizer.ADOPT", [
        {}, DECOUPLED, COUPLED, {**ADAMS, "clip_lambda": None, "maximize": True},
        {"clip_lambda": lambda step: 0.1 * step},
    ]),
    "Adan": ("pytorch_optimizer.Adan", [{}, DECOUPLED, COUPLED, {**ADAMS, "betas": (0.8, 0.7, 0.95)}]),
    "Tiger": ("pytorch_optimizer.Tiger", [{}, {"lr": 0.02, "beta": 0.8, "maximize": True, **COUPLED}]),
    "StableAdamW": ("pytorch_optimizer.StableAdamW", [{}, COUPLED, {**ADAMS, "weight_decay": 0.0,
    "maximize": True}]),
    "MARS": ("pytorch_optimizer.MARS", [
        {}, {"optimize_1d": True, **DECAY}, {"cautious": True},
        {**ADAMS, "gamma": 0.2, "lr_1d": 0.01, "betas_1d": (0.7, 0.8), "weight_decay_1d": 0.3,
        "maximize": True},
    ]),
    "Prodigy": ("prodigyopt.Prodigy", [
        {}, {"weight_decay": 0.1, "d0": 0.01}, {"weight_decay": 0.1, "decouple": False, "growth_rate": 1.5},
        {"lr": 0.5, "betas": (0.8, 0.95), "beta3": 0.9, "eps": 0.1, "d0": 0.01, "d_coef": 2.0,
        "use_bias_correction": True,
         "safeguard_warmup": True},
    ]),
    "DAdaptAdam": ("pytorch_optimizer.DAdaptAdam", [
        {}, {"growth_rate": 1.5, "d0": 0.01, **DECOUPLED}, COUPLED,
        {"lr": 0.5, "betas": (0.8, 0.95), "eps": 0.1, "bias_correction": True, "d0": 0.01, "maximize": True},
    ]),
    "ScheduleFreeSGD": ("schedulefree.SGDScheduleFree", [
        {}, {"lr": 0.1, "momentum": 0.7, "warmup_steps": 10, "r": 1.5, "weight_lr_power": 1.0, **DECAY},
    ]),
    "ScheduleFreeAdamW": ("schedulefree.AdamWScheduleFree", [
        {}, {"lr": 0.1, "betas": (0.7, 0.95), "eps": 0.1, "warmup_steps": 10, "r": 1.5,
        "weight_lr_power": 1.0, **DECAY},
    ]),
    "ScheduleFreeRAdam": ("schedulefree.RAdamScheduleFree", [
        {}, {"lr": 0.1, "betas": (0.7, 0.95), "eps": 0.1, "r": 1.5, "weight_lr_power": 1.0,
        "silent_sgd_phase": False, **DECAY},
    ]),
    "Adafactor": ("torch.optim.Adafactor", [
        {}, {"lr": 0.3, "beta2_decay": -0.5, "eps": (0.9, 1.5), "d": 1.2, "maximize": True, **DECAY},
    ]),
    "CAME": ("pytorch_optimizer.CAME", [
        {}, COUPLED, {"lr": 0.02, "betas": (0.8, 0.95, 0.9), "eps1": 0.1, "eps2": 0.01,
        "clip_threshold": 0.8, "maximize": True, **DECAY},
    ]),
    "SM3": ("pytorch_optimizer.SM3", [{}, {"lr": 0.02, "momentum": 0.8, "beta": 0.9, "eps": 0.1,
    "maximize": True}]),
    "Lion": ("pytorch_optimizer.Lion", [
        {}, DECAY, {"lr": 0.02, "betas": (0.8, 0.95), "maximize": True, **DECAY},
    ]),
    "Yogi": ("pytorch_optimizer.Yogi", [{}, DECAY, {**ADAMS, "initial_accumulator": 0.1, "maximize": True,
    **COUPLED}]),
    "AdaBelief": ("pytorch_optimizer.AdaBelief", [{}, DECAY, {**ADAMS, "maximize": True, **COUPLED}]),
}  # fmt: skip
CASES = [(name, kwargs) for name, (_, several) in SOURCES.items() for kwargs in several]
each_case = pytest.mark.parametrize(
    ("name", "kwargs"), CASES, ids=lambda value: re.sub("<function.*>", "function", str(value))[:60]
)
each_class = pytest.mark.parametrize("name", SOURCES)
#: Arguments of a source that there are not here.
LEFT_OUT = {
    "foreach", "kwargs", "fixed_decay", "rectify", "degenerated_to_sgd", "n_sma_threshold", "adam",
    "ams_bound", "mars_type", "slice_p",
    "fsdp_in_use", "kahan_sum",
}  # fmt: skip


def source_of(name):
    package, kind = SOURCES[name][0].rsplit(".", 1)
    return getattr(pytest.importorskip(package, reason=f"it is the other side: pip install {package}"), kind)


def tensors(values):
    return [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in values]


def run(optimizer, params, grads):
    for row in grads:
        for param, grad in zip(params, row):
            param.grad = None if grad is None else torch.from_numpy(grad.copy())
        optimizer.step()


def made(name, params, **kwargs):
    optimizer = getattr(nbopt.torch, name)(params, **{"backend": "reference", **kwargs})
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def plain(value):
    return value.item() if isinstance(value, torch.Tensor) else value


def of_the_source(name, params, grads, **kwargs):
    """Return the optimizer of the source after its steps, and what it makes of copies of the parameters."""
    found = tensors(params)
    torch.set_default_dtype(found[0].dtype)  # which some keep their sums in
    try:
        source = source_of(name)(found, **kwargs)
        if hasattr(source, "train"):
            source.train()
        run(source, found, grads)
    finally:
        torch.set_default_dtype(torch.float32)
    return source, found


def of_ours(name, params, grads, **kwargs):
    """Return the optimizer of nbopt.torch after its steps, and what it makes of copies of the parameters."""
    found = tensors(params)
    optimizer = made(name, found, **kwargs)
    run(optimizer, found, grads)
    return optimizer, found


def assert_close(found, wanted, tolerance=1e-9):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@each_case
@pytest.mark.rest("*-{}")
def test_source(name, kwargs):
    """30 steps end where the source's do, with the same states and numbers of the groups."""
    params, grads = drawn("float64")
    source, theirs = of_the_source(name, params, grads, **kwargs)
    optimizer, ours = of_ours(name, params, grads, **kwargs)
    for found, wanted, start in zip(ours, theirs, params):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        assert not np.array_equal(found.detach().numpy(), start)
        states, known = optimizer.state[found], source.state[wanted]
        both = states.keys() & known.keys()
        assert both or name == "LARS"
        for key in both:
            torch.testing.assert_close(
                states[key].reshape(known[key].shape),
                known[key],
                rtol=1e-9,
                atol=1e-9,
                check_dtype=key != "step",
            )
    group, known = optimizer.param_groups[0], source.param_groups[0]
    left_out = LEFT_OUT | {"params", "scheduled_lr", "d_denom", "d_hat", "clip_lambda", "cautious", "eps"}
    assert known.keys() - group.keys() <= left_out | (
        {"weight_decouple"} if name in ("MARS", "Lion") else set()
    )
    for key in known.keys() & group.keys() - left_out:
        np.testing.assert_allclose(
            *((np.ravel(plain(one[key])) if one[key] is not None else 0) for one in (group, known)), rtol=1e-9
        )


@each_class
def test_float32(name):
    """In float32, too, 30 steps end where the source's do."""
    params, grads = drawn("float32")
    kwargs = SOURCES[name][1][-1]
    (_, theirs), (_, ours) = (of(name, params, grads, **kwargs) for of in (of_the_source, of_ours))
    assert_close(ours, theirs, 2e-5)


@each_class
def test_arguments(name):
    """The arguments are the source's, with its defaults and in its order."""
    theirs = inspect.signature(source_of(name)).parameters
    ours = inspect.signature(getattr(nbopt.torch, name)).parameters
    left_out = LEFT_OUT - ({"foreach"} if name == "Adafactor" else set())
    left_out |= {"weight_decouple"} if name in ("MARS", "Lion") else set()
    wanted = [key for key in theirs if key not in left_out]
    assert [key for key in ours if key in wanted and key != "cautious"] == [
        key for key in wanted if key != "cautious"
    ]
    for key in wanted:
        if key not in ("params", "clip_lambda"):
            assert ours[key].default == theirs[key].default
    with pytest.raises(TypeError):
        getattr(nbopt.torch, name)(tensors([np.ones(3)]), fixed_decay=True)


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=name_of_loading(state_dict))


def name_of_loading(state_dict):
    return all("clip_lambda" not in group for group in state_dict["param_groups"])


@each_class
@pytest.mark.parametrize("way", ["state dict", "pickle", "copy"])
def test_resumes(name, way):
    """A run that was saved, or copied, goes on with the same bits."""
    params, grads = drawn("float32", 8)
    ours = tensors(params)
    optimizer = made(name, ours)
    run(optimizer, ours, grads[:4])
    if way == "state dict":
        twins = tensors([param.detach().numpy() for param in ours])
        other = getattr(nbopt.torch, name)(twins, backend="reference")
        before = optimizer.state_dict()
        other.load_state_dict(saved_and_loaded(before))
    else:
        copied = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.deepcopy}[way]
        other, twins = copied((optimizer, ours))
    for one, own in ((optimizer, ours), (other, twins)):
        run(one, own, grads[4:])
    for found, wanted in zip(twins, ours):
        assert torch.equal(found, wanted)
    first, second = optimizer.state_dict(), other.state_dict()
    assert {**first["param_groups"][0], "clip_lambda": 0} == {**second["param_groups"][0], "clip_lambda": 0}


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("LARS", "Adan", "ADOPT")])
def test_state_dicts(name):
    """A state dict of the source goes on here as there."""
    params, grads = drawn("float64", 8)
    theirs, ours = tensors(params), tensors(params)
    torch.set_default_dtype(torch.float64)
    try:
        source = source_of(name)(theirs)
        if hasattr(source, "train"):
            source.train()
        run(source, theirs, grads[:4])
        if hasattr(source, "eval"):
            source.eval()
        optimizer = getattr(nbopt.torch, name)(ours, backend="reference")
        optimizer.load_state_dict(source.state_dict())
        with torch.no_grad():
            for found, wanted in zip(ours, theirs):
                found.copy_(wanted)
        for one in (source, optimizer):
            if hasattr(one, "train"):
                one.train()
        run(source, theirs, grads[4:])
    finally:
        torch.set_default_dtype(torch.float32)
    run(optimizer, ours, grads[4:])
    for found, wanted in zip(ours, theirs):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@each_class
def test_zero(name):
    """A learning rate of 0 divides nothing by zero, and moves nothing; bad arguments are refused."""
    params, grads = drawn("float32", 3)
    kwargs = {"MARS": {"weight_decay_1d": 0.0}}.get(name, {})
    ours = tensors(params)
    run(made(name, ours, lr=0.0, **kwargs), ours, grads)
    for found, start in zip(ours, params):
        assert np.array_equal(found.detach().numpy(), start)
    for bad in (
        {"lr": -1.0},
        {"lr": float("nan")},
        {"weight_decay": -0.1},
        {"eps": -1.0},
        {"betas": (1.5, 0.9)},
        {"betas": 0.9},
    ):
        if bad.keys() <= getattr(nbopt.torch, name).made_of.given.keys():
            with pytest.raises((ValueError, TypeError)):
                made(name, tensors(params), **bad)


# --- where they differ from their sources on purpose ---


def test_maximize():
    """Adan ascends by the gradient's negation. (In the source the first difference has the wrong sign.)"""
    params, grads = drawn("float64", 5)
    negated = [[grad if grad is None else -grad for grad in row] for row in grads]
    _, ours = of_ours("Adan", params, grads, maximize=True)
    assert all(map(torch.equal, ours, of_ours("Adan", params, negated)[1]))
    assert_close(ours, of_the_source("Adan", params, negated)[1])
    _, theirs = of_the_source("Adan", params, grads, maximize=True)
    assert not torch.allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


@each_class
def test_probe(name):
    """The step with which PyTorch's distributed checkpoints make states moves nothing, and goes on as any."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = torch.nn.Linear(5, 4)
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = made(name, model.parameters())
    assert get_optimizer_state_dict(model, optimizer)["state"]
    assert all(map(torch.equal, model.parameters(), before))
    run(optimizer, [*model.parameters()], drawn("float32", 8, [(4, 5), (4,)], late=False)[1])
    assert all(param.isfinite().all() for param in model.parameters())
    assert not any(map(torch.equal, model.parameters(), before))


def test_prodigy_without_a_rate():
    """A step of Prodigy whose learning rate is 0 counts, as any other; in the source states stay."""
    params, grads = drawn("float64", 3, late=False)
    largest = []
    for make in (source_of("Prodigy"), functools.partial(nbopt.torch.Prodigy, backend="reference")):
        own = tensors(params)
        optimizer = make(own)
        optimizer.param_groups[0]["lr"] = 0.0  # as a schedule sets it
        run(optimizer, own, grads)
        largest.append(float(optimizer.state[own[0]]["exp_avg"].abs().max()))
    theirs, ours = largest
    assert theirs == 0.0 < ours


def test_dadaptadam_without_gradients():
    """Weights decay in DAdaptAdam while all gradients are 0; in the source they do not."""
    params, grads = drawn("float64", 2, late=False)
    still = [[0.0 * grad for grad in row] for row in grads]
    (_, theirs), (_, ours) = (
        of("DAdaptAdam", params, still, d0=0.01, **DECOUPLED) for of in (of_the_source, of_ours)
    )
    for found, wanted, start in zip(ours, theirs, params):
        assert np.array_equal(wanted.detach().numpy(), start)
        np.testing.assert_allclose(found.detach().numpy(), (1 - 0.01 * 0.1) ** 2 * start, rtol=1e-12)


@pytest.mark.parametrize(("name", "kwargs"), [("LAMB", {"pre_norm": True}), ("Adan", {})])
def test_clips_of_the_source(name, kwargs):
    """Bounds of the norm are the source's, but for the epsilon that it adds to the norm."""
    params, grads = drawn("float64", late=False)
    kwargs = {"max_grad_norm": 0.5, **kwargs}
    (_, theirs), (_, ours) = (of(name, params, grads, **kwargs) for of in (of_the_source, of_ours))
    assert_close(ours, theirs, 1e-6)
    assert not torch.allclose(ours[0], of_ours(name, params, grads)[1][0], rtol=1e-5, atol=1e-5)


def test_clips():
    """max_grad_norm bounds the norm of all groups together."""
    params, grads = drawn("float64", 4, late=False)
    for name, kwargs in (
        ("LAMB", {"max_grad_norm": 0.5, "pre_norm": True}),
        ("Adan", {"max_grad_norm": 0.5}),
    ):
        found = []
        for options, factor in ((kwargs, 1.0), ({}, None)):
            ours = tensors(params)
            optimizer = made(name, [{"params": ours[:1]}, {"params": ours[1:]}], **options)
            rows = grads
            if factor is None:
                norms = [np.sqrt(sum((grad**2).sum() for grad in row)) for row in grads]
                rows = [[grad * 0.5 / max(norm, 0.5) for grad in row] for row, norm in zip(grads, norms)]
            run(optimizer, ours, rows)
            found.append(ours)
        for one, other in zip(*found):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


# --- the estimate of the rate ---


@pytest.mark.parametrize("door", ["sourced", "Optimizer"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.rest("reference-*")
def test_one_estimate(door, backend):
    """All groups share one estimate: they move as one group does."""
    params, grads = drawn("float64", 12)
    grads = [[0.1 * start for start in params] for _ in grads]
    found = []
    for split in (False, True):
        ours = tensors(params)
        groups = [{"params": [p]} for p in ours] if split else [{"params": ours}]
        if door == "sourced":
            optimizer = nbopt.torch.Prodigy(groups, d0=0.01, backend=backend)
        else:
            optimizer = nbopt.torch.Optimizer(groups, nbopt.Prodigy(d0=0.01), backend=backend)
        run(optimizer, ours, grads)
        found.append(ours)
        if door == "sourced":
            assert len({float(group["d"]) for group in optimizer.param_groups}) == 1
            assert optimizer.param_groups[0]["d"] > 0.01
            assert optimizer.param_groups[0]["k"] == 12
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", ["lr", "d_coef", "betas", "growth_rate"])
def test_disagreeing_groups(key):
    """Groups that disagree on what the estimate depends on are refused, and nothing has changed."""
    params, grads = drawn("float64", 2)
    ours = tensors(params)
    value = {"lr": 0.5, "d_coef": 2.0, "betas": (0.8, 0.9), "growth_rate": 2.0}[key]
    optimizer = made("Prodigy", [{"params": ours[:1]}, {"params": ours[1:], key: value}])
    with pytest.raises(nbopt.errors.ArgumentError, match="they must agree on"):
        run(optimizer, ours, grads[:1])
    for found, start in zip(ours, params):
        assert np.array_equal(found.detach().numpy(), start)
    for group in optimizer.param_groups:
        group[key] = value
    run(optimizer, ours, grads)


def test_rate_far_from_one():
    """Prodigy warns of a rate that is meant for another optimizer."""
    with pytest.warns(UserWarning, match="it should be near 1"):
        made("Prodigy", tensors([np.ones(3)]), lr=1e-3)


def test_written_estimate():
    """A number that is written into the group holds from the next step on."""
    params, grads = drawn("float64", 6)
    ours, twins = tensors(params), tensors(params)
    optimizer, other = made("Prodigy", ours), made("Prodigy", twins)
    run(optimizer, ours, grads[:3])
    run(other, twins, grads[:3])
    for key in ("d", "d_max"):
        optimizer.param_groups[0][key] = 0.5
        other.param_groups[0][key].fill_(0.5)
    run(optimizer, ours, grads[3:])
    run(other, twins, grads[3:])
    assert optimizer.param_groups[0]["d"] >= 0.5
    for one, two in zip(ours, twins):
        assert torch.equal(one, two)


# --- averages ---


@pytest.mark.parametrize("name", ["ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam"])
def test_modes(name):
    """Eval puts the source's averages in place, train restores every bit, a step in eval mode is an error."""
    params, grads = drawn("float64", 12)
    theirs, ours = tensors(params), tensors(params)
    source = source_of(name)(theirs)
    optimizer = getattr(nbopt.torch, name)(ours, backend="reference")
    with pytest.raises(nbopt.errors.StateError, match=r"optimizer\.train\(\)"):
        run(optimizer, ours, grads[:1])
    for one, own in ((source, theirs), (optimizer, ours)):
        one.train()
        run(one, own, grads)
    before = [param.detach().clone() for param in ours]
    source.eval()
    optimizer.eval()
    optimizer.eval()
    for found, wanted in zip(ours, theirs):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(nbopt.errors.StateError):
        optimizer.step()
    # A checkpoint keeps the mode.
    twins = tensors([param.detach().numpy() for param in ours])
    other = getattr(nbopt.torch, name)(twins, backend="reference")
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert not other.param_groups[0]["train_mode"]
    for one, own in ((optimizer, ours), (other, twins)):
        one.train()
        one.train()
        assert all(map(torch.equal, own, before))
        run(one, own, grads)
    assert all(map(torch.equal, ours, twins))
    assert not any("training" in states for states in optimizer.state.values())


@pytest.mark.parametrize("name", ["AdamW", "LAMB", "SGD", "Prodigy", "Adafactor", "Optimizer"])
def test_means(name):
    """`with optimizer.ema()` puts running means in place of the parameters, and restores every bit."""
    params, grads = drawn("float32", 6)
    ours = tensors(params)
    if name == "Optimizer":
        optimizer = nbopt.torch.Optimizer(ours, nbopt.RMSProp(ema_decay=0.9), backend="reference")
    else:
        optimizer = made(name, ours, ema_decay=0.9)
    means = [param.copy() for param in params]
    for row in grads:
        run(optimizer, ours, [row])
        for mean, param in zip(means, ours):
            if param.grad is not None:
                mean += np.float32(1 - 0.9) * (param.detach().numpy() - mean)
    before = [param.detach().clone() for param in ours]
    with optimizer.ema():
        for param, mean in zip(ours, means):
            torch.testing.assert_close(param.detach(), torch.from_numpy(mean), rtol=1e-6, atol=1e-6)
        with pytest.raises(nbopt.errors.StateError, match=r"optimizer\.ema"):
            optimizer.step()
        with pytest.raises(nbopt.errors.StateError), optimizer.ema():
            pass
    assert all(map(torch.equal, ours, before))
    twins = tensors([param.detach().numpy() for param in ours])
    if name != "Optimizer":
        other = getattr(nbopt.torch, name)(twins, backend="reference", ema_decay=0.9)
        other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
        for one, own in ((optimizer, ours), (other, twins)):
            run(one, own, grads[3:])
        for param, twin in zip(ours, twins):
            assert torch.equal(param, twin) and torch.equal(
                optimizer.state[param]["ema"], other.state[twin]["ema"]
            )


def test_modifiers():
    """Modifiers are extras of every class, and keys of its groups; a mean that is switched on begins then."""
    params, grads = drawn("float64", 6, late=False)
    ours, twins = tensors(params), tensors(params)
    options = {"centralize": True, "adaptive_clip": 0.3, "param_decay": 0.1, "cautious": True}
    optimizer = made("AdamW", ours, weight_decay=0.0, **options)
    other = nbopt.torch.AdamW([{"params": twins, **options}], weight_decay=0.0, backend="reference")
    run(optimizer, ours, grads)
    run(other, twins, grads)
    assert all(map(torch.equal, ours, twins))
    with nbopt.use_backend("reference"):
        layer = nbopt.Parameters(*zip([param.copy() for param in params], params))
        native = nbopt.AdamW(wdecay=0.0, **options)
        for row in grads:
            layer.grads = row
            native.optimize([layer], 0)
    for param, wanted in zip(ours, layer.params):
        np.testing.assert_allclose(param.detach().numpy(), wanted, rtol=1e-9, atol=1e-12)
    before = [param.detach().clone() for param in ours]
    optimizer.ema_decay = 0.5
    run(optimizer, ours, grads[:1])
    for param, start in zip(ours, before):
        torch.testing.assert_close(optimizer.state[param]["ema"], (start + param.detach()) / 2)
    with pytest.raises(nbopt.errors.ArgumentError, match="no cautious updates"):
        made("SGD", tensors(params), cautious=True)


def test_adafactors_epsilon():
    """Without an epsilon it is that of the parameters' dtype, which must be one in a group."""
    double, single = tensors([np.ones(3)]), tensors([np.ones(3, np.float32)])
    with pytest.raises(nbopt.errors.ArgumentError, match="give each dtype a group"):
        made("Adafactor", double + single)
    made("Adafactor", double + single, eps=(1e-7, 1e-3))
    made("Adafactor", [{"params": double}, {"params": single}])


@pytest.mark.parametrize(("shape", "theirs"), [((6,), 1), ((3, 4), 12)])
def test_adafactor_nan(shape, theirs):
    """NaN in a gradient makes all of its parameter NaN, or nothing with skip_nonfinite, see the docstring."""
    found = []
    for module, options in (
        (torch.optim, {}),
        (nbopt.torch, {"backend": "reference"}),
        (nbopt.torch, {"backend": "reference", "skip_nonfinite": True}),
    ):
        param = torch.nn.Parameter(torch.ones(shape))
        param.grad = torch.ones(shape)
        param.grad.view(-1)[1] = torch.nan
        module.Adafactor([param], lr=0.1, **options).step()
        found.append(int(param.isnan().sum()))
    assert found == [theirs, param.numel(), 0]
