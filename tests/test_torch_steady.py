"""Steps that are the one before them with other numbers and gradients: each other change is still seen."""

import sys

import pytest

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402
from nbopt.torch.steady import Steady  # noqa: E402


def set_grads(optimizer, step):
    """New gradient tensors for all parameters."""
    generator = torch.Generator().manual_seed(step)
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.randn(param.shape, generator=generator)


def first(optimizer):
    return optimizer.param_groups[0]["params"][0]


def key(name, value):
    return lambda optimizer: optimizer.param_groups[0].__setitem__(name, value)


def attribute(name, value):
    return lambda optimizer: setattr(optimizer, name, value)


def negative(optimizer):
    first(optimizer).grad = torch._neg_view(first(optimizer).grad)


def transposed(optimizer):
    first(optimizer).data = first(optimizer).data.t()


def transposed_gradient(optimizer):
    first(optimizer).grad = first(optimizer).grad.t().contiguous().t()


def other_memory(optimizer):
    first(optimizer).data = first(optimizer).data.clone() * 2


def another_parameter(optimizer):
    param = torch.nn.Parameter(torch.full((4, 4), 3.0))
    param.grad = torch.ones(4, 4)
    optimizer.param_groups[0]["params"][0] = param


def another_tensor(optimizer):
    state = optimizer.state[first(optimizer)]
    state["momentum_buffer"] = state["momentum_buffer"] * 2


def more_parameters(optimizer):
    optimizer.param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(3)))
    optimizer.param_groups[0]["params"][-1].grad = torch.ones(3)


def another_group(optimizer):
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 1.0})
    optimizer.param_groups[1]["params"][0].grad = torch.ones(3)


#: What happens to an optimizer between two steps, and whether the step is still steady.
CHANGES = {
    "nothing": (lambda optimizer: None, True),
    "rate": (key("lr", 0.5), True),
    "momentum": (key("momentum", 0.25), True),
    "gradient written": (lambda optimizer: first(optimizer).grad.mul_(3.0), True),
    "state written": (lambda optimizer: optimizer.state[first(optimizer)]["momentum_buffer"].mul_(3.0), True),
    "parameter written": (lambda optimizer: first(optimizer).data.mul_(3.0), True),
    "loss scale": (attribute("loss_scale", 4.0), True),
    "loss scale in memory": (attribute("loss_scale", torch.tensor(4.0)), False),
    "no momentum": (key("momentum", 0.0), False),
    "norm clip": (attribute("gradient_clip_norm", 0.1), False),
    "rounding": (attribute("stochastic_round", True), False),
    "negative bit": (negative, False),
    "transposed": (transposed, False),
    "transposed gradient": (transposed_gradient, False),
    "no gradient": (lambda optimizer: setattr(first(optimizer), "grad", None), False),
    "other memory": (other_memory, False),
    "another parameter": (another_parameter, False),
    "fewer parameters": (lambda optimizer: optimizer.param_groups[0]["params"].pop(0), False),
    "more parameters": (more_parameters, False),
    "another group": (another_group, False),
    "another state": (another_tensor, False),
    "no state": (lambda optimizer: optimizer.state.pop(first(optimizer)), False),
    "loaded": (lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()), False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes(name, monkeypatch):
    """A change between two steps has the effect that it has in the reference, which looks at everything."""
    change, stays = CHANGES[name]
    steady, found = Steady.step, []

    def counted(self, whole):
        found.append(steady(self, whole))
        return found[-1]

    monkeypatch.setattr(Steady, "step", counted)
    results = []
    for backend in ("reference", "cpu"):
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 16).view(4, 4) + k) for k in range(3)]
        optimizer = nbopt.torch.SGD(params, lr=0.1, momentum=0.5, backend=backend)
        for step in range(8):
            set_grads(optimizer, step)
            if step == 4:
                assert found == [True] if backend == "cpu" else not found
                change(optimizer)
            optimizer.step()
            if step == 4 and backend == "cpu":
                assert (len(found) == 2 and found[1]) == stays
        results.append([*params, *(param for group in optimizer.param_groups for param in group["params"])])
    assert all(map(torch.equal, *results))
    assert [param._version for param in results[0]] == [param._version for param in results[1]]


@pytest.mark.parametrize(("name", "bound"), [("Optimizer", 43), ("AdamW", 47)])
def test_calls(name, bound):
    """A steady step calls few Python functions: each takes microseconds after other work."""
    given = [torch.nn.Parameter(torch.ones(4, 4))], *([nbopt.RMSProp()] if name == "Optimizer" else [])
    optimizer = getattr(nbopt.torch, name)(*given)
    for step in range(4):
        set_grads(optimizer, step)
        optimizer.step()
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event) if event == "call" else None)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    assert len(calls) <= bound
