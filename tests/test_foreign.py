"""Arrays of other libraries whose memory is not simply their values.

They have negative bits, shared elements, or no memory of their own.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import nbopt
from nbopt.errors import ArgumentError, LayoutError

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
    """A gradient without memory is refused whenever it comes.

    Empty ones have none either, and are not refused.
    """
    p, empty = parameter([1.0, 1.0], torch.ones(2)), parameter([], torch.ones(0))
    optimizer = nbopt.torch.Optimizer([p, empty], sgd(1.0))
    optimizer.step()
    optimizer.step()
    p.grad = Wrapper(torch.ones(2))
    with pytest.raises(
        LayoutError, match=r"the gradient of parameter 0 of the group.*Wrapper.*no memory of its own"
    ):
        optimizer.step()
    assert p.tolist() == [-1.0, -1.0]
    p.grad = torch.ones(2)
    optimizer.step()
    assert p.tolist() == [-2.0, -2.0]


def test_dtensors():
    """DTensors, as FSDP2 makes them, are refused as raw arrays, with the way to their local tensors."""
    code = """
import torch, torch.distributed as dist
from torch.distributed.tensor import DTensor, init_device_mesh, distribute_tensor
import nbopt, nbopt.torch
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
p = torch.nn.Parameter(distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,))))
try:
    nbopt.Parameters((p, p)).get_params()
except nbopt.errors.LayoutError as error:
    assert "DTensor" in str(error) and ".to_local()" in str(error) and "FSDP2" in str(error), error
    print("refused")
dist.destroy_process_group()
"""
    pytest.importorskip("torch.distributed.tensor", reason="needs DTensor")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["refused"]


# --- gradients whose elements share memory ---


SHARED = {
    "broadcast": lambda: np.broadcast_to(np.float32([1, 2, 3]), (4, 3)),
    "one number": lambda: np.broadcast_to(np.float32(2), (4, 3)),
    "a window": lambda: np.lib.stride_tricks.sliding_window_view(np.arange(6, dtype=np.float32), 3),
}


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("name", ["plain", "norm clip", "stochastic"])
def test_shared_elements(backend, shared, name):
    """A gradient whose elements share memory gives the bits of a copy of it; it is only read."""
    options = {"plain": {}, "norm clip": {"gradient_clip_norm": 0.5}, "stochastic": {"stochastic_round": 3}}[
        name
    ]
    results = []
    for grad in (SHARED[shared](), SHARED[shared]().copy()):
        w = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
        backend.rng_reset()
        layer, optimizer = nbopt.Parameters((w, grad)), nbopt.RMSProp(**options)
        for _ in range(2):
            layer.grads = [grad]
            optimizer.optimize([layer], 0)
        results.append(w)
    assert results[0].tobytes() == results[1].tobytes()
    assert (results[0] != np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)).any()


def test_shared_elements_that_are_written(backend):
    """A parameter or a state whose elements share memory is refused as before."""
    w = np.ones((4, 3), np.float32)
    shared = np.lib.stride_tricks.as_strided(np.ones(3, np.float32), (4, 3), (0, 4))
    with pytest.raises(LayoutError, match="share memory with each other"):
        sgd().optimize([nbopt.Parameters((shared, w))], 0)
    layer = nbopt.Parameters((w, w.copy()))
    state = backend.wrap(shared)
    state.name = "RMSProp.mean_square"
    layer.states[0].append(state)
    with pytest.raises(LayoutError, match="share memory with each other"):
        nbopt.RMSProp().optimize([layer], 0)
    assert (w == 1).all()
    assert (shared == 1).all()


def test_shared_elements_of_the_parameter():
    """A gradient that is a window over what is written is still refused."""
    w = np.ones(6, np.float32)
    with pytest.raises(LayoutError, match="share memory that a step writes"):
        sgd().optimize([nbopt.Parameters((w, np.broadcast_to(w[:1], (6,))))], 0)
    assert (w == 1).all()


def test_expanded_gradients():
    """So it is for PyTorch's expand, also where it comes and goes."""
    p = parameter([0.0, 0.0, 0.0], None)
    optimizer, found = nbopt.torch.Optimizer([p], sgd(1.0)), []
    for grad in (torch.ones(1).expand(3), torch.ones(3), torch.tensor([2.0]).expand(3)):
        p.grad = grad
        optimizer.step()
        found.append(p.tolist())
    assert found == [[-1.0] * 3, [-2.0] * 3, [-4.0] * 3]


# --- numbers in arrays without dimensions ---


def jax_scalar(value):
    return pytest.importorskip("jax", reason="needs JAX: pip install jax").numpy.float32(value)


SCALARS = {
    "torch": torch.tensor,
    "torch parameter": lambda value: torch.nn.Parameter(torch.tensor(value)),
    "negative bit": negative,
    "numpy": np.array,
    "jax": jax_scalar,
    "nbopt": lambda value: nbopt.get_backend().array(value),
}


