"""Functions of whole matrices in rules: against formulas in float64, on each backend."""

import numpy as np
import pytest

import nbopt
from nbopt.language.matrices import COEFFICIENTS
from nbopt_backends.cuda.products import TorchProducts

SHAPES = [(8, 8), (12, 4), (4, 12), (2, 3, 5), (4, 12), (6, 40), (0, 3), (2, 2, 6, 3)]


class Whole(nbopt.Optimizer):
    """A momentum whose step is orthogonal, and a pull of the parameter towards orthogonal rows."""

    state_names = ("momentum",)

    def __init__(self, learning_rate=0.1, name=None, **given):
        super().__init__(name=name)
        self.learning_rate, self.given = learning_rate, tuple(given.items())

    def rule(self, step, param, grad, momentum):
        be = self.be
        momentum[:] = 0.5 * momentum + grad
        update = be.orthogonalize(momentum + grad, **dict(self.given))
        cube = be.matmul(be.matmul(param, param.T), param)
        size = be.norm(update)
        param[:] = param - step.lr * (update + 0.1 * cube) / be.maximum(size, 1.0)


def orthogonal(x, steps=5, adjust=None):
    """Return what the steps make of the singular values of a batch, in float64."""
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / np.maximum(np.sqrt((s**2).sum(-1, keepdims=True)), 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    rows, columns = x.shape[-2:]
    factor = {
        None: 1.0,
        "original": max(1, rows / columns) ** 0.5,
        "match_rms_adamw": 0.2 * max(rows, columns) ** 0.5,
    }
    return (u * s[..., None, :]) @ v * factor[adjust]


def bound(be, exact, coarse):
    """Return the bound of float32 products, or of those in 16 bits that PyTorch makes on a GPU."""
    if be.memory == "host":
        return exact
    library = be.device.products(be.device_id, be.streams.library)
    return coarse if isinstance(library, TorchProducts) else exact


def arrays(shapes, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(s).astype(dtype), rng.standard_normal(s).astype(dtype)) for s in shapes]


def test_rule(backend):
    """A rule that orthogonalises and multiplies gives what the formula gives, for matrices and batches."""
    be = backend
    pairs = arrays(SHAPES)
    params = [param.astype(np.float64) for param, _ in pairs]
    momenta = [0.0] * len(pairs)
    pairs[0] = (np.asfortranarray(pairs[0][0]), pairs[0][1])  # strided
    layers = [
        nbopt.Parameters(*[(be.array(p), be.array(g)) if be.memory != "host" else (p, g) for p, g in pairs])
    ]
    optimizer = Whole()
    for _ in range(3):
        optimizer.optimize(layers, 0)
        for k, (_, grad) in enumerate(pairs):
            if grad.size:
                momenta[k] = 0.5 * momenta[k] + grad
                update = orthogonal(momenta[k] + grad)
                cube = params[k] @ params[k].swapaxes(-1, -2) @ params[k]
                params[k] = params[k] - 0.1 * (update + 0.1 * cube) / max(1.0, np.linalg.norm(update))
    for ((param, _), _), wanted in zip(nbopt.get_param_list(layers), params):
        near = bound(be, 2e-4, 0.05)
        np.testing.assert_allclose(be.wrap(param).get(), wanted, rtol=2e-4, atol=near)
    if be.name == "cpu":
        compiled = be.compilations
        optimizer.optimize(layers, 0)
        assert be.compilations == compiled


class Step(nbopt.Optimizer):
    """The parameter becomes the orthogonalised gradient."""

    learning_rate = 1.0

    def __init__(self, learning_rate=1.0, name=None, **given):
        super().__init__(name=name)
        self.given = tuple(given.items())

    def rule(self, step, param, grad):
        param[:] = self.be.orthogonalize(grad, **dict(self.given))


def orthogonalized(be, *grads, **given):
    """Return what a backend makes of some matrices, all in one call."""
    pairs = [(be.zeros(x.shape, x.dtype), be.array(x, x.dtype)) for x in grads]
    Step(**given).optimize([nbopt.Parameters(*pairs)], 0)
    return [param.get() for param, _ in pairs]


