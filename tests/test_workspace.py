"""The memory of functions of matrices: rounds that share it, on the CPU."""

import tracemalloc

import numpy as np
import pytest
from helpers import same_bits

import nbopt
from nbopt.language.matrices import COEFFICIENTS, Orthogonalize
from nbopt_backends.cuda import plan as cuda_plan
from nbopt_backends.cuda.products import TorchProducts
from nbopt_backends.cuda.walks import with_workspace
from nbopt_backends.matrices.rounds import rounds_of

SHAPES = [(24, 8), (2, 6, 40), (24, 8), (0, 3), (8, 8), (40, 6), (8, 24), (24, 8), (6, 40)]


class Own(nbopt.Optimizer):
    """Two functions of matrices, and norms before and after them."""

    def __init__(self, learning_rate=0.1, workspace=None, together=False, name=None):
        super().__init__(name=name)
        self.learning_rate, self.workspace, self.together = learning_rate, workspace, together

    def rule(self, step, param, grad):
        be = self.be
        update = be.orthogonalize(grad / be.norm(grad), workspace=self.workspace)
        update = be.matmul(be.matmul(update, param.T), param) + update
        size = step.norm(update) if self.together else be.norm(update)
        param[:] = param - step.lr * update / be.maximum(size, 1.0)


def skipping(optimizer):
    optimizer.skip_nonfinite = True
    return optimizer


RULES = {
    "Muon": lambda **given: nbopt.Muon(**given),
    "clipped": lambda **given: nbopt.Muon(gradient_clip_norm=0.5, stochastic_round=True, **given),
    "skipping": lambda **given: skipping(nbopt.Muon(gradient_clip_norm=0.5, **given)),
    "skipping, no clip": lambda **given: skipping(nbopt.Muon(**given)),
    "NorMuon": lambda **given: nbopt.NorMuon(**given),
    "own": lambda **given: Own(**given),
    "own, over the step": lambda **given: Own(together=True, **given),
}


def trained(optimizer, be, steps=3):
    rng = np.random.default_rng(4)
    dtypes = [np.float64 if number == 2 else np.float32 for number in range(len(SHAPES))]

    def drawn():
        return [be.array(rng.standard_normal(shape), dtype) for shape, dtype in zip(SHAPES, dtypes)]

    layer = nbopt.Parameters(*zip(drawn(), drawn()))
    for _ in range(steps):
        layer.grads = drawn()
        optimizer.optimize([layer], 0)
    return [be.wrap(one).get() for one in [*layer.params, *(state for own in layer.states for state in own)]]


def rounds_of_rule(name, be, steps, same):
    """Assert that rounds change no values of a rule's steps, and return how many passes these launch."""
    launches, found = [], []
    for workspace in (1 << 20, 1000, 1):
        be.rng_reset()
        before = be.launches
        found.append(trained(RULES[name](workspace=workspace), be, steps))
        launches.append(be.launches - before)
    assert all(map(same, found[0], found[1]))
    assert all(map(same, found[0], found[2]))
    return launches


@pytest.mark.parametrize("name", RULES)
def test_bits(name):
    """Rounds change no bits, whatever comes before and after the products."""
    with nbopt.use_backend("cpu", rng_seed=2) as be:
        launches = rounds_of_rule(name, be, 3, same_bits)
    # What is reduced over the step, after the products, needs all of them at once.
    assert (launches[0] == launches[2]) == (name == "own, over the step")


@pytest.mark.parametrize("name", ["clipped", "NorMuon", "own"])
@pytest.mark.rest("cuda-clipped")
def test_device(backend, monkeypatch, name):
    """Rounds on a GPU: there they change the order of sums in products alone; the memory is that of one."""
    be, sizes = backend, []
    if be.memory == "host":
        pytest.skip("test_bits has rounds in the host's memory")
    exact = not isinstance(be.device.products(be.device_id, be.streams.library), TorchProducts)

    def same(x, y):
        return same_bits(x, y) if exact else np.allclose(x, y, rtol=0.05, atol=0.05)

    def noted(*given):
        memory, batches = with_workspace(*given)
        sizes.append(memory.nbytes)
        return memory, batches

    monkeypatch.setattr(cuda_plan, "with_workspace", noted)
    launches = rounds_of_rule(name, be, 2, same)
    assert launches[0] < launches[2]
    sizes = [size for size in sizes if size]
    assert sizes[0] > sizes[-1]
    if name == "clipped":  # three of (24, 8), and one of (2, 6, 40)
        assert sizes[0] <= 3 * 24 * 8 * 4 + 3 * 256
        assert sizes[-1] <= 2 * 6 * 40 * 4 + 256


def test_rounds():
    """Those of one shape, or of its transpose, go together as far as they fit; none is cut."""
    function = Orthogonalize((COEFFICIENTS,))
    shapes = dict(enumerate(((8, 4), (4, 8), (8, 4), (2, 2), (16, 1), (2, 2))))
    assert rounds_of([function], {row: (shape, 4) for row, shape in shapes.items()}) == [[0, 1, 2], [3, 5, 4]]
    small = function._replace(workspace=80 * 4)
    assert rounds_of([small], {row: (shape, 4) for row, shape in shapes.items()}) == [[0, 1], [2, 3, 5, 4]]
    one = function._replace(workspace=1)
    assert rounds_of([one, function], {row: (shape, 4) for row, shape in shapes.items()}) == [
        [0], [1], [2], [3], [5], [4]
    ]  # fmt: skip
    assert rounds_of([function], {}) == []


def test_memory():
    """A step keeps as much as its largest batch, or one matrix if `workspace` says so.

    In all it takes at most three times as much, square matrices and small ones among them, by each method.
    """
    mixed = [(256, 512), (256, 256), (512, 256), (128, 512), (384, 256), (256, 512), (128, 768), (512, 256)]
    matrix, spare = 256 * 512 * 4, 1 << 18  # spare: tables and objects
    for shapes, given, largest in (
        (mixed, {}, 4 * matrix),
        (mixed, {"workspace": 1}, matrix),
        (mixed, {"workspace": 1, "method": "gram"}, matrix),
        ([(1024, 1024)], {}, 1 << 22),
        *(([(512, width)], {"method": "gram"}, width << 11) for width in (512, 900, 1024, 1400)),
        ([(64, 64)] * 126, {}, 126 << 14),
    ):
        with nbopt.use_backend("cpu"):
            for _ in range(2):  # the first one compiles
                pairs = [(np.ones(shape, np.float32), np.ones(shape, np.float32)) for shape in shapes]
                layer, optimizer = nbopt.Parameters(*pairs), nbopt.Muon(**given)
                tracemalloc.start()
                optimizer.optimize([layer], 0)
                kept, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
        states = sum(param.nbytes for param in layer.params)
        assert kept - states <= largest + spare
        assert peak - kept <= 2 * largest + spare
