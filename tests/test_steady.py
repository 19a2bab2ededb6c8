"""A step looks at its arrays once.

Steps that come back to arrays that were looked at look at nothing, and compile nothing.
"""

import weakref

import numpy as np
import pytest
from helpers import layers_of, same_bits, values_of

import nbopt
from nbopt_backends.arrays.checks import ArrayBackend


@pytest.fixture
def looks(monkeypatch):
    """How often steps have looked at their arrays since the last call."""
    counted = []
    look = ArrayBackend.checked_columns

    def noted(self, update):
        counted.append(update)
        return look(self, update)

    monkeypatch.setattr(ArrayBackend, "checked_columns", noted)

    def count():
        found = len(counted)
        counted.clear()
        return found

    return count


@pytest.fixture
def keeping(backend):
    """A backend that keeps plans."""
    if backend.name == "reference":
        pytest.skip("the reference keeps no plans: it looks at everything in every step")
    return backend


def momentum(**options):
    return nbopt.GradientDescentMomentum(0.1, 0.9, **options)


def test_second_step(keeping, looks, rng):
    """The second step, the first that has states, looks at nothing.

    The same holds for several optimizers in one step.
    """
    layers = layers_of([(3, 4), (5,)], rng)
    for optimizer, updates in (
        (momentum(), 1),
        (nbopt.MultiOptimizer({"default": momentum(), layers[1].name: momentum()}), 2),
    ):
        for layer in layers:
            layer.states = [[] for _ in layer.params]
        optimizer.optimize(layers, 0)
        assert looks() == updates
        for _ in range(3):
            optimizer.optimize(layers, 0)
            assert looks() == 0


def test_second_step_of_some(keeping, looks, rng):
    """So it is where some parameters had states before and others get theirs now."""
    layers = layers_of([(3, 4), (5,)], rng)
    momentum().optimize(layers[1:], 0)
    optimizer = momentum()
    looks()
    for expected in (1, 0, 0):
        optimizer.optimize(layers, 0)
        assert looks() == expected


def test_new_states(keeping, looks, rng):
    """States that are emptied, or exchanged, are looked at in the next step, and in that one only."""
    (layer,), optimizer = layers_of([(3, 4)], rng), momentum()
    optimizer.optimize([layer], 0)
    looks()
    for change in (layer.states[0].clear, lambda: layer.states[0].__setitem__(0, keeping.zeros((3, 4)))):
        change()
        for expected in (1, 0, 0):
            optimizer.optimize([layer], 0)
            assert looks() == expected


@pytest.mark.parametrize("shape", [(3, 4), (2, 7)], ids=["same shapes", "other shapes"])
@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_norm": 0.1, "stochastic_round": True}], ids=["plain", "clip, stochastic"]
)
def test_turns(keeping, looks, rng, shape, options):
    """Two sets of layers in turn are found again, and have the reference's bits.

    They have new gradients each time.
    """
    found = []
    for be in (keeping, nbopt.backends._load("reference")(rng_seed=0)):
        with nbopt.use_backend(be):
            be.rng_reset()
            values = np.random.default_rng(1)
            sets, optimizer = (
                [layers_of([first, (5,)], values) for first in ((3, 4), shape)],
                momentum(**options),
            )
            for step in range(8):
                layers = sets[step % 2]
                if step > 3:
                    for layer in layers:
                        layer.grads = [values.random(p.shape, np.float32) for p in layer.params]
                looks()
                compiled = be.compilations
                optimizer.optimize(layers, 0)
                if be is keeping and step > 1:
                    assert (looks(), be.compilations) == (0, compiled)
            found.append([value for layers in sets for value in values_of(layers)])
    assert all(map(same_bits, *found))


def test_many_turns(keeping, looks, rng):
    """Nine sets of one structure are remembered.

    Of more than that none is found again, and each is still right.
    """
    for n, expected in ((9, 0), (12, 12)):
        sets, optimizer = [layers_of([(5,)], rng) for _ in range(n)], nbopt.GradientDescentMomentum(1.0, 0.0)
        for _ in range(2):
            looks()
            before = [layers[0].params[0] - layers[0].grads[0] for layers in sets]
            for layers in sets:
                optimizer.optimize(layers, 0)
            assert all(same_bits(layers[0].params[0], value) for layers, value in zip(sets, before))
        assert looks() == expected


def test_turns_that_change(keeping, looks, rng):
    """What was exchanged while another set had its turn is looked at."""
    sets, optimizer = [layers_of([(5,)], rng) for _ in range(2)], momentum()
    for layers in sets * 2:
        optimizer.optimize(layers, 0)
    looks()
    sets[0][0].states[0][0] = keeping.zeros(5)
    optimizer.optimize(sets[0], 0)
    assert looks() == 1
    sets[1][0].grads = [sets[1][0].params[0]]
    with pytest.raises(nbopt.errors.LayoutError):
        optimizer.optimize(sets[1], 0)


def test_pytorch_turns(looks):
    """Two heads of a PyTorch model that have gradients in turn are found again.

    Memory that was exchanged dies at the next step.
    """
    torch = pytest.importorskip("torch")
    import nbopt.torch

    arrays = [np.ones((3, 4), np.float32) for _ in range(3)]
    held, params = (
        [*map(weakref.ref, arrays)],
        [torch.nn.Parameter(torch.from_numpy(array)) for array in arrays],
    )
    arrays.clear()
    optimizer, turns = nbopt.torch.Optimizer(params, momentum()), ((0, 1), (0, 2))
    for step in range(8):
        for row, param in enumerate(params):
            param.grad = torch.ones(3, 4) if row in turns[step % 2] else None
        looks()
        optimizer.step()
        assert looks() == (step < 2)
    assert [[*optimizer.state[param]] for param in params] == [["step", "velocity"]] * 3
    assert torch.equal(params[1], params[2]) and not torch.equal(params[0], params[1])
    for param in params:
        param.data = param.data.clone()
        param.grad = torch.ones(3, 4)
    assert all(ref() is not None for ref in held)
    optimizer.step()
    assert looks() == 1 and [ref() for ref in held] == [None] * 3
