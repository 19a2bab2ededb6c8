"""nbopt.torch.SGD and its kin: change one import, and everything trains as with torch.optim."""

import copy
import io
import pickle
import sys
import types

import pytest

import nbopt

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")
pytest.importorskip("expecttest", reason="PyTorch's table of optimizers needs it: pip install expecttest")

# PyTorch's table takes one class for its own test runner from the table of all its operators, which takes
# seconds to build.
with pytest.MonkeyPatch.context() as patched:
    without = types.ModuleType("torch.testing._internal.common_methods_invocations")
    without.DecorateInfo = lambda *arguments, **options: None
    patched.setitem(sys.modules, without.__name__, without)
    from torch.testing._internal.common_optimizers import optim_db

import nbopt.torch  # noqa: E402

SHAPES = [(20, 30), (17,), (2, 3, 4, 5), (), (0, 3)]
# Of PyTorch's Adafactor see test_torch_sourced.py: it divides by zero for empty parameters.
NAMES = [
    name
    for name in nbopt.torch.__all__
    if name not in ("Optimizer", "Adafactor", "Muon") and hasattr(torch.optim, name)
]
INFOS = {info.name: info for info in optim_db if info.name in NAMES}


def inputs_of(name):
    """The arguments in PyTorch's table."""
    return [given.kwargs for given in INFOS[name].optim_inputs_func(device="cpu")]


def cases():
    """Each entry of PyTorch's table, in both dtypes, by the reference and compiled.

    Of the compiled ones the plain run takes a class's last entry.
    """
    for name in NAMES:
        for kwargs in inputs_of(name):
            called = "-".join(f"{key}={value}" for key, value in kwargs.items()) or "default"
            for dtype in (torch.float64, torch.float32):
                for backend in ("reference", "cpu"):
                    plain = backend == "reference" or (
                        kwargs == inputs_of(name)[-1] and dtype == torch.float32
                    )
                    marks = () if plain else pytest.mark.thorough
                    yield pytest.param(
                        name,
                        kwargs,
                        dtype,
                        backend,
                        id=f"{name}-{called}-{str(dtype)[6:]}-{backend}",
                        marks=marks,
                    )


#: One that has most states, for each class.
RICH = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
    "RMSprop": {"centered": True, "momentum": 0.9},
}


def parameters(dtype=torch.float32, shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]


def set_grads(params, step, missing=True):
    """Gradients of a step.

    Each parameter lacks its own at times, but in the first step; the second one joins late.
    """
    generator = torch.Generator().manual_seed(1000 + step)
    for number, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        gone = missing and ((step + number) % 4 == 3 or (number == 1 and step < 5))
        p.grad = None if gone else grad


def run(optimizer, params, steps, start=0, missing=True):
    for step in range(start, start + steps):
        set_grads(params, step, missing)
        optimizer.step()


def made(module, name, params, backend="reference", **kwargs):
    """PyTorch's optimizer, or ours. The reference needs no time to compile."""
    return getattr(module, name)(params, **kwargs, **({"backend": backend} if module is nbopt.torch else {}))


def pair(name, kwargs, dtype=torch.float32, backend="reference"):
    """PyTorch's optimizer and ours over equal parameters."""
    theirs, ours = parameters(dtype), parameters(dtype)
    return (made(torch.optim, name, theirs, **kwargs), theirs), (
        made(nbopt.torch, name, ours, backend, **kwargs),
        ours,
    )


def tolerances(dtype):
    return {torch.float64: {"rtol": 1e-9, "atol": 1e-12}, torch.float32: {"rtol": 2e-5, "atol": 2e-6}}[dtype]


def same_states(theirs, ours, dtype):
    """Whether both optimizers have the same states, of the same names and order, shapes, and dtypes."""
    first, second = theirs.state_dict()["state"], ours.state_dict()["state"]
    assert first.keys() == second.keys()
    for index in first:
        assert [*first[index]] == [*second[index]]
        for name, value in first[index].items():
            assert type(second[index][name]) is torch.Tensor
            torch.testing.assert_close(second[index][name], value, **tolerances(dtype))


