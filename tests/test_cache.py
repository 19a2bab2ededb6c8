"""The folder of cached kernels: where it is, and what many processes do to it at the same time."""

import ctypes
import hashlib
import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import threading
import warnings

import numba
import pytest

import nbopt
from nbopt_backends.cpu import objects
from nbopt_backends.lowering import source


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
    """A leading ~ is the home.

    A relative path is made absolute once, and stays where the working directory changes.
    """
    (place / "home").chmod(0o700)
    monkeypatch.setenv(variable, value)
    assert source.cache_folder() == place / expected
    monkeypatch.chdir(place)
    assert source.cache_folder() == place / expected
    assert not (place / "here" / "~").exists()


@needs_home
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NBOPT_CACHE_DIR", "~nobody-of-this-name/kernels"),
        ("XDG_CACHE_HOME", "~nobody-of-this-name"),
        ("HOME", None),
    ],
)
def test_no_home(place, monkeypatch, variable, value):
    """Without a home there is a private temporary folder, and nothing in the working directory.

    One warning says what to set.
    """
    if value is None:
        monkeypatch.delenv(variable)
        # As expanduser does for a user of whom the system knows nothing, as in containers.
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.warns(
        RuntimeWarning, match="no home folder is known for ~.*set NBOPT_CACHE_DIR or HOME"
    ) as caught:
        found = source.cache_folder()
    assert len(caught) == 1
    assert found.parent == pathlib.Path(tempfile.gettempdir())
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert source.cache_folder() == found
    assert list((place / "here").iterdir()) == []


# --- many processes ---

# Forks processes that compile one small kernel each into one folder. What they import is imported once,
# before.
MANY = """
import ctypes, json, os, sys, time, traceback, warnings
import filelock, numba
from nbopt_backends.cpu import objects
from nbopt_backends.lowering import source

def machine_code(round, action, at):
    made = []

    def compiler(function):
        made.append(numba.cfunc("int64(int64)")(function))
        if action == "end in the middle":
            os._exit(1)
        return made[-1]

    time.sleep(max(0, at - time.time()))
    text = f"def double(x):\\n    return 2 * x + {round}\\n"
    found = objects.function_of(text, "double", "small", compiler)
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(found.address)(20) == 40 + round
    assert found.found == (not made)
    return len(made)

def numbas_files(round, action, at):
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
        answer = globals()[sys.argv[3]](round, action, at)
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


def together(tmp_path, rounds, way):
    """Run rounds of [(number of processes, what they do), ...], for one of the two kinds of files.

    Return for each how often it compiled, or what it raised. It is None if the process was ended.
    """
    path = os.pathsep.join(
        [str(pathlib.Path(nbopt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    arguments = [sys.executable, "-W", "error", "-c", MANY, json.dumps(rounds), str(tmp_path), way]
    done = subprocess.run(
        arguments,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ways = pytest.mark.parametrize("way", ["machine_code", "numbas_files"])
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
@ways
@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.thorough)])
def test_sixteen_processes(tmp_path, rounds, way):
    """Sixteen processes that start with one empty folder compile once, and none warns.

    Later ones find what the first has compiled.
    """
    for found in together(tmp_path, [[(16, "compile"), (1, "compile")]] * rounds, way):
        assert sorted(found[:16], key=str) == [0] * 15 + [1]
        assert found[16] == 0


@needs_fork
@ways
def test_ended_in_the_middle(tmp_path, way):
    """A process that was ended while it wrote leaves nothing that is taken to be damaged.

    The next one compiles, without a warning.
    """
    ((ended, *found),) = together(tmp_path, [[(1, "end in the middle"), (4, "compile")]], way)
    assert ended is None
    assert sorted(found, key=str) == [0, 0, 0, 1]


# --- one process ---


@pytest.fixture
def small(tmp_path, monkeypatch):
    """What compiles one small kernel, always the same, in a folder of its own.

    It returns whether the kernel came from the cache.
    """
    monkeypatch.setenv("NBOPT_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(source, "_warned", set())
    module = source.load(f"# {tmp_path}\ndef half(x):\n    return x // 2\n", "small")

    def compiled():
        kernel = source.compiled(lambda cache: numba.cfunc("int64(int64)", cache=cache)(module.half), module)
        assert kernel.ctypes(14) == 7
        return bool(kernel.cache_hits)

    return compiled


def test_machine_code_that_cannot_be_linked(tmp_path, monkeypatch):
    """Machine code that calls what there is not is compiled again: LLVM would end the process."""
    monkeypatch.setenv("NBOPT_CACHE_DIR", str(tmp_path / "kernels"))
    text = f"# {tmp_path}\ndef third(x):\n    return x // 3\n"

    def compiled():
        found = objects.function_of(text, "third", "small", numba.cfunc("int64(int64)"))
        assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(found.address)(21) == 7
        return not found.found

    assert [compiled(), compiled()] == [True, False]
    (path,) = (tmp_path / "kernels").glob("*.object")
    content = (
        path.read_bytes().partition(b"\n")[2].replace(b'"needs": [', b'"needs": ["nbopt_there_is_none", ')
    )
    content = content.replace(b", ]", b"]", 1)
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [compiled(), compiled()] == [True, False]


def test_numba_cache_dir(small, tmp_path, monkeypatch):
    """A damaged kernel is found in the folder that NUMBA_CACHE_DIR names, too."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "numba"))
    assert [small(), small()] == [False, True]
    (kernel,) = (tmp_path / "numba").rglob("*.nbc")
    content = kernel.read_bytes()
    kernel.write_bytes(content[:-100] + bytes(100))
    with pytest.warns(RuntimeWarning, match="were damaged and have been built again"):
        assert not small()
    assert small()


def test_waits_for_nobody_for_ever(small, tmp_path, monkeypatch):
    """If another process keeps a module's lock, the kernel is compiled without the cache, and it warns."""
    monkeypatch.setattr(source, "_PATIENCE", 0.1)
    (text,) = (tmp_path / "kernels").glob("*.py")
    held, done = threading.Event(), threading.Event()

    def hold():
        with source.alone(text):
            held.set()
            done.wait(60)

    other = threading.Thread(target=hold)  # a lock belongs to who opened the file, so a thread does
    other.start()
    try:
        assert held.wait(60)
        with pytest.warns(RuntimeWarning, match="it is compiled without the cache") as caught:
            assert not small()
            assert not small()
        assert len(caught) == 1
    finally:
        done.set()
        other.join()
    assert [small(), small()] == [False, True]


def test_setting_is_part_of_the_name(monkeypatch):
    """What was compiled under other settings of Numba's is another module, so it is never loaded."""
    names = {source._toolchain.__wrapped__()}
    for setting, value in {"OPT": 1, "SLP_VECTORIZE": 1, "BOUNDSCHECK": 1}.items():
        with monkeypatch.context() as context:
            context.setattr(numba.config, setting, value)
            names.add(source._toolchain.__wrapped__())
    assert len(names) == 4
    assert source._toolchain.__wrapped__() in names
