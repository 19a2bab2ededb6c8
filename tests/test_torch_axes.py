"""Rules with states of rows, columns and the whole step as optimizers of PyTorch."""

import copy
import io

import numpy as np
import pytest
import test_slices
import test_states
from helpers import same_bits
from rules import Covers

import nbopt

torch = pytest.importorskip("torch")

SHAPES = [(6, 5), (4,), (2, 3, 3, 3), ()]
RULES = {"rows": test_slices.centred, "axes": Covers, "every extent": test_states.Counted}


def problem(steps):
    rng = np.random.default_rng(3)
    params = [np.asarray(rng.normal(size=shape), np.float32) for shape in SHAPES]
    return params, [
        [np.asarray(rng.uniform(0.5, 1.5, shape), np.float32) for shape in SHAPES] for _ in range(steps)
    ]


def run(optimizer, params, steps):
    for grads in steps:
        for param, grad in zip(params, grads):
            param.grad = torch.from_numpy(grad.copy())
        optimizer.step()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.rest("every extent")
def test_like_native(name):
    """Parameters and states are those of the native optimizer, with missing gradients too."""
    arrays, steps = problem(3)
    params = [torch.nn.Parameter(torch.from_numpy(array.copy())) for array in arrays]
    optimizer = nbopt.torch.Optimizer(params, RULES[name](), seed=0)
    with nbopt.use_backend("cpu", rng_seed=0):
        layer, native = nbopt.Parameters(*((array, np.zeros_like(array)) for array in arrays)), RULES[name]()
        for number, grads in enumerate(steps):
            given = [None if number == 1 and k == 0 else grad for k, grad in enumerate(grads)]
            layer.grads = given
            native.optimize([layer], 0)
            for param, grad in zip(params, given):
                param.grad = None if grad is None else torch.from_numpy(grad.copy())
            optimizer.step()
    for param, array, states in zip(params, arrays, layer.states):
        assert same_bits(param.detach().numpy(), array)
        kept = [value for key, value in optimizer.state[param].items() if key != "step"]
        assert len(kept) == len(states)
        for value, state in zip(kept, states):
            assert value.numel() == 1 or tuple(value.shape) == state.shape
            assert same_bits(value.detach().numpy().reshape(state.shape), state.get())


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
@pytest.mark.rest("state_dict-axes")
def test_resumes(name, way):
    """A run that was saved goes on with the same bits."""
    arrays, steps = problem(4)
    params = [torch.nn.Parameter(torch.from_numpy(array.copy())) for array in arrays]
    optimizer = nbopt.torch.Optimizer(params, RULES[name](), seed=0)
    run(optimizer, params, steps[:2])
    if way == "deepcopy":
        other, twins = copy.deepcopy((optimizer, params))
    else:
        twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
        other, file = nbopt.torch.Optimizer(twins, RULES[name](), seed=0), io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
    run(optimizer, params, steps[2:])
    run(other, twins, steps[2:])
    assert all(same_bits(param.detach().numpy(), twin.detach().numpy()) for param, twin in zip(params, twins))


def test_a_state_of_another_shape_is_refused():
    params = [torch.nn.Parameter(torch.ones(6, 5))]
    optimizer = nbopt.torch.Optimizer(params, test_slices.centred())
    run(optimizer, params, [[np.ones((6, 5), np.float32)]])
    saved = optimizer.state_dict()
    saved["state"][0]["row"] = torch.ones(6, 5)
    with pytest.raises(
        nbopt.errors.StateError,
        match=r"the state row of parameter 0 has shape \(6, 5\), and has to have \(6, 1\)",
    ):
        optimizer.load_state_dict(saved)