@pytest.mark.parametrize("kind", SCALARS)
def test_scalars(kind):
    """Hyper-parameters may be arrays without dimensions, of any library; they become plain numbers."""
    with nbopt.use_backend("reference"):
        half = SCALARS[kind](0.5)
        optimizer = nbopt.RMSProp(learning_rate=half, gradient_clip_norm=half, decay_rate=half)
        assert [
            type(x) for x in (optimizer.learning_rate, optimizer.gradient_clip_norm, optimizer.decay_rate)
        ] == [float] * 3
        assert optimizer.learning_rate == optimizer.gradient_clip_norm == optimizer.decay_rate == 0.5
        assert nbopt.PolySchedule(SCALARS[kind](4.0), 1.0).total_epochs == 4
        w, g = np.zeros(2, np.float32), np.ones(2, np.float32)

        class Half:
            def get_learning_rate(self, learning_rate, epoch):
                assert type(epoch) is float
                return half

        optimizer = sgd(4.0, schedule=Half(), wdecay=SCALARS[kind](0.0))
        optimizer.optimize([nbopt.Parameters((w, g))], SCALARS[kind](3.0))
        assert w.tolist() == [-0.5, -0.5]
        assert optimizer.clip_gradient_norm([((w, g), [])], half) == pytest.approx(0.5 / 2**0.5)


@pytest.mark.parametrize("bad", [-0.5, np.nan, True, 1j, [0.5]], ids=str)
@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_scalars_that_make_no_sense(bad, library):
    """They are checked as numbers are, and one element in a list is none."""
    with pytest.raises(ArgumentError, match="learning_rate must be a finite number from 0 on"):
        nbopt.RMSProp(learning_rate=library(bad))


def test_optax_schedules():
    """A schedule of optax, which gives JAX scalars, gives the rate."""
    optax = pytest.importorskip("optax", reason="needs optax: pip install optax")
    rates = optax.linear_schedule(1.0, 0.0, 4)

    class Rates:
        def get_learning_rate(self, learning_rate, epoch):
            return rates(epoch)

    w = np.zeros(2, np.float32)
    layer, optimizer = nbopt.Parameters((w, np.ones(2, np.float32))), sgd(1.0, schedule=Rates())
    with nbopt.use_backend("reference"):
        for epoch in range(4):
            optimizer.optimize([layer], epoch)
    assert w.tolist() == [-2.5, -2.5]


def test_a_learning_rate_in_a_tensor():
    """In PyTorch's groups a tensor is read at every step, however a scheduler writes it."""
    p = parameter([0.0], None)
    rate = torch.tensor(0.5)
    optimizer, found = nbopt.torch.Optimizer([{"params": [p], "lr": rate}], sgd(8.0)), []
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for _ in range(2):
        p.grad = torch.ones(1)
        optimizer.step()
        found.append(p.item())
        scheduler.step()
    rate = optimizer.param_groups[0]["lr"]
    assert isinstance(rate, torch.Tensor)
    rate.fill_(2.0)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert [*found, p.item()] == [-0.5, -0.75, -3.75]
    again = nbopt.torch.Optimizer([parameter([0.0], None)], sgd())
    again.load_state_dict(
        {
            **optimizer.state_dict(),
            "param_groups": [{**optimizer.state_dict()["param_groups"][0], "lr": torch.tensor(0.25)}],
        }
    )
    assert float(again.param_groups[0]["lr"]) == 0.25


def test_a_clip_that_a_group_turns_off():
    """None in a group turns a clip off that its optimizer has."""
    p = parameter([0.0], torch.tensor([3.0]))
    nbopt.torch.Optimizer(
        [{"params": [p], "gradient_clip_norm": None}], sgd(1.0, gradient_clip_norm=1.0)
    ).step()
    assert p.tolist() == [-3.0]


# --- threads ---


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="counts the system's threads in Linux's /proc"
)
@pytest.mark.parametrize("layer", ["omp", pytest.param("workqueue", marks=pytest.mark.thorough)])
def test_pytorchs_number_of_threads_stays(layer):
    """The first step on all cores leaves PyTorch's number of threads, and uses its own.

    Waiting threads are quick to sleep.
    """
    code = """
import os, threading, numba, torch, nbopt, nbopt.torch
from nbopt_backends.cpu import threads
torch.set_num_threads(1)
threads._FEW = threads._FEW_FOR_WORKQUEUE = 0
seen, launch = [], numba.np.ufunc.parallel._launch_threads
def noted():
    seen.append(os.environ.get("GOMP_SPINCOUNT"))
    launch()
threads.parallel._launch_threads = noted
def tasks():
    return len(os.listdir("/proc/self/task"))
p = torch.nn.Parameter(torch.ones(20000))
p.grad = torch.ones(20000)
before = tasks()
nbopt.torch.Optimizer([p], nbopt.GradientDescentMomentum(0.5, 0.0)).step()
threads.parallel._launch_threads = launch
more_tasks = tasks() > before
print(
    torch.get_num_threads(), threading.active_count(), numba.threading_layer(), seen[0],
    "GOMP_SPINCOUNT" in os.environ, more_tasks, p.tolist()[0],
)
"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    }
    environment |= {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split("\n")[0] == f"1 1 {layer} 3000 False True 0.5", done.stderr
