"""Masters: float32 copies of 16-bit parameters, which steps update in the parameters' place."""

import copy
import io

import pytest

import nbopt

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402

SHAPES = [(20, 30), (17,), (2, 3, 4), (), (0, 3), (9,)]
#: Two dtypes of 16 bits, and one that has no master.
DTYPES = [torch.bfloat16] * 4 + [torch.float16, torch.float32]
OTHERS = "Optimizer", "Muon", "Offload"
CLASSES = [name for name in nbopt.torch.__all__ if name[0].isupper() and name not in OTHERS]


def parameters(dtypes=DTYPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for shape, dtype in zip(SHAPES, dtypes)
    ]


def wide(params):
    """The masters' model: float32 parameters of the same values."""
    return [torch.nn.Parameter(param.detach().clone().float()) for param in params]


def trained(optimizer, params, steps, start=0, missing=True):
    """Steps with gradients in 16 bits, which some parameters lack at times."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(1000 + step)
        for number, (param, dtype) in enumerate(zip(params, DTYPES)):
            grad = torch.randn(param.shape, generator=generator).to(dtype).to(param.dtype)
            param.grad = None if missing and (step + number) % 4 == 3 else grad
        optimizer.step()


def made(kind, params, backend="reference", **options):
    """An optimizer for PyTorch: a class's, or one around a rule of nbopt's."""
    if isinstance(kind, str):
        return getattr(nbopt.torch, kind)(params, backend=backend, **options)
    return nbopt.torch.Optimizer(params, kind(), backend, **options)


def masters_of(optimizer, params):
    return [optimizer.state[param].get("master_param", param) for param in params]


def check_equal(optimizer, params, others):
    """Masters are the parameters of the other model, to the bit, and parameters are rounded masters."""
    for param, master, other in zip(params, masters_of(optimizer, params), others):
        assert torch.equal(master.detach(), other.detach())
        assert torch.equal(param.detach(), master.detach().to(param.dtype))


@pytest.mark.parametrize("name", [*CLASSES, nbopt.LAMB, nbopt.Adam], ids=str)
def test_bits(name):
    """Masters train as the parameters of a float32 model do. Groups of several dtypes go together."""
    params = parameters()
    others = wide(params)
    optimizer, plain = made(name, params, master_weights=True), made(name, others)
    trained(optimizer, params, 6)
    trained(plain, others, 6)
    check_equal(optimizer, params, others)
    for param, other in zip(params, others):
        own, wanted = optimizer.state[param], plain.state[other]
        assert [*own] == [*wanted, *(["master_param"] if param.element_size() == 2 else [])]
        for key, value in wanted.items():
            assert torch.equal(own[key], value)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.thorough)])
def test_around_the_rule(backend):
    """The norm clip is over all gradients together; skipping, means and a loss scale work as they do."""
    options = {"gradient_clip_norm": 1.0, "skip_nonfinite": True, "ema_decay": 0.9}
    params = parameters()
    others = wide(params)
    found = []
    for tensors, has in ((params, True), (others, False)):
        groups = [{"params": tensors[:2], "lr": 0.01}, {"params": tensors[2:]}]
        optimizer = made("AdamW", groups, backend, master_weights=has, **options)
        optimizer.loss_scale = 4.0
        trained(optimizer, tensors, 3)
        before = [master.detach().clone() for master in masters_of(optimizer, tensors)]
        tensors[2].grad.view(-1)[0] = torch.inf
        optimizer.step()
        assert optimizer.skipped == [1, 1]
        assert all(map(torch.equal, before, masters_of(optimizer, tensors)))
        trained(optimizer, tensors, 2, 3)
        found.append(optimizer)
    check_equal(found[0], params, others)
    assert found[0].grad_norm == found[1].grad_norm
    shown = [param.detach().clone() for param in params]
    with found[0].ema():
        assert not torch.equal(params[0], shown[0])
    trained(found[0], params, 1, 5)
    trained(found[1], others, 1, 5)
    check_equal(found[0], params, others)


def test_stochastic_rounding():
    """The parameters are rounded stochastically, the masters not at all; a write of the same bits is none."""
    params = parameters()
    others = wide(params)
    optimizer = made("Lion", params, master_weights=True, stochastic_round=True, seed=1)
    plain = made("Lion", others)
    for step in range(3):
        trained(optimizer, params, 1, step)
        trained(plain, others, 1, step)
        with torch.no_grad():
            for param in params:
                param.copy_(param.clone())
    masters = masters_of(optimizer, params)
    assert all(torch.equal(master, other) for master, other in zip(masters, others))
    nearest = masters[0].to(torch.bfloat16)
    steps = (nearest.view(torch.int16).int() - params[0].detach().view(torch.int16).int()).abs()
    assert steps.max() == 1 and 0.05 < steps.float().mean() < 0.5


@pytest.mark.parametrize("stochastic", [False, True])
def test_writes_from_outside(stochastic):
    """What is written into a parameter is taken over, element by element; masters of others stay."""
    params = parameters()
    optimizer = made("SGD", params, lr=0.01, master_weights=True, stochastic_round=stochastic)
    trained(optimizer, params, 2, missing=False)
    fine = [master.detach().clone() for master in masters_of(optimizer, params)]
    with torch.no_grad():
        params[0][3, 4] = 7.0
        params[1].add_(1.0)
        params[2].copy_(params[2].clone())
    params[3].data = torch.tensor(2.0, dtype=torch.bfloat16)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    masters = masters_of(optimizer, params)
    fine[0][3, 4] = 7.0
    assert torch.equal(masters[0], fine[0]) and torch.equal(masters[2], fine[2])
    assert masters[3] == 2.0 and torch.equal(params[1], masters[1].bfloat16())
    assert torch.equal(masters[1], masters[1].bfloat16().float())
    params[0].data.fill_(5.0)  # leaves no trace, as the docstring says
    optimizer.step()
    assert torch.equal(masters[0], fine[0])


def test_turns():
    """Sets of parameters that take turns keep their masters, whatever is written between."""
    params = parameters([torch.bfloat16] * 6)
    others = wide(params)
    optimizer, plain = made("AdamW", params, master_weights=True), made("AdamW", others)
    for step in range(12):
        for tensors in (params, others):
            for number, param in enumerate(tensors):
                here = step % 3 == 0 or (number + step) % 2
                param.grad = torch.full_like(param, 0.5 + step) if here else None
        optimizer.step()
        plain.step()
        if step == 6:
            with torch.no_grad():
                params[0].fill_(3.0)
                others[0].fill_(3.0)
    check_equal(optimizer, params, others)


@pytest.mark.parametrize("kind", ["AdamW", "LAMB", nbopt.AdamW], ids=str)
def test_state_dict(kind):
    """Masters come back exactly, before or after the model's parameters; copies and pickles have them."""
    params = parameters()
    optimizer = made(kind, params, master_weights=True)
    trained(optimizer, params, 3)
    buffer = io.BytesIO()
    torch.save((optimizer.state_dict(), [param.detach() for param in params]), buffer)
    buffer.seek(0)
    saved, values = torch.load(buffer, weights_only=True)
    runs = []
    for first in ("model", "optimizer"):
        twins = parameters(seed=1)
        other = made(kind, twins, master_weights=True)
        trained(other, twins, 1)
        for what in (first, *({"model", "optimizer"} - {first})):
            if what == "optimizer":
                other.load_state_dict(saved)
            else:
                with torch.no_grad():
                    for twin, value in zip(twins, values):
                        twin.copy_(value)
        runs.append((other, twins))
    copied, twins = copy.deepcopy((optimizer, params))
    assert copied.master_weights
    runs.append((copied, twins))
    trained(optimizer, params, 2, 3)
    for other, twins in runs:
        trained(other, twins, 2, 3)
        check_equal(other, twins, masters_of(optimizer, params))


