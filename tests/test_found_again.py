"""A step that is the one before with other numbers is found again; any other change is seen at once."""

import copy
import sys
import weakref

import numpy as np
import pytest
from helpers import same_bits, values_of

import nbopt
from nbopt.optimizers.steady import Steady


class World:
    """An optimizer and layers on one backend, for a change between two of its steps."""

    def __init__(self, backend, optimizer=None, layer=nbopt.Parameters):
        self.be = nbopt.backends._load(backend)(rng_seed=3)
        rng = np.random.default_rng(0)
        self.rng = rng

        def pair(*shape):
            return tuple(rng.random(shape, np.float32) for _ in range(2))

        self.layers = [layer(pair(3, 4), pair(5), name="one"), layer(pair(6), name="two")]
        momentum = type("Momentum", (nbopt.GradientDescentMomentum,), {})
        self.optimizer = optimizer() if optimizer else momentum(0.1, 0.9)
        self.epoch = 0

    def steps(self, count):
        with nbopt.use_backend(self.be):
            for _ in range(count):
                self.optimizer.optimize(self.layers, self.epoch)


def gradient(world):
    world.layers[0].set_grad(1, world.rng.random(5, np.float32))


def no_gradient(world):
    world.layers[0].grads = [world.layers[0].grads[0], None]


def parameter(world):
    world.layers[1].params = [world.rng.random(6, np.float32)]


def states_anew(world):
    world.layers[0].states = [[] for _ in world.layers[0].params]


def one_list_anew(world):
    world.layers[0].states[1] = []


def emptied(world):
    world.layers[0].states[0].clear()


def exchanged(world):
    world.layers[1].states[0][0] = world.be.array(np.full(6, 0.5, np.float32))


def rounding(world):
    world.layers[0].get_params()[0][0][0].rounding = 4


def rounding_of_all(world):
    world.optimizer.stochastic_round = 5


def rate(world):
    world.optimizer.learning_rate = 0.3


def scale(world):
    world.optimizer.loss_scale = 4.0


def scale_in_memory(world):
    world.optimizer.loss_scale = np.array([4.0], np.float32)


def batch(world):
    world.be.bsz = 8


def clip(world):
    world.optimizer.gradient_clip_norm = 0.1


def skips(world):
    world.optimizer.skip_nonfinite = True
    world.layers[1].grads[0][0] = np.inf


def centralized(world):
    world.optimizer.centralize = True


def clipped_adaptively(world):
    world.optimizer.adaptive_clip = 0.01


def decaying(world):
    world.optimizer.param_decay = 0.1


def mean(world):
    world.optimizer.ema_decay = 0.5
    for layer in world.layers:
        for states in layer.states:
            states.clear()


def fewer_layers(world):
    del world.layers[0]


def other_order(world):
    world.layers.reverse()


def another_layer(world):
    world.layers.append(nbopt.Parameters((np.ones(2, np.float32), np.ones(2, np.float32))))


def copied_layer(world):
    world.layers[1] = copy.deepcopy(world.layers[1])
    world.layers[1].set_grad(0, world.rng.random(6, np.float32))


def another_rule(world):
    def rule(self, step, param, grad, *states):
        param[:] = param - 0.5 * grad

    type(world.optimizer).rule = rule


def own_rule(world):
    def rule(step, param, grad, *states):
        param[:] = param - 0.25 * grad

    world.optimizer.rule = rule


def another_layers_method(world):
    layer = world.layers[1]
    other = nbopt.Parameters((layer.params[0], np.full(6, 2.0, np.float32)))

    class Other(nbopt.Parameters):
        def get_params(self):
            return other.get_params()

    world.layers[1] = Other((layer.params[0], layer.grads[0]))


def epoch(world):
    world.optimizer.schedule = nbopt.Schedule([1], 0.5)
    world.epoch = 1


