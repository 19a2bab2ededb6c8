"""Generated source and its cache on disk.

There are golden files, `nbopt.explain`, damaged and unusable cache folders, and a second process.

``NBOPT_UPDATE_GOLDEN=1 pytest tests/test_source.py`` writes the golden files anew: look at what git says has
changed."""

import importlib
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import warnings

import numpy as np
import pytest
from helpers import NEON, OPTIMIZERS, layers_of
from numba.core.dispatcher import Dispatcher

import nbopt
from nbopt_backends.cpu import objects, primitives
from nbopt_backends.cpu.backend import NumbaCPU
from nbopt_backends.cuda.dialects import DIALECT
from nbopt_backends.cuda.kernels import update_text
from nbopt_backends.lowering import source

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def cpu():
    with nbopt.use_backend("cpu", rng_seed=0) as be:
        yield be


@pytest.fixture
def kernel_texts(monkeypatch):
    """The texts of the kernels that are made from now on, even if the process has them already."""
    texts = []
    function_of = objects.function_of

    def noted(text, name, stem, compiler):
        if stem == "kernel":
            texts.append(text)
        return function_of(text, name, stem, compiler)

    monkeypatch.setattr(objects, "function_of", noted)
    monkeypatch.setattr(NumbaCPU, "_kernels", {})
    return texts


# --- golden files ---


def assert_golden(name, text):
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("NBOPT_UPDATE_GOLDEN") == "1":
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.exists(), (
        f"{path} is missing: run NBOPT_UPDATE_GOLDEN=1 pytest tests/test_source.py, and read what it wrote"
    )
    assert text == path.read_text()


def stepped(optimizer, rng, kernel_texts):
    """Run one step in float32 and return the texts of its kernels, one after the other."""
    optimizer.optimize(layers_of([(4, 3)], rng), 0)
    return "\n\n".join(kernel_texts)


CLIPPED = {"gradient_clip_norm": 1.0, "gradient_clip_value": 1.0, "param_clip_value": 1.0}
# Of those that are not neon's, one with as many numbers as there are, and one that chooses element by
# element.
GOLDEN_OPTIMIZERS = {
    **NEON,
    "rmsprop_clipped": lambda: nbopt.RMSProp(**CLIPPED),
    "nadam": OPTIMIZERS["nadam"],
    "rprop": OPTIMIZERS["rprop"],
    # The documentation shows this one.
    "own_optimizer": lambda: importlib.import_module("own_optimizer").QuasiHyperbolicMomentum(),
}


@pytest.mark.parametrize("name", GOLDEN_OPTIMIZERS)
def test_the_kernel_of_each_optimizer_is_the_golden_one(cpu, rng, kernel_texts, monkeypatch, name):
    monkeypatch.syspath_prepend(GOLDEN.parent.parent / "examples")
    assert_golden(name, stepped(GOLDEN_OPTIMIZERS[name](), rng, kernel_texts))


def test_the_kernel_of_float64_parameters_with_float32_states_is_the_golden_one(cpu, rng, kernel_texts):
    nbopt.RMSProp(state_dtype="float32").optimize(layers_of([(4, 3)], rng, np.float64), 0)
    (text,) = kernel_texts
    assert_golden("rmsprop_mixed", text)


def test_the_kernel_of_a_strided_expression_is_the_golden_one(cpu, kernel_texts):
    out, a, b = cpu.zeros((4, 6)), cpu.ones((6, 4)), cpu.ones((1, 6))
    transposed = cpu.wrap(a.storage.T)
    out[:, ::2] = cpu.where(
        transposed[:, ::2] > 0.5, transposed[:, ::2] * 2 + cpu.sqrt(b[:, ::2]), cpu.shift(out[:, ::2], 0.25)
    )
    (text,) = kernel_texts
    assert_golden("strided_expression", text)


CUDA_KERNELS = {
    "cuda_rmsprop": (-1, ("float32",) * 3, {}),
    "cuda_rmsprop_norm": (0, ("float32",) * 3, {}),
    "cuda_rmsprop_stochastic": (-1, ("bfloat16", "bfloat16", "float32"), {"kept": (7, 0, 0)}),
    "cuda_rmsprop_strided": (-1, ("float32",) * 3, {"strided": True}),
}


