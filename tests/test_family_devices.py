"""The optimizers that people train with today on a GPU or the emulated one: ``pytest -m gpu``."""

import os

import pytest
from device_checks import assert_same, reference, trained
from helpers import OTHERS, thorough_but

import nbopt

_problem = nbopt.backends.backend_problem("cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    _problem = "the simulator takes minutes for these: unset NUMBA_ENABLE_CUDASIM"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_problem is not None, reason=f"needs an NVIDIA GPU: {_problem}"),
]

#: A vector, a matrix, a batch of matrices, and a parameter without axes or elements.
SHAPES = [(37,), (40, 30), (3, 5, 7), (), (0, 4)]


@pytest.fixture
def cuda():
    with nbopt.use_backend("cuda", rng_seed=0, batch_size=8) as be:
        yield be
        be.synchronize()


# Each takes a compiler for a GPU 15 s and more, those with rows and columns a minute. These reduce over
# each parameter, and over the step.
PLAIN = [("lars", "bfloat16"), ("prodigy", "float32")]


@pytest.mark.parametrize(
    ("name", "dtype"),
    thorough_but(
        [(name, dtype) for name in OTHERS for dtype in ("float32", "bfloat16")], *PLAIN, several=True
    ),
)
@pytest.mark.rest(where=["gpu"])
def test_bits(cuda, name, dtype):
    """Every rule of exact operations has the reference's bits, rounded stochastically as well."""

    def run(be):
        return trained(be, OTHERS[name](stochastic_round=dtype == "bfloat16"), (dtype,), 3, SHAPES)

    assert_same(run(cuda), run(reference()))
