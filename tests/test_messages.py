"""Messages: an error says what was given, what is allowed, and what to type."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest

import nbopt
from nbopt import errors


def layer_of(*shapes, name=None):
    return nbopt.Parameters(
        *[(np.ones(shape, np.float32), np.ones(shape, np.float32)) for shape in shapes], name=name
    )


@pytest.fixture
def be():
    with nbopt.use_backend("reference", rng_seed=0) as be:
        yield be


def refusal(use, error=errors.TraceError):
    """Return the message of `error`, raised by a rule that is ``use(be, param, grad)``.

    Nothing has changed.
    """

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
    "be.argmax": lambda be, p, g: be.argmax(g),
}


@pytest.mark.parametrize("name", REDUCING)
def test_reduction(be, name):
    """A reduction of another library in a rule: the message says what to write."""
    assert re.search(r"be\.(sum|mean|norm)\(x\)|be\.sum, be\.mean", refusal(REDUCING[name]))


OTHER = {
    "matrix product": (lambda be, p, g: g @ p, "be.matmul"),
    "array @": (lambda be, p, g: np.ones((3, 3)) @ p, "be.matmul"),
    "//": (lambda be, p, g: g // 2, "// does not work"),
    "%": (lambda be, p, g: 2 % g, "% does not work"),
    "len": (lambda be, p, g: len(g), "param.shape"),
    "shape": (lambda be, p, g: g.shape, "nbopt.MultiOptimizer"),
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
    [
        lambda be, p, g: g * np.ones(3),
        lambda be, p, g: np.ones(3) * g,
        lambda be, p, g: be.maximum(g, np.ones(3)),
    ],
    ids=["right", "left", "op"],
)
def test_array_operand(be, use):
    """An array in a rule: it can be a number or a state.

    (A tensor, which the message named before, is refused as well.)
    """
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
    assert "be.norm(x)" in refusal(lambda be, p, g: torch.linalg.norm(g))
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
    with pytest.raises(
        errors.OperandError, match=r"nbopt\.get_backend\(\)\.array\(x\).*nbopt\.get_backend\(\)\.wrap\(x\)"
    ):
        be.ones(3) + np.ones(3)


# --- arguments in PyTorch's words ---

WORDS = [
    (nbopt.AdamW, {"lr": 1e-3}, ["learning_rate="]),
    (nbopt.AdamW, {"lr": 1e-3, "betas": (0.9, 0.99)}, ["learning_rate=", "beta_1= and beta_2="]),
    (nbopt.AdamW, {"eps": 1e-8, "weight_decay": 0.1}, ["epsilon=", "wdecay="]),
    (nbopt.GradientDescentMomentum, {"lr": 0.1, "momentum": 0.9}, ["learning_rate=", "momentum_coef="]),
    (nbopt.RMSProp, {"alpha": 0.9}, ["decay_rate="]),
    (nbopt.Adadelta, {"rho": 0.9}, ["decay="]),
    (nbopt.Rprop, {"etas": (0.5, 1.2)}, ["eta_minus= and eta_plus="]),
    (nbopt.Adam, {"weight_decay": 0.1}, ["nbopt.AdamW", "wdecay="]),
    (nbopt.Adam, {"amsgrad": True}, ["nbopt.AMSGrad"]),
    (nbopt.Adam, {"fused": True}, ["leave out"]),
    (nbopt.Adam, {"learning_rat": 1.0}, ["Write learning_rate= in place of learning_rat="]),
    (
        nbopt.Adam,
        {"frobnicate": 1.0},
        ["takes no frobnicate. Its arguments are stochastic_round, learning_rate"],
    ),
    (
        nbopt.Adam,
        {"params": [], "lr": 1.0},
        ["nbopt.torch.Optimizer(model.parameters(), nbopt.Adam(...))", "learning_rate="],
    ),
]


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    WORDS,
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_foreign_argument(kind, arguments, words):
    """The error of an argument that a class doesn't have names those that it has."""
    with pytest.raises(errors.UnknownArgumentError) as caught:
        kind(**arguments)
    assert all(word in str(caught.value) for word in words)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


class Module:
    def parameters(self):
        return []


@pytest.mark.parametrize(
    "given",
    [(x for x in ()), [np.ones(3)], [{"params": []}], Module()],
    ids=["generator", "list", "groups", "module"],
)
def test_model_parameters_first(given):
    """PyTorch's first argument, the parameters: the error says which class takes them."""
    for kind in (nbopt.AdamW, nbopt.GradientDescentMomentum):
        with pytest.raises(
            errors.ArgumentError,
            match=rf"nbopt\.torch\.Optimizer\(model\.parameters\(\), nbopt\.{kind.__name__}",
        ):
            kind(given, 0.1)


def test_names_of_the_package():
    """A class that PyTorch writes differently is named. Another name is an ordinary AttributeError."""
    for foreign, own in {
        "RMSprop": "RMSProp",
        "Adamax": "AdaMax",
        "SGD": "GradientDescentMomentum",
        "AdaDelta": "Adadelta",
    }.items():
        with pytest.raises(AttributeError, match=f"{foreign}.*write nbopt.{own}$"):
            getattr(nbopt, foreign)
    assert not hasattr(nbopt, "frobnicate")


LAZY = """
import sys
import nbopt
dir(nbopt), hasattr(nbopt, "frobnicate"), [getattr(nbopt, name) for name in nbopt.__all__]
assert "torch" not in sys.modules
assert issubclass(nbopt.torch.Optimizer, sys.modules["torch"].optim.Optimizer)
"""


def test_lazy_torch():
    """nbopt.torch needs no import of its own, and nothing else imports PyTorch."""
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", LAZY], check=True)


