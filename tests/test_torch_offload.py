"""Offload: weights are those of the optimizer without it, to the bit, whatever the buckets are."""

import gc
import weakref

import pytest

import nbopt
from nbopt.errors import ArgumentError, DeviceMemoryError, DtypeError, LayoutError, SparseError

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402
from nbopt.torch.offload import hosts, memory  # noqa: E402
from nbopt.torch.offload.copies import Copies  # noqa: E402

Offload = nbopt.torch.Offload
SIZES = (1, 3000, 2**26)
CASES = {
    "sgd": (nbopt.torch.SGD, {"lr": 1e-2, "momentum": 0.9}),
    "adamw": (nbopt.torch.AdamW, {"lr": 1e-2}),
    "lion": (nbopt.torch.Lion, {}),
    "clip": (nbopt.torch.AdamW, {"gradient_clip_norm": 0.5, "skip_nonfinite": True}),
    "prodigy": (nbopt.torch.Prodigy, {}),  # it reduces over all parameters
    "ema": (nbopt.torch.AdamW, {"stochastic_round": True, "ema_decay": 0.9}),
}
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "mixed": (torch.bfloat16, torch.float32),
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where parameters are. On a GPU the tests are the same."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    return request.param


def made(device, dtypes=DTYPES["float32"]):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 33), torch.nn.Linear(33, 7, bias=False), torch.nn.LayerNorm(7)
    )
    model[0].to(dtypes[0])
    model[1].to(dtypes[1])
    model[2].to(dtypes[1])
    return model.to(device)


def loss_of(model):
    value = torch.randn(16, 20).to(model[1].weight.device)
    for layer in model:
        value = layer(value.to(layer.weight.dtype))
    return value.float().square().sum()


