"""Rules that ask for the dtype of their parameter."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import nbopt


class ByDtype(nbopt.Optimizer):
    """Subtracts the distance from 1 to the next number of the parameter's dtype."""

    def __init__(self, name=None):
        super().__init__(name=name)
        self.learning_rate = 1.0

    def rule(self, step, param, grad):
        total = step.sum(grad)
        param[:] = param - step.lr * grad * float(ml_dtypes.finfo(param.dtype).eps) * total


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_dtype(name):
    """A rule may ask for its parameter's dtype, and is then traced for each that occurs."""
    dtypes = [np.dtype(dtype) for dtype in ("float32", ml_dtypes.bfloat16, "float64", "float32")]
    arrays = [np.ones(3, dtype) for dtype in dtypes]
    with nbopt.use_backend(name) as be:
        # One is a tensor of the backend, the others are plain arrays of a user's own layer.
        params = [be.wrap(arrays[0]), *arrays[1:]]
        entries = [((param, np.ones(3, dtype)), []) for param, dtype in zip(params, dtypes)]
        layer = SimpleNamespace(get_params=lambda: entries)
        optimizer = ByDtype()
        for _ in range(2):
            optimizer.optimize([layer], 0)
        explained = nbopt.explain(optimizer, [layer])
    for array, dtype in zip(arrays, dtypes):
        assert (array.astype(np.float64) == 1 - 2 * 12 * float(ml_dtypes.finfo(dtype).eps)).all()
    assert "dtype = 'float64'" in explained  # that of the trace which was looked for last


@pytest.mark.parametrize("ask", [lambda grad, mean: grad.dtype, lambda grad, mean: mean.dtype])
def test_dtype_of_another_slot(ask):
    """The gradient and states may be of any dtype, and the message says whom to ask."""
    optimizer = ByDtype()
    optimizer.state_names, optimizer.rule = ("mean",), lambda step, param, grad, mean: ask(grad, mean)
    with nbopt.use_backend("reference"), pytest.raises(nbopt.errors.TraceError, match=r"param\.dtype"):
        optimizer.optimize([nbopt.Parameters((np.ones(3), np.ones(3)))], 0)


@pytest.mark.parametrize("masters", [False, True])
def test_dtype_in_pytorch(masters):
    """A parameter beside a master has the master's dtype, since the rule's parameter is the master."""
    torch = pytest.importorskip("torch")
    dtypes = [torch.float32, torch.bfloat16]
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    optimizer = nbopt.torch.Optimizer(params, ByDtype(), master_weights=masters)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    found = [optimizer.state[params[1]]["master_param"] if masters else params[1], params[0]]
    for values, dtype in zip(found, [torch.float32 if masters else torch.bfloat16, torch.float32]):
        assert (values.detach().double() == 1 - 6 * torch.finfo(dtype).eps).all()
