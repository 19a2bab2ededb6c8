"""Whose random bits are whose.

There are several optimizers in one step, several in one process, and replicas.
"""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import nbopt
from nbopt.errors import ArgumentError
from nbopt_backends.meaning import xoroshiro
from nbopt_backends.meaning.xoroshiro import BLOCK, random_slices


class Assigns(nbopt.Optimizer):
    """Stores the gradient to the parameter."""

    def rule(self, step, param, grad):
        param[:] = grad


def rounding():
    optimizer = Assigns()
    optimizer.stochastic_round = True
    return optimizer


def layers_of(be, sizes, value=1 + 2.0**-8):
    """Layers whose gradients lie half-way between two numbers of bfloat16's grid."""
    return [
        nbopt.Parameters((be.zeros(n, "bfloat16"), be.array(np.full(n, value), "float32")), name=f"layer{k}")
        for k, n in enumerate(sizes)
    ]


def ups(layers):
    """Which elements were rounded up."""
    return [layer.params[0].get().astype(np.float32) > 1 for layer in layers]


def expected(first_block, n, seed=0, update=0):
    """Which elements half-way between two numbers are rounded up by the design's bits."""
    return random_slices(seed, update, 0, first_block, n, 16) >= 2**15


SIZES = [10, BLOCK + 1, 300, 20]
FIRST_BLOCKS = [0, 1, 3, 4]


def mapping(be, order):
    """A MultiOptimizer in which these layers have an optimizer of their own."""
    return nbopt.MultiOptimizer({"default": rounding(), **{f"layer{k}": rounding() for k in order}})


@pytest.mark.parametrize("own", [[], [0], [1, 3], [0, 1, 2, 3]], ids=str)
@pytest.mark.rest(where=["gpu"])
def test_multi_optimizer_positions(backend, own):
    """In a MultiOptimizer, bits belong to the places in the layers of the whole call."""
    layers = layers_of(backend, SIZES)
    mapping(backend, own).optimize(layers, 0)
    for found, first, n in zip(ups(layers), FIRST_BLOCKS, SIZES):
        assert (found == expected(first, n)).all()


