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
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request):
    """A fresh backend, set for the duration of the test: seed 0, batch size 1."""
    with nbopt.use_backend(request.param, rng_seed=0) as be:
        yield be


@pytest.fixture(autouse=True)
def _no_backend_left_behind():
    yield
    nbopt.NervanaObject.be = None


@pytest.fixture
def rng():
    """NumPy's generator with a fixed seed."""
    return np.random.default_rng(2026)
