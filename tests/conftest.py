"""Fixtures: every test of behaviour runs on each backend.

These are the available ones, or those that --nbopt-backend names. Compiling kernels takes nearly all of the
time, so the plain run leaves out what ``--thorough`` adds:

- ``@pytest.mark.thorough``: tests that are slow and rarely fail. With the argument ``"gpu"`` they are left
  out on a GPU only (its bits are the reference's, on which they run), with ``"compiled"`` on every backend
  that compiles, with ``"simulated"`` in the CUDA simulator, which compiles nothing and takes microseconds for
  each operation.
- ``@pytest.mark.covering``: of a matrix of parameters the plain run takes one diagonal, in which each value
  of each parameter occurs, on each backend but the reference, where it takes all.

``--rest`` runs, alone, what is too long for the plain run and fit for continuous integration:

- ``@pytest.mark.rest``: tests whose promise another test of the plain run proves. With arguments the plain
  run keeps the cases whose id is like one of them (``"*-adam-*"``); one that is like none is an error. The
  reference compiles nothing, so the plain run keeps its cases unless ``where=["reference"]`` says so.
  ``where=["gpu"]`` names the places where the mark holds, as for `thorough`.
"""

import fnmatch
import gc
import operator
import os
import signal
import tempfile

import pytest

# Kernels of this test run are kept apart from the user's own; a folder that outlives the run would hide a
# missing compilation. pytest-xdist's workers share that of the process that starts them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="nbopt-tests-")
    os.environ["NBOPT_CACHE_DIR"] = _folder.name

# There is a worker for each core, so that a second thread of a matrix product would only wait for the other
# workers.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Threads of OpenMP, which are PyTorch's and Numba's, sleep between their loops. By default they wait for the
# next one at full speed, on the core of another worker.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell starts background jobs with Ctrl-C ignored, and the tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
from hypothesis import HealthCheck, settings

import nbopt

SIMULATING = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

if "EMULATED_KERNELS" in os.environ:
    from nbopt_backends.cuda.device import Device
    from nbopt_backends.cuda.products import HostProducts

    class EmulatedProducts(HostProducts):
        """The host's BLAS in place of a GPU's library."""

        def batch(self, address, shape, dtype):
            return super().batch(address ^ 1 << 46, shape, dtype)  # see emulator/driver.cpp

    Device.products = lambda device, number, library: EmulatedProducts(device.synchronize)  # type: ignore[method-assign]

pytest_plugins = ["nbopt_backends.pytest_plugin", "pytester"]


# The fixtures that these tests take are the same for every example, or made anew in it.
for _name, _examples in {"plain": 25, "thorough": 250}.items():
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def pytest_addoption(parser):
    parser.addoption(
        "--thorough", action="store_true", help="also run what is slow and rarely fails, and whole matrices"
    )
    parser.addoption(
        "--rest", action="store_true", help="run, alone, what continuous integration adds to the plain run"
    )


def pytest_configure(config):
    config.option.nbopt_backend = config.option.nbopt_backend or ["all"]
    settings.load_profile("thorough" if config.option.thorough else "plain")


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector, name, obj):
    # All cases of a function are here together, whichever of them the command line names.
    made = yield
    if isinstance(made, list):
        for trouble in wrong_marks([item for item in made if isinstance(item, pytest.Function)]):
            raise collector.CollectError(f"{collector.nodeid}::{name}: {trouble}")
    return made


def pytest_itemcollected(item):
    # On a machine with a GPU, `pytest -m gpu` picks the tests on it, and `pytest -m "not gpu"` the others.
    if hasattr(item, "callspec") and item.callspec.params.get("nbopt_backend") == "cuda":
        item.add_marker("gpu")


def pytest_collection_modifyitems(config, items):
    if not config.option.thorough:
        chosen = {
            item for item in items if not is_thorough(item) and is_of_the_rest(item) == config.option.rest
        }
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]


def pytest_collection_finish(session):
    gc.freeze()  # what is there by now stays: the many collections of a compilation need not look at it


PLACES = {"everywhere", "compiled", "gpu", "simulated", "reference"}


def wrong_marks(cases):
    """Yield what is wrong with the marks `rest` and `thorough` of a function, given all of its cases.

    A pattern that begins with a backend's name is about that backend, which need not be there.
    """
    if not cases:
        return
    names = [case_of(item) for item in cases]
    there = {item.callspec.params.get("nbopt_backend") for item in cases if hasattr(item, "callspec")}
    elsewhere = tuple(f"{name}-" for name in {"cpu", "cuda", "reference"} - there) if there != {None} else ()
    for kind in ("rest", "thorough"):
        for mark in cases[0].iter_markers(kind):
            places = mark.kwargs.get("where", []) if kind == "rest" else mark.args
            if unknown := {*places} - PLACES:
                yield f"the mark {kind} names {sorted(unknown)}; a place is one of {sorted(PLACES)}"
    for mark in cases[0].iter_markers("rest"):
        for pattern in mark.args:
            if not pattern.startswith(elsewhere or "\0") and not fnmatch.filter(names, pattern):
                yield f"the mark rest keeps {pattern!r}, which is like no case; there are {names[:20]}"


def case_of(item):
    """Return the id of a case, which is empty where a test has no parameters."""
    return item.callspec.id if hasattr(item, "callspec") else ""


def places_of(item):
    """Where a test runs, in the words of the marks."""
    if item.get_closest_marker("gpu"):
        return {"everywhere", "gpu", "compiled"}
    if SIMULATING:
        return {"everywhere", "simulated"}
    return {"everywhere"} if is_on_the_reference(item, "nbopt_backend") else {"everywhere", "compiled"}


def is_on_the_reference(item, *names):
    """Whether one of these parameters of a test is the reference, which compiles nothing."""
    return hasattr(item, "callspec") and any(item.callspec.params.get(name) == "reference" for name in names)


def is_thorough(item):
    """Whether ``--thorough`` alone runs a test."""
    places = places_of(item)
    if any(places & set(mark.args or ["everywhere"]) for mark in item.iter_markers("thorough")):
        return True
    return (
        len(places) > 1 and item.get_closest_marker("covering") is not None and not is_on_the_diagonal(item)
    )


def is_of_the_rest(item):
    """Whether ``--rest`` runs a test, and the plain run does not."""
    places, usual = places_of(item), places_of(item)
    if is_on_the_reference(item, "nbopt_backend", "backend"):
        places, usual = {"reference"}, ()
    return any(
        places & set(mark.kwargs.get("where", usual))
        and not any(fnmatch.fnmatchcase(case_of(item), kept) for kept in mark.args)
        for mark in item.iter_markers("rest")
    )


def is_on_the_diagonal(item):
    """Whether a case is on the diagonal of its matrix.

    The diagonal takes the next value of each parameter at each step, and begins again where one ends.
    """
    axes = [mark.args[:2] for mark in item.iter_markers("parametrize")]
    places = [place(item, *axis) for axis in axes]
    lengths = [len(values) for _, values in axes]
    return any(
        all(place == row % length for place, length in zip(places, lengths)) for row in range(max(lengths))
    )


def place(item, names, values):
    """Which of the values that a parametrize mark lists a case has."""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    given = [item.callspec.params[name] for name in names]
    for number, value in enumerate(values):
        listed = getattr(value, "values", value) if len(names) > 1 or hasattr(value, "marks") else [value]
        if all(map(operator.is_, listed, given)):
            return number
    raise AssertionError(f"{item.nodeid} has none of the values of {names}")


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