def test_missing_torch(monkeypatch):
    """Without PyTorch, nbopt.torch says what to install."""
    monkeypatch.delitem(vars(nbopt), "torch", raising=False)
    for name in [name for name in sys.modules if name.startswith("nbopt.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'nbopt\.torch needs PyTorch. Type: pip install "nbopt\[torch\]"'):
        nbopt.torch  # noqa: B018


# --- steps ---


def test_rate_that_is_not_there(be):
    """step.lr in a rule of an optimizer without a learning rate; and what a step never has."""

    class Own(nbopt.Optimizer):
        def __init__(self, lr):
            super().__init__()
            self.lr = lr

        def rule(self, step, param, grad):
            param[:] = param - step.lr * grad

    with pytest.raises(errors.TraceError, match=r"self\.learning_rate = learning_rate"):
        Own(0.1).optimize([layer_of(3)], 0)

    class Batch(nbopt.Adam):
        def rule(self, step, param, grad, *states):
            param[:] = param - grad * step.batch

    with pytest.raises(
        errors.TraceError, match="no attribute 'batch': it has lr, t, number, epoch and scale"
    ):
        Batch().optimize([layer_of(3)], 0)


def test_afresh(be):
    """The line that the message of foreign states offers does start afresh.

    So does that of an emptied list of lists.
    """
    layer = layer_of(3, 2)
    nbopt.RMSProp().optimize([layer], 0)
    with pytest.raises(errors.StateError) as caught:
        nbopt.Adam().optimize([layer], 0)
    loop = "for states in layer.states: states.clear()"
    assert loop in str(caught.value)
    exec(loop, {"layer": layer})
    nbopt.Adam().optimize([layer], 0)
    assert [len(states) for states in layer.states] == [2, 2]
    layer.states.clear()
    with pytest.raises(errors.LayerError) as caught:
        nbopt.RMSProp().optimize([layer], 0)
    line = "layer.states = [[] for _ in layer.params]"
    assert line in str(caught.value)
    exec(line, {"layer": layer})
    nbopt.RMSProp().optimize([layer], 0)
    assert [len(states) for states in layer.states] == [1, 1]


def broken_grad(layer):
    layer.set_grad(1, np.ones(5, np.float32))


def broken_state(layer):
    layer.states[1].append(nbopt.get_backend().ones(5))


def foreign_state(layer):
    tensor = nbopt.get_backend().ones(2)
    tensor.name = "Adagrad.sum"
    layer.states[1].append(tensor)


def too_many_states(layer):
    layer.states[1].extend(nbopt.get_backend().ones(2) for _ in range(2))


@pytest.mark.parametrize(
    "spoil", [broken_grad, broken_state, foreign_state, too_many_states], ids=lambda spoil: spoil.__name__
)
@pytest.mark.parametrize("named", [True, False])
def test_place(be, spoil, named):
    """The message names the layer, and the parameter's number in it."""

    class Layer:
        def __init__(self, parameters):
            self.get_params = parameters.get_params

    first, second = layer_of(3, name="first"), layer_of(3, 2, name="second")
    spoil(second)
    with pytest.raises(errors.NboptError, match="parameter 1 of layer " + ("'second'" if named else "1")):
        nbopt.RMSProp().optimize([first, second if named else Layer(second)], 0)


def test_place_of_a_gradient(be):
    """So does that of an array that can't be used."""

    class Layer:
        name = "mine"

        def get_params(self):
            return (np.ones(3, np.float32), np.ones(3, np.int32)), []

    with pytest.raises(errors.DtypeError, match="the gradient of parameter 0"):
        nbopt.RMSProp().optimize([Layer()], 0)
    layer = Layer()
    entry = layer.get_params()
    layer.get_params = lambda: entry
    with pytest.raises(errors.DtypeError, match="the gradient of parameter 0 of layer 'mine'"):
        nbopt.RMSProp().optimize([layer], 0)


def test_place_in_parameters(be):
    """The arrays of nbopt.Parameters are named likewise."""
    layer = nbopt.Parameters(
        (np.ones(3, np.float32), np.ones(3, np.float32)),
        (np.ones(2, np.int32), np.ones(2, np.float32)),
        name="mine",
    )
    with pytest.raises(errors.DtypeError, match=r"^parameter 1 of layer 'mine': "):
        nbopt.RMSProp().optimize([layer], 0)
    layer.params = [np.ones(3, np.float32), np.ones(2, np.float32)]
    layer.set_grad(1, np.ones(2, np.int32))
    with pytest.raises(errors.DtypeError, match=r"^the gradient of parameter 1 of layer 'mine': "):
        nbopt.RMSProp().optimize([layer], 0)
    layer.set_grad(1, np.ones(2, np.float32))
    nbopt.RMSProp().optimize([layer], 0)


def test_explain_own_optimize(be):
    """An optimizer with an optimize of its own has one, and the message says so."""

    class Neon(nbopt.Optimizer):
        def optimize(self, layer_list, epoch):
            for (param, grad), _ in nbopt.get_param_list(layer_list):
                param[:] = param - grad

    class Neither(nbopt.Optimizer):
        pass

    for optimizer in (Neon(), nbopt.MultiOptimizer({"default": Neon()})):
        for function in (nbopt.explain, nbopt.compile):
            with pytest.raises(
                errors.TraceError, match=r"Neon has an optimize of its own.*rule\(self, step, param, grad"
            ):
                function(optimizer, [layer_of(3)])
    with pytest.raises(NotImplementedError, match="Neither defines neither"):
        nbopt.explain(Neither(), [layer_of(3)])
