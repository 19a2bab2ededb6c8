"""Checkpoints of released versions: every later version loads them and goes on with the same bits.

``tests/golden/checkpoints`` has a folder for each version that wrote some. A release adds one:

    NBOPT_UPDATE_GOLDEN=1 pytest tests/test_golden_checkpoints.py
"""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nbopt

FOLDER = Path(__file__).parent / "golden" / "checkpoints"
SHAPES = [(7, 5), (3,), (2, 3, 4)]
STEPS = 3
#: Layer -> its dtype. The optimizers of most are exact, so their bits are the same everywhere. Adam takes a
#: power, which is as exact as the machine's library.
LAYERS = {"rmsprop": ml_dtypes.bfloat16, "momentum": np.float32, "adagrad": np.float16, "adam": np.float32}


def values(shape, step):
    """Return values that are the same in every version of NumPy."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 37 + step * 11) % 19 - 9).reshape(shape) / 8


def native():
    """Return an optimizer and its layers, as they are before the first step."""
    layers = [
        nbopt.Parameters(*[(values(s, 0).astype(d), np.zeros(s, d)) for s in SHAPES], name=name)
        for name, d in LAYERS.items()
    ]
    optimizer = nbopt.MultiOptimizer(
        {
            "default": nbopt.Adam(learning_rate=0.01),
            "rmsprop": nbopt.RMSProp(stochastic_round=True, learning_rate=0.01),
            "momentum": nbopt.GradientDescentMomentum(0.01, 0.9, wdecay=0.1, schedule=nbopt.Schedule(2, 0.5)),
            "adagrad": nbopt.Adagrad(learning_rate=0.01, gradient_clip_value=0.5),
        }
    )
    return optimizer, layers


def train(optimizer, layers, first):
    for step in range(first, first + STEPS):
        for layer in layers:
            for grad in layer.grads:
                grad[...] = values(grad.shape, step).astype(grad.dtype)
        optimizer.optimize(layers, step)


def found(layers):
    """Return all parameters and states, bit by bit."""
    return {
        f"{layer.name}/{number}/{place}": np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for layer in layers
        for number, (param, states) in enumerate(zip(layer.params, layer.states))
        for place, array in enumerate([param, *(state.get() for state in states)])
    }


def same(ours, theirs, of):
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.startswith("adam"):
            one, other = (each[name].view(np.float32) for each in (ours, theirs))
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7, err_msg=f"{name} {of}")
        else:
            assert (ours[name] == theirs[name]).all(), f"{name} {of}"


def in_torch(torch):
    """Return what makes the parameters and the optimizer of each run, by its name."""
    import nbopt.torch as ours

    def run(dtype, make):
        params = [torch.nn.Parameter(torch.tensor(values(s, 0), dtype=dtype)) for s in SHAPES]
        return lambda: (params, make(params))

    half, single = torch.bfloat16, torch.float32
    return {
        "rmsprop": run(half, lambda p: ours.RMSprop(p, lr=0.01, stochastic_round=True, seed=5)),
        "sgd": run(single, lambda p: ours.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1)),
        "rule": run(single, lambda p: ours.Optimizer(p, nbopt.RMSProp(learning_rate=0.01), seed=5)),
        "adamw": run(single, lambda p: ours.AdamW(p, lr=0.01)),
        "lion": run(single, lambda p: ours.Lion(p, lr=0.01)),
    }


def torch_copy(torch, value):
    """Return a copy that later steps leave alone."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: torch_copy(torch, one) for key, one in value.items()}
    return [torch_copy(torch, one) for one in value] if isinstance(value, list) else value


def train_torch(torch, params, optimizer, first):
    for step in range(first, first + STEPS):
        for param in params:
            param.grad = torch.tensor(values(tuple(param.shape), step), dtype=param.dtype)
        optimizer.step()


def write():
    """Write those of this version."""
    folder = FOLDER / nbopt.__version__
    folder.mkdir(parents=True, exist_ok=True)
    with nbopt.use_backend("reference", rng_seed=7):
        optimizer, layers = native()
        train(optimizer, layers, 1)
        nbopt.save(folder / "run.safetensors", optimizer, layers)
        train(optimizer, layers, 1 + STEPS)
        save_file(found(layers), folder / "after.safetensors")
    import torch

    runs = {}
    for name in in_torch(torch):
        params, optimizer = in_torch(torch)[name]()
        train_torch(torch, params, optimizer, 1)
        before = {"params": [p.detach().clone() for p in params], "state_dict": optimizer.state_dict()}
        runs[name] = torch_copy(torch, before)
        train_torch(torch, params, optimizer, 1 + STEPS)
        runs[name]["after"] = [p.detach().clone() for p in params]
    torch.save(runs, folder / "torch.pt")


if os.environ.get("NBOPT_UPDATE_GOLDEN") == "1":
    write()
VERSIONS = sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("version", VERSIONS)
def test_native(version, backend):
    """A run of another version goes on to the bits to which it went on there, states and roundings too."""
    with nbopt.use_backend(backend):
        optimizer, layers = native()
        nbopt.load(FOLDER / version / "run.safetensors", optimizer, layers)
        assert optimizer.t == STEPS
        train(optimizer, layers, 1 + STEPS)
        same(found(layers), load_file(FOLDER / version / "after.safetensors"), f"after {version}")


@pytest.mark.parametrize("version", VERSIONS)
def test_torch(version):
    """So does each state dict, as `torch.load` reads it with weights_only."""
    torch = pytest.importorskip("torch")
    runs = torch.load(FOLDER / version / "torch.pt", weights_only=True)
    for name, make in in_torch(torch).items():
        params, optimizer = make()
        with torch.no_grad():
            for param, value in zip(params, runs[name]["params"]):
                param.copy_(value)
        optimizer.load_state_dict(runs[name]["state_dict"])
        train_torch(torch, params, optimizer, 1 + STEPS)
        for param, value in zip(params, runs[name]["after"]):
            if name == "adamw":  # it takes powers
                torch.testing.assert_close(param.detach(), value, rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(param.detach(), value), name


def test_this_version_has_some():
    """A release that changes the version writes its checkpoints."""
    assert nbopt.__version__ in VERSIONS