@pytest.mark.parametrize("name", CUDA_KERNELS)
def test_the_text_of_cuda_kernels_is_the_golden_one(rng, name):
    number, dtypes, options = CUDA_KERNELS[name]
    optimizer = nbopt.RMSProp()
    optimizer.skip_nonfinite = name in ("cuda_rmsprop_norm", "cuda_rmsprop_strided")
    with nbopt.use_backend("reference") as be:
        stage = optimizer.updates(be, layers_of([(4, 3)], rng), 0)[0].program.passes()[number]
    assert_golden(name, update_text(stage, DIALECT, dtypes, "float32", **options))


def test_there_is_no_golden_file_without_its_test():
    expected = {*GOLDEN_OPTIMIZERS, *CUDA_KERNELS, "rmsprop_mixed", "strided_expression"}
    assert {path.stem for path in GOLDEN.glob("*.txt")} == expected


def test_the_text_does_not_depend_on_values_or_sizes(cpu, rng, kernel_texts):
    first = stepped(nbopt.RMSProp(), rng, kernel_texts)
    NumbaCPU._kernels.clear()
    cpu.bsz = 32
    other = nbopt.RMSProp(learning_rate=0.0, decay_rate=1.0, epsilon=1.0)
    other.optimize(layers_of([(4, 3), (100,), (7, 1, 2)], rng), 5)
    assert kernel_texts == [first, first]


def test_shared_parts_make_a_short_text(cpu, kernel_texts):
    out, value = cpu.zeros((4,)), cpu.ones((4,))
    for _ in range(60):
        value = value * value
    out[:] = value
    (text,) = kernel_texts
    assert 60 < len(text.splitlines()) < 200
    assert len(text) < 10_000


# --- explain ---


def test_explain_holds_the_rule_as_mathematics_and_the_file_that_holds_the_text(cpu, rng):
    text = nbopt.explain(nbopt.RMSProp(), layers_of([(4, 3), (5,)], rng))
    guard, stages, kernel = text.split("\n\n", 2)
    assert guard.startswith(
        "# RMSProp is traced again if one of these changes: states = ('mean_square',), clips = False"
    )
    assert "self.param_clip_value = None" in guard
    assert stages.split("\n") == [
        "# The stages of a step over param float32, grad float32, mean_square float32:",
        "#   pass 1: loads param, grad, mean_square; stores param, mean_square, 20 bytes an element",
    ]
    first, rest = kernel.split("\n", 1)
    path = pathlib.Path(first.removeprefix("# "))
    assert path.parent == source.cache_folder()
    assert path.read_text() == rest
    assert "# mean_square = " in rest
    assert "# param = param - " in rest
    assert "sqrt(mean_square + " in rest
    assert rest == (GOLDEN / "rmsprop.txt").read_text()


def test_explain_gives_each_kernel_once(cpu, rng):
    layers = [*layers_of([(4, 3), (5,)], rng), *layers_of([(5,)], rng, np.float64)]
    multi = nbopt.MultiOptimizer(
        {"default": nbopt.RMSProp(), layers[0].name: nbopt.RMSProp(), layers[1].name: nbopt.Adam()}
    )
    text = nbopt.explain(multi, layers)
    assert text.count("def update(") == 3  # RMSProp in float32 (of two optimizers) and in float64, Adam
    assert text.count("# mean_square = ") == 3


def test_explain_and_compile_change_nothing(backend, rng):
    layers, optimizer = layers_of([(4, 3)], rng), nbopt.Adam(gradient_clip_norm=1.0)
    before, launches = layers[0].params[0].copy(), backend.launches
    assert len(nbopt.explain(optimizer, layers)) > 100
    nbopt.compile(optimizer, layers)
    assert np.array_equal(layers[0].params[0], before)
    assert (layers[0].states, optimizer.t, backend.launches, backend.rng_get_state()["updates"]) == (
        [[]],
        0,
        launches,
        0,
    )


def test_after_compile_the_first_step_compiles_nothing(cpu, rng, kernel_texts):
    layers, optimizer = layers_of([(4, 3)], rng), nbopt.Adam(gradient_clip_norm=1.0)
    nbopt.compile(optimizer, layers)
    before = cpu.compilations, set(NumbaCPU._kernels), set(NumbaCPU._functions)
    assert len(kernel_texts) == 4  # the norm, the factor, the rest, and what keeps the norm
    optimizer.optimize(layers, 0)
    assert (cpu.compilations, set(NumbaCPU._kernels), set(NumbaCPU._functions)) == before


# --- other processes ---