@pytest.mark.parametrize("method", ["plain", "gram"])
@pytest.mark.rest(where=["gpu"])
def test_singular_values(backend, method):
    """Each singular value becomes what the scalar iteration makes of it, within 1e-3 in float32."""
    be = backend
    rng = np.random.default_rng(1)
    for rows, columns in [(48, 48), (32, 96), (160, 32)]:
        least = min(rows, columns)
        in_float16 = method == "gram" and max(rows, columns) >= 2 * least  # else in bfloat16
        near = bound(be, 1e-3, 0.02 if in_float16 else 0.1)
        for values in (
            np.geomspace(1, 1e-6, least),
            np.linspace(1, 0, least),
            np.r_[1.0, np.zeros(least - 1)],
        ):
            u = np.linalg.qr(rng.standard_normal((rows, rows)))[0][:, :least]
            v = np.linalg.qr(rng.standard_normal((columns, columns)))[0][:least]
            (found,) = orthogonalized(be, ((u * values) @ v).astype(np.float32), method=method)
            given = values / np.linalg.norm(values)
            wanted = given
            for _ in range(5):
                wanted = np.polyval([COEFFICIENTS[2], 0, COEFFICIENTS[1], 0, COEFFICIENTS[0], 0], wanted)
            np.testing.assert_allclose(u.T @ found @ v.T, np.diag(wanted), atol=near)
            assert (np.abs(wanted[given >= 0.002] - 0.94) < 0.27).all()  # in [.67, 1.21]


@pytest.mark.rest(where=["gpu"])
def test_extremes(backend):
    """Zero, tiny, huge and half-precision matrices give numbers, and a NaN stays in its own matrix."""
    be = backend
    ones = np.ones((6, 9), np.float32)
    nan = ones.copy()
    nan[0, 0] = np.nan
    found = orthogonalized(
        be, 0 * ones, 1e-30 * ones, 1e-44 * ones, 1e18 * ones, nan, (6e4 * ones).astype(np.float16)
    )
    *finite, bad, half = found
    assert all(np.isfinite(x).all() for x in finite)
    assert np.isnan(bad).all()
    assert not finite[0].any()
    np.testing.assert_allclose(finite[3], orthogonal(ones), atol=1e-3)
    np.testing.assert_allclose(half, orthogonal(ones), atol=2e-3)


def test_blocks(backend):
    """Batches, heads, parts and flattened kernels equal the same matrices given one by one, to rounding."""
    be = backend
    x = arrays([(24, 10)], seed=2)[0][0]
    cases = [
        ({"heads": 3}, x, [(slice(8 * k, 8 * k + 8),) for k in range(3)]),
        ({"heads": 5, "axis": -1}, x, [(slice(None), slice(2 * k, 2 * k + 2)) for k in range(5)]),
        ({"split": (8, 4, 12)}, x, [(slice(0, 8),), (slice(8, 12),), (slice(12, 24),)]),
        ({"split": (8, 16), "heads": 2}, x, [(slice(a, b),) for a, b in ((0, 4), (4, 8), (8, 16), (16, 24))]),
        ({"split": (4, 6), "axis": -1}, x, [(slice(None), slice(0, 4)), (slice(None), slice(4, 10))]),
        ({"flatten": True}, x.reshape(24, 5, 2), [(slice(None),)]),
        ({"workspace": 1}, np.stack(3 * [x]), [0, 1, 2]),
    ]
    for given, whole, places in cases:
        (found,) = orthogonalized(be, whole, adjust="original", **given)
        for place in places:
            part = whole[place]
            wanted = orthogonal(part.reshape(len(part), -1), adjust="original").reshape(part.shape)
            np.testing.assert_allclose(found[place], wanted, atol=bound(be, 2e-4, 0.05), err_msg=str(given))


def test_adjust(backend):
    """Each matrix is scaled by its own rows and columns; coefficients may differ from step to step."""
    be = backend
    near, x = bound(be, 1e-5, 0.01), arrays([(12, 5)], seed=3)[0][0]
    (found,) = orthogonalized(be, x, adjust="match_rms_adamw", steps=2)
    np.testing.assert_allclose(found, orthogonal(x, 2, "match_rms_adamw"), atol=near)
    (found,) = orthogonalized(be, x, coefficients=(COEFFICIENTS, (1.5, -0.5, 0.0)), steps=3)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / np.linalg.norm(s)
    for a, b, c in (COEFFICIENTS, (1.5, -0.5, 0.0), (1.5, -0.5, 0.0)):
        s = a * s + b * s**3 + c * s**5
    np.testing.assert_allclose(found, u * s @ v, atol=near)


