"""PyTorch's optimizers with `capturable=True`.

PyTorch has no graphs on the CPU. So most tests have the CPU backend say that it captures: then counts live in
memory, as on a GPU, and the rest is the same code. The last test needs a GPU.
"""

import copy

import pytest

torch = pytest.importorskip("torch")

import nbopt  # noqa: E402
import nbopt.torch  # noqa: E402
from nbopt import errors  # noqa: E402
from nbopt.interface.backend import Backend  # noqa: E402


@pytest.fixture
def memory(monkeypatch):
    """Backends that count in memory. ``memory[0] = True`` stands for a stream that is being captured."""
    flag = [False]
    monkeypatch.setattr(Backend, "captures", True)
    monkeypatch.setattr(Backend, "capturing", lambda self: flag[0])
    return flag


def params(n=2):
    found = [torch.nn.Parameter(torch.linspace(-1, 1, 5 + k)) for k in range(n)]
    for param in found:
        param.grad = torch.linspace(0.5, -1, param.numel())
    return found


MAKE = {
    "adam": lambda given, **options: nbopt.torch.Adam(given, lr=0.1, **options),
    "sgd": lambda given, **options: nbopt.torch.SGD(given, lr=0.1, momentum=0.9, **options),
    "nadam": lambda given, **options: nbopt.torch.NAdam(given, lr=0.1, **options),
    "schedule-free": lambda given, **options: nbopt.torch.ScheduleFreeSGD(given, lr=0.1, **options),
    "adopt": lambda given, **options: nbopt.torch.ADOPT(given, lr=0.1, **options),
    "a rule": lambda given, **options: nbopt.torch.Optimizer(given, nbopt.LAMB(), seed=0, **options),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.rest("adam")
def test_counts_in_memory_change_nothing(memory, name):
    """Steps, copies and state dicts are those of counts on the host; a state dict has plain numbers."""
    found = []
    for capturable in (True, False):
        given = params()
        optimizer = MAKE[name](given, capturable=capturable)
        if name == "schedule-free":
            optimizer.train()
        for _ in range(3):
            optimizer.step()
        other = copy.deepcopy(optimizer)
        saved = optimizer.state_dict()
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(saved))
        optimizer.step()
        groups = saved["param_groups"][0], other.state_dict()["param_groups"][0]
        assert not any(isinstance(value, torch.Tensor) for value in groups[0].values())
        for group in groups:
            assert group.get("t", group.get("k", group.get("step", 3))) == 3
        found.append(given)
    tolerance = {"rtol": 1e-6, "atol": 0} if name == "adopt" else {"rtol": 0, "atol": 0}  # t**.25
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, **tolerance)


def test_a_load_writes_in_place(memory):
    """Graphs know the memory of states and counts."""
    optimizer = MAKE["a rule"](params(), capturable=True)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    places = [state.data_ptr() for states in optimizer.state.values() for state in states.values()]
    count = optimizer.param_groups[0]["t"]
    optimizer.step()
    assert count == 2
    optimizer.load_state_dict(saved)
    assert places == [state.data_ptr() for states in optimizer.state.values() for state in states.values()]
    assert count == 1
    optimizer.step()
    assert optimizer.param_groups[0]["t"] is count and count == 2


def test_a_capture_needs_capturable_and_a_step_before(memory):
    """Errors say what to type, and nothing has changed."""
    given = params(3)
    plain, optimizer = MAKE["adam"](given), MAKE["adam"](given, capturable=True)
    plain.step()
    before = [param.detach().clone() for param in given]
    memory[0] = True
    with pytest.raises(errors.StateError, match="make the optimizer with capturable=True"):
        plain.step()
    with pytest.raises(errors.StateError, match=r"first step.*call optimizer\.step\(\) once before"):
        optimizer.step()
    memory[0], given[2].grad = False, None
    optimizer.step()
    memory[0], given[2].grad = True, torch.ones_like(given[2])
    with pytest.raises(errors.StateError, match=r"no state .* yet.*optimizer\.step\(\) once with these"):
        optimizer.step()
    assert torch.equal(before[2], given[2])


def test_a_schedule_is_refused(memory):
    """The error names PyTorch's schedulers."""
    given = params()
    optimizer = nbopt.torch.Optimizer(given, nbopt.RMSProp(schedule=nbopt.ExpSchedule(0.5)), capturable=True)
    optimizer.param_groups[0]["epoch"] = 1
    with pytest.raises(errors.StateError, match=r"ExpSchedule.*group's lr a tensor on the GPU, and take"):
        optimizer.step()
    optimizer.capturable = False
    optimizer.step()
    assert optimizer.param_groups[0]["t"] == 1


def test_on_the_cpu():
    """PyTorch refuses its own `capturable` there; a rule of nbopt's takes no notice."""
    for make in (torch.optim.Adam, nbopt.torch.Adam):
        with pytest.raises((AssertionError, errors.ArgumentError), match="capturable=True"):
            make(params(), capturable=True).step()
    given = params()
    optimizer = nbopt.torch.Optimizer(given, nbopt.RMSProp(schedule=nbopt.ExpSchedule(0.5)), capturable=True)
    optimizer.param_groups[0]["epoch"] = 0
    optimizer.step()
    assert optimizer.param_groups[0]["t"] == 1 and optimizer.capturable
    MAKE["sgd"](given, capturable=True).step()
    with pytest.raises(errors.ArgumentError, match="capturable must be True or False"):
        optimizer.capturable = 1


@pytest.mark.gpu
def test_replays_have_the_bits_of_steps():
    """`torch.cuda.graph` around forward, backward and step; the learning rate is a tensor."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch here has no CUDA")
    (steps, random, one), (other_steps, other_random, two) = trained_on_gpu(True), trained_on_gpu(False)
    assert steps == other_steps == [24, 24] and random == other_random
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def trained_on_gpu(graphs):
    """Train a layer in 16 bits, 20 of 24 steps by replays; return counts, random bits and parameters."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 8, device="cuda", dtype=torch.bfloat16)
    inputs = torch.randn(16, 64, device="cuda", dtype=torch.bfloat16)
    rate, options = torch.tensor(0.01, device="cuda"), {"stochastic_round": True, "gradient_clip_norm": 0.5}
    optimizer = nbopt.torch.AdamW(model.parameters(), lr=rate, capturable=True, seed=0, **options)

    def step():
        optimizer.zero_grad(set_to_none=False)
        model(inputs).float().square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    if graphs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    for number in range(20):
        rate.fill_(0.01 / (1 + number))
        graph.replay() if graphs else step()
    step()
    steps = [int(state["step"]) for state in optimizer.state.values()]
    return steps, optimizer.state_dict()["rng_state"], [*model.parameters()]
