"""Arrays of other libraries whose memory is not simply their values: negative bits, shared elements, no memory of their own."""

import subprocess
import sys

import pytest

import nbopt
from nbopt.errors import LayoutError

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402


def sgd(rate=0.1, **options):
    return nbopt.GradientDescentMomentum(rate, 0.0, **options)


def negative(values, dtype=torch.float32):
    """A tensor with these values whose memory holds -values."""
    return torch._neg_view(-torch.tensor(values, dtype=dtype))


def parameter(values, grad, **options):
    found = torch.nn.Parameter(torch.tensor(values, **options))
    found.grad = grad
    return found


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, as DTensor is."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return "Wrapper"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        found = func(*(arg.inner if isinstance(arg, Wrapper) else arg for arg in args), **(kwargs or {}))
        return Wrapper(found) if isinstance(found, torch.Tensor) else found


# --- the negative bit ---


def test_negative_bit():
    """A gradient with PyTorch's negative bit moves its parameter the right way."""
    p = torch.nn.Parameter(torch.tensor(0.25))
    (torch.complex(torch.tensor(0.5), p).conj() * (1 + 2j)).imag.backward()
    assert p.grad.is_neg()
    nbopt.torch.Optimizer([p], sgd()).step()
    assert p.item() == pytest.approx(0.35)


def test_negative_bit_comes_and_goes():
    """The bit of a gradient is looked at in every step, whatever stays the same."""
    p = parameter([0.0, 0.0], None)
    optimizer = nbopt.torch.Optimizer([p], sgd(1.0))
    plain, found = torch.tensor([1.0, 2.0]), []
    for grad in (plain, torch._neg_view(plain), plain, negative([3.0, -1.0])):
        p.grad = grad
        optimizer.step()
        found.append(p.tolist())
    assert found == [[-1.0, -2.0], [0.0, 0.0], [-1.0, -2.0], [-4.0, -1.0]]


def test_negative_bit_in_raw_tensors(host_backend):
    """Gradients with the bit are read right in every step, also where they are written in place."""
    w, g = torch.zeros(2), negative([1.0, 2.0])
    layer = nbopt.Parameters((w, g))
    for _ in range(2):
        sgd(1.0).optimize([layer], 0)
    assert w.tolist() == [-2.0, -4.0]
    g.copy_(torch.tensor([-2.0, -4.0]))
    sgd(1.0).optimize([layer], 0)
    assert w.tolist() == [0.0, 0.0]


def test_negative_bit_in_layers_of_ones_own(host_backend):
    """A layer that gives raw tensors has its gradients read right."""

    class Layer:
        w, g, states = torch.zeros(2), negative([1.0, 2.0]), []

        def get_params(self):
            return (self.w, self.g), self.states

    sgd(1.0).optimize([Layer()], 0)
    assert Layer.w.tolist() == [-1.0, -2.0]


@pytest.mark.parametrize("raw", [False, True])
def test_negative_loss_scale(raw):
    """A loss scale with the bit counts as its value."""
    p = parameter([0.0], torch.tensor([4.0]))
    optimizer = sgd(1.0)
    optimizer.loss_scale = negative([2.0])
    if raw:
        with nbopt.use_backend("cpu"):
            optimizer.optimize([nbopt.Parameters((p, p.grad))], 0)
    else:
        nbopt.torch.Optimizer([p], optimizer).step()
    assert p.tolist() == [-2.0]


@pytest.mark.parametrize("where", ["a parameter", "a state", "a raw parameter", "a raw tensor"])
def test_negative_bit_is_not_written_through(where):
    """What a step writes must not have the bit: the error says what to type, and nothing has changed."""
    values = negative([1.0])
    p = parameter([1.0], torch.ones(1))
    optimizer = nbopt.torch.Optimizer([p], nbopt.RMSProp())
    with pytest.raises(LayoutError, match=r"negative bit.*resolve_neg\(\)"), nbopt.use_backend("cpu") as be:
        if where == "a parameter":
            nbopt.torch.Optimizer([torch.nn.Parameter(values)], sgd())
        elif where == "a state":
            optimizer.state[p]["mean_square"] = values
            optimizer.step()
        elif where == "a raw parameter":
            sgd().optimize([nbopt.Parameters((values, torch.ones(1)))], 0)
        else:
            be.wrap(values)
    assert values.tolist() == p.tolist() == [1.0]


