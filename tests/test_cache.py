"""The folder of cached kernels: where it is, and what many processes do to it at the same time."""

import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import warnings

import pytest

import nbopt
from nbopt_backends import source


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory and a home, with no variable that names a cache folder."""
    for name in ("NBOPT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(source, "_warned", set())
    for each in (source._absolute, source._usable_folder):
        each.cache_clear()
    yield tmp_path
    for each in (source._absolute, source._usable_folder):
        each.cache_clear()


needs_home = pytest.mark.skipif(os.name != "posix", reason="this system finds homes in another way")


@needs_home
@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("NBOPT_CACHE_DIR", "~/kernels", "home/kernels"),
        ("NBOPT_CACHE_DIR", "~", "home"),
        ("XDG_CACHE_HOME", "~/cache", "home/cache/nbopt"),
        ("NBOPT_CACHE_DIR", "kernels", "here/kernels"),
        ("NBOPT_CACHE_DIR", "./~kernels", "here/~kernels"),
        ("XDG_CACHE_HOME", "cache", "here/cache/nbopt"),
    ],
)
def test_expanded(place, monkeypatch, variable, value, expected):
    """A leading ~ is the home. A relative path is made absolute once, and stays where the working directory changes."""
    (place / "home").chmod(0o700)
    monkeypatch.setenv(variable, value)
    assert source.cache_folder() == place / expected
    monkeypatch.chdir(place)
    assert source.cache_folder() == place / expected
    assert not (place / "here" / "~").exists()


@needs_home
@pytest.mark.parametrize(
    ("variable", "value"), [("NBOPT_CACHE_DIR", "~nobody-of-this-name/kernels"), ("XDG_CACHE_HOME", "~nobody-of-this-name"), ("HOME", None)]
)
def test_no_home(place, monkeypatch, variable, value):
    """Without a home there is a private temporary folder, with one warning that says what to set, and nothing in the working directory."""
    if value is None:
        monkeypatch.delenv(variable)
        # As expanduser does for a user of whom the system knows nothing, as in containers.
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.warns(RuntimeWarning, match="no home folder is known for ~.*set NBOPT_CACHE_DIR or HOME") as caught:
        found = source.cache_folder()
    assert len(caught) == 1
    assert found.parent == pathlib.Path(tempfile.gettempdir())
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert source.cache_folder() == found
    assert list((place / "here").iterdir()) == []


# --- many processes ---

# Forks processes that compile one small kernel each into one folder. What they import is imported once, before.
MANY = """
import json, os, sys, time, traceback, warnings
import filelock, numba
from nbopt_backends import source

def work(round, action, at):
    module = source.load(f"def double(x):\\n    return 2 * x + {round}\\n", "small")
    made = []

    def make(cache):
        made.append(numba.cfunc("int64(int64)", cache=cache)(module.double))
        if action == "end in the middle":
            os._exit(1)
        return made[-1]

    time.sleep(max(0, at - time.time()))
    kernel = source.compiled(make, module)
    assert kernel.ctypes(20) == 40 + round
    return len(made) - kernel.cache_hits

def fork(action, round, at=0):
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        warnings.simplefilter("error")
        answer = work(round, action, at)
    except BaseException:
        answer = traceback.format_exc()
    os.write(writer, json.dumps(answer).encode())
    os._exit(0)

def answer(child, reader):
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text or "null")

numba.cfunc("int64(int64)")(lambda x: 2 * x)  # the first compilation imports more
source._toolchain()
answers = []
for round, actions in enumerate(json.loads(sys.argv[1])):
    os.environ["NBOPT_CACHE_DIR"] = os.path.join(sys.argv[2], str(round))
    answers.append([])
    for number, action in actions:
        at = time.time() + 0.1
        answers[-1] += [answer(*child) for child in [fork(action, round, at) for _ in range(number)]]
print(json.dumps(answers))
"""


def together(tmp_path, rounds):
    """Run rounds of [(number of processes, what they do), ...]; return how often each compiled, or what it raised, or None where it ended."""
    path = os.pathsep.join([str(pathlib.Path(nbopt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    arguments = [sys.executable, "-W", "error", "-c", MANY, json.dumps(rounds), str(tmp_path)]
    done = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.thorough)])
def test_sixteen_processes(tmp_path, rounds):
    """Sixteen processes that start with one empty folder compile once, and none warns; later ones find what the first has compiled."""
    for found in together(tmp_path, [[(16, "compile"), (1, "compile")]] * rounds):
        assert sorted(found[:16], key=str) == [0] * 15 + [1]
        assert found[16] == 0


@needs_fork
def test_ended_in_the_middle(tmp_path):
    """A process that was ended while it wrote leaves nothing that is taken to be damaged: the next one compiles, without a warning."""
    ((ended, *found),) = together(tmp_path, [[(1, "end in the middle"), (4, "compile")]])
    assert ended is None
    assert sorted(found, key=str) == [0, 0, 0, 1]
