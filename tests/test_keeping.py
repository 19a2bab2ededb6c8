"""What stages leave for others: states of rows are read where they lie, matrices wait for conditions."""

import numpy as np
import pytest

import nbopt
from nbopt.language.lines import is_slice
from nbopt.language.stages import Matrix, Pass, Verdict


def program_of(optimizer, shape=(8, 6)):
    with nbopt.use_backend("reference") as be:
        layer = nbopt.Parameters((np.ones(shape, np.float32), np.ones(shape, np.float32)))
        return optimizer.updates(be, [layer], 0)[0].program


def slices_of(program):
    """Return the names of what each pass over slices loads and stores."""
    names, loops = program.names, [loop for loop in program.loops() if is_slice(loop.extent)]
    return [[[names[slot] for slot in slots] for slots in (one.read(), one.written())] for one in loops]


#: Optimizer -> what its passes over slices load and store, in their order.
SLICES = {
    "Adafactor": [
        [["row", "slice0"], ["row"]],
        [["column", "slice1"], ["column", "slice3"]],
        [["row"], ["slice2"]],
    ],
    "CAME": [
        [["row", "slice0"], ["row"]],
        [["column", "slice1"], ["column", "slice3"]],
        [["row"], ["slice2"]],
        [["residual_row", "slice4"], ["residual_row"]],
        [["residual_column", "slice5"], ["residual_column", "slice7"]],
        [["residual_row"], ["slice6"]],
    ],
    "SM3": [[["slice0"], ["largest_0"]], [["slice1"], ["largest_1"]]],
    "NorMuon": [[["row", "slice0"], ["row", "slice1"]]],
}


@pytest.mark.parametrize("name", SLICES)
def test_no_copies(name):
    """A state of rows or columns is loaded and stored once, and no stage does nothing but copy it."""
    assert slices_of(program_of(getattr(nbopt, name)())) == SLICES[name]


class Late(nbopt.Optimizer):
    """Reads the rows of before in a later pass than the one that could store the new ones."""

    def __init__(self, learning_rate=0.1, name=None):
        super().__init__(name=name)
        self.learning_rate = learning_rate

    def states(self, shape):
        return {"row": nbopt.State(axes=(0,), init=1.0), "column": nbopt.State(axes=(1,), init=2.0)}

    def rule(self, step, param, grad, row, column):
        be = self.be
        param[:] = param - step.lr * be.norm(grad) * grad / row / be.sqrt(column)
        row[:] = row + be.mean(be.square(grad), axis=1)
        column[:] = column + 1.0


@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(3, 4), (5, 70)])
def test_old_values(backend_name, shape):
    """A pass gets the value that the rule means, though the slot has another one by then."""
    rng = np.random.default_rng(0)
    param, grads = rng.random(shape), rng.standard_normal((3, *shape))
    wanted, row, column = param.copy(), np.ones((shape[0], 1)), np.full((1, shape[1]), 2.0)
    with nbopt.use_backend(backend_name):
        layer, optimizer = nbopt.Parameters((param, param)), Late()
        for grad in grads:
            wanted = wanted - 0.1 * np.linalg.norm(grad) * grad / row / np.sqrt(column)
            row, column = row + np.square(grad).mean(axis=1, keepdims=True), column + 1
            layer.grads = [grad]
            optimizer.optimize([layer], 0)
    np.testing.assert_allclose(param, wanted, rtol=1e-12)
    for state, right in zip(layer.states[0], (row, column)):
        np.testing.assert_allclose(state.get(), right, rtol=1e-12)


@pytest.mark.parametrize(("name", "moved"), [("Muon", [4, 16, 12]), ("NorMuon", [4, 16, 4, 4, 12])])
def test_matrices_wait(name, moved):
    """What comes before the condition reads gradients alone: all that matrices take is behind it."""
    optimizer = getattr(nbopt, name)()
    optimizer.skip_nonfinite = True
    program = program_of(optimizer)
    stages = [stage for _, stage in program.order()]
    verdict = next(place for place, stage in enumerate(stages) if isinstance(stage, Verdict))
    before = [stage for stage in stages[:verdict] if isinstance(stage, (Pass, Matrix))]
    assert [[program.names[slot] for slot in stage.moved()] for stage in before] == [["grad"]]
    assert all(stage.guarded for stage in stages[verdict:] if isinstance(stage, (Pass, Matrix)))
    assert program.bytes_moved([4] * len(program.names)) == moved


def test_condition_of_matrices():
    """A condition on what a function of matrices gives comes after it, and the others are not moved."""

    class Own(nbopt.Optimizer):
        learning_rate = 0.1

        def rule(self, step, param, grad):
            update = self.be.orthogonalize(grad)
            step.only_if(step.norm(update) < 100.0)
            param[:] = param - step.lr * self.be.matmul(self.be.matmul(update, param.T), param)

    stages = [stage for _, stage in program_of(Own()).order()]
    found = [type(stage) for stage in stages if isinstance(stage, (Matrix, Verdict))]
    assert found == [Matrix, Verdict, Matrix]