def train(model, optimizer, steps=20, passes=1, clip=None, bad=None, start=0):
    for step in range(start, start + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        for _ in range(passes):
            loss_of(model).backward()
        if clip and step % 3 == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if step == bad:
            model[0].bias.grad[0] = float("nan")
        if step % 8 == 2:
            model[1].weight.grad = None
        optimizer.step()


def check_equal(plain, model, offloaded, other):
    """Check that weights, states and groups are equal."""
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    expected, found = plain.state_dict(), offloaded.state_dict()
    assert expected["state"].keys() == found["state"].keys()
    for index, states in expected["state"].items():
        assert states.keys() == found["state"][index].keys()
        for name, value in states.items():
            assert torch.equal(value.cpu(), found["state"][index][name])
    assert str(expected["param_groups"]) == str(found["param_groups"])
    assert expected["rng_state"]["updates"] == found["rng_state"]["updates"]
    assert expected["skipped"] == found["skipped"]


@pytest.mark.covering
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.rest("*adamw*")
def test_bits(device, case, dtypes):
    """Twenty steps, in buckets of any size; and with two backward passes, some clipped by the user."""
    kind, options = CASES[case]
    for how in ({}, {"passes": 2, "clip": 0.1, "bad": 4 if case == "clip" else None}):
        model = made(device, DTYPES[dtypes])
        plain = kind(model.parameters(), seed=1, master_weights=True, **options)
        train(model, plain, **how)
        for size in SIZES:
            other = made(device, DTYPES[dtypes])
            offloaded = Offload(other, kind, bucket_bytes=size, seed=1, **options)
            train(other, offloaded, **how)
            check_equal(plain, model, offloaded, other)


def test_rules(device):
    """A rule, and what makes an optimizer, are as good as a class."""
    model = made(device)
    train(model, nbopt.torch.Optimizer(model.parameters(), nbopt.Lion(learning_rate=1e-3)), 3)
    for optimizer in (
        nbopt.Lion(learning_rate=1e-3),
        lambda groups: nbopt.torch.Optimizer(groups, nbopt.Lion(learning_rate=1e-3)),
    ):
        other = made(device)
        train(other, Offload(other.parameters(), optimizer), 3)
        assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize("dtypes", ["float32", "bfloat16"])
def test_sums_on_the_host(device, dtypes):
    """Gradients are added up in float32 on the host, and the device keeps none."""
    model, other = made(device, DTYPES[dtypes]), made(device, DTYPES[dtypes])
    plain = nbopt.torch.AdamW(model.parameters(), master_weights=True)
    offloaded = Offload(other, nbopt.torch.AdamW, bucket_bytes=1, accumulate="host")
    for param in model.parameters():
        param.grad_dtype = torch.float32
    for step in range(5):
        torch.manual_seed(step)
        sums = []
        for _ in range(3):
            grads = torch.autograd.grad(loss_of(model), [*model.parameters()])
            sums = [a + g.float() for a, g in zip(sums, grads)] or [g.float() for g in grads]
        for param, total in zip(model.parameters(), sums):
            param.grad = total
        plain.step()
        torch.manual_seed(step)
        for _ in range(3):
            loss_of(other).backward()
            assert all(param.grad is None for param in other.parameters())
        offloaded.step()
    check_equal(plain, model, offloaded, other)
    loss_of(other).backward()
    offloaded.zero_grad()
    before = [param.clone() for param in other.parameters()]
    offloaded.step()  # there is no gradient
    assert all(map(torch.equal, before, other.parameters()))
    assert offloaded.host_bytes["sums"] == 4 * sum(param.numel() for param in other.parameters())


def test_written_from_outside(device):
    """What others write into parameters goes into the masters, and so into the next step."""
    models, optimizers = [], []
    for offload in (False, True):
        model = made(device, DTYPES["mixed"])
        start = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = (
            Offload(model, nbopt.torch.AdamW, bucket_bytes=3000)
            if offload
            else nbopt.torch.AdamW(model.parameters(), master_weights=True)
        )
        train(model, optimizer, 3)
        model.load_state_dict(start)
        train(model, optimizer, 2, start=3)
        with torch.no_grad():
            model[0].weight[1].add_(1.0)
        train(model, optimizer, 2, start=5)
        models.append(model)
        optimizers.append(optimizer)
    check_equal(optimizers[0], models[0], optimizers[1], models[1])


def test_state_dicts(device, tmp_path):
    """They load with and without offload, masters included, and runs go on with the same bits."""
    kind, options = nbopt.torch.AdamW, {"stochastic_round": True, "seed": 2}
    model = made(device, DTYPES["mixed"])
    plain = kind(model.parameters(), master_weights=True, **options)
    train(model, plain, 3)
    saved = plain.state_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(saved, tmp_path / "run.pt")
    train(model, plain, 3, start=3)
    other = made(device, DTYPES["mixed"])
    offloaded = Offload(other, kind, bucket_bytes=3000, **options)
    train(other, offloaded, 1)
    states, weights = torch.load(tmp_path / "run.pt", weights_only=True)
    other.load_state_dict(weights)
    offloaded.load_state_dict(states)
    train(other, offloaded, 3, start=3)
    check_equal(plain, model, offloaded, other)
    third = made(device, DTYPES["mixed"])
    back = kind(third.parameters(), master_weights=True, **options)
    third.load_state_dict(other.state_dict())
    back.load_state_dict(offloaded.state_dict())
    train(third, back, 2, start=6)
    train(other, offloaded, 2, start=6)
    check_equal(back, third, offloaded, other)


def test_states_from_outside(device):
    """What others remove from the states, or exchange there, is removed and exchanged on the host."""
    models, optimizers = [], []
    for offload in (False, True):
        model = made(device, DTYPES["bfloat16"])
        optimizer = (
            Offload(model, nbopt.torch.AdamW, bucket_bytes=1)
            if offload
            else nbopt.torch.AdamW(model.parameters(), master_weights=True)
        )
        train(model, optimizer, 2)
        assert optimizer.state.pop(model[0].weight)["exp_avg"].shape == (33, 20)
        assert model[0].weight not in optimizer.state and len(optimizer.state) == 4
        train(model, optimizer, 2, start=2)
        optimizer.state.clear()
        train(model, optimizer, 2, start=4)
        del optimizer.state[model[0].bias]["master_param"]
        optimizer.state[model[1].weight]["exp_avg"] = torch.ones(7, 33, device="cpu" if offload else device)
        train(model, optimizer, 2, start=6)
        models.append(model)
        optimizers.append(optimizer)
    check_equal(optimizers[0], models[0], optimizers[1], models[1])


class Late(Copies):
    """Copies as a GPU may do them at worst: each when somebody waits for it, after what it waits for."""

    def __init__(self, device):
        super().__init__(device)
        self._down, self._up = [], []

    def _copied(self, stream, targets, sources, after):
        stream.append(([*zip(targets, sources, strict=True)], after))
        return stream, len(stream)

    @torch.no_grad()
    def wait(self, event):
        stream, count = event or ([], 0)
        for place in range(count):
            pairs, after = stream[place]
            stream[place] = [], ()
            for other in after:
                self.wait(other)
            for target, source in pairs:
                target.copy_(source)

    def hold(self, *events):
        for event in events:
            self.wait(event)


@pytest.mark.parametrize("options", [{}, {"gradient_clip_norm": 0.5}, {"accumulate": "host"}])
@pytest.mark.rest("options1")
def test_late_copies(options, monkeypatch):
    """Memory is written again, and values are read, when the copies before are done."""
    results = []
    for kind in (Copies, Late):
        monkeypatch.setattr(hosts, "Copies", kind)
        for size in SIZES[:2]:
            model = made("cpu", DTYPES["bfloat16"])
            optimizer = Offload(model, nbopt.torch.AdamW, bucket_bytes=size, ema_decay=0.9, **options)
            for start, clip in ((0, None), (4, 0.1)):
                train(
                    model, optimizer, 4, passes=2, clip=None if "accumulate" in options else clip, start=start
                )
                with optimizer.ema():
                    results.append([param.detach().clone() for param in model.parameters()])
            with torch.no_grad():
                model[0].weight.mul_(2.0)
            train(model, optimizer, 2, start=8)
            results.append([*model.parameters()])
    count = len(results) // 2
    for found, expected in zip(results[count:], results[:count]):
        assert all(map(torch.equal, found, expected))


def test_groups(device):
    """Schedulers, new, moved and changed groups, and other keys do what they do without offload."""
    runs = []
    for offload in (False, True):
        model = made(device)
        first, *others = model.parameters()
        groups = [{"params": [first], "lr": 1e-2, "mine": "kept"}]
        optimizer = (
            Offload(groups, nbopt.torch.SGD, bucket_bytes=3000, lr=1e-3)
            if offload
            else nbopt.torch.SGD(groups, lr=1e-3)
        )
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        train(model, optimizer, 2)
        scheduler.step()
        optimizer.add_param_group({"params": others[:2], "momentum": 0.9})
        train(model, optimizer, 2)
        optimizer.param_groups.append({**optimizer.param_groups[0], "params": others[2:]})
        train(model, optimizer, 2)
        optimizer.param_groups.reverse()
        optimizer.param_groups[0]["weight_decay"] = 0.1
        train(model, optimizer, 2)
        del optimizer.param_groups[0]
        train(model, optimizer, 2)
        runs += [optimizer, model]
    check_equal(*runs)
    assert runs[2].param_groups[-1]["mine"] == "kept" and len(runs[2].param_groups) == 2


@pytest.mark.rest
def test_scaler(device):
    """`GradScaler` unscales in the step, and leaves a step out whose gradients are not finite."""
    runs = []
    for offload in (False, True):
        model = made(device, DTYPES["bfloat16"])
        options = {"bucket_bytes": 3000} if offload else {"master_weights": True}
        optimizer = (Offload if offload else lambda params, kind, **rest: kind(params, **rest))(
            [*model.parameters()], nbopt.torch.AdamW, **options
        )
        scaler = torch.amp.GradScaler(device, init_scale=1024.0)
        for step in range(4):
            torch.manual_seed(step)
            optimizer.zero_grad()
            scaler.scale(loss_of(model)).backward()
            if step == 2:
                model[0].weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 512.0
        runs += [optimizer, model]
    check_equal(*runs)


@pytest.mark.rest
def test_means_and_modes(device):
    """Running means, and Schedule-Free averages, take the place of parameters on the device for a while."""
    model, other = made(device, DTYPES["mixed"]), made(device, DTYPES["mixed"])
    plain = nbopt.torch.AdamW(model.parameters(), master_weights=True, ema_decay=0.9)
    offloaded = Offload(other, nbopt.torch.AdamW, bucket_bytes=3000, ema_decay=0.9)
    for start in (0, 3):
        train(model, plain, 3, start=start)
        train(other, offloaded, 3, start=start)
        before = [param.clone() for param in other.parameters()]
        with plain.ema(), offloaded.ema():
            assert all(map(torch.equal, model.parameters(), other.parameters()))
            assert not torch.equal(before[0], other[0].weight)
            with pytest.raises(nbopt.errors.StateError, match="take the step after it"):
                offloaded.step()
        assert all(map(torch.equal, before, other.parameters()))
    check_equal(plain, model, offloaded, other)
    model, other = made(device, DTYPES["mixed"]), made(device, DTYPES["mixed"])
    plain = nbopt.torch.ScheduleFreeAdamW(model.parameters(), master_weights=True)
    offloaded = Offload(other, nbopt.torch.ScheduleFreeAdamW, bucket_bytes=3000)
    for start in (0, 3):
        for one, optimizer in ((model, plain), (other, offloaded)):
            optimizer.train()
            train(one, optimizer, 3, start=start)
            optimizer.eval()
        check_equal(plain, model, offloaded, other)


def test_host_memory(device):
    """AdamW takes 12 bytes a parameter and two buckets; 2 more with a clip, and 4 for sums."""
    count, bucket = 64 * 1000, 4000
    for options, more in (({}, 0), ({"gradient_clip_norm": 1.0}, 2), ({"accumulate": "host"}, 4)):
        params = [torch.zeros(1000, dtype=torch.bfloat16, device=device).requires_grad_() for _ in range(64)]
        optimizer = Offload(params, nbopt.torch.AdamW, bucket_bytes=3 * bucket, **options)
        held = []
        for step in range(3 if options else 1000):
            for param in params[:4] if step else params:
                (param * torch.ones_like(param)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            held.append(sum(optimizer.host_bytes.values()))
        slack = 64 * 4 + 64 * 64 * bool(more == 2)  # counts of steps, and what addresses are rounded up to
        assert (12 + more) * count <= held[0] <= (12 + more) * count + 2 * 3 * bucket + slack
        assert held[-1] == held[0]


def test_early_copies(device):
    """Gradients come during the backward pass, unless something changed some after the last one."""
    model = made(device)
    optimizer = Offload(model, nbopt.torch.SGD, lr=1e-2)
    pairs = [*optimizer._hosts.pairs.values()]

    def early():
        loss_of(model).backward()
        return all(pair.arrived and torch.equal(pair.gradient, pair.param.grad.cpu()) for pair in pairs)

    assert early()
    model[0].weight.grad.mul_(2)  # it is copied again
    expected = model[0].weight.grad.clone()
    weight = model[0].weight.detach().clone()
    optimizer.step()
    optimizer.zero_grad()
    assert torch.allclose(model[0].weight, weight - 1e-2 * expected)
    assert not early()
    optimizer.step()
    optimizer.zero_grad()
    assert early()
    early()
    optimizer.step()
    optimizer.zero_grad()
    assert not early() and early()  # two passes, as before


def test_bad_input(device, monkeypatch):
    """Errors say what to do, and nothing has changed then."""
    model = made(device)
    optimizer = Offload(model, nbopt.torch.AdamW)
    before = [param.clone() for param in model.parameters()]
    optimizer.step()  # before any backward pass: nothing to do
    with pytest.raises(ArgumentError, match=r"another Offload has parameter 0 already"):
        Offload(model, nbopt.torch.AdamW)
    model[0].weight.grad = torch.ones_like(model[0].weight).to_sparse()
    with pytest.raises(SparseError, match="gradient of parameter 0 is sparse"):
        optimizer.step()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model.double()
    with pytest.raises(LayoutError, match=r"parameter 0 is torch.float64 of shape .* model first"):
        optimizer.step()
    model.float()
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(
        DeviceMemoryError, match=r"KiB of the host's memory .* for states.*1000 bytes are left"
    ):
        Offload(made(device), nbopt.torch.AdamW)
    monkeypatch.undo()
    for wrong, error, text in (
        (torch.optim.AdamW, ArgumentError, "take nbopt.torch.AdamW"),
        (nbopt.torch.Muon, ArgumentError, "whole matrices"),
        (nbopt.Muon(), ArgumentError, "whole matrices"),
        (3, ArgumentError, "a class such as"),
    ):
        with pytest.raises(error, match=text):
            Offload([torch.ones(4, 4, device=device).requires_grad_()], wrong)
    with pytest.raises(ArgumentError, match="accumulate"):
        Offload(made(device), nbopt.torch.AdamW, accumulate="disk")
    with pytest.raises(DtypeError, match="complex64"):
        Offload([torch.ones(3, dtype=torch.complex64, device=device).requires_grad_()], nbopt.torch.AdamW)
    with pytest.raises(TypeError, match="state_dict"):
        optimizer.__reduce_ex__(4)
    assert all(map(torch.equal, before, model.parameters()))
    optimizer.close()
    train(model, Offload(model, nbopt.torch.AdamW), 1)


def test_no_circles(device):
    """An optimizer that nobody has any more is gone, hooks included, and another may take its place."""
    model = made(device)
    optimizer = Offload(model, nbopt.torch.AdamW)
    train(model, optimizer, 3)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    train(model, Offload(model, nbopt.torch.AdamW), 1)


def test_settings_are_the_inner_ones(device):
    """Attributes, hooks and a closure reach the optimizer on the host."""
    model = made(device)
    optimizer = Offload(model, nbopt.torch.AdamW)
    optimizer.skip_nonfinite, optimizer.loss_scale = True, 2.0
    assert optimizer.inner.skip_nonfinite and optimizer.inner.loss_scale == 2.0
    called = []
    optimizer.register_state_dict_post_hook(lambda one, found: called.append(one is optimizer))
    optimizer.register_load_state_dict_post_hook(lambda one: called.append(one is optimizer))

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0 and optimizer.grad_norm > 0 and optimizer.skipped == [0]
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == [True, True]
    assert {*optimizer.state} == {*model.parameters()}
    with pytest.raises(AttributeError):
        optimizer.nothing  # noqa: B018
