"""Running means of parameters: a state that every rule may have, in the same pass."""

import numpy as np
import pytest

import nbopt
from tests.helpers import EVERY, drawn, layer_of, same_bits, trained, values_of

SHAPES = [(8, 5), (7,), ()]


@pytest.mark.parametrize("name", EVERY)
def test_formula(name):
    """The mean follows the stored parameters, changes nothing else, and takes their place for a while."""
    params, grads = drawn(6)
    with nbopt.use_backend("reference"):
        plain, optimizer = EVERY[name](), EVERY[name](ema_decay=0.9)
        other, layer = layer_of(params), layer_of(params)
        means = [param.copy() for param in params]
        for row in grads:
            trained(plain, other, [row])
            trained(optimizer, layer, [row])
            means = [mean + (1 - 0.9) * (param - mean) for mean, param in zip(means, other.params)]
        assert all(map(same_bits, other.params, layer.params))
        with optimizer.ema([layer]):
            for param, mean in zip(layer.params, means):
                np.testing.assert_allclose(param, mean, rtol=1e-12, atol=1e-12)
            with pytest.raises(nbopt.errors.StateError, match=r"with optimizer\.ema"):
                trained(optimizer, layer, grads[:1])
        assert all(map(same_bits, other.params, layer.params))
        assert [len(states) for states in layer.states] == [len(states) + 1 for states in other.states]


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor"])
def test_cost(name):
    """A mean adds 8 bytes an element, and no pass."""
    with nbopt.use_backend("cpu") as be:
        moved = []
        for decay in (None, 0.9):
            layer = nbopt.Parameters((np.ones((8, 8), np.float32), np.ones((8, 8), np.float32)))
            (update,) = EVERY[name](ema_decay=decay).updates(be, [layer], 0)
            moved.append([one for one in update.program.bytes_moved([4] * len(update.program.names)) if one])
    assert len(moved[0]) == len(moved[1]) and sum(moved[1]) == sum(moved[0]) + 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.rest("bfloat16")
def test_bits(dtype):
    """The CPU backend gives the reference's bits.

    The parameter's bits are those without a mean, stochastic rounding included.
    """
    params, grads = drawn(3)
    found = []
    for backend, decay in (("reference", 0.9), ("cpu", 0.9), ("reference", None)):
        with nbopt.use_backend(backend, rng_seed=3) as be:
            storage = be.storage_dtype(dtype)
            layer = layer_of([param.astype(storage) for param in params])
            trained(
                nbopt.AdamW(stochastic_round=True, ema_decay=decay),
                layer,
                [[g.astype(storage) for g in row] for row in grads],
            )
            found.append(values_of([layer]))
    assert all(map(same_bits, found[0], found[1]))
    assert all(map(same_bits, found[0][: len(SHAPES)], found[2]))


@pytest.mark.rest
def test_checkpoint(host_backend, tmp_path):
    """A run that was saved goes on with the same means."""
    params, grads = drawn(6)
    optimizer, layer, other, twin = (
        nbopt.Lion(ema_decay=0.9),
        layer_of(params),
        nbopt.Lion(),
        layer_of(params),
    )
    trained(optimizer, layer, grads[:3])
    nbopt.save(tmp_path / "run.safetensors", optimizer, [layer])
    nbopt.load(tmp_path / "run.safetensors", other, [twin])
    assert other.ema_decay == 0.9
    for run, own in ((optimizer, layer), (other, twin)):
        trained(run, own, grads[3:])
    assert all(map(same_bits, values_of([layer]), values_of([twin])))


def test_restored_after_an_error(host_backend):
    """An error inside of the block restores the parameters, too."""
    params, grads = drawn(6)
    optimizer, layer = nbopt.Lion(ema_decay=0.9), layer_of(params)
    trained(optimizer, layer, grads)
    before = values_of([layer])
    with pytest.raises(ZeroDivisionError), optimizer.ema([layer]):
        assert not same_bits(layer.params[0], before[0])
        raise ZeroDivisionError
    assert all(map(same_bits, values_of([layer]), before))
