"""Adding one backend, one optimizer and one op, as the documentation says.

That is from outside the package, or by the edit that it names.

The toy backend and the optimizer are the files that the documentation shows: examples/toy_backend.py and
examples/own_optimizer.py."""

import pathlib
import pickle

import numpy as np
import pytest
from helpers import OPTIMIZERS, layers_of, same_bits, values_of

import nbopt
from nbopt.language import ops
from nbopt_backends.lowering import text as lowering

TESTS = pathlib.Path(__file__).resolve().parent
EXAMPLES = TESTS.parent / "examples"


@pytest.fixture
def examples(monkeypatch):
    """The examples can be imported, as if each were a package that is installed."""
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def toy(examples, tmp_path, monkeypatch):
    """The toy backend, found through its entry point."""
    info = tmp_path / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nbopt.backends]\ntoy = toy_backend:ToyBackend\n")
    monkeypatch.syspath_prepend(tmp_path)
    with nbopt.use_backend("toy", rng_seed=0, batch_size=8) as be:
        yield be


def trained(be, optimizer, dtype=np.float32, steps=3):
    """Values of all parameters and states after some steps, the last with new gradients."""
    rng = np.random.default_rng(1)
    layers = layers_of([(5, 3), (1,), (0, 2), (700,)], rng, dtype)
    with nbopt.use_backend(be):
        for epoch in range(steps):
            optimizer.optimize(layers, epoch)
            for layer in layers:
                layer.grads = [rng.standard_normal(grad.shape).astype(dtype) for grad in layer.grads]
    return values_of(layers)


def reference():
    return nbopt.backends._load("reference")(rng_seed=0, batch_size=8)


def assert_same(found, expected):
    assert len(found) == len(expected)
    assert all(same_bits(a, b) for a, b in zip(found, expected))


# --- a backend ---


def test_the_toy_backend_is_installed_by_its_entry_point_alone(toy):
    assert "toy" in nbopt.available_backends()
    assert type(toy).__module__ == "toy_backend"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.covering
def test_every_optimizer_has_the_references_bits_on_the_toy_backend(toy, name, dtype):
    assert_same(trained(toy, OPTIMIZERS[name](), dtype), trained(reference(), OPTIMIZERS[name](), dtype))


def test_a_norm_clip_has_the_references_bits_on_the_toy_backend(toy):
    def optimizer():
        return nbopt.RMSProp(gradient_clip_norm=0.1)

    assert_same(trained(toy, optimizer()), trained(reference(), optimizer()))
    assert not same_bits(trained(toy, optimizer())[0], trained(toy, nbopt.RMSProp())[0])


def test_a_loss_scale_and_skipped_steps_have_the_references_bits_on_the_toy_backend(toy):
    def run(be):
        optimizer = nbopt.RMSProp(gradient_clip_norm=0.1)
        optimizer.loss_scale, optimizer.skip_nonfinite = np.array([3.3]), True
        layers = layers_of([(5, 3)], np.random.default_rng(1))
        with nbopt.use_backend(be):
            for grad in (0.5, np.nan, 0.25):
                layers[0].grads[0][1] = grad
                optimizer.optimize(layers, 0)
            assert optimizer.skipped == 1
            other = nbopt.Adam()
            other.skip_nonfinite = True
            layers += layers_of([(4,)], np.random.default_rng(2))
            layers[1].name, layers[1].grads[0][0] = "other", np.inf
            nbopt.MultiOptimizer({"default": optimizer, "other": other}).optimize(layers, 0)
            assert (optimizer.skipped, other.skipped) == (2, 1)
        return values_of(layers)

    assert_same(run(toy), run(reference()))


def test_every_op_and_reduction_has_the_references_bits_on_the_toy_backend(toy, rng):
    values = [rng.standard_normal((4, 6)).astype(np.float32) for _ in range(3)]

    def evaluated(be, name, operands, **options):
        out = be.empty(be.zeros(()).shape if options.get("axis", 1) is None else (4, 6))
        return getattr(be, name)(*operands, **options, out=out).get()

    for name, op in ops.PRIMITIVES.items():
        found, expected = (
            evaluated(be, name, [be.array(x) for x in values[: op.arity]]) for be in (toy, reference())
        )
        assert same_bits(found, expected), name
    for name in [*ops.REDUCTIONS, "mean", "var", "std"]:
        for options in ({"axis": 0}, {"axis": 1}, {"axis": None, "keepdims": False}):
            found, expected = (
                evaluated(be, name, [be.array(values[0])], **options) for be in (toy, reference())
            )
            assert same_bits(found, expected), (name, options)


def test_a_step_on_the_toy_backend_is_whole_or_not_at_all(toy, rng):
    layers = layers_of([(3,), (4,)], rng)
    before = values_of(layers)
    layers[1].params[0].flags.writeable = False
    with pytest.raises(nbopt.errors.LayoutError, match="read-only"):
        nbopt.RMSProp().optimize(layers, 0)
    assert_same(values_of(layers), before)
    assert toy.rng_get_state()["updates"] == 0
    layers[1].params[0].flags.writeable = True
    overlapping = nbopt.Parameters((layers[0].params[0][:2], np.zeros(2, np.float32)))
    with pytest.raises(nbopt.errors.LayoutError, match="share memory"):
        nbopt.MultiOptimizer({"default": nbopt.RMSProp(), overlapping.name: nbopt.Adam()}).optimize(
            [*layers, overlapping], 0
        )
    assert_same(values_of(layers), before)