@pytest.mark.parametrize(("name", "kwargs", "dtype", "backend"), [*cases()])
@pytest.mark.rest("*-float64-reference", "AdamW-*amsgrad*-cpu", where=["everywhere", "reference"])
def test_pytorchs_table(name, kwargs, dtype, backend):
    """Each entry of PyTorch's table of optimizers moves parameters and states as torch.optim does."""
    (theirs, expected), (ours, found) = pair(name, kwargs, dtype, backend)
    for step in range(12):
        for optimizer, params in ((theirs, expected), (ours, found)):
            set_grads(params, step)
            optimizer.step()
        torch.testing.assert_close(found, expected, **tolerances(dtype))
        same_states(theirs, ours, dtype)


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("way", ["to nbopt", "to torch", "nbopt to nbopt"])
@pytest.mark.parametrize("name", NAMES)
def test_state_dicts(name, way):
    """A state dict of either goes on in the other as in the run that was saved."""
    kwargs = RICH.get(name, {})
    first, second = {"to nbopt": (torch.optim, nbopt.torch), "to torch": (nbopt.torch, torch.optim)}.get(
        way, (nbopt.torch, nbopt.torch)
    )
    params = parameters()
    optimizer = made(first, name, params, **kwargs)
    run(optimizer, params, 5)
    others = parameters()
    other = made(second, name, others, lr=123.0)
    with torch.no_grad():
        for p, q in zip(params, others):
            q.copy_(p)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert other.param_groups[0].keys() == optimizer.param_groups[0].keys()
    for step in range(5, 8):
        run(optimizer, params, 1, step)
        run(other, others, 1, step)
        torch.testing.assert_close(others, params, **tolerances(torch.float32))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", NAMES)
def test_copies(name, copied):
    """A copy goes on as the optimizer does."""
    params = parameters()
    optimizer = made(nbopt.torch, name, params, **RICH.get(name, {}))
    run(optimizer, params, 3)
    others, other = copied((params, optimizer))
    for step in range(3, 6):
        run(optimizer, params, 1, step)
        run(other, others, 1, step)
    assert all(torch.equal(p, q) for p, q in zip(params, others))


@pytest.mark.parametrize("name", NAMES)
def test_late_parameters(name):
    """A parameter whose first gradient comes late moves as with torch.optim."""
    kwargs = RICH.get(name, {})
    results = []
    for module in (torch.optim, nbopt.torch):
        params = parameters(torch.float64, [(6,), (6,)])
        optimizer = made(module, name, params, **kwargs)
        for step in range(40):
            set_grads(params, step, missing=False)
            if step < 30:
                params[1].grad = None
            optimizer.step()
        results.append(params)
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-9)


# --- groups and schedulers ---


def both(name, act, kwargs=None, steps=12, dtype=torch.float64, shapes=((5,), (3, 2)), reset=None):
    """Do the same to PyTorch's optimizer and to ours; return their parameters.

    `act` gets the optimizer, and returns what is called each step.
    """
    results = []
    for module in (torch.optim, nbopt.torch):
        params = parameters(dtype, shapes)
        optimizer = made(module, name, params, **(RICH.get(name, {}) if kwargs is None else kwargs))
        after = act(optimizer, params) or (lambda: None)
        for step in range(steps):
            set_grads(params, step, missing=False)
            optimizer.step()
            after()
        results.append(params)
    return results


def same(results, rtol=1e-9):
    torch.testing.assert_close(results[1], results[0], rtol=rtol, atol=1e-12)


SCHEDULERS = {
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: max(0.0, 1 - k / 6)),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_schedulers(name, scheduler):
    """PyTorch's schedulers change the rate, and the momentum or the betas, as with torch.optim."""
    same(both(name, lambda o, _: SCHEDULERS[scheduler](o).step))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_tensor_rates(shape):
    """A rate, and betas, that are tensors are read at each step, and may be written in place."""
    results = []
    for module in (torch.optim, nbopt.torch):
        rate, betas = torch.full(shape, 0.01), (torch.tensor(0.8), torch.tensor(0.9))
        params = parameters(torch.float64)
        optimizer = made(module, "Adam", params, lr=rate, betas=betas)
        run(optimizer, params, 3, missing=False)
        rate.fill_(0.1)
        betas[0].fill_(0.5)
        run(optimizer, params, 3, 3, missing=False)
        assert optimizer.param_groups[0]["lr"] is rate
        results.append(params)
    same(results, 1e-5)  # PyTorch computes with these tensors in float32