def test_multi_optimizer_positions_move(backend):
    """Where another optimizer's layers change, the places of all later ones do."""
    multi = mapping(backend, [0, 2])
    layers = layers_of(backend, SIZES)
    for update, chosen in enumerate(([0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3])):
        multi.optimize([layers[k] for k in chosen], 0)
        blocks = np.cumsum([0] + [-(-SIZES[k] // BLOCK) for k in chosen])
        for k, first in zip(chosen, blocks):
            assert (ups(layers)[k] == expected(int(first), SIZES[k], update=update)).all()


def test_multi_optimizer_positions_without_gradients(backend):
    """Parameters without a gradient keep their places in the list, whoever would update them."""
    layers = layers_of(backend, SIZES)
    layers[0].grads = layers[2].grads = [None]
    mapping(backend, [0, 3]).optimize(layers, 0)
    assert not ups(layers)[0].any()
    assert not ups(layers)[2].any()
    for k in (1, 3):
        assert (ups(layers)[k] == expected(FIRST_BLOCKS[k], SIZES[k])).all()


def test_multi_optimizer_in_a_multi_optimizer(backend):
    """So it is for optimizers within a MultiOptimizer within another one.

    One beside them has its own optimize.
    """

    class Own(nbopt.Optimizer):
        def optimize(self, layer_list, epoch):
            pass

    inner = nbopt.MultiOptimizer({"default": rounding(), "layer1": rounding()})
    layers = layers_of(backend, SIZES)
    nbopt.MultiOptimizer({"default": inner, "layer0": Own(), "layer3": rounding()}).optimize(layers, 0)
    assert not ups(layers)[0].any()
    for k in (1, 2, 3):
        assert (ups(layers)[k] == expected(FIRST_BLOCKS[k], SIZES[k])).all()


def test_multi_optimizer_over_plain_arrays():
    """Layers of one's own that give plain arrays have the same places."""

    class Layer(nbopt.NervanaObject):
        def __init__(self, n, name):
            super().__init__(name=name)
            self.w, self.states = np.zeros(n, np.float32), []

        def get_params(self):
            return (self.w, np.full(len(self.w), 1.25, np.float32)), self.states

    found = []
    for own in ([], [0, 1]):
        with nbopt.use_backend("reference", rng_seed=0):
            layers = [Layer(20, f"layer{k}") for k in range(3)]
            multi = nbopt.MultiOptimizer({"default": Assigns(), **{f"layer{k}": Assigns() for k in own}})
            for optimizer in multi.optimizer_mapping.values():
                optimizer.stochastic_round = 1
            multi.optimize(layers, 0)
            found.append([layer.w.tolist() for layer in layers])
    assert found[0] == found[1]
    assert len({tuple(values) for values in found[0]}) == 3
    assert {*found[0][0], *found[0][1], *found[0][2]} == {1.0, 1.5}


@pytest.mark.rest(where=["gpu"])
def test_a_layer_is_asked_once(backend):
    """A step of a MultiOptimizer asks each layer once, and a malformed layer is explained."""
    asked = []

    class Layer(nbopt.Parameters):
        def get_params(self):
            asked.append(self.name)
            return super().get_params() if self.name != "bad" else [(self.params[0], [])]

    pair = backend.zeros(3), backend.ones(3)
    multi = mapping(backend, [1])
    multi.optimize([Layer(pair, name="layer0"), Layer((backend.zeros(3), backend.ones(3)), name="layer1")], 0)
    assert sorted(asked) == ["layer0", "layer1"]
    with pytest.raises(nbopt.errors.LayerError, match=r"must give \(\(W, dW\), states\)"):
        multi.optimize([Layer(pair, name="bad")], 0)


def test_second_step_of_several_optimizers_looks_at_nothing_afresh(monkeypatch):
    """With the same layers, the second step finds the plans by the tensors' serial numbers."""
    with nbopt.use_backend("cpu") as be:
        layers, multi = layers_of(be, [5, 6]), mapping(be, [0])
        multi.optimize(layers, 0)
        multi.optimize(layers, 0)
        monkeypatch.setattr(type(be), "checked_columns", lambda self, update: pytest.fail("looked at afresh"))
        multi.optimize(layers, 0)
        assert be.rng_get_state()["updates"] == 3


def deviation(be, layers, step):
    """The sum of all rounding errors over the deviation of independent ones.

    It is the root mean square over some steps.
    """
    sums = []
    for epoch in range(40):
        step(epoch)
        found = np.concatenate([layer.params[0].get().astype(np.float64) for layer in layers])
        sums.append((found - (1 + 2.0**-8)).sum() / (2.0**-8 * np.sqrt(len(found))))
    return np.sqrt(np.mean(np.square(sums)))


def test_errors_of_fifty_optimizers_are_independent(backend):
    """With an optimizer for each of fifty parameters, rounding errors are independent.

    Their sum deviates as that of independent ones.
    """
    layers = layers_of(backend, [3] * 50)
    multi = mapping(backend, range(50))
    # Of 40 sums the root mean square is within .55 to 1.45 of that of independent errors, by four standard
    # errors; equal bits gave 7.
    assert 0.55 < deviation(backend, layers, lambda epoch: multi.optimize(layers, epoch)) < 1.45


# --- PyTorch ---


@pytest.fixture
def torch():
    found = pytest.importorskip("torch", reason="needs PyTorch: pip install nbopt[torch]")
    import nbopt.torch  # noqa: F401

    return found


def parameter(torch, n=3):
    p = torch.nn.Parameter(torch.zeros(n, dtype=torch.bfloat16))
    if hasattr(p, "grad_dtype"):
        p.grad_dtype = None
    return p


def stepped(torch, p, optimizer, steps=1):
    """Return which elements of a parameter were rounded up, over some steps.

    Its gradient is half-way between two numbers of the grid.
    """
    found = []
    for _ in range(steps):
        p.grad = torch.full_like(p, 1 + 2.0**-8, dtype=torch.float32)
        optimizer.step()
        found.append((p.detach() > 1).numpy().copy())
    return np.concatenate(found)


def needs_mixed(torch):
    if not hasattr(torch.nn.Parameter(torch.zeros(1)), "grad_dtype"):
        pytest.skip("gradients have their parameter's dtype before PyTorch 2.9")


def test_torch_optimizers_round_independently(torch):
    """With a PyTorch optimizer for each of fifty parameters, rounding errors are independent.

    Their sum deviates as that of independent ones.
    """
    needs_mixed(torch)
    pairs = [(p := parameter(torch), nbopt.torch.Optimizer([p], rounding())) for _ in range(50)]
    errors = np.array(
        [np.where(stepped(torch, p, optimizer, 40), 1.0, -1.0).reshape(40, 3) for p, optimizer in pairs]
    )
    sums = errors.sum(axis=(0, 2)) / np.sqrt(150)
    assert 0.55 < np.sqrt(np.mean(np.square(sums))) < 1.45


def test_torch_seed(torch):
    """A seed that is given is the seed; without one each optimizer has another, whatever PyTorch's is."""
    needs_mixed(torch)

    def made(**options):
        p = parameter(torch, 300)
        return p, nbopt.torch.Optimizer([p], rounding(), **options)

    p, optimizer = made(seed=7)
    assert optimizer.state_dict()["rng_state"] == {"seed": 7, "updates": 0}
    assert (stepped(torch, p, optimizer) == expected(0, 300, seed=7)).all()
    seeds = []
    for _ in range(20):
        torch.manual_seed(0)
        seeds.append(made()[1].state_dict()["rng_state"]["seed"])
    assert len({*seeds, 0}) == 21


@pytest.mark.parametrize("bad", [-1, 2**64, 1.0, True, "7"])
def test_torch_seed_that_makes_no_sense(torch, bad):
    """A seed is an int of 64 bits."""
    with pytest.raises(ArgumentError, match="seed must be an int"):
        nbopt.torch.Optimizer([parameter(torch)], rounding(), seed=bad)


def test_torch_seed_beside_a_backend(torch):
    """A backend that exists already has its own seed, so another one is refused."""
    be = nbopt.backends.new_backend("reference", rng_seed=9)
    with pytest.raises(ArgumentError, match="has a seed"):
        nbopt.torch.Optimizer([parameter(torch)], rounding(), backend=be, seed=9)
    assert (
        nbopt.torch.Optimizer([parameter(torch)], rounding(), backend=be).state_dict()["rng_state"]["seed"]
        == 9
    )


def test_seeds_of_processes_agree(torch):
    """Replicas agree: the optimizers of a new process have these seeds.

    They go by the order in which optimizers are made, whatever PyTorch's seed is.
    """
    code = """
import torch, nbopt, nbopt.torch
torch.manual_seed(1)
p = torch.nn.Parameter(torch.zeros(3))
print(*(nbopt.torch.Optimizer([p], nbopt.RMSProp()).state_dict()["rng_state"]["seed"] for _ in range(3)))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    with np.errstate(over="ignore"):
        library, *numbers = (np.array([x], np.uint64) for x in (0x6E626F7074, 0, 1, 2))
        h = xoroshiro.absorb(np.uint64(0), library)
        assert found == [str(int(xoroshiro.absorb(h, number)[0])) for number in numbers]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_keep_their_seed(torch, copied):
    """A copy has the seed and the update count of the original, and making it counts no optimizer."""
    needs_mixed(torch)
    p = parameter(torch)
    optimizer = nbopt.torch.Optimizer([p], rounding())
    stepped(torch, p, optimizer)
    again = copied(optimizer)
    state = optimizer.state_dict()["rng_state"]
    assert again.state_dict()["rng_state"] == state
    assert state["updates"] == 1


def test_loading_takes_seed_and_count_over(torch):
    """A state dict brings seed and update count into an optimizer that was made with others."""
    p = parameter(torch)
    first, second = (nbopt.torch.Optimizer([p], rounding(), seed=seed) for seed in (3, 4))
    p.grad = torch.ones_like(p)
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["rng_state"] == {"seed": 3, "updates": 1}
