"""The PyTorch adapter's looks at its tensors: one call in a steady step.

The answers are the same if PyTorch doesn't have that call.
"""

import pytest

import nbopt

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402
from nbopt.torch import kinds  # noqa: E402


@pytest.fixture(params=["one call", "look by look"])
def looking(request, monkeypatch):
    """Steps look in one call, or from Python alone."""
    if request.param == "look by look":
        monkeypatch.setattr(kinds, "_Guards", None)


def parameters(count=3):
    found = [torch.nn.Parameter(torch.arange(4.0).reshape(2, 2)) for _ in range(count)]
    for p in found:
        p.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return found


def exchange_data(p, change):
    p.data = change(p.data)


def exchange_grad(p, change):
    p.grad = change(p.grad)


def transposed(tensor):
    return tensor.t()


# Each but for the first keeps shapes and addresses.
CHANGES = {
    "nothing": lambda p: None,
    "a transposed parameter": lambda p: exchange_data(p, transposed),
    "a transposed gradient": lambda p: exchange_grad(p, transposed),
    "a broadcast gradient": lambda p: exchange_grad(p, lambda grad: grad.as_strided((2, 2), (0, 1))),
    "a negative bit": lambda p: exchange_grad(p, torch._neg_view),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_at_the_same_address(looking, change):
    """A step after a change under one address is right in each element.

    So is one after the change back, and after no change.
    """
    params = parameters()
    optimizer = nbopt.torch.Optimizer(params, nbopt.GradientDescentMomentum(0.5, 0.0))
    addresses = [p.data_ptr() for p in params], [p.grad.data_ptr() for p in params]
    for turn in (None, CHANGES[change], None):
        data, grad = params[1].data, params[1].grad
        if turn is not None:
            turn(params[1])
        expected = [p.detach() - 0.5 * p.grad for p in params]
        optimizer.step()
        assert all(map(torch.equal, params, expected))
        assert ([p.data_ptr() for p in params], [p.grad.data_ptr() for p in params]) == addresses
        params[1].data, params[1].grad = data, grad


def test_shared_gradients(looking):
    """Parameters may have one gradient, in every step."""
    params = parameters()
    params[2].grad = params[0].grad
    optimizer = nbopt.torch.Optimizer(params, nbopt.GradientDescentMomentum(0.5, 0.0))
    for _ in range(3):
        expected = [p.detach() - 0.5 * p.grad for p in params]
        optimizer.step()
        assert all(map(torch.equal, params, expected))


DIFFERENCES = {
    "a negative bit": lambda tensor: torch._neg_view(tensor),
    "another dtype": lambda tensor: tensor.view(torch.int32),
    "another number of bytes": lambda tensor: tensor.double(),
    "other strides": lambda tensor: tensor.t(),
    "another shape": lambda tensor: tensor.reshape(4),
    "another size": lambda tensor: tensor[:1],
}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_likeness(difference, place):
    """One call sees each difference in any of the tensors, and none where other memory is alike."""
    tensors = [torch.ones(2, 2) for _ in range(4)]
    alike = kinds.likeness(tensors[:2], tensors[2:])
    assert alike(*tensors) and alike(*[torch.zeros(2, 2) for _ in range(4)])
    tensors[place] = DIFFERENCES[difference](tensors[place])
    assert not alike(*tensors)


def test_steady_steps_look_in_one_call(monkeypatch):
    """From the second step on no look goes from tensor to tensor.

    It is so in any grad mode, and with new gradients each time.
    """
    counted = []
    monkeypatch.setattr(
        nbopt.torch.share, "kinds_of", lambda *given: counted.append(given) or kinds.kinds_of(*given)
    )
    params = parameters()
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp())
    for _ in range(2):
        for mode in (torch.enable_grad, torch.no_grad):
            for p in params:
                p.grad = torch.ones(2, 2)
            with mode():
                optimizer.step()
    assert len(counted) == 1


class Blind:
    """What would see no negative bit."""

    def __init__(self, *tensors, **options):
        self.dtypes = [(t.dtype, t.shape, t.stride()) for t in tensors]

    def check(self, *tensors):
        return self.dtypes == [(t.dtype, t.shape, t.stride()) for t in tensors]


@pytest.mark.parametrize("found", [None, Blind, lambda *tensors: None])
def test_another_private_call_is_not_used(monkeypatch, found):
    """The one call is PyTorch's own affair.

    If it is gone, sees less or takes other arguments, Python looks.
    """
    guards = torch._C._dynamo.guards
    assert kinds._guards() is guards.TensorGuards
    if found is None:
        monkeypatch.delattr(guards, "TensorGuards")
    else:
        monkeypatch.setattr(guards, "TensorGuards", found)
    assert kinds._guards() is None