@pytest.mark.rest
def test_skipped(backend):
    """A step that is skipped stores nothing; the next one is as if it had not been."""
    be = backend
    optimizer, (good, bad) = Whole(), arrays([(4, 6), (4, 6)], seed=4)
    optimizer.skip_nonfinite = True
    tensors = be.array(good[0]), be.array(good[1])
    layer = nbopt.Parameters(tensors)
    optimizer.optimize([layer], 0)
    before = [tensors[0].get(), layer.states[0][0].get()]
    bad[1][0, 0] = np.inf
    layer.grads = [be.array(bad[1])]
    optimizer.optimize([layer], 0)
    assert (tensors[0].get() == before[0]).all()
    assert (layer.states[0][0].get() == before[1]).all()
    assert optimizer.skipped == 1
    layer.grads = [tensors[1]]
    optimizer.optimize([layer], 0)
    assert not (tensors[0].get() == before[0]).any()


def test_refused(backend):
    """What makes no sense is refused in words, and nothing has changed."""
    be = backend

    def wrong(rule, shape=(4, 6), error=nbopt.errors.TraceError):
        kind = type("Wrong", (nbopt.Optimizer,), {"rule": rule, "learning_rate": 0.1})
        param, grad = be.ones(shape), be.ones(shape)
        with pytest.raises(error) as caught:
            kind().optimize([nbopt.Parameters((param, grad))], 0)
        assert (param.get() == 1).all()
        return str(caught.value)

    def rule_of(make):
        def rule(self, step, param, grad):
            param[:] = make(self.be, param, grad)

        return rule

    assert "two axes" in wrong(rule_of(lambda be, p, g: be.orthogonalize(g)), (5,))
    assert "one number for each parameter" in wrong(rule_of(lambda be, p, g: be.orthogonalize(be.norm(g))))
    shape, argument = nbopt.errors.ShapeError, nbopt.errors.ArgumentError
    assert "x @ y" in wrong(rule_of(lambda be, p, g: be.matmul(p, g)), error=shape)
    assert "another shape" in wrong(rule_of(lambda be, p, g: be.matmul(p, g.T) + p), error=shape)
    for given, words, error in [
        ({"heads": 3}, "heads=3 does not divide the 4 rows", shape),
        ({"split": (2, 3)}, "split=(2, 3) cuts 5 rows", shape),
        ({"heads": 4, "axis": -1}, "the 6 columns", shape),
        ({"method": "fast"}, "'plain' or 'gram'", argument),
        ({"steps": 0}, "steps takes an int from 1", argument),
        ({"coefficients": (1.0, 2.0)}, "three finite numbers", argument),
        ({"epsilon": -1.0}, "epsilon", argument),
    ]:
        assert words in wrong(
            rule_of(lambda be, p, g, given=given: be.orthogonalize(g, **given)), error=error
        )
    with pytest.raises(nbopt.errors.TraceError, match=r"numpy\.matmul"):
        be.matmul(be.ones((2, 2)), be.ones((2, 2)))


def test_stale(backend):
    """A product of a slot that was assigned since is refused, as any expression is."""
    be = backend

    class Late(nbopt.Optimizer):
        learning_rate = 0.1

        def rule(self, step, param, grad):
            product = self.be.matmul(self.be.matmul(param, param.T), param)
            param[:] = param - grad
            param[:] = product

    with pytest.raises(nbopt.errors.TraceError, match="after param was assigned"):
        Late().optimize([nbopt.Parameters((be.ones((2, 2)), be.ones((2, 2))))], 0)


def test_explain():
    """The stages are shown with their operations."""
    nbopt.gen_backend("cpu")
    text = nbopt.explain(Whole(), [nbopt.Parameters(*arrays([(1000, 500), (500, 1000)]))])
    assert "matrix0: orthogonalize, 5 steps, of matrix0; 12.5 gigaflops" in text
    assert "matrix1: x @ x.T @ x, of matrix1; 2 gigaflops" in text