def test_no_more_compilation():
    """Another rate, decay and betas compile nothing and trace nothing anew."""
    params = parameters()
    optimizer = nbopt.torch.AdamW(params)
    run(optimizer, params, 2, missing=False)
    compiled = optimizer._backend.compilations
    for step in range(2, 5):
        optimizer.param_groups[0].update(
            lr=0.1 / step, betas=(0.5 / step, 0.7), weight_decay=0.5 / step, eps=1e-3 * step
        )
        run(optimizer, params, 1, step, missing=False)
    assert optimizer._backend.compilations == compiled


def test_group_keys():
    """A group has exactly PyTorch's keys, and those of others."""
    for name in NAMES:
        (theirs, _), (ours, found) = pair(name, {})
        run(ours, found, 1)
        assert [*ours.param_groups[0]] == [
            *theirs.param_groups[0]
        ] and ours.defaults.keys() == theirs.defaults.keys()
        assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    groups = [{"params": [p], "lr_scale": 0.5, "name": str(k)} for k, p in enumerate(parameters())]
    optimizer = nbopt.torch.AdamW(groups)
    optimizer.load_state_dict(optimizer.state_dict())
    assert [(g["lr_scale"], g["name"]) for g in optimizer.param_groups] == [(0.5, str(k)) for k in range(5)]


def test_added_groups():
    """A group with the keys of another one, a bare one, and one that is appended to the list."""

    def act(optimizer, params):
        others = parameters(torch.float64, [(4,)] * 3, seed=5)
        optimizer.add_param_group({**optimizer.param_groups[0], "params": [others[0]], "lr": 0.5})
        optimizer.add_param_group({"params": others[1]})
        optimizer.param_groups.append(
            {**optimizer.param_groups[0], "params": [others[2]], "weight_decay": 0.3}
        )
        params += others

    for name in NAMES:
        same(both(name, act))


def test_groups_of_one_structure():
    """Groups that differ in numbers only are one launch, and need no compilation of their own."""
    params = parameters()
    optimizer = nbopt.torch.AdamW([{"params": [p], "lr": 0.1 / (k + 1)} for k, p in enumerate(params)])
    run(optimizer, params, 2, missing=False)
    be = optimizer._backend
    launches, compiled = be.launches, be.compilations
    run(optimizer, params, 1, 2, missing=False)
    assert (be.launches - launches, be.compilations - compiled) == (1, 0)


def test_closure():
    """A closure is run with gradients, and its loss is returned."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = nbopt.torch.SGD([param], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 3.0
    assert param.tolist() == [0.0] * 3


RESETS = {
    "state.clear()": lambda o, p: o.state.clear(),
    "state.pop(p)": lambda o, p: o.state.pop(p, None),
    "del state[p]": lambda o, p: o.state.__delitem__(p) if p in o.state else None,
    "state[p].clear()": lambda o, p: o.state[p].clear(),
    "state[p] = {}": lambda o, p: o.state.__setitem__(p, {}),
    "new dictionary": lambda o, p: setattr(
        o, "state", type(o.state)(dict) if type(o.state).__name__ == "defaultdict" else {}
    ),
    "values": lambda o, p: [value.mul_(0.5) for key, value in o.state[p].items() if key != "step"],
    "another count": lambda o, p: o.state[p]["step"].fill_(100.0) if "step" in o.state[p] else None,
    "another tensor": (
        lambda o, p: o.state[p].update({key: value.clone() * 0.5 for key, value in o.state[p].items()})
    ),
}


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", NAMES)
def test_resets(name, reset):
    """What someone does to the states holds, as with torch.optim."""

    def act(optimizer, params):
        steps = iter(range(100))
        return lambda: RESETS[reset](optimizer, params[0]) if next(steps) == 5 else None

    same(both(name, act))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.rest
def test_dampening_that_begins(backend):
    """Dampening may be turned on and off between steps. A parameter's first gradient is not dampened."""
    results = []
    for module in (torch.optim, nbopt.torch):
        params = parameters(torch.float64, [(5,), (3, 2)])
        optimizer = made(module, "SGD", params, backend, lr=0.1, momentum=0.9)
        for step, dampening in enumerate((0.0, 0.5, 0.5, 0.0, 0.5)):
            optimizer.param_groups[0]["dampening"] = dampening
            set_grads(params, step, missing=False)
            params[1].grad = None if step < 2 else params[1].grad
            optimizer.step()
        results.append(params)
    same(results)


