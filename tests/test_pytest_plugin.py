"""The pytest plugin: which backends a user's tests run on, and what is left behind.

pytester runs the tests of a made-up project, in processes of their own: Numba can't be imported twice in one.
"""

import importlib.metadata
import os
import pathlib
import sys
import textwrap

import pytest

import nbopt

ROOT = pathlib.Path(__file__).resolve().parent.parent
ONE_TEST = """
    import nbopt

    def test_name(nbopt_backend):
        assert nbopt.get_backend() is nbopt_backend
        print("ran on", nbopt_backend.name)
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A function that writes a project's tests and runs them, with the plugin and no other."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))

    def run(text, *arguments, conftest=""):
        pytester.makeconftest(textwrap.dedent(conftest))
        pytester.makepyfile(test_project=textwrap.dedent(text))
        return pytester.runpytest_subprocess("-p", "nbopt_backends.pytest_plugin", "-v", *arguments)

    return run


def names_run(result):
    return [
        line.partition("[")[2].partition("]")[0]
        for line in result.outlines
        if "test_name[" in line and "PASSED" in line
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["cpu", "reference"]),
        (["--nbopt-backend", "reference, cpu"], ["reference", "cpu"]),
        (["--nbopt-backend=reference", "--nbopt-backend=cpu,reference"], ["reference", "cpu"]),
        (["--nbopt-backend", "all"], nbopt.available_backends()),
    ],
    ids=["default", "commas", "repeated", "all"],
)
@pytest.mark.rest("default")
def test_a_test_runs_once_on_each_chosen_backend(project, arguments, expected):
    assert names_run(project(ONE_TEST, *arguments)) == expected


@pytest.mark.rest
def test_each_test_has_a_fresh_backend_with_seed_0_and_batch_size_1(project):
    project("""
        seen = []

        def test_one(nbopt_backend):
            assert nbopt_backend.rng_get_state() == {"seed": 0, "updates": 0}
            assert nbopt_backend.bsz == 1
            nbopt_backend.bsz = 8
            nbopt_backend.zeros(3)[:] = 1
            seen.append(nbopt_backend)
            assert len(set(map(id, seen))) == len(seen)

        test_two = test_one
        """).assert_outcomes(passed=4)


@pytest.mark.rest
def test_the_former_backend_is_back_after_the_test_even_if_it_fails(project):
    project("""
        import nbopt

        former = nbopt.set_backend("reference", batch_size=7)

        def test_fails(nbopt_backend):
            nbopt.set_backend("reference")
            raise RuntimeError

        def test_without():
            assert nbopt.get_backend() is former
        """).assert_outcomes(passed=1, failed=2)


@pytest.mark.parametrize("name", ["nonsense", "broken"])
@pytest.mark.rest("broken")
def test_a_backend_that_cant_be_used_is_an_error_that_says_why_and_not_a_skip(project, name):
    broken = "import nbopt\nnbopt.backends._BUILT_IN['broken'] = 'no_such_module:Broken'"
    result = project(ONE_TEST, "--nbopt-backend", name, conftest=broken)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [f"*--nbopt-backend {name}: *{'Known: cpu' if name == 'nonsense' else 'pip install'}*"]
    )


def test_a_project_with_a_backend_fixture_and_option_of_its_own_is_not_disturbed(project):
    project(
        """
        def test_own(backend):
            assert backend == "its own"
        """,
        "--backend=its own",
        conftest="""
            import pytest

            def pytest_addoption(parser):
                parser.addoption("--backend")

            @pytest.fixture
            def backend(request):
                return request.config.getoption("--backend")
        """,
    ).assert_outcomes(passed=1)


def test_the_example_in_the_documentation_passes_on_both_backends(project):
    page = (ROOT / "docs" / "testing.md").read_text()
    project(page.partition("```python\n")[2].partition("```")[0]).assert_outcomes(passed=2)


def test_nothing_is_imported_when_pytest_starts_and_the_entry_point_is_enough(pytester, monkeypatch):
    """A distribution has the line of pyproject.toml, as pip would install it.

    It runs in a process of its own, where numpy is not imported yet.
    """
    (line,) = [
        line
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if line.startswith('"nbopt_backends.pytest_plugin" = ')
    ]
    info = pytester.mkdir("site") / "stand_in-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-in\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pytest11]\n" + line.replace('"', "") + "\n")
    installed = [
        point
        for point in importlib.metadata.entry_points(group="pytest11")
        if point.name == "nbopt_backends.pytest_plugin"
    ]
    path = sys.path if installed else [*sys.path, str(info.parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    pytester.makeconftest("""
        import sys

        def pytest_sessionstart(session):
            assert session.config.pluginmanager.has_plugin("nbopt_backends.pytest_plugin")
            assert not {"numba", "numpy", "nbopt"} & set(sys.modules)
        """)
    pytester.makepyfile(test_project=textwrap.dedent(ONE_TEST))
    pytester.runpytest_subprocess("--nbopt-backend", "reference").assert_outcomes(passed=1)
