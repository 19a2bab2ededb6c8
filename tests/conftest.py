"""Fixtures: every test of behaviour runs on each backend that is available, or on those that --nbopt-backend names."""

import os
import signal
import tempfile

import numpy as np
import pytest

# Kernels of this test run are kept apart from the user's own; a folder that outlives the run would hide a missing compilation.
# pytest-xdist's workers share that of the process that starts them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="nbopt-tests-")
    os.environ["NBOPT_CACHE_DIR"] = _folder.name

# A shell starts background jobs with Ctrl-C ignored, and the tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import nbopt

pytest_plugins = ["nbopt_backends.pytest_plugin", "pytester"]


def pytest_configure(config):
    config.option.nbopt_backend = config.option.nbopt_backend or ["all"]


def pytest_itemcollected(item):
    # On a machine with a GPU, `pytest -m gpu` picks the tests on it, and `pytest -m "not gpu"` the others.
    if hasattr(item, "callspec") and item.callspec.params.get("nbopt_backend") == "cuda":
        item.add_marker("gpu")


@pytest.fixture
def backend(nbopt_backend):
    """The plugin's backend; in place of CUDA's one that takes the tests' NumPy arrays."""
    if nbopt_backend.name != "cuda":
        yield nbopt_backend
        return
    from mirrored import MirroredCUDA

    with nbopt.use_backend(MirroredCUDA(rng_seed=0)) as be:
        yield be


@pytest.fixture
def host_backend(nbopt_backend):
    """The plugin's backend, if its tensors are the host's arrays."""
    if nbopt_backend.name == "cuda":
        pytest.skip("looks at the host's arrays; device_checks.py has the device's")
    return nbopt_backend


@pytest.fixture(autouse=True)
def _no_backend_left_behind():
    yield
    nbopt.NervanaObject.be = None


@pytest.fixture
def rng():
    """NumPy's generator with a fixed seed."""
    return np.random.default_rng(2026)