# --- bad input ---


def error_inputs(name):
    return INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_errors(name):
    """Each entry of PyTorch's table of bad arguments raises the same error."""
    for case in error_inputs(name):
        given = case.optimizer_error_input
        params = parameters() if given.params is None else given.params
        with pytest.raises(case.error_type, match=case.error_regex):
            getattr(nbopt.torch, name)(params, **given.kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments(name):
    """What PyTorch refuses, and what nbopt can't do."""
    cls = getattr(nbopt.torch, name)
    for kwargs, error in (
        ({"lr": -1.0}, ValueError), ({"learning_rate": 0.1}, TypeError),
        ({"differentiable": True}, ValueError), ({"stochastic_round": -1}, ValueError),
        ({"state_dtype": "int8"}, ValueError), ({"gradient_clip_norm": -1.0}, ValueError),
        ({"skip_nonfinite": 3}, ValueError), ({"seed": -1}, ValueError),
    ):  # fmt: skip
        with pytest.raises(error):
            cls(parameters(), **kwargs)
    leaf = torch.ones(3, requires_grad=True)
    for params, error in (
        ([leaf * 2], ValueError), ([], ValueError), (leaf, TypeError), ([3], TypeError), ({leaf}, TypeError),
        ([{"lr": 0.1}], KeyError), ([torch.ones(3, dtype=torch.complex64)], TypeError),
        ([torch.ones(3, dtype=torch.int32)], TypeError),
    ):  # fmt: skip
        if params != {leaf}:
            with pytest.raises(error) as raised:
                cls(params)
            assert "umpy" not in str(raised.value)


def test_words():
    """Messages speak of tensors, and say what to type."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = made(nbopt.torch, "AdamW", [param])
    optimizer.step()
    for state, words in (
        (torch.ones(3, dtype=torch.int32), "tensors of dtype int32 .*x.float()"),
        (torch.ones(1).expand(3), "share memory .*x.clone()"),
        ([1.0, 2.0, 3.0], "list is no tensor: torch.as_tensor"),
    ):
        optimizer.state[param]["exp_avg"] = state
        with pytest.raises((ValueError, TypeError), match=words):
            optimizer.step()
    with pytest.raises(TypeError, match="tensors of dtype complex64"):
        nbopt.torch.Optimizer([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))], nbopt.Adam())


def test_fused_and_foreach():
    """Both are taken and change nothing; together they are PyTorch's error."""
    for name in ("SGD", "Adam", "AdamW", "Adagrad"):
        same(both(name, lambda o, p: None, {"foreach": True}))
        same(both(name, lambda o, p: None, {"fused": True}))
        with pytest.raises(RuntimeError, match="cannot be `True` together"):
            getattr(nbopt.torch, name)(parameters(), fused=True, foreach=True)


@pytest.mark.parametrize("name", NAMES)
def test_sparse_gradients(name):
    """A sparse gradient is a RuntimeError, and nothing has changed."""
    params = parameters()
    optimizer = made(nbopt.torch, name, params)
    run(optimizer, params, 2, missing=False)
    before = [p.detach().clone() for p in params]
    params[1].grad = torch.ones(17).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before))


def test_bad_state_dicts():
    """A state dict with other groups, of other shapes, or of another class is refused.

    Nothing has changed.
    """
    params = parameters()
    optimizer = nbopt.torch.Adam(params)
    run(optimizer, params, 2, missing=False)
    good = optimizer.state_dict()
    others = [
        torch.optim.Adam([{"params": params[:2]}, {"params": params[2:]}]),
        torch.optim.Adam(params[:3]),
        torch.optim.RMSprop(params),
        torch.optim.Adam([torch.nn.Parameter(torch.ones(4)) for _ in params]),
    ]
    for other in others[2:]:
        for group in other.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        other.step()
    for other in others:
        with pytest.raises(ValueError):
            optimizer.load_state_dict(other.state_dict())
    after = optimizer.state_dict()
    assert all(
        torch.equal(after["state"][i][key], value)
        for i, states in good["state"].items()
        for key, value in states.items()
    )


