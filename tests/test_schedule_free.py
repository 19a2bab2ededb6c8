"""Schedule-Free optimizers outside of their steps: averages in place of the parameters, and back."""

import numpy as np
import pytest

import nbopt
from tests.helpers import drawn, layer_of, same_bits, trained, values_of

KINDS = {
    "SGD": (nbopt.ScheduleFreeSGD, "SGDScheduleFree"),
    "AdamW": (nbopt.ScheduleFreeAdamW, "AdamWScheduleFree"),
    "RAdam": (nbopt.ScheduleFreeRAdam, "RAdamScheduleFree"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.rest
def test_average(host_backend, kind):
    """What eval puts in place of the parameters is the source's average, and train puts back every bit."""
    torch = pytest.importorskip("torch", reason="the other side is made of PyTorch: pip install torch")
    schedulefree = pytest.importorskip(
        "schedulefree", reason="it is the other side: pip install schedulefree"
    )
    params, grads = drawn(12)
    theirs = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
    source = getattr(schedulefree, KINDS[kind][1])(theirs)
    source.train()
    for row in grads:
        for param, grad in zip(theirs, row):
            param.grad = torch.from_numpy(grad.copy())
        source.step()
    source.eval()
    optimizer, layer = KINDS[kind][0](), layer_of(params)
    trained(optimizer, layer, grads)
    before = values_of([layer])
    optimizer.eval([layer])
    for param, wanted, other in zip(layer.params, theirs, before):
        np.testing.assert_allclose(param, wanted.detach().numpy(), rtol=1e-9, atol=1e-9)
        assert not np.array_equal(param, other)
    averages = values_of([layer])
    optimizer.eval([layer])
    assert all(map(same_bits, values_of([layer]), averages))
    optimizer.train([layer])
    optimizer.train([layer])
    assert all(map(same_bits, values_of([layer]), before))


@each_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.rest("cpu-float32-AdamW")
def test_evaluating_changes_nothing(host_backend, kind, dtype):
    """Steps go on with the same bits, stochastic rounding included, however often averages were looked at."""
    storage, found = host_backend.storage_dtype(dtype), []
    params, grads = drawn(6)
    for looks in (False, True):
        host_backend.rng_reset()
        optimizer, layer = (
            KINDS[kind][0](stochastic_round=True),
            layer_of([param.astype(storage) for param in params]),
        )
        for row in grads:
            if looks:
                optimizer.eval([layer])
                optimizer.train([layer])
            trained(optimizer, layer, [[grad.astype(storage) for grad in row]])
        assert optimizer.t == len(grads) and host_backend.rng_get_state()["updates"] == len(grads)
        found.append(values_of([layer]))
    assert all(map(same_bits, *found))


def test_no_step(host_backend):
    """A step while averages stand in place of the parameters is refused, and changes nothing."""
    params, grads = drawn(12)
    optimizer, layer, other = nbopt.ScheduleFreeAdamW(), layer_of(params), layer_of(params)
    trained(optimizer, layer, grads)
    optimizer.eval([layer, other])
    before = values_of([layer, other])
    for layers in ([layer], [other, layer]):
        for one in layers:
            one.grads = grads[0]
        with pytest.raises(
            nbopt.errors.StateError,
            match=r"parameter 0.*write optimizer\.train\(layers\) before the next step",
        ):
            optimizer.optimize(layers, 0)
    assert all(map(same_bits, values_of([layer, other]), before)) and optimizer.t == len(grads)
    optimizer.train([layer])
    trained(optimizer, layer, grads[:1])


@pytest.mark.parametrize("how", ["state_dict", "file"])
def test_checkpoint(host_backend, tmp_path, how):
    """A checkpoint of averages holds the parameters too, and training goes on from it."""
    params, grads = drawn(8)
    optimizer, layer = nbopt.ScheduleFreeAdamW(), layer_of(params)
    trained(optimizer, layer, grads[:4])
    optimizer.eval([layer])
    other, twin = nbopt.ScheduleFreeAdamW(), layer_of(params)
    if how == "file":
        nbopt.save(tmp_path / "run.safetensors", optimizer, [layer])
        nbopt.load(tmp_path / "run.safetensors", other, [twin])
    else:
        other.load_state_dict(optimizer.state_dict([layer]), [twin])
    assert all(map(same_bits, values_of([layer]), values_of([twin])))
    with pytest.raises(nbopt.errors.StateError, match=r"optimizer\.train"):
        trained(other, twin, grads[:1])
    for run, own in ((optimizer, layer), (other, twin)):
        run.train([own])
        trained(run, own, grads[4:])
    assert all(map(same_bits, values_of([layer]), values_of([twin])))


def test_other_layers(host_backend):
    """Parameters of other optimizers stay as they are."""
    params, grads = drawn(2)
    layer = layer_of(params)
    trained(nbopt.Lion(), layer, grads)
    before = values_of([layer])
    nbopt.ScheduleFreeSGD().eval([layer])
    assert all(map(same_bits, values_of([layer]), before))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_momentum(beta):
    """Without momentum there is no average to be found."""
    with pytest.raises(nbopt.errors.ArgumentError, match="momentum_coef must be a number between 0 and 1"):
        nbopt.ScheduleFreeSGD(momentum_coef=beta)


@pytest.mark.rest
def test_multi(host_backend):
    """MultiOptimizer turns its Schedule-Free optimizers, and has the means of those that keep some."""
    params, grads = drawn(4)
    layers = [layer_of(params), layer_of(params), layer_of(params)]
    for layer, name in zip(layers, ("free", "mean", "plain")):
        layer.name = name
    kinds = {"free": nbopt.ScheduleFreeAdamW(), "mean": nbopt.AdamW(ema_decay=0.5), "default": nbopt.Lion()}
    optimizer = nbopt.MultiOptimizer(kinds)

    def step(row):
        for layer in layers:
            layer.grads = row
        optimizer.optimize(layers, 0)

    for row in grads:
        step(row)
    before = [values_of([layer]) for layer in layers]
    optimizer.eval(layers)
    changed = [not same_bits(layer.params[0], old[0]) for layer, old in zip(layers, before)]
    assert changed == [True, False, False]
    with pytest.raises(nbopt.errors.StateError, match=r"optimizer\.train"):
        step(grads[0])
    optimizer.train(layers)
    with optimizer.ema(layers):
        changed = [not same_bits(layer.params[0], old[0]) for layer, old in zip(layers, before)]
        assert changed == [False, True, False]
        with pytest.raises(nbopt.errors.StateError, match=r"with optimizer\.ema"):
            step(grads[0])
    for layer, old in zip(layers, before):
        assert all(map(same_bits, values_of([layer]), old))
    step(grads[0])
    with pytest.raises(nbopt.errors.ArgumentError, match="these have Lion"):
        nbopt.MultiOptimizer({"default": nbopt.Lion()}).eval(layers[2:])
