"""One step in several parts: its results are those of the step as a whole, to the bit."""

import pytest

import nbopt

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402

SHAPES = [(70, 80), (17,), (), (2, 3, 4), (5000,), (9,)]
#: Which parameters each part has; the last has no gradients at times.
PARTS = [(0, 3), (1, 2), (4,), (5,)]
CASES = {
    "AdamW": ("AdamW", {}),
    "SGD": ("SGD", {"momentum": 0.9}),
    "Lion": ("Lion", {}),
    "ScheduleFreeAdamW": ("ScheduleFreeAdamW", {}),  # which has numbers of the whole step
    "SM3": ("SM3", {}),  # which is traced by axes
    "masters": ("AdamW", {"master_weights": True, "ema_decay": 0.9}),
}


def made(case, backend, groups=True):
    name, options = CASES[case]
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).bfloat16()) for shape in SHAPES]
    given = [{"params": params[:2]}, {"params": params[2:], "lr": 1e-2}] if groups else params
    optimizer = getattr(nbopt.torch, name)(
        given, lr=1e-3, backend=backend, seed=3, stochastic_round=True, **options
    )
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer, params, [[params[number] for number in part] for part in PARTS]


def set_grads(params, step):
    generator = torch.Generator().manual_seed(1000 + step)
    for number, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = None if (step + number) % 4 == 2 else grad


def run(parts):
    for part in parts:
        part()


def check_equal(first, params, second, others):
    for param, other in zip(params, others):
        assert torch.equal(param, other)
        assert first.state[param].keys() == second.state[other].keys()
        for key, value in second.state[other].items():
            assert torch.equal(first.state[param][key], value)
    assert str(first.state_dict()["param_groups"]) == str(second.state_dict()["param_groups"])
    assert first.state_dict()["rng_state"] == second.state_dict()["rng_state"]


@pytest.mark.parametrize("case", CASES)
def test_bits(case):
    """Parameters, states, counts and random bits are those of the whole step."""
    (first, params, parts), (second, others, _) = made(case, "reference"), made(case, "reference")
    for step in range(6):
        for tensors in (params, others):
            set_grads(tensors, step)
        second.step()
        run(first._in_parts(parts))
    check_equal(first, params, second, others)
    for tensors in (params, others):  # a whole step goes on from there
        set_grads(tensors, 6)
    first.step()
    second.step()
    check_equal(first, params, second, others)


@pytest.mark.parametrize("case", ["AdamW", "masters"])
def test_found_again(case):
    """Each part is found again, however many there are. It sees the values that gradients have then."""
    (first, params, _), (second, others, _) = made(case, "cpu", False), made(case, "cpu", False)
    parts = [[param] for param in params] + [[]] * 20
    grads = [torch.zeros_like(param) for param in params]
    for step in range(4):
        set_grads(others, 3)
        for param, other, grad in zip(params, others, grads):
            other.grad = torch.zeros_like(other) if other.grad is None else other.grad
            param.grad = grad.zero_()
        if step == 2:
            be, compiled, wrap = first._backend, first._backend.compilations, first._backend.wrap
            be.wrap = None
        runs = first._in_parts(parts)
        for grad, other in zip(grads, others):
            grad.copy_(other.grad)
        run(runs)
        second.step()
    be.wrap = wrap
    assert be.compilations == compiled
    check_equal(first, params, second, others)


def test_whole_steps():
    """A step that reduces over all gradients is not taken in parts. Nothing has changed then."""
    for name, value, off in (("gradient_clip_norm", 1.0, None), ("skip_nonfinite", True, False)):
        optimizer, params, parts = made("AdamW", "reference")
        setattr(optimizer, name, value)
        set_grads(params, 0)
        before = [param.detach().clone() for param in params]
        assert optimizer._in_parts(parts) is None
        assert all(map(torch.equal, before, params)) and not optimizer.state
        optimizer.step()
        setattr(optimizer, name, off)
        run(optimizer._in_parts(parts))


def test_errors():
    """What is wrong with one part is said before any has run, and the next step may be right."""
    optimizer, params, parts = made("AdamW", "reference")
    set_grads(params, 0)
    before = [param.detach().clone() for param in params]
    params[4].grad = torch.ones(5000, dtype=torch.bfloat16).to_sparse()
    with pytest.raises(nbopt.errors.SparseError, match="parameter 2 of the group is sparse"):
        optimizer._in_parts(parts)
    assert all(map(torch.equal, before, params)) and not optimizer.state
    assert optimizer._backend.rng_get_state()["updates"] == 0
    set_grads(params, 0)
    run(optimizer._in_parts(parts))
    assert optimizer._backend.rng_get_state()["updates"] == 1