# Trains on "cpu" and on the reference. Prints, as JSON, whether the bits were the same and what it took.
TRAIN = """
import json, sys, warnings
import numpy as np
from numba.core import event
import nbopt, nbopt_backends.cpu.backend
from nbopt_backends.lowering import source

def train(backend, big):
    rng = np.random.default_rng(1)
    with nbopt.use_backend(backend) as be:
        jobs = [(nbopt.RMSProp(), 100)]
        if big:
            jobs += [(nbopt.RMSProp(gradient_clip_norm=0.1), 40_000), (nbopt.Adam(), 40_000)]
        result = b""
        for optimizer, size in jobs:
            layer = nbopt.Parameters((rng.random(size, np.float32), rng.random(size, np.float32)))
            for epoch in range(3):
                optimizer.optimize([layer], epoch)
            result += layer.params[0].tobytes() + layer.states[0][0].get().tobytes()
        return result, be

big = sys.argv[1] == "big"
with warnings.catch_warnings(record=True) as caught, event.install_recorder("numba:compile") as recorder:
    warnings.simplefilter("always")
    result, be = train("cpu", big)
print(json.dumps({
    "same": result == train("reference", big)[0],
    "compilations": be.compilations,
    "numba": len(recorder.buffer),
    "warnings": [str(w.message) for w in caught],
    "folder": str(source.cache_folder()),
    "explained": nbopt.explain(nbopt.Adam(), [nbopt.Parameters((np.ones(3), np.ones(3)))]) if big else "",
}))
"""


def python(code, *arguments, **environment):
    """Run `code` in another process, with this nbopt. Return the last line that it prints, from JSON."""
    path = os.pathsep.join(
        [str(pathlib.Path(nbopt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_NUM_THREADS": "2", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def private(folder):
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="module")
def first_process(tmp_path_factory):
    """What a first process finds, and the folder that it leaves behind."""
    folder = private(tmp_path_factory.mktemp("cache") / "kernels")
    return folder, python(TRAIN, "big", NBOPT_CACHE_DIR=str(folder), PYTHONHASHSEED="1")


@pytest.fixture
def warm(first_process, tmp_path):
    """A copy of a cache folder that a process has filled."""
    return shutil.copytree(first_process[0], tmp_path / "kernels")


def files(folder, pattern):
    found = sorted(folder.rglob(pattern))
    assert found
    return found


def test_the_first_process_keeps_text_and_kernels_in_the_folder_that_nbopt_cache_dir_names(first_process):
    folder, report = first_process
    assert report["same"]
    assert report["warnings"] == []
    assert report["folder"] == str(folder)
    assert report["compilations"] >= 2  # RMSProp, with and without the clip, and Adam
    assert report["numba"] > report["compilations"]
    for pattern in ("nbopt_kernel_*.py", "nbopt_kernel_*.object", "nbopt_drivers_*.object"):
        assert files(folder, pattern)
    assert all(
        path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o022 for path in folder.rglob("*")
    )


def test_a_second_process_compiles_nothing_and_has_the_same_text(first_process):
    folder, first = first_process
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    second = python(TRAIN, "big", NBOPT_CACHE_DIR=str(folder), PYTHONHASHSEED="2")
    assert second == {**first, "compilations": 0, "numba": 0}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == before


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def zero_the_middle(path):
    """What a crash of the machine can leave: the right length, and blocks that were never written."""
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])


@pytest.mark.parametrize("damage", [truncate, zero_the_middle], ids=lambda damage: damage.__name__)
@pytest.mark.rest("truncate")
def test_damaged_cache_files_are_built_again_with_one_warning(warm, damage):
    for path in files(warm, "*.object"):
        damage(path)
    report = python(TRAIN, "small", NBOPT_CACHE_DIR=str(warm))
    assert report["same"]
    assert report["compilations"] == 1
    assert len(report["warnings"]) == 1
    assert str(warm) in report["warnings"][0]


@pytest.mark.rest
def test_a_cache_that_was_repaired_is_good_for_the_next_process(warm):
    for path in files(warm, "*.object"):
        path.write_bytes(b"this is no cache file")
    damaged, repaired = (python(TRAIN, "small", NBOPT_CACHE_DIR=str(warm)) for _ in range(2))
    assert (damaged["same"], damaged["compilations"], len(damaged["warnings"])) == (True, 1, 1)
    assert (repaired["same"], repaired["compilations"], repaired["numba"], repaired["warnings"]) == (
        True,
        0,
        0,
        [],
    )


def test_text_on_disk_is_never_run_and_is_put_right(warm, tmp_path):
    marker = tmp_path / "was run"
    original = {path: path.read_text() for path in files(warm, "*.py")}
    for path, text in original.items():
        path.write_text(f"open({str(marker)!r}, 'w')\n{text}")
    report = python(TRAIN, "small", NBOPT_CACHE_DIR=str(warm))
    assert report["same"]
    assert len(report["warnings"]) <= 1
    assert not marker.exists()
    # The modules that this process needed: its kernel, and what a chunk does.
    assert sum(path.read_text() == text for path, text in original.items()) == 2


# --- folders that are not used ---

needs_users = pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no users and modes")


def check_fallback(folder, reason):
    """Assert that a private temporary folder is used, not `folder`, and one warning says why."""
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        found = source.cache_folder()
    assert len(caught) == 1
    assert str(folder) in str(caught[0].message)
    assert found != folder
    assert found.parent == pathlib.Path(tempfile.gettempdir())
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert source.cache_folder() == found


@needs_users
@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o702, 0o720, 0o777, 0o1777], ids=oct)
def test_a_folder_that_others_can_enter_or_write_is_not_used(tmp_path, monkeypatch, mode):
    folder = private(tmp_path / "kernels")
    folder.chmod(mode)
    monkeypatch.setenv("NBOPT_CACHE_DIR", str(folder))
    check_fallback(folder, "chmod 700")
    assert list(folder.iterdir()) == []


