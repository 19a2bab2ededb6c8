"""NorMuon and AdaMuon against the algorithms of their papers, written anew in float64.

`nbopt` is given the same iteration of Newton and Schulz, so what is compared is all around it. The papers
divide by ``norm + 1e-7`` there; PyTorch, and nbopt, by the norm if it is at least 1e-7.
"""

import numpy as np
import pytest

import nbopt

SHAPES = [(8, 8), (12, 5), (5, 12), (1, 6), (6, 1)]
STEPS, LR, DECAY = 10, 0.02, 0.1


def newton_schulz(x, steps=5):
    """Return an orthogonalised matrix: the quintic iteration that both papers take over from Muon."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x.T if x.shape[0] > x.shape[1] else x
    y = y / max(np.linalg.norm(y), 1e-7)
    for _ in range(steps):
        square = y @ y.T
        y = a * y + (b * square + c * square @ square) @ y
    return y.T if x.shape[0] > x.shape[1] else y


def normuon_paper(w, m, v, g, t, b1=0.95, b2=0.95, eps=1e-10):
    """Algorithm 1 of arXiv:2510.05491. `v` has one number for each row."""
    m = b1 * m + (1 - b1) * g
    o = newton_schulz(m)
    v = b2 * v + (1 - b2) * np.mean(o * o, axis=1, keepdims=True)
    o = o / (np.sqrt(v) + eps)
    rate = 0.2 * LR * np.sqrt(o.size) / np.linalg.norm(o)
    return w - LR * DECAY * w - rate * o, m, v


def normuon_code(w, m, v, g, t, b1=0.95, b2=0.95, eps=1e-10):
    """What the authors' code does (github.com/zichongli5/NorMuon): it looks ahead, and keeps Muon's norm."""
    m = b1 * m + (1 - b1) * g
    o = newton_schulz((1 - b1) * g + b1 * m)
    length = np.linalg.norm(o) * max(1, w.shape[0] / w.shape[1]) ** 0.5
    v = b2 * v + (1 - b2) * np.mean(o * o, axis=1, keepdims=True)
    o = o / (np.sqrt(v) + eps)
    return (1 - LR * DECAY) * w - LR * length / (np.linalg.norm(o) + eps) * o, m, v


def adamuon_paper(w, m, v, g, t, beta=0.95, eps=1e-30):
    """Algorithm 1 of arXiv:2507.11005, versions 2 and 3.

    Where epsilon is not small beside the roots, the correction of the mean squares does not cancel out. So
    it is 1e-30 in place of 1e-8 here.
    """
    m = beta * m + g
    o = newton_schulz(np.sign(m))
    v = beta * v + (1 - beta) * o * o
    o = o / (np.sqrt(v) + eps)
    return w - LR * (0.2 * np.sqrt(o.size) / np.linalg.norm(o) * o + DECAY * w), m, v


def adamuon_code(w, m, v, g, t, beta=0.95, eps=1e-30):
    """What the authors' code does now (github.com/Chongjie-Si/AdaMuon): as the paper, but it looks ahead."""
    m = beta * m + (1 - beta) * g
    o = newton_schulz(np.sign((1 - beta) * g + beta * m))
    v = beta * v + (1 - beta) * o * o
    o = o / (np.sqrt(v) + eps)
    scale = 0.2 * (min(w.shape) * max(w.shape)) ** 0.5 / (np.linalg.norm(o) + eps)
    return (1 - LR * DECAY) * w - LR * scale * o, m, v


def adamuon_first(w, m, v, g, t, b1=0.9, b2=0.95, eps=1e-10):
    """The paper's first version: no signs, and mean squares that are corrected for their start."""
    m = b1 * m + (1 - b1) * g
    o = newton_schulz(m)
    v = b2 * v + (1 - b2) * o * o
    o = o / (np.sqrt(v / (1 - b2**t)) + eps)
    scale = min(w.shape) ** 0.5 / (np.linalg.norm(o) + eps) * 0.2 * max(w.shape) ** 0.5
    return (1 - LR * DECAY) * w - LR * scale * o, m, v


SIGNS = {"signs": True, "momentum_coef": 0.95, "epsilon": 1e-30}
CASES = {
    "NorMuon, paper": (normuon_paper, nbopt.NorMuon, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
    "NorMuon, code": (normuon_code, nbopt.NorMuon, {}),
    "AdaMuon, paper": (adamuon_paper, nbopt.AdaMuon, SIGNS),
    "AdaMuon, code": (adamuon_code, nbopt.AdaMuon, {**SIGNS, "nesterov": True}),
    "AdaMuon, first version": (adamuon_first, nbopt.AdaMuon, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.rest("cpu-AdaMuon, paper")
def test_paper(backend, case):
    """Ten steps over several shapes end within 1e-9 of the way from where the algorithm ends."""
    formula, kind, options = CASES[case]
    rng = np.random.default_rng(11)
    starts = [rng.standard_normal(shape) for shape in SHAPES]
    grads = [[rng.standard_normal(shape) for shape in SHAPES] for _ in range(STEPS)]
    with nbopt.use_backend(backend):
        layer = nbopt.Parameters(*((start.copy(), np.zeros_like(start)) for start in starts))
        optimizer = kind(learning_rate=LR, wdecay=DECAY, **options)
        for row in grads:
            layer.grads = [grad.copy() for grad in row]
            optimizer.optimize([layer], 0)
    for number, (found, start) in enumerate(zip(layer.params, starts, strict=True)):
        w, m, v = start, 0.0, 0.0
        for t, row in enumerate(grads, 1):
            w, m, v = formula(w, m, v, row[number], t)
        assert np.linalg.norm(found - w) <= 1e-9 * np.linalg.norm(w - start), start.shape
