"""Messages: an error says what was given, what is allowed, and what to type."""

import math

import numpy as np
import pytest

import nbopt
from nbopt import errors


def layer_of(*shapes, name=None):
    return nbopt.Parameters(*[(np.ones(shape, np.float32), np.ones(shape, np.float32)) for shape in shapes], name=name)


@pytest.fixture
def be():
    with nbopt.use_backend("reference", rng_seed=0) as be:
        yield be


def refusal(use, error=errors.TraceError):
    """Return the message of `error`, raised by a rule that is ``use(be, param, grad)``. Nothing has changed."""

    class Used(nbopt.Optimizer):
        learning_rate = 0.1

        def rule(self, step, param, grad):
            param[:] = param - grad
            use(self.be, param, grad)

    optimizer, layer = Used(), layer_of(3)
    with pytest.raises(error) as caught:
        optimizer.optimize([layer], 0)
    assert optimizer.t == 0
    assert (layer.params[0] == 1).all()
    return str(caught.value)


# --- functions of other libraries ---

ELEMENTWISE = {
    "np.sqrt": (lambda be, p, g: np.sqrt(g), "be.sqrt(x)"),
    "np.exp of a slot": (lambda be, p, g: np.exp(p), "be.exp(x)"),
    "np.maximum": (lambda be, p, g: np.maximum(g, 0.0), "be.maximum(a, b)"),
    "np.where": (lambda be, p, g: np.where(g > 0, p, g), "be.where(condition, a, b)"),
    "np.clip": (lambda be, p, g: np.clip(g, 0, 1), "be.clip(a, a_min, a_max)"),
    "np.abs": (lambda be, p, g: np.abs(g), "be.absolute(x)"),
    "np.sign": (lambda be, p, g: np.sign(g), "be.sgn(x)"),
    "np.logical_and": (lambda be, p, g: np.logical_and(g > 0, p > 0), "a * b"),
    "np.zeros_like": (lambda be, p, g: np.zeros_like(p), "0.0"),
    "math.sqrt": (lambda be, p, g: math.sqrt(g), "be.sqrt(x)"),
    "round": (lambda be, p, g: round(g), "be.rint(x)"),
    "sqrt, a method": (lambda be, p, g: g.sqrt(), "be.sqrt(x)"),
    "clamp, a method": (lambda be, p, g: p.clamp_(0, 1), "be.clip(a, a_min, a_max)"),
    "and": (lambda be, p, g: (g > 0) & (p > 0), "a * b"),
    "not": (lambda be, p, g: ~(g > 0), "1.0 - a"),
    "a branch": (lambda be, p, g: 1 if g > 0 else 0, "be.where(condition, a, b)"),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_foreign_function(be, name):
    """A function of NumPy's, Python's or a tensor's in a rule: the message has the op to write."""
    use, typed = ELEMENTWISE[name]
    message = refusal(use)
    assert typed in message
    if name not in ("and", "not", "a branch"):
        assert "be = self.be" in message


REDUCING = {
    "sum": lambda be, p, g: g.sum(),
    "mean of a slot": lambda be, p, g: p.mean(),
    "norm": lambda be, p, g: g.norm(),
    "np.sum": lambda be, p, g: np.sum(g),
    "np.add.reduce": lambda be, p, g: np.add.reduce(g),
    "np.linalg.norm": lambda be, p, g: np.linalg.norm(g),
    "be.sum": lambda be, p, g: be.sum(g),
}


@pytest.mark.parametrize("name", REDUCING)
def test_reduction(be, name):
    """A reduction in a rule: the message says what is possible in its place."""
    message = refusal(REDUCING[name])
    assert "keep it as an attribute of the optimizer" in message
    assert "gradient_clip_norm" in message


OTHER = {
    "matrix product": (lambda be, p, g: g @ p, "no matrix products"),
    "array @": (lambda be, p, g: np.ones((3, 3)) @ p, "no matrix products"),
    "//": (lambda be, p, g: g // 2, "// does not work"),
    "%": (lambda be, p, g: 2 % g, "% does not work"),
    "len": (lambda be, p, g: len(g), "parameters of all shapes"),
    "shape": (lambda be, p, g: p.shape, "nbopt.MultiOptimizer"),
    "sum of Python": (lambda be, p, g: sum(g), "iterated over"),
    "np.asarray": (lambda be, p, g: np.asarray(g), "be.sqrt, be.where"),
    "unknown": (lambda be, p, g: g.frobnicate, "no attribute 'frobnicate'"),
}


@pytest.mark.parametrize("name", OTHER)
def test_no_such_operation(be, name):
    """What no op does is refused by an error of nbopt's, with what there is."""
    use, words = OTHER[name]
    assert words in refusal(use)


@pytest.mark.parametrize(
    "use",
    [lambda be, p, g: g * np.ones(3), lambda be, p, g: np.ones(3) * g, lambda be, p, g: be.maximum(g, np.ones(3))],
    ids=["right", "left", "op"],
)
def test_array_operand(be, use):
    """An array in a rule: it can be a number or a state. (A tensor, which the message named before, is refused as well.)"""
    message = refusal(use, errors.OperandError)
    assert "float(x)" in message
    assert "state_names" in message
    assert "be.array" not in message


def test_numpy_scalar(be):
    """NumPy's scalars are numbers on either side of each operator."""
    tensor, out = be.array([0.5, 3.0]), be.empty(2)
    two = np.float64(2)
    for result, expected in {
        "two + x": (two + tensor, [2.5, 5.0]),
        "two - x": (two - tensor, [1.5, -1.0]),
        "two * x": (two * tensor, [1.0, 6.0]),
        "two / x": (two / tensor, [4.0, 2 / 3]),
        "two ** x": (two**tensor, [2**0.5, 8.0]),
        "x ** two": (tensor**two, [0.25, 9.0]),
        "two < x": (two < tensor, [0.0, 1.0]),
        "two == x": (two == tensor, [0.0, 0.0]),
        "float32": (np.float32(2) * tensor, [1.0, 6.0]),
    }.values():
        out[:] = result
        np.testing.assert_allclose(out.get(), expected, rtol=1e-6)


def test_torch_function(be):
    """Functions of PyTorch's are refused in the same way, and its tensors as arrays are."""
    torch = pytest.importorskip("torch")
    assert "be.sqrt(x)" in refusal(lambda be, p, g: torch.sqrt(g))
    assert "be.where(condition, a, b)" in refusal(lambda be, p, g: torch.where(g > 0, p, g))
    assert "be.clip" in refusal(lambda be, p, g: torch.clamp(g, 0, 1))
    assert "gradient_clip_norm" in refusal(lambda be, p, g: torch.linalg.norm(g))
    for use in (lambda be, p, g: torch.ones(3) * g, lambda be, p, g: g * torch.ones(3)):
        assert "state_names" in refusal(use, errors.OperandError)


def test_foreign_function_of_a_tensor(be):
    """Outside rules, too, the message has the op to write; reductions work there."""
    tensor = be.ones(3)
    for use, typed in {
        "np.sqrt(t)": (lambda: np.sqrt(tensor), "be.sqrt(x)"),
        "np.sqrt(t * 2)": (lambda: np.sqrt(tensor * 2), "be.sqrt(x)"),
        "np.where": (lambda: np.where(tensor * 2 > 0, 1, 0), "be.where(condition, a, b)"),
        "t.sum()": (lambda: tensor.sum(), "be.sum(x)"),
        "(t * 2).mean()": (lambda: (tensor * 2).mean(), "be.mean(x)"),
        "math.sqrt(t)": (lambda: math.sqrt(tensor), "be.sqrt(x)"),
    }.values():
        with pytest.raises(errors.TraceError) as caught:
            use()
        assert typed in str(caught.value)
        assert "be = nbopt.get_backend()" in str(caught.value)


def test_missing_attribute():
    """hasattr and getattr with a default work on values of a rule and on expressions."""
    with nbopt.use_backend("reference") as be:
        for node in (be.ones(3), be.ones(3) * 2):
            assert not hasattr(node, "frobnicate")
            assert getattr(node, "__fspath__", None) is None


def test_array_without_be(be):
    """The advice for an array beside a tensor is complete: it says where the backend comes from."""
    with pytest.raises(errors.OperandError, match=r"nbopt\.get_backend\(\)\.array\(x\).*nbopt\.get_backend\(\)\.wrap\(x\)"):
        be.ones(3) + np.ones(3)
