"""Parameters on several devices: the step of one optimizer, run by a backend on each.

There is one real device here, so a parameter is taken to be where `somewhere` says.
"""

import copy
import gc
import weakref

import pytest

import nbopt
from nbopt.errors import ArgumentError, LayoutError, NboptError

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402
from nbopt.torch import devices  # noqa: E402
from nbopt.torch.states import STEP  # noqa: E402

#: Those of one axis or none are on another device than the others. Both are in both groups.
SHAPES = [(20, 30), (17,), (2, 3, 4), (), (0, 3), (9,), (5, 4)]


def rule(groups, lr, **options):
    own = nbopt.RMSProp(learning_rate=lr, stochastic_round=True, ema_decay=0.9)
    return nbopt.torch.Optimizer(groups, own, **options)


#: name -> dtype, class, its arguments.
CASES = {
    "SGD": ("float32", nbopt.torch.SGD, {"momentum": 0.5}),
    "AdamW": ("float32", nbopt.torch.AdamW, {}),
    "rounded": ("bfloat16", nbopt.torch.AdamW, {"stochastic_round": True}),
    "masters": ("float16", nbopt.torch.AdamW, {"master_weights": True}),
    "early": ("float32", nbopt.torch.Adagrad, {}),
    "by tensor": ("float32", nbopt.torch.LAMB, {}),
    "by axes": ("float32", nbopt.torch.Adafactor, {}),
    "rule": ("bfloat16", rule, {}),
}


def made(name, params=None, backend="reference", seed=7):
    """The optimizer of a case over two groups."""
    dtype, kind, options = CASES[name]
    params = parameters(dtype) if params is None else params
    groups = [{"params": params[:4]}, {"params": params[4:], "lr": 0.05}]
    return kind(groups, lr=0.1, backend=backend, seed=seed, **options)


def somewhere(param):
    return torch.device("cpu", int(param.ndim < 2))


@pytest.fixture
def apart(monkeypatch):
    """``apart(True)`` puts parameters on two devices, ``apart(False)`` on one."""
    real = devices.device_of
    return lambda on: monkeypatch.setattr(devices, "device_of", somewhere if on else real)


def parameters(dtype="float32"):
    generator = torch.Generator().manual_seed(0)
    found = (torch.randn(shape, generator=generator) for shape in SHAPES)
    return [torch.nn.Parameter(param.to(getattr(torch, dtype))) for param in found]


def train(optimizer, start=0, steps=4):
    """Steps in which some parameters have no gradient at times, and once all of one device."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for number, param in enumerate(params):
            grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            param.grad = None if (step + number) % 4 == 3 or (step == 2 and param.ndim > 1) else grad
        optimizer.step()


def values_of(optimizer):
    """Copies of everything that a step writes."""
    found = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            found += [param, *dict(sorted(optimizer.state.get(param, {}).items())).values()]
    return [value.detach().clone() for value in found]


def equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


def backends(optimizer):
    return [*optimizer._backends.values()]


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "reference") for name in CASES), ("SGD", "cpu"), ("rounded", "cpu")]
)
def test_same_bits(apart, name, backend):
    """Parameters, states and random bits are those of one optimizer over all of them on one device."""
    found = []
    for on in (False, True):
        apart(on)
        optimizer = made(name, backend=backend)
        train(optimizer)
        found.append(values_of(optimizer))
        assert len(backends(optimizer)) == 1 + on and all(be.launches for be in backends(optimizer))
    assert equal(*found)


@pytest.mark.parametrize("name", ["AdamW", "rounded", "masters", "rule"])
def test_resumed(apart, name):
    """A run goes on with the same bits after a load in either direction, and as a copy."""
    later = {}
    for on in (False, True):
        apart(on)
        optimizer = made(name)
        train(optimizer)
        saved, params = optimizer.state_dict(), parameters(CASES[name][0])
        apart(not on)
        other = made(name, params, seed=8)
        with torch.no_grad():
            for param, value in zip(params, (p for group in optimizer.param_groups for p in group["params"])):
                param.copy_(value)
        other.load_state_dict(copy.deepcopy(saved))
        apart(on)
        again = copy.deepcopy(optimizer)
        assert len(backends(again)) == 1 + on
        for key, own in {"went on": optimizer, "copied": again}.items():
            train(own, start=4)
            later[on, key] = values_of(own)
        apart(not on)
        train(other, start=4)
        later[on, "loaded"] = values_of(other)
    first = later.pop((False, "went on"))
    assert len(later) == 5 and all(equal(first, values) for values in later.values())


def test_added(apart):
    """A group, or a parameter in a group, may come from another device later, or from none."""
    found = []
    for on in (False, True):
        apart(on)
        params = parameters()
        optimizer = nbopt.torch.AdamW([params[0]], lr=0.1, backend="reference")
        train(optimizer)
        for wrong in ({"params": [torch.ones(3, dtype=torch.int32)]}, {"params": [params[1]], "lr": "fast"}):
            with pytest.raises((NboptError, TypeError, ValueError)):
                optimizer.add_param_group(wrong)
            assert len(backends(optimizer)) == 1
        optimizer.add_param_group({"params": params[1:3]})
        train(optimizer, start=4)
        optimizer.param_groups[0]["params"].append(params[3])
        train(optimizer, start=8)
        assert len(backends(optimizer)) == 1 + on
        found.append(values_of(optimizer))
    assert equal(*found)


def test_moved(apart, monkeypatch):
    """A model that is moved with its states is followed, also to devices that are new."""
    found = []
    for on in (False, True):
        apart(on)
        optimizer = made("rounded")
        train(optimizer)
        if on:
            monkeypatch.setattr(devices, "device_of", lambda param: torch.device("cpu", param.ndim))
        train(optimizer, start=4)
        assert len(backends(optimizer)) == (4 if on else 1)
        found.append(values_of(optimizer))
    assert equal(*found)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_whole(apart, backend):
    """A step that is refused on the second device changes nothing on the first, and doesn't count."""
    apart(True)
    optimizer = made("rounded", backend=backend)
    train(optimizer)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.ones_like(param)
    params[5].grad = params[5].data
    before, random = values_of(optimizer), optimizer.state_dict()["rng_state"]
    versions = [param._version for param in params]
    with pytest.raises(LayoutError, match="share memory"):
        optimizer.step()
    assert equal(before, values_of(optimizer)) and optimizer.state_dict()["rng_state"] == random
    assert versions == [param._version for param in params]
    params[5].grad = torch.ones_like(params[5])
    optimizer.step()
    assert optimizer.state_dict()["rng_state"]["updates"] == random["updates"] + 1
    assert [param._version - version for param, version in zip(params, versions)] == [1] * len(params)


