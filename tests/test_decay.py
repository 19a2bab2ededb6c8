"""Weight decay whose steps are small against one unit in the last place."""

import ml_dtypes
import numpy as np
import pytest

import nbopt

STEPS = 6000
# Lion's steps are all of one length: the schedule moves it over the grid of float32, as gradients do in the
# others.
FALLING = nbopt.ExpSchedule(1e-4)

#: Optimizers by name, from a learning rate, its product with the weight decay, and further options.
DECAYING = {
    "plain": lambda lr, decay, **k: nbopt.GradientDescentMomentum(lr, 0.0, wdecay=decay / lr, **k),
    "adamw": lambda lr, decay, **k: nbopt.AdamW(learning_rate=lr, wdecay=decay / lr, **k),
    "lion": lambda lr, decay, **k: nbopt.Lion(learning_rate=lr, wdecay=decay / lr, schedule=FALLING, **k),
    "asgd": lambda lr, decay, **k: nbopt.ASGD(learning_rate=lr, lambd=decay / lr, **k),
}


def fall(optimizer, params, gradients):
    """Train `params` in place with a cycle of gradients, and return by how much their mean fell."""
    before, grad = params.mean(dtype=np.float64), np.empty(gradients[0].shape, gradients[0].dtype)
    layer = nbopt.Parameters((params, grad))
    for step in range(STEPS):
        grad[:] = gradients[step % len(gradients)]
        optimizer.optimize([layer], step)
    return before - params.mean(dtype=np.float64)


def check(rng, name, dtype, lr, decay, size, **options):
    """Compare the fall of the parameters with float64's.

    It may differ by 5% of the fall that the decay alone makes.
    """
    half = rng.standard_normal((30, size)).astype(np.float32)
    params, gradients = (
        rng.uniform(0.5, 1, size).astype(dtype),
        rng.permuted(np.concatenate([half, -half]), axis=0),
    )
    made = DECAYING[name]
    with nbopt.use_backend("cpu", rng_seed=3, num_threads=1):
        exact = fall(made(lr, decay), params.astype(np.float64), gradients.astype(np.float64))
        alone = STEPS * decay * params.mean(dtype=np.float64)
        if name == "lion":
            alone *= np.mean([FALLING.get_learning_rate(1.0, step) for step in range(STEPS)])
        assert abs(fall(made(lr, decay, **options), params, gradients) - exact) < 0.05 * alone


@pytest.mark.parametrize(
    "name, decay",
    [
        ("plain", 1e-8),
        pytest.param("plain", 3e-8, marks=pytest.mark.thorough),
        ("adamw", 1e-8),
        ("lion", 1e-8),
        ("asgd", 1e-8),
    ],
)
@pytest.mark.rest("adamw-*", "plain-*")
def test_small_decay(rng, name, decay):
    """Over 6000 steps the decay is float64's within 5%.

    One step's is below what float32 can hold beside 1.
    """
    check(rng, name, np.float32, 1e-4, decay, 2000)


@pytest.mark.parametrize(
    "name",
    ["adamw", *(pytest.param(name, marks=pytest.mark.thorough) for name in DECAYING if name != "adamw")],
)
def test_small_decay_bfloat16(rng, name):
    """So it is in bfloat16 with stochastic rounding.

    One step's decay is above 2^-16 of a unit in the last place.
    """
    check(rng, name, ml_dtypes.bfloat16, 3e-7, 1.5e-7, 2**14, stochastic_round=True)
