"""What stands around a step in PyTorch.

There are signatures, torch.compile, modes, hooks in the backward pass, shared memory, and distributed
checkpoints.
"""

import inspect
import warnings

import pytest

import nbopt

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402

import nbopt.torch  # noqa: E402

NAMES = [
    name
    for name in nbopt.torch.__all__
    if name not in ("Optimizer", "Adafactor", "Muon") and hasattr(torch.optim, name)
]
EXTRAS = {
    "stochastic_round", "state_dtype", "gradient_clip_norm", "skip_nonfinite", "seed", "backend",
    "ema_decay", "centralize",
    "adaptive_clip", "param_decay", "cautious", "master_weights",
}  # fmt: skip


def model_of(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def loss_of(model, inputs):
    return model(inputs).square().sum()


INPUTS = torch.linspace(-1, 1, 15).view(5, 3)


def trained(module, name, train, steps=4, **options):
    model = model_of()
    extras = {"backend": "reference"} if module is nbopt.torch else {}
    optimizer = getattr(module, name)(model.parameters(), **options, **extras)
    train(model, optimizer, steps)
    return [p.detach().clone() for p in model.parameters()]


def plainly(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, INPUTS).backward()
        optimizer.step()


def agree(name, train, **options):
    """Whether ours, trained in some way, moves as PyTorch's does, trained plainly."""
    expected, found = (
        trained(torch.optim, name, plainly, **options),
        trained(nbopt.torch, name, train, **options),
    )
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    """A class has PyTorch's arguments, then ours by name only, says something of each, and is short."""
    ours, theirs = getattr(nbopt.torch, name), getattr(torch.optim, name)
    for found, expected in ((ours, theirs), (ours.__init__, theirs.__init__)):
        found, expected = inspect.signature(found).parameters, inspect.signature(expected).parameters
        assert {*found} >= {"capturable"}  # PyTorch's where it has one, else ours
        known = [p for p in found.values() if p.name not in EXTRAS - {*expected}]
        assert [p for p in known if p.name in expected or p.name != "capturable"] == [*expected.values()]
        assert {p.name for p in found.values() if p.kind is p.KEYWORD_ONLY} >= EXTRAS
    _, _, parameters = inspect.cleandoc(ours.__doc__).partition("\n\nParameters\n----------\n")
    assert (
        all(f"\n{extra} : " in parameters for extra in EXTRAS)
        and "\n\nReferences\n----------\n" in parameters
    )
    code = inspect.getsource(ours).split('"""')[-1]
    assert len(code.splitlines()) <= 40 and issubclass(ours, theirs) and ours.__name__ == name


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_compile(name):
    """torch.compile may wrap the training step: the graph breaks at the step, and nothing is traced there."""

    def train(model, optimizer, steps):
        def one():
            optimizer.zero_grad()
            loss_of(model, INPUTS).backward()
            optimizer.step()

        step = torch.compile(one, backend="eager")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(steps):
                step()
        assert not [w for w in found if "nbopt" in str(w.filename)]

    agree(name, train)


def test_inference_mode():
    """A step in inference mode, or without gradients, is a step."""
    for mode in (torch.inference_mode, torch.no_grad):

        def train(model, optimizer, steps, mode=mode):
            for _ in range(steps):
                optimizer.zero_grad()
                loss_of(model, INPUTS).backward()
                with mode():
                    optimizer.step()

        agree("AdamW", train)


def test_hooks_in_backward():
    """Each parameter may have an optimizer of its own.

    It steps as soon as its gradient is there, and frees it.
    """
    model = model_of()
    optimizers = {p: nbopt.torch.AdamW([p], backend="reference") for p in model.parameters()}

    def hook(param):
        optimizers[param].step()
        optimizers[param].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    for _ in range(4):
        loss_of(model, INPUTS).backward()
    assert all(p.grad is None for p in model.parameters())
    for p, expected in zip(model.parameters(), trained(torch.optim, "AdamW", plainly)):
        torch.testing.assert_close(p.detach(), expected, rtol=2e-5, atol=2e-6)


def test_step_hooks():
    """Hooks before and after a step are called, and may give it another closure."""
    calls = []
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = nbopt.torch.SGD([param], lr=1.0, backend="reference")
    own = optimizer.register_step_pre_hook(
        lambda o, args, kwargs: calls.append(("before", args[0] is o, len(args), [*kwargs]))
    )
    optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append("after"))
    every = register_optimizer_step_pre_hook(lambda o, args, kwargs: ((o, lambda: calls.append("loss")), {}))
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("state"))
    try:
        optimizer.step(closure=lambda: 1.0)
    finally:
        every.remove()
    own.remove()
    assert optimizer.step(lambda: 2.0) == 2.0
    optimizer.state_dict()
    # The hook of all optimizers is the first, so the other one finds what it has given.
    assert calls == [("before", True, 2, []), "loss", "after", "after", "state"]