def test_what_the_toy_backend_cant_do_it_refuses(toy, rng):
    with pytest.raises(nbopt.errors.DtypeError, match="float16"):
        nbopt.RMSProp().optimize(layers_of([(3,)], rng, np.float16), 0)
    with pytest.raises(nbopt.errors.ArgumentError, match="stochastic_round"):
        nbopt.RMSProp(stochastic_round=5).optimize(layers_of([(3,)], rng), 0)


# --- an optimizer ---


@pytest.fixture
def make(examples):
    from own_optimizer import QuasiHyperbolicMomentum

    return QuasiHyperbolicMomentum


def test_an_optimizer_of_ones_own_does_what_its_formula_says(backend, make, rng):
    (layer,) = layers_of([(4, 3)], rng)
    backend.bsz = 8
    param, mean = np.float64(layer.params[0]), 0.0
    optimizer = make(learning_rate=0.1, beta=0.9, nu=0.7, schedule=nbopt.PowerSchedule(1, 0.5))
    for epoch in range(20):
        grad = rng.standard_normal((4, 3)).astype(np.float32)
        layer.grads = [grad]
        optimizer.optimize([layer], epoch)
        mean = 0.9 * mean + 0.1 * grad / 8.0
        param = param - 0.1 * 0.5**epoch * (0.3 * grad / 8.0 + 0.7 * mean)
    # 20 steps of a few float32 roundings each, of numbers below 2.
    np.testing.assert_allclose(layer.params[0], param, rtol=0, atol=20 * 2**-23)


def test_an_optimizer_of_ones_own_is_one_launch_for_all_tensors_and_compiles_once(make, rng):
    with nbopt.use_backend("cpu", rng_seed=0) as be:
        layers, optimizer = layers_of([(4, 3), (100,), (1,)], rng), make()
        optimizer.optimize(layers, 0)
        launches, compilations = be.launches, be.compilations
        for epoch in range(1, 4):
            optimizer.learning_rate = 0.5**epoch
            optimizer.optimize(layers, epoch)
        assert be.launches - launches == 3
        assert be.compilations == compilations


def test_an_optimizer_of_ones_own_gives_the_same_bits_on_every_backend(toy, make):
    expected = trained(reference(), make(gradient_clip_norm=0.1))
    for be in (toy, nbopt.backends._load("cpu")(rng_seed=0, batch_size=8)):
        assert_same(trained(be, make(gradient_clip_norm=0.1)), expected)


def test_an_optimizer_of_ones_own_is_shown_by_explain(make, rng):
    layers = layers_of([(4, 3)], rng)
    with nbopt.use_backend("cpu"):
        assert (TESTS / "golden" / "own_optimizer.txt").read_text() in nbopt.explain(make(), layers)


def test_an_optimizer_of_ones_own_can_be_described_rebuilt_and_pickled(make):
    optimizer = make(learning_rate=0.5, nu=0.9, schedule=nbopt.StepSchedule([3], [0.1]), name="mine")
    description = optimizer.get_description()
    assert description["type"] == "own_optimizer.QuasiHyperbolicMomentum"
    assert description["config"]["nu"] == 0.9
    for other in (nbopt.NervanaObject.gen_class(description), pickle.loads(pickle.dumps(optimizer))):
        assert other == optimizer
        assert other is not optimizer


def test_an_optimizer_of_ones_own_refuses_values_that_make_no_sense(make):
    with pytest.raises(nbopt.errors.ArgumentError, match="beta"):
        make(beta=1.5)


# --- an op ---


@pytest.fixture
def added(monkeypatch):
    """Add a row to the op table for the duration of a test, as an edit of nbopt/language/ops.py would."""

    def add(table, row, spelling=None):
        monkeypatch.setitem(table, row.name, row)
        monkeypatch.setattr(nbopt.Backend, row.name, None, raising=False)
        if spelling is not None:
            monkeypatch.setitem(lowering.COMMON_OPS, row.name, spelling)
        nbopt.arrays.methods.add_methods(nbopt.Backend)

    return add


def hardtanh(op, a):
    return op("minimum", op("maximum", a, -1.0), 1.0)


ROWS = {
    "composed": (ops.COMPOSED, ops.Composed("hardtanh", hardtanh, ("a",), "a clipped to [-1, 1]"), None),
    "primitive": (
        ops.PRIMITIVES,
        ops.Op(
            "relu",
            1,
            lambda a: np.where(a < 0, np.zeros_like(a), a),
            True,
            "a where it is not below 0, else 0",
        ),
        "{F}(0) if {0} < {F}(0) else {0}",
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_an_op_is_one_row_and_then_a_documented_method_with_the_same_bits_everywhere(added, toy, rng, kind):
    table, row, spelling = ROWS[kind]
    added(table, row, spelling)
    method = getattr(nbopt.Backend, row.name)
    assert row.doc in method.__doc__

    class Uses(nbopt.Optimizer):
        def rule(self, step, param, grad):
            param[:] = param - method(self.be, grad)

    values = rng.standard_normal(40).astype(np.float32) * 3
    expected = {"hardtanh": np.clip(values, -1, 1), "relu": np.maximum(values, 0)}[row.name]
    for be in (toy, reference(), nbopt.backends._load("cpu")(batch_size=1)):
        be.bsz = 1
        assert same_bits(method(be, be.array(values), out=be.empty(40)).get(), expected)
        param = np.zeros(40, np.float32)
        with nbopt.use_backend(be):
            Uses().optimize([nbopt.Parameters((param, values))], 0)
        assert same_bits(param, 0 - expected)


def test_an_added_op_is_gone_after_its_test():
    assert not hasattr(nbopt.Backend, "hardtanh")
    assert not {"hardtanh", "relu"} & {*ops.PRIMITIVES, *ops.COMPOSED, *lowering.COMMON_OPS}
