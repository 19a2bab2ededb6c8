"""Fixtures: every test of behaviour runs on each backend that is available, or on the one that --backend picks."""

import os
import tempfile

import numpy as np
import pytest

# Kernels of this test run are kept apart from the user's own; a folder that outlives the run would hide a missing compilation.
_folder = tempfile.TemporaryDirectory(prefix="nbopt-tests-")
os.environ["NBOPT_CACHE_DIR"] = _folder.name

import nbopt  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--backend", default=None, help="run the tests that take a backend on this one only")


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--backend")
        names = [chosen] if chosen else nbopt.available_backends()
        # On a machine with a GPU, `pytest -m gpu` picks the tests on it, and `pytest -m "not gpu"` the others.
        params = [pytest.param(name, marks=pytest.mark.gpu) if name == "cuda" else name for name in names]
        metafunc.parametrize("backend", params, indirect=True)


@pytest.fixture
def backend(request):
    """A fresh backend, set for the duration of the test: seed 0, batch size 1."""
    chosen = request.param
    if chosen == "cuda":
        from mirrored import MirroredCUDA  # takes the tests' NumPy arrays

        chosen = MirroredCUDA(rng_seed=0)
    with nbopt.use_backend(chosen, **({} if isinstance(chosen, nbopt.Backend) else {"rng_seed": 0})) as be:
        yield be


@pytest.fixture(autouse=True)
def _no_backend_left_behind():
    yield
    nbopt.NervanaObject.be = None


@pytest.fixture
def rng():
    """NumPy's generator with a fixed seed."""
    return np.random.default_rng(2026)
