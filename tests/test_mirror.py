"""Mirrors: a copy of each parameter in another format, which every rule may have, in the same pass."""

import itertools

import numpy as np
import pytest

import nbopt
from nbopt_backends.meaning.rounding import stochastic
from nbopt_backends.meaning.xoroshiro import first_blocks, random_slices
from tests.helpers import EVERY, drawn, layer_of, same_bits, trained, values_of

SHAPES = [(8, 5), (7,), ()]


@pytest.mark.parametrize("name", EVERY)
def test_value(name):
    """The mirror is the stored parameter, rounded to nearest, and changes nothing else."""
    params, grads = drawn(3, dtype="float32")
    with nbopt.use_backend("reference") as be:
        other = trained(EVERY[name](ema_decay=0.9), layer_of(params), grads)
        optimizer = EVERY[name](ema_decay=0.9, mirror_dtype="bfloat16")
        layer = trained(optimizer, layer_of(params), grads)
        bf16 = be.storage_dtype("bfloat16")
        for param, mirror in zip(layer.params, optimizer.mirrors([layer])):
            assert same_bits(mirror.get(), param.astype(bf16))
        assert all(map(same_bits, other.params, layer.params))
        for alone, both in zip(other.states, layer.states):
            assert (
                all(same_bits(a.get(), b.get()) for a, b in zip(alone, both)) and len(both) == len(alone) + 1
            )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.rest
def test_stochastic(backend):
    """Stochastic rounding of the mirror has bits of its own, which depend on no other modifier."""
    params, grads = drawn(2, [(70, 80), (50,)], dtype="float32")
    found = []
    for options in ({}, {"ema_decay": 0.9}, {"ema_decay": 0.9, "mirror_dtype": None}):
        with nbopt.use_backend(backend, rng_seed=3) as be:
            bf16 = be.storage_dtype("bfloat16")
            optimizer = nbopt.Lion(
                stochastic_round=True, state_dtype="bfloat16", **{"mirror_dtype": "bfloat16", **options}
            )
            layer = trained(optimizer, layer_of(params), [[g.astype(bf16) for g in row] for row in grads])
            found.append((values_of([layer])[: len(params)], layer.states, optimizer.mirrors([layer])))
    for (values, states, _), (others, further, _) in itertools.pairwise(found):
        assert all(map(same_bits, values, others))
        assert all(same_bits(own[0].get(), other[0].get()) for own, other in zip(states, further))
    for own, other in zip(found[1][1], found[2][1]):  # the mean
        assert same_bits(own[1].get(), other[1].get())
    for param, mirror, again, block in zip(
        found[0][0], found[0][2], found[1][2], first_blocks([param.size for param in params])
    ):
        random = random_slices(3, 1, 2**16 + 1, int(block), param.size, 16).reshape(param.shape)
        assert same_bits(mirror.get(), again.get()) and not same_bits(mirror.get(), param.astype(bf16))
        assert same_bits(mirror.get(), stochastic(param, "bfloat16", 7, random).astype(bf16))


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.rest("cpu-True")
def test_backends(host_backend, rounding):
    """Every backend has the reference's bits: float32 parameters, gradients and mirrors of 16 bits."""
    params, grads = drawn(2, [(70, 80), (50,)], dtype="float32")
    found = []
    for name in ("reference", host_backend.name):
        with nbopt.use_backend(name, rng_seed=3) as be:
            optimizer = nbopt.AdamW(stochastic_round=rounding, mirror_dtype="bfloat16")
            storage = be.storage_dtype("bfloat16")
            layer = trained(optimizer, layer_of(params), [[g.astype(storage) for g in row] for row in grads])
            found.append(values_of([layer]))
    assert all(map(same_bits, *found))


@pytest.mark.rest
def test_skipped_steps(host_backend):
    """A step that is skipped leaves the mirror as it was; the first step makes it in any case."""
    params, grads = drawn(2, dtype="float32")
    optimizer, layer = nbopt.AdamW(mirror_dtype="float16"), layer_of(params)
    optimizer.skip_nonfinite = True
    assert optimizer.mirrors([layer]) == [None] * 3
    trained(optimizer, layer, [[np.full_like(grad, np.nan) for grad in grads[0]]])
    for param, mirror in zip(params, optimizer.mirrors([layer])):
        assert same_bits(mirror.get(), param.astype("float16"))
    trained(optimizer, layer, grads)
    before = [mirror.get() for mirror in optimizer.mirrors([layer])]
    trained(optimizer, layer, [[np.full_like(grad, np.inf) for grad in grads[0]]])
    assert all(same_bits(a, b.get()) for a, b in zip(before, optimizer.mirrors([layer])))
    assert optimizer.skipped == 2


def test_own_memory(host_backend):
    """A mirror may be memory of the user's, and steps are found again with it."""
    params, grads = drawn(4, dtype="float32")
    optimizer, layer = nbopt.AdamW(mirror_dtype="float16"), layer_of(params)
    trained(optimizer, layer, grads[:1])
    own = np.zeros(SHAPES[0], "float16")
    layer.states[0][-1] = host_backend.wrap(own)
    trained(optimizer, layer, grads[1:3])
    assert same_bits(own, layer.params[0].astype("float16"))
    compiled = host_backend.compilations
    trained(optimizer, layer, grads[3:])
    assert same_bits(own, layer.params[0].astype("float16")) and host_backend.compilations == compiled


def test_several_optimizers(host_backend, tmp_path):
    """A `MultiOptimizer` gives the mirrors of all layers, and checkpoints keep them."""
    params, grads = drawn(3, dtype="float32")
    mapping = {"default": nbopt.Lion(mirror_dtype="bfloat16"), "mine": nbopt.AdamW()}
    optimizer = nbopt.MultiOptimizer(mapping)
    layers = [layer_of(params), nbopt.Parameters((params[0].copy(), grads[0][0]), name="mine")]
    layers[0].grads = grads[0]
    optimizer.optimize(layers, 0)
    found = optimizer.mirrors(layers)
    assert [None if mirror is None else mirror.dtype.name for mirror in found] == ["bfloat16"] * 3 + [None]
    nbopt.save(tmp_path / "run.safetensors", optimizer, layers)
    twins = [layer_of(params), nbopt.Parameters((params[0].copy(), grads[0][0]), name="mine")]
    nbopt.load(tmp_path / "run.safetensors", optimizer, twins)
    for one, other in zip(found[:3], optimizer.mirrors(twins)):
        assert same_bits(one.get(), other.get())


def test_cost():
    """A mirror of 16 bits adds 2 bytes an element, and no pass."""
    with nbopt.use_backend("cpu") as be:
        moved = []
        for dtype in (None, "bfloat16"):
            layer = layer_of([np.ones((8, 8), np.float32)])
            (update,) = nbopt.AdamW(mirror_dtype=dtype).updates(be, [layer], 0)
            moved.append([*map(sum, [update.program.bytes_moved([4] * 4 + [2] * (dtype is not None))])])
    assert moved[1][0] == moved[0][0] + 2


@pytest.mark.parametrize("dtype", ["int8", "bf16", 16, True])
def test_refused(dtype):
    """What is no dtype is refused, with those that are."""
    with pytest.raises(nbopt.errors.ArgumentError, match='mirror_dtype must be a dtype, "float64"'):
        nbopt.AdamW(mirror_dtype=dtype)
