"""The memory of functions of matrices: rounds that share it, on the CPU."""

import tracemalloc

import numpy as np
import pytest
from helpers import same_bits

import nbopt
from nbopt.language.matrices import COEFFICIENTS, Orthogonalize
from nbopt_backends.matrices.stage import rounds_of

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


def trained(optimizer, steps=3):
    rng = np.random.default_rng(4)
    layer = nbopt.Parameters(*(
        (rng.standard_normal(shape).astype(np.float64 if number == 2 else np.float32),
         np.zeros(shape, np.float64 if number == 2 else np.float32))
        for number, shape in enumerate(SHAPES)
    ))  # fmt: skip
    for _ in range(steps):
        layer.grads = [
            rng.standard_normal(param.shape).astype(param.dtype) * (1 if param.size else 0)
            for param in layer.params
        ]
        optimizer.optimize([layer], 0)
    return [*layer.params, *(state.get() for states in layer.states for state in states)]


@pytest.mark.parametrize("name", RULES)
def test_bits(name):
    """Rounds change no bits, whatever comes before and after the products."""
    with nbopt.use_backend("cpu", rng_seed=2) as be:
        launches, found = [], []
        for workspace in (1 << 20, 1000, 1):
            be.rng_reset()
            before = be.launches
            found.append(trained(RULES[name](workspace=workspace)))
            launches.append(be.launches - before)
    assert all(map(same_bits, found[0], found[1]))
    assert all(map(same_bits, found[0], found[2]))
    # What is reduced over the step, after the products, needs all of them at once.
    assert (launches[0] == launches[2]) == (name == "own, over the step")


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
    """A step keeps as much as its largest batch, or one matrix if `workspace` says so, and takes little more.

    In all it is at most three times the largest batch.
    """
    shapes = [(256, 512), (256, 256), (512, 256), (128, 512), (384, 256), (256, 512), (128, 768), (512, 256)]
    matrix, spare = 256 * 512 * 4, 1 << 18  # spare: tables and objects
    for workspace, kept_matrices in ((None, 4), (1, 1)):
        with nbopt.use_backend("cpu"):
            for _ in range(2):  # the first one compiles
                pairs = [(np.ones(shape, np.float32), np.ones(shape, np.float32)) for shape in shapes]
                layer, optimizer = nbopt.Parameters(*pairs), nbopt.Muon(workspace=workspace)
                tracemalloc.start()
                optimizer.optimize([layer], 0)
                kept, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
        states = sum(param.nbytes for param in layer.params)
        assert kept - states <= kept_matrices * matrix + spare
        assert peak - kept <= 3 * matrix + spare
        assert peak - states <= 12 * matrix