@needs_users
def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    folder = private(tmp_path / "kernels")
    monkeypatch.setenv("NBOPT_CACHE_DIR", str(folder))
    owner = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: owner)
    check_fallback(folder, "belongs to another user")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_path_where_no_folder_can_be_is_not_used(tmp_path, monkeypatch, where):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NBOPT_CACHE_DIR", str(tmp_path / where))
    check_fallback(tmp_path / where, "is not used")


@needs_users
def test_a_folder_that_does_not_exist_is_made_private(tmp_path, monkeypatch):
    monkeypatch.setenv("NBOPT_CACHE_DIR", str(tmp_path / "a" / "b"))
    assert source.cache_folder() == tmp_path / "a" / "b"
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


@pytest.mark.parametrize("unset", [None, ""], ids=["unset", "empty"])
def test_without_nbopt_cache_dir_the_users_cache_folder_is_used(tmp_path, monkeypatch, unset):
    if unset is None:
        monkeypatch.delenv("NBOPT_CACHE_DIR")
    else:
        monkeypatch.setenv("NBOPT_CACHE_DIR", unset)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert source.cache_folder() == tmp_path / "xdg" / "nbopt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert source.cache_folder() == tmp_path / "home" / ".cache" / "nbopt"


@needs_users
@pytest.mark.rest
def test_training_goes_on_without_the_folder_and_leaves_nothing_behind(warm):
    warm.chmod(0o755)
    before = {path: path.stat().st_mtime_ns for path in warm.rglob("*.*")}
    report = python(TRAIN, "small", NBOPT_CACHE_DIR=str(warm))
    assert report["same"]
    assert report["compilations"] == 1  # what is in the folder was not trusted
    assert len(report["warnings"]) == 1
    assert "chmod 700" in report["warnings"][0]
    assert not pathlib.Path(report["folder"]).exists()
    assert {path: path.stat().st_mtime_ns for path in warm.rglob("*.*")} == before


# Root may write anywhere, so it becomes nobody, who has no home. Python may lie in root's own folders: what
# compiling imports is imported first.
BECOME_NOBODY = """
import os
import nbopt_backends.cpu.backend, filelock, numba
if os.getuid() == 0:
    numba.cfunc("f8(f8)")(lambda x: x)
    numba.njit("f8(f8)")(lambda x: x)
    nbopt_backends.lowering.source._toolchain()
    os.setgid(65534)
    os.setuid(65534)
    os.environ["HOME"] = "/nonexistent"
"""