# --- dtypes that change ---


def test_dtype_changes_at_equal_size():
    """A gradient in another dtype of as many bytes is read in that dtype."""
    p = parameter([0.0, 0.0], None, dtype=torch.bfloat16)
    if not hasattr(p, "grad_dtype"):
        pytest.skip("gradients have their parameter's dtype before PyTorch 2.9")
    p.grad_dtype = None
    optimizer, found = nbopt.torch.Optimizer([p], sgd(1.0)), []
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16, torch.float32):
        p.grad = torch.tensor([1.0, 2.0], dtype=dtype)
        optimizer.step()
        found.append(p.tolist())
    assert found == [[-k, -2.0 * k] for k in (1, 2, 3, 4)]


def test_dtype_changes_at_equal_size_among_others():
    """So it is where only one of several gradients changes."""
    params = [parameter([0.0], None, dtype=torch.bfloat16) for _ in range(3)]
    if not hasattr(params[0], "grad_dtype"):
        pytest.skip("gradients have their parameter's dtype before PyTorch 2.9")
    optimizer = nbopt.torch.Optimizer(params, sgd(1.0))
    for dtype in (torch.bfloat16, torch.float16):
        for number, p in enumerate(params):
            p.grad_dtype = None
            p.grad = torch.ones(1, dtype=dtype if number == 1 else torch.bfloat16)
        optimizer.step()
    assert [p.item() for p in params] == [-2.0] * 3


def test_dtype_of_raw_gradients_changes(host_backend):
    """Raw gradients may change their dtype from step to step, too."""
    w, optimizer = torch.zeros(2), sgd(1.0)
    layer = nbopt.Parameters((w, torch.ones(2, dtype=torch.float16)))
    for dtype in (torch.float16, torch.bfloat16, torch.float16):
        layer.grads = [torch.ones(2, dtype=dtype)]
        optimizer.optimize([layer], 0)
    assert w.tolist() == [-3.0, -3.0]


# --- tensors without memory of their own ---


def test_wrapper_tensors(host_backend):
    """A wrapper tensor is refused by its name, with what to do."""
    w = torch.ones(3)
    with pytest.raises(LayoutError, match=r"parameter 0 of the group.*Wrapper.*no memory of its own"):
        nbopt.torch.Optimizer([torch.nn.Parameter(Wrapper(w))], sgd())
    for pair in ((Wrapper(w), w), (w, Wrapper(w))):
        with pytest.raises(LayoutError, match=r"Wrapper.*no memory of its own"):
            sgd().optimize([nbopt.Parameters(pair)], 0)
    assert w.tolist() == [1.0] * 3


def test_wrapper_gradients_in_later_steps():
    """A gradient without memory is refused whenever it comes, and empty ones, which have none either, are not."""
    p, empty = parameter([1.0, 1.0], torch.ones(2)), parameter([], torch.ones(0))
    optimizer = nbopt.torch.Optimizer([p, empty], sgd(1.0))
    optimizer.step()
    optimizer.step()
    p.grad = Wrapper(torch.ones(2))
    with pytest.raises(LayoutError, match=r"the gradient of parameter 0 of the group.*Wrapper.*no memory of its own"):
        optimizer.step()
    assert p.tolist() == [-1.0, -1.0]
    p.grad = torch.ones(2)
    optimizer.step()
    assert p.tolist() == [-2.0, -2.0]


def test_dtensors():
    """DTensors, as FSDP2 makes them, are refused with the way to their local tensors."""
    code = """
import torch, torch.distributed as dist
from torch.distributed.tensor import DTensor, init_device_mesh, distribute_tensor
import nbopt, nbopt.torch
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
p = torch.nn.Parameter(distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,))))
for run in (lambda: nbopt.torch.Optimizer([p], nbopt.RMSProp()), lambda: nbopt.Parameters((p, p)).get_params()):
    try:
        run()
    except nbopt.errors.LayoutError as error:
        assert "DTensor" in str(error) and ".to_local()" in str(error) and "FSDP2" in str(error), error
        print("refused")
dist.destroy_process_group()
"""
    pytest.importorskip("torch.distributed.tensor", reason="needs DTensor")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * 2