def test_one_number(apart):
    """What needs one number for all parameters is refused with the way out, and nothing changes."""
    apart(True)
    cases = {
        "gradient_clip_norm needs .*clip_grad_norm_": {"gradient_clip_norm": 1.0},
        "skip_nonfinite needs .*leave it out": {"skip_nonfinite": True},
        "a loss_scale that is a tensor .*item": {"loss_scale": torch.tensor(2.0)},
        "a graph is of one device, .* cpu:0, cpu:1": {"capturable": True},
    }
    for message, attributes in cases.items():
        optimizer = made("SGD")
        train(optimizer)
        before = values_of(optimizer)
        for name, value in attributes.items():
            setattr(optimizer, name, value)
        with pytest.raises(ArgumentError, match=message):
            train(optimizer, start=4, steps=1)
        assert equal(before, values_of(optimizer))
        for name in attributes:
            setattr(optimizer, name, {"gradient_clip_norm": None, "loss_scale": 1.0}.get(name, False))
        train(optimizer, start=4, steps=1)
        assert optimizer.grad_norm is None and not equal(before, values_of(optimizer))
    optimizer = nbopt.torch.Prodigy(parameters(), backend="reference")
    with pytest.raises(ArgumentError, match=r"the rule of Prodigy needs one number .*AdamW"):
        train(optimizer)
    assert not any(optimizer.state.values())
    with pytest.raises(LayoutError, match=r"on cpu:0 and on cpu:1, and a backend that exists .*backend= out"):
        nbopt.torch.SGD(parameters(), lr=0.1, backend=nbopt.backends.new_backend("reference"))
    with pytest.raises(LayoutError, match="parameters are on meta, and no backend works there"):
        apart(False)
        nbopt.torch.SGD([*parameters(), torch.zeros(3, device="meta")], lr=0.1)


def test_grad_scaler(apart):
    """A GradScaler unscales the gradients itself, and leaves steps out that are not finite."""
    apart(True)
    found = []
    for scaled in (False, True):
        params = parameters()
        optimizer = made("AdamW", params)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(4):
            optimizer.zero_grad()
            bad = step == 2
            loss = sum((param.square() * (1 + step)).sum() for param in params) * (torch.inf if bad else 1.0)
            if scaled or not bad:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        found.append(values_of(optimizer))
    assert equal(*found)


def test_garbage(apart):
    """An optimizer dies with its last reference, and steps leave nothing behind."""
    apart(True)
    optimizer = made("rounded", backend="cpu")
    train(optimizer, steps=12)
    gc.collect()
    gc.disable()
    try:
        counts = []
        for turn in range(3):
            train(optimizer, start=12 + 8 * turn, steps=8)
            counts.append(len(gc.get_objects()))
        assert counts[2] == counts[1]
        watched = [weakref.ref(be) for be in backends(optimizer)]
        del optimizer
        gc.collect()
        assert len(watched) == 2 and not any(one() for one in watched)
    finally:
        gc.enable()


def test_counts():
    """Numbers that are states of parameters stand in one tensor on each device."""
    params = [torch.zeros(3), torch.zeros(3, device="meta"), torch.zeros(2)]
    for found in (STEP.new(params, {}, None), STEP.copies(params, [1.0, 2.0, 3.0], None)):
        assert [value.device.type for value in found] == ["cpu", "meta", "cpu"]
        assert found[0].untyped_storage().data_ptr() == found[2].untyped_storage().data_ptr()
    assert [float(found[0]), float(found[2])] == [1.0, 3.0]