def test_bad_steps():
    """An error in a step leaves all groups as they were."""
    params = parameters()
    optimizer = nbopt.torch.AdamW([{"params": params[:2]}, {"params": params[2:]}])
    run(optimizer, params, 2, missing=False)
    before = [p.detach().clone() for p in params]
    for key, value in (
        ("betas", 0.9),
        ("betas", None),
        ("betas", (0.9, None)),
        ("lr", None),
        ("betas", (0.9, 0.9, 0.9)),
        ("lr", torch.ones(2)),
        ("differentiable", True),
        ("lr", "fast"),
    ):
        kept = optimizer.param_groups[1][key]
        optimizer.param_groups[1][key] = value
        with pytest.raises((ValueError, TypeError)):
            optimizer.step()
        optimizer.param_groups[1][key] = kept
    assert all(torch.equal(p, b) for p, b in zip(params, before))
    optimizer.step()
    assert not torch.equal(params[4 - 1], before[4 - 1])


# --- scaled losses, and what nbopt has beside PyTorch's arguments ---


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_grad_scaler(name, unscaled):
    """Under GradScaler a step divides the gradients, in place of a pass of its own.

    A step with an infinite gradient does nothing.
    """
    results, counts = [], []
    for module in (torch.optim, nbopt.torch):
        params = parameters(torch.float32, [(5,), (3, 2)])
        optimizer = made(module, name, params, **RICH.get(name, {}))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        for step in range(8):
            optimizer.zero_grad()
            inputs = torch.randn(5, generator=torch.Generator().manual_seed(step))
            loss = (params[0] * inputs).sum() + params[1].square().sum() * (torch.inf if step == 4 else 1.0)
            scaler.scale(loss).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append(params)
        assert not hasattr(optimizer, "grad_scale") and scaler.get_scale() == 2.0**11
        counts.append([float(states["step"]) for states in optimizer.state.values() if "step" in states])
    assert counts[0] == counts[1]
    torch.testing.assert_close(results[1], results[0], **tolerances(torch.float32))
    assert optimizer.loss_scale == 1.0


def test_found_inf():
    """A step with found_inf does nothing to values, states and counts, compiled too.

    It does not matter who made it, and when. Dividing the gradients costs no pass of its own.
    """
    for backend in ("reference", "cpu"):
        params = parameters()
        optimizer = made(
            nbopt.torch,
            "AdamW",
            [{"params": params[:2]}, {"params": params[2:]}],
            backend,
            gradient_clip_norm=1.0,
        )
        set_grads(params, 0, missing=False)
        for found, count in ((1.0, 0.0), (0.0, 1.0), (2.0, 1.0), (0.0, 2.0)):
            before = [p.detach().clone() for p in params]
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(found), torch.full((1,), 4.0)
            launches = optimizer._backend.launches
            optimizer.step()
            taken = optimizer._backend.launches - launches
            assert {float(states["step"]) for states in optimizer.state.values()} == {count}
            assert all(torch.equal(p, b) == (found > 0 or not p.numel()) for p, b in zip(params, before))
        del optimizer.found_inf, optimizer.grad_scale
        launches = optimizer._backend.launches
        optimizer.step()
        assert optimizer._backend.launches - launches == taken
        assert {float(states["step"]) for states in optimizer.state.values()} == {
            3.0
        } and optimizer.loss_scale == 1.0


def test_decay_groups():
    """Matrices decay, gains and biases don't, and what is frozen or tied is there once at most."""
    model = torch.nn.Sequential(
        torch.nn.Embedding(3, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3)
    )
    model[3].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    optimizer = nbopt.torch.AdamW(nbopt.torch.decay_groups(model, 0.1))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert [g["param_names"] for g in optimizer.param_groups] == [
        ["0.weight", "1.weight"],
        ["2.weight", "2.bias", "3.bias"],
    ]
    assert len(nbopt.torch.decay_groups(torch.nn.Linear(2, 2, bias=False), 0.1)) == 1
    with pytest.raises(ValueError, match="Module"):
        nbopt.torch.decay_groups(model.parameters(), 0.1)