def test_state_dicts_of_other_settings():
    """Masters are dropped where there shall be none, and made from the parameters where they are missing."""
    params = parameters()
    optimizer = made("AdamW", params, master_weights=True)
    trained(optimizer, params, 3)
    without = made("AdamW", params)
    without.load_state_dict(optimizer.state_dict())
    assert all("master_param" not in states for states in without.state.values())
    assert len(optimizer.state[params[0]]) == len(without.state[params[0]]) + 1
    trained(without, params, 1, 3)
    optimizer.load_state_dict(without.state_dict())
    others = wide(params)
    plain = made("AdamW", others)
    plain.load_state_dict(without.state_dict())
    trained(optimizer, params, 2, 4)
    trained(plain, others, 2, 4)
    check_equal(optimizer, params, others)
    wrong = optimizer.state_dict()
    wrong["state"][0]["master_param"] = torch.ones(3)
    with pytest.raises(nbopt.errors.StateError, match="the state master_param of parameter 0 has shape"):
        optimizer.load_state_dict(wrong)
    wider = wide(params)
    other = made("AdamW", wider, master_weights=True)
    other.load_state_dict(optimizer.state_dict())
    assert all("master_param" not in states for states in other.state.values())


def test_model_state_dict():
    """A model that loads a state dict goes on from it, and a model that moves has its masters still."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).bfloat16()
    optimizer = nbopt.torch.AdamW(model.parameters(), lr=0.1, master_weights=True, backend="reference")
    start = copy.deepcopy(model.state_dict())

    def step():
        model(torch.linspace(-1, 1, 8, dtype=torch.bfloat16).view(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    model.load_state_dict(start)
    optimizer.state.clear()
    step()
    once = [master.detach().clone() for master in masters_of(optimizer, model.parameters())]
    for states in optimizer.state.values():
        states.pop("exp_avg")  # so that it begins again
        states.pop("exp_avg_sq")
        states["step"].zero_()
    model.load_state_dict(start)
    step()
    assert all(map(torch.equal, once, masters_of(optimizer, model.parameters())))


def test_mirror_of_a_rule():
    """A rule's own mirror is a state, in whatever memory, and a parameter that has a master needs none."""
    params = [param for param in parameters() if param.numel()]
    rule = nbopt.AdamW(mirror_dtype="float16")
    optimizer = nbopt.torch.Optimizer(params, rule, "reference", master_weights=True)
    trained(optimizer, params, 1, missing=False)
    own = optimizer.state[params[-1]]["mirror"] = torch.zeros(9, dtype=torch.float16)
    trained(optimizer, params, 2, 1, missing=False)
    assert torch.equal(own, params[-1].half())
    assert all("mirror" not in optimizer.state[param] for param in params[:-1])
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    other = nbopt.torch.Optimizer(twins, rule, "reference", master_weights=True)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[twins[-1]]["mirror"], own)


