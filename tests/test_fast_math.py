"""``fast_math=True`` gives up equal bits, within a bound: docs/design.md states it."""

import numpy as np
import pytest
from helpers import OPTIMIZERS, layers_of, thorough_but, values_of

import nbopt

CLIPS = {"gradient_clip_value": 5e-5, "param_clip_value": 0.9}
BOUND = 1e-6  # of each array's largest magnitude, after ten steps in float32


def _after_ten_steps(optimizer, fast_math):
    with nbopt.use_backend("cpu", batch_size=100, fast_math=fast_math):
        layers = layers_of([(300, 200), (7,)], np.random.default_rng(5))
        for epoch in range(10):
            optimizer.optimize(layers, epoch)
        return values_of(layers)


USUAL = ("adadelta", "adam", "asgd", "nadam", "nesterov", "rmsprop_centered")


# ShiftAdaMax is left out: where an operand of shift lies beside its jump, the last bit of it decides about a
# factor of 2.
@pytest.mark.parametrize("name", thorough_but(sorted(set(OPTIMIZERS) - {"shift_adamax"}), *USUAL))
@pytest.mark.parametrize("clips", thorough_but([{}, CLIPS], {}), ids=["free", "clipped"])
@pytest.mark.rest("*-adam")
def test_fast_math_stays_within_its_bound(name, clips):
    exact = _after_ten_steps(OPTIMIZERS[name](**clips), fast_math=False)
    fast = _after_ten_steps(OPTIMIZERS[name](**clips), fast_math=True)
    for a, b in zip(exact, fast):
        assert np.abs(a - b).max() <= BOUND * np.abs(a).max()


def test_fast_math_keeps_nan_and_infinities():
    values = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    with nbopt.use_backend("cpu", fast_math=True) as be:
        x, out = be.array(values), be.zeros(4)
        out[:] = be.finite(x)
        assert out.get().tolist() == [0.0, 0.0, 0.0, 1.0]
        out[:] = be.maximum(x, 0.0)
        assert np.isnan(out.get()[0]) and out.get()[1:].tolist() == [np.inf, 0.0, 1.0]