def test_sixteen_bits():
    """States are float32 beside 16-bit parameters, or what state_dtype says; loaded ones are widened."""
    for given, expected in (
        (None, torch.float32),
        ("param", torch.bfloat16),
        (torch.float16, torch.float16),
        ("float64", torch.float64),
    ):
        for name in NAMES:
            params = parameters(torch.bfloat16)
            optimizer = made(
                nbopt.torch, name, params, state_dtype=given, stochastic_round=True, **RICH.get(name, {})
            )
            run(optimizer, params, 1, missing=False)
            found = {
                value.dtype
                for states in optimizer.state.values()
                for value in states.values()
                if value.shape != () or len(states) < 2
            }
            assert found <= {expected}
            # In float16 small squares become 0.
            assert given == torch.float16 or all(torch.isfinite(p).all() for p in params)
    theirs, ours = torch.optim.Adam(params), nbopt.torch.Adam(params)
    run(theirs, params, 1, missing=False)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state[params[0]]["exp_avg"].dtype == torch.float32


def test_stochastic_rounding():
    """Small steps of bfloat16 parameters add up on average.

    Two optimizers never round alike, unless a seed makes them.
    """

    def moved(**options):
        param = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = nbopt.torch.SGD([param], lr=2**-11, stochastic_round=True, **options)
        param.grad = torch.ones_like(param)
        for _ in range(8):
            optimizer.step()
        return param.detach()

    assert abs((1 - moved().double().mean()).item() - 8 * 2**-11) < 4e-4
    assert not torch.equal(moved(), moved()) and torch.equal(moved(seed=3), moved(seed=3))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.rest
def test_clip_and_skip(groups, backend):
    """The norm of all groups' gradients is clipped as by clip_grad_norm_.

    A step that is not finite is skipped, and counts for none.
    """
    results = []
    for module in (torch.optim, nbopt.torch):
        params = parameters(torch.float64)
        parts = [{"params": params[k::groups], "lr": 0.01 * (k + 1)} for k in range(groups)]
        extras = {"gradient_clip_norm": 0.5, "skip_nonfinite": True} if module is nbopt.torch else {}
        optimizer = made(module, "AdamW", parts, backend, **extras)
        for step in range(6):
            set_grads(params, step, missing=False)
            if step == 3:
                params[0].grad[0, 0] = torch.nan
                if module is torch.optim:
                    continue
            if module is torch.optim:
                torch.nn.utils.clip_grad_norm_(params, 0.5)
            norm = torch.nn.utils.get_total_norm([p.grad for p in params])
            optimizer.step()
            if module is nbopt.torch:
                torch.testing.assert_close(optimizer.grad_norm, norm, rtol=1e-9, atol=0, equal_nan=True)
        results.append(params)
    same(results, 1e-5)
    optimizer.gradient_clip_norm = None
    optimizer.skip_nonfinite = False
    optimizer.step()
    assert optimizer.grad_norm is None
    assert optimizer.skipped == [1] * groups and {
        float(states["step"]) for states in optimizer.state.values()
    } == {6.0}


def test_bound_of_a_group():
    """The bound may be changed, for all or in a group."""
    params = parameters(torch.float64)
    optimizer = made(
        nbopt.torch, "SGD", [{"params": params[:1]}, {"params": params[1:]}], lr=1.0, gradient_clip_norm=1.0
    )
    set_grads(params, 0, missing=False)
    norm = torch.nn.utils.get_total_norm([p.grad for p in params]).item()

    def moved():
        before = [p.detach().clone() for p in params]
        optimizer.step()
        return [torch.dist(p.detach(), b).item() / p.grad.norm().item() for p, b in zip(params[:2], before)]

    assert moved() == pytest.approx([1 / norm] * 2)
    optimizer.gradient_clip_norm = 2.0
    assert moved() == pytest.approx([2 / norm] * 2)
    optimizer.param_groups[1]["gradient_clip_norm"] = 0.5
    assert moved() == pytest.approx([2 / norm, 0.5 / norm])
    optimizer.param_groups[1]["gradient_clip_norm"] = None
    assert moved() == pytest.approx([2 / params[0].grad.norm().item(), 1.0])
