"""What any rule may have: centralized gradients, adaptive clips, weight decay, and cautious updates."""

import numpy as np
import pytest

import nbopt
from tests.helpers import EVERY, drawn, layer_of, same_bits, trained, values_of

CAUTIOUS = {"adamw": (2, 36), "adam": (2, 36), "lion": (2, 28), "lamb": (3, 56), "ademamix": (2, 44),
"adafactor": (3, 24)}  # fmt: skip


def gradients(grads, centralize=False, adaptive_clip=None, params=None):
    """Return gradients as the modifiers make them, in NumPy."""
    found = []
    for grad, param in zip(grads, params):
        others = tuple(range(1, grad.ndim))
        if centralize and grad.ndim > 1:
            grad = grad - grad.mean(axis=others, keepdims=True)
        if adaptive_clip:
            axis = others or None
            own, length = (np.sqrt((x * x).sum(axis=axis, keepdims=True)) for x in (param, grad))
            bound = adaptive_clip * np.maximum(own, 1e-3)
            grad = np.where(length > bound, grad * bound / np.where(length > 0, length, 1), grad)
        found.append(grad.reshape(param.shape))
    return found


@pytest.mark.parametrize("name", EVERY)
def test_gradients(name):
    """Every rule sees the gradient that NumPy makes."""
    params, grads = drawn(6)
    options = {"centralize": True, "adaptive_clip": 0.3}
    with nbopt.use_backend("reference"):
        plain, optimizer = EVERY[name](), EVERY[name](**options)
        other, layer = layer_of(params), layer_of(params)
        for row in grads:
            trained(plain, other, [gradients(row, params=other.params, **options)])
            trained(optimizer, layer, [row])
            for param, wanted in zip(layer.params, other.params):
                np.testing.assert_allclose(param, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", EVERY)
def test_decay(name):
    """Every rule's parameters decay by lr times param_decay in a step, before they are clipped."""
    params, grads = drawn(1)
    with nbopt.use_backend("reference"):
        plain, optimizer = EVERY[name](), EVERY[name](param_decay=0.3, ema_decay=0.5)
        other, layer = layer_of(params), layer_of(params)
        for run, own in ((plain, other), (optimizer, layer)):
            trained(run, own, grads)
        rate = 0.3 * (1.0 if plain.learning_rate is None else plain.learning_rate)
        for param, start, free, states in zip(layer.params, params, other.params, layer.states):
            np.testing.assert_allclose(param, free - rate * start, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(states[-1].get(), (start + param) / 2, rtol=1e-12, atol=1e-14)
        optimizer.param_clip_value = 0.25
        trained(optimizer, layer, grads)
        assert all(np.abs(param).max() <= 0.25 for param in layer.params)


class Own(nbopt.Optimizer):
    """A user's rule, which stores its parameter twice and says where it is cautious."""

    state_names = ("momentum",)

    def __init__(self, learning_rate=0.1, cautious=False, name=None):
        super().__init__(name=name)
        self.learning_rate, self.cautious = learning_rate, cautious

    def rule(self, step, param, grad, momentum):
        momentum[:] = 0.9 * momentum + grad
        param[:] = param - step.lr * self.cautious_update(momentum, grad)
        param[:] = param * 0.5


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.rest
def test_own(backend):
    """A user's rule has all of them, and its last assignment decays."""
    params, grads = drawn(3)
    with nbopt.use_backend(backend):
        optimizer, layer = Own(cautious=True), layer_of(params)
        optimizer.centralize, optimizer.adaptive_clip, optimizer.param_decay = True, 0.3, 0.2
        trained(optimizer, layer, grads)
    momenta = [np.zeros_like(param) for param in params]
    for row in grads:
        row = gradients(row, True, 0.3, params)
        momenta = [0.9 * momentum + grad for momentum, grad in zip(momenta, row)]
        kept = [momentum * grad > 0 for momentum, grad in zip(momenta, row)]
        updates = [m * k * (k.size / (k.sum() + 1)) for m, k in zip(momenta, kept)]
        params = [param - 0.1 * update for param, update in zip(params, updates)]
        params = [0.5 * param - 0.1 * 0.2 * param for param in params]
    for param, wanted in zip(layer.params, params):
        np.testing.assert_allclose(param, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.rest
def test_steady():
    """Another number of a modifier traces and compiles nothing."""
    params, grads = drawn(3)
    with nbopt.use_backend("cpu") as be:
        optimizer, layer = nbopt.Lion(adaptive_clip=0.3, param_decay=0.1), layer_of(params)
        trained(optimizer, layer, grads)
        before = be.compilations
        optimizer.adaptive_clip, optimizer.param_decay = 0.2, 0.3
        trained(optimizer, layer, grads)
        assert be.compilations == before


@pytest.mark.parametrize("name", CAUTIOUS)
def test_cautious(name):
    """A cautious step leaves out what goes against its gradient, at the cost of one reduction."""
    with nbopt.use_backend("cpu") as be:
        layer = nbopt.Parameters((np.ones((8, 8), np.float32), np.ones((8, 8), np.float32)))
        (update,) = EVERY[name](cautious=True).updates(be, [layer], 0)
        moved = [one for one in update.program.bytes_moved([4] * len(update.program.names)) if one]
        assert (len(moved), sum(moved)) == CAUTIOUS[name]
    params, grads = drawn(6)
    with nbopt.use_backend("reference"):
        optimizer, layer = EVERY[name](cautious=True, learning_rate=0.1), layer_of(params)
        if hasattr(optimizer, "wdecay"):
            optimizer.wdecay = 0.0
        if name == "ademamix":
            optimizer.alpha = 0.0  # as in the source, the slow mean is not masked
        for row in grads:
            before = [param.copy() for param in layer.params]
            trained(optimizer, layer, [row])
            for old, new, grad in zip(before, layer.params, row):
                assert ((old - new) * grad >= 0).all()
                assert name == "adafactor" or not np.array_equal(old, new) or old.size == 1


def test_cautious_source():
    """AdEMAMix and Lion are pytorch_optimizer's with cautious=True."""
    torch = pytest.importorskip("torch", reason="the other side is made of PyTorch: pip install torch")
    package = pytest.importorskip("pytorch_optimizer", reason="it is the other side: pip install it")
    params, grads = drawn(20)
    for name in ("AdEMAMix", "Lion"):
        theirs = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
        source = getattr(package, name)(theirs, lr=0.01, cautious=True)
        for row in grads:
            for param, grad in zip(theirs, row):
                param.grad = torch.from_numpy(grad.copy())
            source.step()
        with nbopt.use_backend("reference"):
            layer = layer_of(params)
            trained(getattr(nbopt, name)(learning_rate=0.01, wdecay=0.0, cautious=True), layer, grads)
        for param, wanted in zip(layer.params, theirs):
            np.testing.assert_allclose(param, wanted.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_sources():
    """Adaptive clips and centralized gradients are pytorch_optimizer's, for one axis, two and four."""
    torch = pytest.importorskip("torch", reason="the other side is made of PyTorch: pip install torch")
    package = pytest.importorskip("pytorch_optimizer", reason="it is the other side: pip install it")
    rng = np.random.default_rng(2)
    shapes = [(6, 5), (9,), (4, 3, 2, 2)]
    params, grads = ([rng.standard_normal(shape) for shape in shapes] for _ in range(2))
    clipped = gradients(grads, adaptive_clip=0.1, params=params)
    central = gradients(grads, centralize=True, params=params)
    for param, grad, one, other in zip(params, grads, clipped, central):
        wanted = package.agc(torch.from_numpy(param), torch.from_numpy(grad), agc_clip_val=0.1)
        np.testing.assert_allclose(one, wanted.numpy(), rtol=1e-12)
        wanted = torch.from_numpy(grad.copy())
        package.centralize_gradient(wanted)
        np.testing.assert_allclose(other, wanted.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.rest("adamw")
def test_bits(name):
    """The CPU backend gives the reference's bits with all of them."""
    params, grads = drawn(3, ((8, 5), (3, 4)))  # each number of axes has kernels of its own
    found = []
    for backend in ("reference", "cpu"):
        with nbopt.use_backend(backend, rng_seed=3):
            layer = layer_of([param.astype(np.float32) for param in params])
            optimizer = EVERY[name](centralize=True, adaptive_clip=0.3, param_decay=0.1, cautious=True)
            trained(optimizer, layer, [[grad.astype(np.float32) for grad in row] for row in grads])
            found.append(values_of([layer]))
    assert all(map(same_bits, *found))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("centralize", 1),
        ("adaptive_clip", -0.1),
        ("adaptive_clip", np.nan),
        ("param_decay", -1.0),
        ("cautious", 2),
    ],
)
def test_bad(option, value):
    """Values out of their ranges are refused."""
    with pytest.raises(nbopt.errors.ArgumentError, match=option):
        nbopt.AdamW(**{option: value})
