"""Rules that reduce along axes, and states of rows and columns, on a device.

As device_checks.py, this is for the simulator and a real GPU alike.
"""

import numpy as np
import pytest
from device_checks import assert_same, clipped, reference, trained
from helpers import thorough_but
from rules import Covers, Factored

import nbopt

#: Bands of more and fewer rows than a unit has, tiles that are full or not, one and several groups of rows,
#: axes of length 1, no elements.
SLICED = [(70, 9), (64,), (3, 4, 5), (2, 1, 3, 3), (0, 4), (), (2, 140), (1, 5)]


class Centred(nbopt.Optimizer):
    """Rows are centred, and a momentum moves by what is left.

    There are means, extremes and norms of slices, and steps are left out.
    """

    state_names = ("momentum",)

    def __init__(self, bound=1e9, stochastic_round=False, **options):
        super().__init__(**options)
        self.stochastic_round, self.learning_rate, self.bound = stochastic_round, 0.1, bound

    def rule(self, step, param, grad, momentum):
        be = self.be
        if param.ndim == 0:
            step.only_if(step.max(be.absolute(grad)) < self.bound)
            momentum[:] = 0.9 * momentum + grad / step.sum(param)
            param[:] = param - step.lr * momentum
            return
        step.only_if(step.max(be.absolute(be.max(grad, axis=-1))) < self.bound)
        means = be.mean(grad, axis=tuple(range(1, param.ndim)))
        spread = be.max(param, axis=0) - be.min(param, axis=0)
        norm = be.norm(means)
        momentum[:] = 0.9 * momentum + (grad - means) / (1 + norm) / step.sum(spread)
        param[:] = param - step.lr * momentum * (1 + spread)


RULES = {
    "factored": Factored,
    "covers": lambda **options: Covers(by_sums=True, **options),
    "centred": Centred,
    "centred, norm clip": lambda **options: clipped(Centred(**options)),
}
HOW = {
    "float32": (("float32",), {}),
    "float64": (("float64",), {}),
    "mixed": (("float32", "float64", "bfloat16"), {}),
    "bfloat16, all rounded": (("bfloat16",), {"stochastic_round": True, "state_dtype": "bfloat16"}),
    "float16, float32 states": (("float16",), {"stochastic_round": 3}),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.covering
@pytest.mark.rest("factored-float32", where=["gpu"])
@pytest.mark.rest("factored-float32", "covers-*", "centred, norm clip-*", where=["simulated"])
def test_rules_with_slices(cuda, name, how):
    """Parameters of any number of axes in one step have the bits of the reference, whatever is stored how."""
    dtypes, options = HOW[how]
    # Each number of axes has kernels of its own, which take seconds to compile.
    shapes = SLICED if cuda.device.name == "simulator" else [(70, 9), (64,), (3, 5), (2, 140)]

    def run(be):
        return trained(be, RULES[name](**options), dtypes, 2, shapes)

    assert_same(run(cuda), run(reference()))


@pytest.mark.rest(where=["gpu", "simulated"])
def test_slices_of_larger_tensors(cuda):
    """Many bands, several tiles of columns, several groups of rows."""

    def run(be):
        return trained(be, Factored(), ("float32",), 1, [(300, 70), (5, 4, 33), (3, 300)])

    assert_same(run(cuda), run(reference()))


@pytest.mark.parametrize("rounding", thorough_but([False, True], True, where=["gpu"]))
@pytest.mark.parametrize("name", thorough_but(["factored", "covers", "centred"], "centred", where=["gpu"]))
@pytest.mark.rest(where=["gpu"])
@pytest.mark.rest("centred-True", "factored-False", where=["simulated"])
def test_slices_of_strided_tensors(cuda, name, rounding):
    """Rows and columns are those of the shape; the tensors' memory does not matter, nor where it begins."""

    def pairs(be, seed, dtypes, shapes):
        rng = np.random.default_rng(seed)
        a, b, c, d = (be.array(rng.standard_normal((40, 14)), dtypes[0]) for _ in range(4))
        e, f = (be.array(rng.standard_normal((12, 4, 20)), dtypes[0]) for _ in range(2))
        found = [
            (a[:, 12:0:-2], b[:, ::2][:, 1:]),
            (c[1:, :], d[:-1, :]),
            (e[::-2, 1:3, 15:], f[1::2, ::2, 4::-1]),
        ]
        return found[: 3 if cuda.device.name == "simulator" else 2]

    def run(be):
        return trained(
            be,
            RULES[name](stochastic_round=rounding),
            ("bfloat16" if rounding else "float32",),
            2,
            pairs=pairs,
        )

    assert_same(run(cuda), run(reference()))


@pytest.mark.rest(where=["gpu"])
def test_steps_with_slices_are_left_out_together(cuda, monkeypatch):
    """A condition of matrices leaves out what vectors would store, and the host reads nothing to know it."""

    def run(be):
        shapes = [(10, 9), (31,), (2, 3, 4), ()]
        with nbopt.use_backend(be):
            rng = np.random.default_rng(1)
            layer = nbopt.Parameters(
                *((be.array(rng.standard_normal(shape)), be.empty(shape)) for shape in shapes)
            )
            optimizer = Centred(bound=10.0)
            for epoch in range(3):
                layer.grads = [be.array(rng.standard_normal(shape)) for shape in shapes]
                layer.grads[0][3:4, 2:3] = [0.5, 1e3, 0.25][epoch]
                with monkeypatch.context() as patch:
                    if be is cuda and epoch:
                        patch.setattr(cuda.device, "copy_out", None)
                        patch.setattr(cuda.device, "synchronize", None)
                    optimizer.optimize([layer], epoch)
            return [p.get() for p in layer.params] + [
                state.get() for states in layer.states for state in states
            ]

    found = run(cuda)
    assert_same(found, run(reference()))


def test_slices_of_many_tensors(cuda):
    """100 tensors, some of them empty, make the same few launches as two."""
    launched = []

    def run(be, shapes):
        before = be.launches
        values = trained(be, Factored(), ("float32",), 1, shapes)
        launched.append(be.launches - before)
        return values

    shapes = [*((k % 5, 3) for k in range(50)), *((k % 5,) for k in range(50)), (70, 7)]
    found = run(cuda, shapes)
    run(cuda, [(4, 3), (3,)])
    assert launched[0] == launched[1]
    assert_same(found, run(reference(), shapes))


@pytest.mark.rest(where=["gpu"])
def test_parameters_keep_their_places(cuda):
    """A parameter without a gradient changes nothing for the others.

    Their random bits, and their places in the norm of all, stay.
    """

    def run(be):
        with nbopt.use_backend(be):
            rng = np.random.default_rng(1)
            shapes = [(10, 9), (31,), (2, 3, 4), (5,), (50, 90)]
            layer = nbopt.Parameters(
                *(
                    (be.array(rng.standard_normal(shape), "bfloat16"), be.empty(shape, "bfloat16"))
                    for shape in shapes
                )
            )
            optimizer = Factored(stochastic_round=True)
            for missing in ((), (0,), (1, 2)):
                layer.grads = [
                    None if k in missing else be.array(rng.standard_normal(shape), "bfloat16")
                    for k, shape in enumerate(shapes)
                ]
                optimizer.optimize([layer], 0)
            return [p.get() for p in layer.params] + [
                state.get() for states in layer.states for state in states
            ]

    assert_same(run(cuda), run(reference()))
