"""No step leaves garbage.

What a step has used dies with its last reference, without Python's garbage collector.
"""

import gc
import weakref

import numpy as np
import pytest
from helpers import thorough_but

import nbopt
from nbopt.errors import NboptError


def momentum(**options):
    return nbopt.GradientDescentMomentum(0.1, 0.9, **options)


def with_attributes(optimizer, **attributes):
    for name, value in attributes.items():
        setattr(optimizer, name, value)
    return optimizer


#: What a step can be asked to do besides its rule.
OPTIONS = {
    "plain": lambda be: momentum(),
    "skip": lambda be: with_attributes(momentum(), skip_nonfinite=True),
    "clip": lambda be: momentum(gradient_clip_norm=0.1, gradient_clip_value=5.0, param_clip_value=7.0),
    "clip, skip, scale": lambda be: with_attributes(
        momentum(gradient_clip_norm=0.1), skip_nonfinite=True, loss_scale=be.array([2.0])
    ),
    "stochastic": lambda be: momentum(stochastic_round=True),
    "schedule": lambda be: momentum(schedule=nbopt.Schedule([1], 0.5)),
    "multi": lambda be: nbopt.MultiOptimizer(
        {"default": OPTIONS["skip"](be), "b": OPTIONS["clip, skip, scale"](be)}
    ),
}


@pytest.fixture
def uncollected():
    """The garbage collector is off.

    ``uncollected()`` is what it would have found, as the types of the objects.
    """
    gc.collect()
    gc.disable()
    # Collections look at what comes from here on, which takes less time; so do those of later tests.
    gc.freeze()
    yield garbage
    gc.enable()


def garbage():
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = [type(thing).__name__ for thing in gc.garbage]
    gc.garbage.clear()
    gc.collect()  # ends what was saved
    return found


class Run:
    """Two layers, their optimizer, and steps with new gradients."""

    def __init__(self, be, optimizer):
        self.be, self.optimizer, self.seen = be, optimizer, []
        self.layers = [nbopt.Parameters((be.array(np.ones((3, 4))), None), name=name) for name in ("a", "b")]

    def step(self, value=1.0, shape=(3, 4)):
        """Run a step; return the error, where there is one, as its type's name."""
        for layer in self.layers:
            layer.grads = [self.be.array(np.full(shape, value))]
            self.seen += [weakref.ref(layer.grads[0]), weakref.ref(layer.grads[0].storage)]
        try:
            self.optimizer.optimize(self.layers, 0)
        except NboptError as error:
            return type(error).__name__
        return None

    def end(self):
        """Give the last gradients up; return how many are still there."""
        for layer in self.layers:
            layer.grads = [None]
        return sum(ref() is not None for ref in self.seen)


@pytest.mark.parametrize("options", thorough_but(OPTIONS, "stochastic", "multi", where=["gpu"]))
@pytest.mark.rest("cpu-*", "cuda-stochastic")
def test_steps(nbopt_backend, uncollected, options):
    """A steady step, a skipped one, a failed one, and one over other memory leave nothing."""
    for _ in range(2):  # in the first round things are compiled, and compilers leave something
        uncollected()
        run = Run(nbopt_backend, OPTIONS[options](nbopt_backend))
        errors = [run.step(), run.step(), run.step(np.inf), run.step(shape=(4, 3)), run.step()]
        again = Run(nbopt_backend, run.optimizer)
        assert [*errors, again.step()] == [None, None, None, "ShapeError", None, None]
    assert (run.end(), again.end(), uncollected()) == (0, 0, [])


@pytest.mark.rest(where=["gpu"])
def test_errors(nbopt_backend, uncollected):
    """A step that fails late leaves nothing: in the second optimizer, or in a look at both."""
    be = nbopt_backend
    for _ in range(2):
        uncollected()
        run = Run(be, OPTIONS["multi"](be))
        assert run.step() is None
        run.layers.append(nbopt.Parameters((run.layers[0].params[0], None), name="b"))
        assert run.step() == "LayoutError"
        run.layers.pop().grads = [None]
        run.optimizer.optimizer_mapping["b"].rule = lambda step, param, grad, velocity: None
        assert run.step() == "TraceError"
        del run.optimizer.optimizer_mapping["b"].rule
        assert run.step() is None
    assert (run.end(), uncollected()) == (0, [])


def test_compile(nbopt_backend, uncollected):
    """What is prepared and never run leaves nothing."""
    run = Run(nbopt_backend, OPTIONS["multi"](nbopt_backend))
    run.step()
    for _ in range(2):
        uncollected()
        nbopt.compile(run.optimizer, run.layers)
        nbopt.explain(run.optimizer, run.layers)
    assert (run.end(), uncollected()) == (0, [])


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("options", [name for name in OPTIONS if name != "multi"])
@pytest.mark.rest("*-reference", "clip, skip, scale-cpu", "plain-cpu")
def test_pytorch(uncollected, options, name):
    """With PyTorch's tensors it is the same."""
    torch = pytest.importorskip("torch")
    import nbopt.torch

    with nbopt.use_backend("cpu") as be:
        rule = OPTIONS[options](be)
    if not isinstance(rule.loss_scale, float):
        rule.loss_scale = torch.tensor([2.0])
    params = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    optimizer = nbopt.torch.Optimizer(
        [{"params": [param], "epoch": 0} for param in params], rule, backend=name
    )
    seen = []

    def step(value=1.0, epoch=0):
        optimizer.param_groups[0]["epoch"] = epoch
        for param in params:
            param.grad = torch.full((3, 4), value)
            seen.append(weakref.ref(param.grad))
        try:
            optimizer.step()
        except NboptError:
            return False
        return True

    for _ in range(2):
        uncollected()
        assert [step(), step(), step(float("inf")), step(epoch=-1), step()] == [True, True, True, False, True]
        params[0].data = torch.ones(3, 4)
        assert step()
    optimizer.zero_grad()
    assert (sum(ref() is not None for ref in seen), uncollected()) == (0, [])
