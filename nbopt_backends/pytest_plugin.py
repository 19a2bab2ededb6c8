"""pytest plugin: the fixture ``nbopt_backend`` runs a test once on each backend.

``--nbopt-backend`` names the backends. pytest loads it wherever nbopt is installed; in a checkout, ``-p
nbopt_backends.pytest_plugin`` does. pytest imports its plugins at every start, before coverage is measured,
so this one imports nbopt (and with it NumPy) only for tests that take the fixture, and stands in the package
whose import costs nothing.
"""

import pytest

DEFAULT = ("cpu", "reference")  # they take NumPy arrays, and can be used everywhere
_CHOSEN = pytest.StashKey()  # to find out which can be used here takes longer than to collect a test


def pytest_addoption(parser):
    """Add the option ``--nbopt-backend``."""
    parser.getgroup("nbopt").addoption(
        "--nbopt-backend",
        action="append",
        metavar="NAMES",
        help=(
            "backends for tests that take the fixture nbopt_backend: names, separated by commas, or 'all' "
            f"for all that can be used here; may be given several times. Default: {','.join(DEFAULT)}"
        ),
    )


def pytest_generate_tests(metafunc):
    """Run a test that takes ``nbopt_backend`` once for each chosen backend."""
    if "nbopt_backend" in metafunc.fixturenames:
        stash = metafunc.config.stash
        if _CHOSEN not in stash:
            stash[_CHOSEN] = chosen_backends(metafunc.config.getoption("nbopt_backend"))
        metafunc.parametrize("nbopt_backend", stash[_CHOSEN], indirect=True)


def chosen_backends(values):
    """Return the names of the chosen backends.

    Parameters
    ----------
    values : list of str or None
        What was given with each ``--nbopt-backend``.

    Returns
    -------
    list of str
        Each name once.

    Raises
    ------
    pytest.Collector.CollectError
        If a backend is unknown or can't be used here. What was asked for is never skipped.
    """
    from nbopt.backends import available_backends, backend_problem

    names = [name.strip() for value in values or DEFAULT for name in value.split(",")]
    chosen = dict.fromkeys(
        found for name in names for found in (available_backends() if name == "all" else [name])
    )
    for name in chosen:
        problem = backend_problem(name)
        if problem:
            raise pytest.Collector.CollectError(f"--nbopt-backend {name}: {problem}")
    return list(chosen)


@pytest.fixture
def nbopt_backend(request):
    """Set a fresh nbopt backend for the test, and restore the former one afterwards.

    Its seed is 0 and its batch size 1.
    """
    import nbopt

    with nbopt.use_backend(request.param, rng_seed=0) as backend:
        yield backend