@pytest.fixture
def nobodys_folder():
    """A private folder of the user that BECOME_NOBODY makes, at a place which that user can reach."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="nbopt-tests-"))
    place.chmod(0o711)
    folder = private(place / "kernels")
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(place)


@needs_users
@pytest.mark.rest
def test_training_goes_on_with_a_read_only_folder(nobodys_folder):
    nobodys_folder.chmod(0o500)
    report = python(BECOME_NOBODY + TRAIN, "small", NBOPT_CACHE_DIR=str(nobodys_folder))
    assert report["same"]
    assert len(report["warnings"]) == 1
    assert str(nobodys_folder) in report["warnings"][0]
    assert not pathlib.Path(report["folder"]).exists()
    assert list(nobodys_folder.iterdir()) == []


@needs_users
@pytest.mark.rest
def test_training_goes_on_where_the_folder_becomes_read_only_later(nobodys_folder):
    """As when a disk is full: the folder was found good, and then nothing can be written."""
    later = "from nbopt_backends.lowering import source\nsource.cache_folder().chmod(0o500)\n"
    report = python(BECOME_NOBODY + later + TRAIN, "small", NBOPT_CACHE_DIR=str(nobodys_folder))
    assert report["same"]
    assert len(report["warnings"]) == 1
    assert str(nobodys_folder) in report["warnings"][0]


# --- without Numba ---


def test_nbopt_imports_and_the_reference_trains_without_numba_being_imported():
    code = """
    import json, sys
    import numpy as np
    import nbopt
    loaded = [name for name in ("numba", "llvmlite") if name in sys.modules]
    be = nbopt.set_backend("reference")
    layer = nbopt.Parameters((np.ones(10, np.float32), np.ones(10, np.float32)))
    for make in (nbopt.RMSProp, nbopt.Adam, nbopt.Adadelta):
        layer.states[0].clear()
        make().optimize([layer], 0)
    out = be.zeros(3)
    out[:] = be.sum(be.ones(3)) * 2.0
    loaded += [name for name in ("numba", "llvmlite") if name in sys.modules]
    trained = bool((layer.params[0] < 1).all())
    print(json.dumps({"loaded": loaded, "trained": trained, "out": out.get().tolist()}))
    """
    assert python(textwrap.dedent(code)) == {"loaded": [], "trained": True, "out": [6.0] * 3}


def test_without_numba_the_reference_is_there_and_the_cpu_backend_says_what_to_install():
    code = """
    import json, sys
    sys.modules["numba"] = None  # importing it raises ImportError
    import nbopt
    available = nbopt.available_backends()
    try:
        nbopt.get_backend()
    except nbopt.errors.BackendError as error:
        message = str(error)
    print(json.dumps({"available": available, "message": message, "set": nbopt.NervanaObject.be is not None}))
    """
    report = python(textwrap.dedent(code), NBOPT_BACKEND="")
    assert report["available"] == ["reference"]
    assert 'pip install "numba' in report["message"]
    assert not report["set"]


# Numba tells functions of one name apart by a number that counts in each process. Here it begins alike before
# each kernel, as it may by chance.
FOLDS = """
import itertools, json, sys
import numpy as np
from numba.core.bytecode import FunctionIdentity
import nbopt

def stepped(op, backend):
    class Rule(nbopt.Optimizer):
        learning_rate = 0.5

        def rule(self, step, param, grad):
            param[:] = param - step.lr * grad * getattr(self.be, op)(grad * grad)

    layer = nbopt.Parameters(tuple(np.random.default_rng(0).standard_normal((2, 3000), np.float32)))
    with nbopt.use_backend(backend):
        Rule().optimize([layer], 0)
    return layer.params[0].tobytes()

wrong = []
for op in sys.argv[1:]:
    FunctionIdentity._unique_ids = itertools.count(100_000)
    if stepped(op, "cpu") != stepped(op, "reference"):
        wrong.append(op)
print(json.dumps(wrong))
"""


@pytest.mark.rest
def test_kernels_of_other_processes_bring_their_own_functions(tmp_path):
    """A kernel on disk sums with its own fold, though this process has another one of the same number."""
    assert python(FOLDS, "sum", NBOPT_CACHE_DIR=str(tmp_path)) == []
    assert python(FOLDS, "max", "sum", "min", NBOPT_CACHE_DIR=str(tmp_path)) == []


def test_parts_have_names_of_their_own():
    """Functions that kernels share are told apart by their names, also those that others make."""
    found = [value for value in vars(primitives).values() if isinstance(value, Dispatcher)]
    names = [f"{one.py_func.__module__}.{one.py_func.__qualname__}" for one in found]
    assert len({*names}) == len({*map(id, found)})
    with pytest.raises(TypeError, match="needs a name of its own"):
        primitives.part(lambda: 0)