def test_memory_without_values():
    """Parameters whose memory holds something else between steps leave their masters alone."""
    params = parameters()
    others = wide(params)
    optimizer, plain = made("AdamW", params, master_weights=True), made("AdamW", others)
    trained(optimizer, params, 1, missing=False)
    trained(plain, others, 1, missing=False)
    optimizer._refreshes = False
    for step in (1, 2):
        for param in params[:5]:
            param.data = torch.full_like(param, 9.0)
        trained(optimizer, params, 1, step, missing=False)
        trained(plain, others, 1, step, missing=False)
    check_equal(optimizer, params, others)


def test_switched_on_and_off():
    """The setting may change between steps, and is refused if it is no bool."""
    params = parameters()
    optimizer = made("AdamW", params)
    trained(optimizer, params, 2, missing=False)
    optimizer.master_weights = True
    trained(optimizer, params, 2, 2, missing=False)
    masters = [master.detach().clone() for master in masters_of(optimizer, params)]
    assert all(torch.equal(param, master.to(param.dtype)) for param, master in zip(params, masters))
    optimizer.master_weights = False
    trained(optimizer, params, 1, 4, missing=False)
    assert torch.equal(masters[0], optimizer.state[params[0]]["master_param"])
    optimizer.master_weights = True
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.param_groups[0].update(lr=0.0)
    optimizer.step()
    for param, master in zip(params, masters_of(optimizer, params)):
        assert torch.equal(param, master.to(param.dtype))
    with pytest.raises(nbopt.errors.ArgumentError, match="master_weights must be True or False"):
        made("AdamW", parameters(), master_weights="yes")


def test_muon():
    """Matrices have masters, too, and so have the groups that are AdamW's."""
    shapes, found = [(6, 4), (5,)], []
    for has in (True, False):
        torch.manual_seed(0)
        dtype = torch.bfloat16 if has else torch.float32
        params = [torch.nn.Parameter(torch.randn(shape).bfloat16().to(dtype)) for shape in shapes]
        groups = [{"params": params[:1]}, {"params": params[1:], "use_muon": False}]
        optimizer = nbopt.torch.Muon(groups, lr=0.1, master_weights=has, backend="reference")
        for step in range(3):
            for param in params:
                param.grad = (
                    torch.linspace(-1, 1 + step, param.numel()).bfloat16().view(param.shape).to(dtype)
                )
            optimizer.step()
        found.append((optimizer, params))
    check_equal(*found[0], found[1][1])


def test_steady_steps():
    """Steps with new gradients are found again: nothing is compiled, looked at as a whole, or taken over."""
    params = [param for param in parameters() if param.numel()]
    optimizer = made("AdamW", params, "cpu", master_weights=True)
    trained(optimizer, params, 2, missing=False)
    compiled, wrap = optimizer._backend.compilations, optimizer._backend.wrap
    optimizer._backend.wrap = None
    try:
        trained(optimizer, params, 3, 2, missing=False)
    finally:
        optimizer._backend.wrap = wrap
    assert optimizer._backend.compilations == compiled
    others = wide([param for param in parameters() if param.numel()])
    plain = made("AdamW", others)
    trained(plain, others, 5, missing=False)
    check_equal(optimizer, params, others)
