"""Rules that reduce along axes, and states of rows and columns.

They equal formulas in float64, and have the same bits on each backend.
"""

from functools import partial

import numpy as np
import pytest
from helpers import same_bits
from rules import Covers, Factored

import nbopt

#: The rule of `rows_line_by_line`.
centred = partial(Factored, centred=True)


def rows_line_by_line(params, steps):
    params, states = [np.asarray(param, np.float64) for param in params], [None] * len(params)
    for grads in steps:
        whole = np.sqrt(sum(np.square(grad, dtype=np.float64).sum() for grad in grads))
        for k, grad in enumerate(grads):
            if not grad.size:
                continue
            grad = np.asarray(grad, np.float64)
            if grad.ndim < 2:
                square = 0.5 * (0.0 if states[k] is None else states[k]) + 0.5 * grad**2 + 1e-3
                states[k] = square
                params[k] = params[k] - 0.5 * grad / np.sqrt(square) / whole
                continue
            row, column = (0.0, 0.0) if states[k] is None else states[k]
            grad = grad - grad.mean(axis=-1, keepdims=True)
            row = 0.5 * row + 0.5 * (grad**2).mean(axis=-1, keepdims=True) + 1e-3
            column = 0.5 * column + 0.5 * (grad**2).mean(axis=-2, keepdims=True) + 1e-3
            states[k] = row, column
            update = grad / (np.sqrt(row / row.mean(axis=-2, keepdims=True)) * np.sqrt(column))
            params[k] = (
                params[k] - 0.5 * update / max(1.0, np.linalg.norm(update) / np.sqrt(update.size)) / whole
            )
    return params, states


def axes_line_by_line(params, steps):
    params, states = [np.asarray(param, np.float64) for param in params], [None] * len(params)
    for grads in steps:
        for k, grad in enumerate(grads):
            if not grad.size:
                continue
            grad = np.asarray(grad, np.float64)
            if states[k] is None:
                states[k] = [0.0] * max(1, grad.ndim)
            square = grad**2 + np.minimum.reduce(np.broadcast_arrays(*states[k]))
            axes = range(grad.ndim)
            states[k] = [
                square.max(axis=tuple(a for a in axes if a != axis), keepdims=True) for axis in axes
            ] or [square]
            params[k] = params[k] - 0.5 * grad / np.sqrt(square)
    return params, states


SHAPES = [(300, 70), (64,), (5, 4, 33), (), (7, 1, 3, 3), (0, 3), (3, 300), (70, 1), (2, 40000)]
RULES = {"rows": (centred, rows_line_by_line), "axes": (Covers, axes_line_by_line)}


def problem(dtype, shapes=SHAPES, steps=2, seed=0):
    rng = np.random.default_rng(seed)
    params = [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    return params, [[np.asarray(rng.normal(size=shape), dtype) for shape in shapes] for _ in range(steps)]


def run(optimizer, params, steps):
    layer = nbopt.Parameters(*((param, np.zeros_like(param)) for param in params))
    for grads in steps:
        layer.grads = grads
        optimizer.optimize([layer], 0)
    return layer


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.covering
@pytest.mark.rest
def test_formula(host_backend, rule, dtype, tolerance):
    """Two steps equal the formula, for shapes of every number of axes together."""
    kind, line_by_line = RULES[rule]
    params, steps = problem(dtype)
    wanted, states = line_by_line(params, steps)
    layer = run(kind(), params, steps)
    for k, shape in enumerate(SHAPES):
        if 0 in shape:
            continue
        np.testing.assert_allclose(layer.params[k], wanted[k], rtol=tolerance, atol=tolerance)
        for found, state in zip(
            layer.states[k], states[k] if isinstance(states[k], (tuple, list)) else [states[k]]
        ):
            assert found.shape == np.shape(state)
            np.testing.assert_allclose(found.get(), state, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("dtype", "stochastic_round"), [("float32", False), ("float64", False), ("bfloat16", True)]
)
@pytest.mark.covering
@pytest.mark.rest
def test_same_bits(rule, dtype, stochastic_round):
    """The CPU backend gives the reference's bits."""
    kind, found = RULES[rule][0], {}
    for name in ("reference", "cpu"):
        with nbopt.use_backend(name, rng_seed=7) as be:
            params, steps = problem(be.storage_dtype(dtype))
            optimizer = kind()
            optimizer.stochastic_round = stochastic_round
            layer = run(optimizer, params, steps)
            found[name] = [*layer.params, *(state.get() for states in layer.states for state in states)]
    for reference, cpu in zip(found["reference"], found["cpu"]):
        assert same_bits(reference, cpu)


@pytest.mark.rest
def test_batch_sizes():
    """A batch size divides alike in narrow and in wide rows, whether its reciprocal is exact or not."""
    for size in (3, 8):
        found = []
        for name in ("reference", "cpu"):
            with nbopt.use_backend(name) as be:
                be.bsz = size
                found.append(run(centred(), *problem("float32", [(70, 64), (70, 65), (5, 4, 33)])).params)
        assert all(map(same_bits, *found))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.rest("axes")
def test_strided(rule):
    """A parameter that does not lie in one piece gives the bits of one that does."""
    kind = RULES[rule][0]
    with nbopt.use_backend("cpu", rng_seed=7):
        params, steps = problem("float32", [(70, 40), (6, 5, 33)])
        strided = [np.ascontiguousarray(param.T).T for param in params]
        assert not any(param.flags.c_contiguous for param in strided)
        whole, other = run(kind(), params, steps), run(kind(), strided, steps)
        assert all(map(same_bits, whole.params, other.params))


def test_bits_do_not_depend_on_threads():
    params, steps = problem("float32", [(300, 70), (5, 4, 33), (40, 9000)])
    found = []
    for threads in (1, 2):
        with nbopt.use_backend("cpu", num_threads=threads):
            found.append(run(centred(), [param.copy() for param in params], steps).params)
    assert all(map(same_bits, *found))
