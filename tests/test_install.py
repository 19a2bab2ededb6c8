"""Installations and settings in which something is missing.

It may be sources, the compiler, or versions that fit each other.
"""

import compileall
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import thorough_but

import nbopt
from nbopt_backends.cpu.backend import NumbaCPU
from nbopt_backends.cuda import toolchain

ROOT = pathlib.Path(nbopt.__file__).parents[1]


def python(code, root=ROOT, **environment):
    """Run `code` in another process with the nbopt of `root`.

    Return the last line that it prints, from JSON.
    """
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_NUM_THREADS": "2", **environment}
    # Nothing is imported from the working directory.
    arguments = [sys.executable, "-W", "error", "-c", f"import sys\nsys.path[:1] = []\n{code}"]
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


# --- sources ---

TRAIN = """
import json
import numpy as np
import nbopt

def train(backend):
    with nbopt.use_backend(backend, rng_seed=0) as be:
        layer = nbopt.Parameters((np.ones(5, np.float32), np.ones(5, np.float32)))
        nbopt.GradientDescentMomentum(0.1, 0.9).optimize([layer], 0)
        return layer.params[0].tolist()

found = [train(name) for name in ("reference", "cpu")]
print(json.dumps({"file": nbopt.__file__, "same": found[0] == found[1], "moved": found[0] != [1.0] * 5}))
"""


@pytest.fixture(scope="module")
def bytecode(tmp_path_factory):
    """A folder with nbopt as .pyc files only."""
    folder = tmp_path_factory.mktemp("bytecode")
    for package in ("nbopt", "nbopt_backends"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(folder, legacy=True, quiet=1)
    for path in folder.rglob("*.py"):
        path.unlink()
    return folder


@pytest.mark.parametrize(
    "form", thorough_but(["bytecode", "zip of bytecode", "zip of sources"], "bytecode", "zip of sources")
)
def test_without_sources(bytecode, tmp_path, form):
    """nbopt trains where it is installed as bytecode only, and from an archive."""
    root = bytecode
    if form != "bytecode":
        if form == "zip of sources":
            root = tmp_path / "sources"
            for package in ("nbopt", "nbopt_backends"):
                shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        root = pathlib.Path(shutil.make_archive(str(tmp_path / "nbopt"), "zip", root))
    report = python(TRAIN, root)
    assert report["file"].startswith(str(root))
    assert report["same"]
    assert report["moved"]


# --- Numba's settings ---

REFUSED = """
import json
import numpy as np
import nbopt
layer, optimizer = nbopt.Parameters((np.ones(5, np.float32), np.ones(5, np.float32))), nbopt.Adam()
try:
    optimizer.optimize([layer], 0)
except nbopt.errors.BackendError as error:
    message = str(error)
before = optimizer.t, layer.params[0].tolist()
with nbopt.use_backend("reference"):
    optimizer.optimize([layer], 0)
moved = bool((layer.params[0] < 1).all())
available = nbopt.available_backends()
print(json.dumps({"message": message, "available": available, "before": before, "moved": moved}))
"""


@pytest.mark.parametrize("setting", ["NUMBA_DISABLE_JIT", "NUMBA_SLP_VECTORIZE"])
@pytest.mark.rest("NUMBA_DISABLE_JIT")
def test_setting(setting):
    """If a setting of Numba's stops the CPU backend, it says so before a step.

    The reference can be used.
    """
    report = python(REFUSED, **{setting: "1", "NBOPT_BACKEND": "cpu"})
    assert f"{setting} is set: unset it" in report["message"]
    assert "cpu" not in report["available"]
    assert report["before"] == [0, [1.0] * 5]
    assert report["moved"]


def test_setting_later(monkeypatch):
    """A setting that comes after the backend stops the next step that compiles, before any change."""
    monkeypatch.setattr(NumbaCPU, "_functions", {})
    layer, optimizer = (
        nbopt.Parameters((np.ones(5, np.float32), np.ones(5, np.float32))),
        nbopt.GradientDescentMomentum(0.1, 0.9),
    )
    with nbopt.use_backend("cpu", rng_seed=0) as be:
        with monkeypatch.context() as context:
            context.setattr("numba.config.DISABLE_JIT", 1)
            with pytest.raises(nbopt.errors.BackendError, match="NUMBA_DISABLE_JIT is set: unset it"):
                optimizer.optimize([layer], 0)
        assert (optimizer.t, be.rng_get_state()["updates"], layer.params[0].tolist()) == (0, 0, [1.0] * 5)
        optimizer.optimize([layer], 0)
        assert layer.params[0].max() < 1


# --- the GPU's libraries ---


@pytest.mark.parametrize("extra", ["cuda12", "cuda13"])
def test_extra(extra):
    """The extras for GPUs have a toolchain for each NumPy."""
    lines = (pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{extra} = ")]
    assert f'"numba-cuda[cu{extra[-2:]}]>=0.30"' in line
    assert f"\"numba-cuda-mlir[cu{extra[-2:]}]==0.6.*; python_version >= '3.12'\"" in line


needs_gpu = pytest.mark.skipif(
    nbopt.backends.backend_problem("cuda") is not None or os.environ.get("NUMBA_ENABLE_CUDASIM") == "1",
    reason="asks why a GPU can't be used: needs one that can",
)
PROBLEM = "import json, nbopt\nprint(json.dumps(nbopt.backends.backend_problem('cuda')))"


@pytest.mark.gpu
@needs_gpu
@pytest.mark.skipif(toolchain.MLIR, reason="numba-cuda-mlir works with it")
def test_numpy_too_new():
    """numba-cuda beside a NumPy that it does not work with is not usable. The reason says what to install."""
    older = "import numpy\nnumpy.__dict__.pop('row_stack', None)\nnumpy.__version__ = '2.5.0'\n"
    found = python(older + PROBLEM, NBOPT_CUDA_COMPILER="numba-cuda")
    assert "does not work with NumPy 2.5.0" in found
    assert "numba-cuda-mlir" in found
    assert '"numpy<2.5"' in found
    assert python(PROBLEM) is None


def test_compiler():
    """NBOPT_CUDA_COMPILER chooses the toolchain. One that is unknown is named, with those that there are."""
    found = python(PROBLEM, NBOPT_CUDA_COMPILER="nvcc", NUMBA_ENABLE_CUDASIM="0")
    assert "NBOPT_CUDA_COMPILER is 'nvcc'" in found
    assert "numba-cuda or numba-cuda-mlir" in found


@pytest.mark.gpu
@needs_gpu
def test_cuda_disabled():
    """NUMBA_DISABLE_CUDA is named as the reason."""
    assert "NUMBA_DISABLE_CUDA is set: unset it" in python(PROBLEM, NUMBA_DISABLE_CUDA="1")


@pytest.mark.gpu
@needs_gpu
def test_cuda_without_sources(bytecode):
    """Kernels for a GPU are made from nbopt's source: the backend says that it is missing."""
    assert "install it with its .py files" in python(PROBLEM, bytecode)