@pytest.mark.parametrize("kind", ["SGD", "Optimizer", "Offload"])
def test_hooks_once(kind):
    """A class of a user's that extends ``step`` has its hooks called once."""
    base, calls = getattr(nbopt.torch, kind), []

    class Extended(base):
        def step(self, closure=None):
            calls.append("step")
            return super().step(closure)

    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    given = {"SGD": (), "Optimizer": (nbopt.RMSProp(),), "Offload": (nbopt.torch.SGD,)}[kind]
    optimizer = Extended([param], *given)
    optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append("after"))
    optimizer.step()
    assert calls == ["step", "after"] and not torch.equal(param, torch.ones(3))


@pytest.mark.parametrize("make", [torch.optim.SGD, nbopt.torch.SGD])
def test_profiler(make):
    """A profiler that is on sees a step by its class, as PyTorch's."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = make([param], lr=1.0)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        optimizer.step()
    assert [event.name for event in seen.events() if "Optimizer" in event.name] == ["Optimizer.step#SGD.step"]


def test_shared_memory():
    """Sums that were moved to shared memory are those of the next steps."""

    def train(model, optimizer, steps):
        plainly(model, optimizer, 1)
        optimizer.share_memory()
        assert all(states["sum"].is_shared() for states in optimizer.state.values())
        plainly(model, optimizer, steps - 1)

    agree("Adagrad", train)
    model = model_of()
    optimizer = nbopt.torch.Adagrad(model.parameters(), backend="reference")
    optimizer.share_memory()
    plainly(model, optimizer, 1)
    assert all(states["sum"].any() for states in optimizer.state.values())


def test_distributed_checkpoint():
    """PyTorch's distributed checkpoints get the states, and put them back.

    The step that they make to get them changes nothing.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    found = []
    for module in (torch.optim, nbopt.torch):
        model, other = model_of(), model_of()
        extras = {"backend": "reference"} if module is nbopt.torch else {}
        optimizer, again = (module.AdamW(m.parameters(), lr=0.1, **extras) for m in (model, other))
        before = [p.detach().clone() for p in other.parameters()]
        plainly(model, optimizer, 3)
        state = get_optimizer_state_dict(model, optimizer)
        other.load_state_dict(model.state_dict())
        set_optimizer_state_dict(other, again, state)
        plainly(other, again, 2)
        found.append([*other.parameters()])
        untouched = model_of()
        fresh = module.AdamW(untouched.parameters(), lr=0.1, **extras)
        get_optimizer_state_dict(untouched, fresh)
        assert all(map(torch.equal, untouched.parameters(), before))
        assert {float(states["step"]) for states in fresh.state.values()} <= {0.0, 1.0}
    torch.testing.assert_close(found[1], found[0], rtol=2e-5, atol=2e-6)


def test_distributed_checkpoint_of_random_bits():
    """The random bits and the skipped steps survive PyTorch's distributed checkpoints.

    The step that these make leaves parameters as they are.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def made():
        model = model_of().bfloat16()
        extras = {"stochastic_round": True, "skip_nonfinite": True, "backend": "reference"}
        groups = nbopt.torch.decay_groups(model, 0.1)
        return model, nbopt.torch.AdamW(groups, lr=1e-3, **extras)

    def run(model, optimizer, steps):
        for step in steps:
            for p in model.parameters():
                p.grad = torch.full_like(p, torch.nan if step == 1 else 1.0)
            optimizer.step()

    model, optimizer = made()
    run(model, optimizer, range(4))
    state = get_optimizer_state_dict(model, optimizer)
    other, again = made()
    before = [p.detach().clone() for p in other.parameters()]
    set_optimizer_state_dict(other, again, state)
    assert all(map(torch.equal, other.parameters(), before))
    assert again.skipped == optimizer.skipped == [1, 1]
    assert [group.keys() for group in again.param_groups] == [
        group.keys() for group in optimizer.param_groups
    ]
    other.load_state_dict(model.state_dict())
    for one in ((model, optimizer), (other, again)):
        run(*one, range(4, 8))
    assert all(map(torch.equal, other.parameters(), model.parameters()))