CHANGES = [
    gradient, no_gradient, parameter, states_anew, one_list_anew, emptied, exchanged, rounding,
    rounding_of_all, rate, scale, scale_in_memory, batch, clip, skips, centralized,
    clipped_adaptively, decaying, mean, fewer_layers, other_order, another_layer, copied_layer, another_rule,
    own_rule, another_layers_method, epoch,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.rest("clip", "decaying")
def test_change_between_steps(change):
    """The steps after a change have the reference's bits."""
    found = []
    for backend in ("cpu", "reference"):
        world = World(backend)
        world.steps(3)
        with nbopt.use_backend(world.be):
            change(world)
        world.steps(3)
        found.append((values_of(world.layers), world.optimizer.t))
    assert all(map(same_bits, found[0][0], found[1][0]))
    assert found[0][1] == found[1][1] == 6


@pytest.fixture
def counted(monkeypatch):
    """Whether each step since the last call was found again."""
    steps, step = [], Steady.step

    def noted(self, *args):
        steps.append(step(self, *args))
        return steps[-1]

    monkeypatch.setattr(Steady, "step", noted)

    def count():
        found = steps[:]
        steps.clear()
        return found

    return count


OPTIMIZERS = {
    "momentum": lambda: nbopt.GradientDescentMomentum(0.1, 0.9),
    "adam": nbopt.Adam,
    "clipped": lambda: nbopt.RMSProp(gradient_clip_norm=0.1),
    "mean": lambda: nbopt.AdamW(ema_decay=0.9),
    "mirror": lambda: nbopt.AdamW(mirror_dtype="bfloat16"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_found(name, counted):
    """From the third step on each is found, with the numbers of now, and after a change again."""
    worlds = [World(backend, OPTIMIZERS[name]) for backend in ("cpu", "reference")]
    for world in worlds:
        for rate in (0.1, 0.2, 0.3, 0.4):
            world.optimizer.learning_rate = rate
            world.steps(1)
        world.layers[0].set_grad(0, np.full((3, 4), 0.25, np.float32))
        world.steps(3)
        found = counted()
        if world.be.name == "cpu":
            assert found[1:3] == [True, True]
            assert found[-3:] == [False, True, True]
        else:
            assert not any(found)
    assert all(map(same_bits, *(values_of(world.layers) for world in worlds)))


def test_skipping_steps_are_found(counted):
    """So are steps that may be skipped; the count of those is right."""
    world = World("cpu", nbopt.RMSProp)
    world.optimizer.skip_nonfinite = True
    world.steps(3)
    grad, counted_now = world.layers[1].grads[0], counted()
    kept = grad.copy()
    grad[0] = np.nan
    world.steps(2)
    grad[:] = kept
    world.steps(1)
    assert all(counted_now[1:])
    assert counted() == [True] * 3
    assert (world.optimizer.t, world.optimizer.skipped) == (6, 2)
    world.optimizer.skipped = 7
    world.steps(1)
    assert world.optimizer.skipped == 7


def test_norm_of_steps_that_are_found(counted):
    """They give the norm of their gradients, also after a step in which another optimizer led."""
    world = World("cpu", lambda: nbopt.RMSProp(gradient_clip_norm=0.5))
    grads = [grad for layer in world.layers for grad in layer.grads]
    for size in (1.0, 2.0, 4.0, 3.0):
        for grad in grads:
            grad[:] = size
        world.steps(1)
        assert world.optimizer.grad_norm == pytest.approx(size * 23**0.5)
    assert counted()[-2:] == [True, True]
    with nbopt.use_backend(world.be):
        world.optimizer.gradient_clip_norm = None
        nbopt.MultiOptimizer({"default": world.optimizer}).optimize(world.layers, 0)
    assert world.optimizer.grad_norm is None
    world.optimizer.gradient_clip_norm = 0.5
    world.steps(1)
    assert world.optimizer.grad_norm == pytest.approx(3.0 * 23**0.5)


def test_two_sets_of_layers(counted):
    """A step over other layers is not taken for the last one, nor one of another optimizer."""
    first, second, plain = World("cpu"), World("cpu"), World("cpu")
    second.optimizer = first.optimizer
    second.be = first.be
    second.layers[0].set_grad(1, np.full(5, 0.5, np.float32))
    for _ in range(4):
        first.steps(1)
        second.steps(1)
    plain.steps(4)
    assert all(map(same_bits, values_of(first.layers), values_of(plain.layers)))
    assert not all(map(same_bits, values_of(second.layers), values_of(plain.layers)))


@pytest.mark.parametrize("make", [nbopt.RMSProp, nbopt.Adam])
def test_calls(make):
    """A steady step calls few functions of Python: 42 and 112 before the engine of stages.

    They stand in eleven files, where they stood in fifteen, and in two texts that are made.
    """
    with nbopt.use_backend("cpu", rng_seed=0):
        values = np.ones(100, np.float32)
        layers, optimizer, calls = [nbopt.Parameters((values, values.copy()))], make(), []
        files = set()
        for _ in range(3):
            optimizer.optimize(layers, 0)

        def note(frame, event, argument):
            if event == "call":
                files.add(frame.f_code.co_filename)
                calls.append(
                    frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name
                )

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            optimizer.optimize(layers, 0)
        finally:
            sys.setprofile(before)
    assert len(calls) <= 25, calls
    assert len(files) <= 13, files


def test_nothing_is_kept_alive(rng):
    """What finds a step again holds neither layers nor arrays."""
    with nbopt.use_backend("cpu", rng_seed=0):
        optimizer = nbopt.RMSProp()
        layer = nbopt.Parameters((rng.random(5, np.float32), rng.random(5, np.float32)))
        for _ in range(3):
            optimizer.optimize([layer], 0)
        alive = [weakref.ref(one) for one in (layer, layer.params[0], layer.grads[0], layer.states[0][0])]
        del layer
    assert [one() for one in alive] == [None] * 4
