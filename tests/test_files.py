"""Checkpoints on paths that are no regular files, and names beyond ASCII in an ASCII locale."""

import os
import pathlib
import socket
import stat
import subprocess
import sys

import numpy as np
import pytest

import nbopt

# --- what is at the path ---


@pytest.fixture
def run():
    """An optimizer and its layers, on the reference: nothing is compiled."""
    with nbopt.use_backend("reference", rng_seed=0):
        layers = [nbopt.Parameters((np.ones(3, np.float32), np.ones(3, np.float32)), name="layer")]
        optimizer = nbopt.GradientDescentMomentum(0.1, 0.9)
        optimizer.optimize(layers, 0)
        yield optimizer, layers


@pytest.fixture
def special(request, tmp_path):
    """A path at which something of the kind that the parameter names is."""
    path, opened = tmp_path / "special", []
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        opened.append(socket.socket(socket.AF_UNIX))
        opened[0].bind(str(path))
    else:
        handles = os.openpty()  # a terminal is a device that no test can do harm to
        opened.extend(os.fdopen(handle, "rb", 0) for handle in handles)
        path = pathlib.Path(os.ttyname(handles[1]))
    yield path
    for each in opened:
        each.close()


each_kind = pytest.mark.parametrize("special", ["pipe", "socket", "device"], indirect=True)
needs_posix = pytest.mark.skipif(os.name != "posix", reason="this system has no named pipes")


@needs_posix
@each_kind
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "link"])
def test_special_file(run, special, tmp_path, linked):
    """Neither save nor load touches what is no regular file, whether the path is its own or a link's."""
    path, before = special, os.lstat(special)
    if linked:
        path = tmp_path / "link"
        path.symlink_to(special)
    for work in (nbopt.save, nbopt.load):
        with pytest.raises(
            OSError, match=r"a regular file, and this is a (named pipe|socket|device)"
        ) as caught:
            work(path, *run)
        assert caught.value.filename == str(path)
    after = os.lstat(special)
    assert (stat.S_IFMT(after.st_mode), after.st_ino) == (stat.S_IFMT(before.st_mode), before.st_ino)
    assert path.is_symlink() == linked
    assert {each.name for each in tmp_path.iterdir()} <= {"special", "link"}


@needs_posix
def test_symlink(run, tmp_path):
    """A save through a link replaces the file that it leads to, or makes it, and the link stays."""
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    for _ in ("dangling", "to a file"):
        nbopt.save(link, *run)
        assert link.is_symlink()
        assert stat.S_ISREG(os.lstat(target).st_mode)
        nbopt.load(link, *run)


@needs_posix
def test_symlink_loop(run, tmp_path):
    """A link that leads to itself is an error, and stays."""
    link = tmp_path / "link"
    link.symlink_to(link)
    for work in (nbopt.save, nbopt.load):
        with pytest.raises(OSError, match=r"symbolic links|Symlink loop"):
            work(link, *run)
    assert link.is_symlink()


@needs_posix
def test_folder(run, tmp_path):
    """A folder is refused, by its own path and by a link's."""
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    for path in (folder, link):
        for work in (nbopt.save, nbopt.load):
            with pytest.raises(IsADirectoryError, match="this is a folder"):
                work(path, *run)
    assert list(folder.iterdir()) == []
    assert link.is_symlink()


# --- names beyond ASCII ---

NAMES = """
import os, sys, warnings
import numpy as np
import nbopt
from nbopt_backends.lowering import source

class Heavy(nbopt.Optimizer):
    state_names = ("β",)

    def __init__(self, learning_rate=0.1, name=None):
        super().__init__(name=name)
        self.learning_rate = learning_rate

    def rule(self, step, param, grad, β):
        β[:] = 0.9 * β + grad
        param[:] = param - step.lr * β

class Grün(Heavy):
    pass

warnings.simplefilter("error")
layer = nbopt.Parameters((np.ones(5, np.float32), np.ones(5, np.float32)), name="Schicht größer 0")
with nbopt.use_backend("cpu", rng_seed=0) as be:
    optimizer = Grün()
    optimizer.optimize([layer], 0)
    path = os.path.join(os.environb[b"NBOPT_CACHE_DIR"], "lauf-é.safetensors".encode())
    nbopt.save(path, optimizer, [layer])
    expected = layer.params[0].tobytes()
    layer.params[0][:] = 0
    nbopt.load(path, optimizer, [layer])
    assert layer.params[0].tobytes() == expected
    text = nbopt.explain(optimizer, [layer])
    assert "# β = " in text
    kernel = text[text.index("from nbopt_backends"):]
    assert open(source.load(kernel, "kernel").__file__, encoding="utf-8").read() == kernel
    print(be.compilations, sys.getfilesystemencoding())
"""


def test_ascii_locale(tmp_path):
    """Names may have any letters in a locale whose encoding is ASCII, also in a second process.

    They are those of states, layers, classes and folders.
    """
    folder = tmp_path / "käche"
    folder.mkdir(mode=0o700)
    program = tmp_path / "program.py"
    program.write_text(NAMES, encoding="utf-8")
    path = os.pathsep.join(
        [str(pathlib.Path(nbopt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": path}
    environment = {**os.environ, **ascii_only, "NBOPT_CACHE_DIR": str(folder)}
    for compilations in (1, 0):
        done = subprocess.run(
            [sys.executable, program], env=environment, capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
        assert done.stdout.decode().split() == [
            str(compilations),
            "ascii" if sys.platform == "linux" else "utf-8",
        ]
    (kernel,) = folder.glob("nbopt_kernel_*.py")
    assert "β" in kernel.read_text(encoding="utf-8")
