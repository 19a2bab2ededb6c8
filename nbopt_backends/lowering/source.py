"""Generated source: where it is kept, how it becomes a module, and how Numba's results are cached beside it.

The text is compiled in memory and never read back: files are there for people, tracebacks and Numba's cache.
They are in UTF-8, whatever the locale. A module's name comes from its content, so a changed kernel is another
module.
"""

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import threading
import types
import warnings

import llvmlite
import numba
from numba.core.caching import UserProvidedCacheLocator

from nbopt_backends.lowering.notice import while_compiling

_lock = threading.RLock()
_PATIENCE = 120  # seconds; to compile one module takes a few
_warned: set[str] = set()  # the kinds of trouble that were warned of


def _warn_once(trouble, text):
    if trouble not in _warned:
        _warned.add(trouble)
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def cache_folder():
    """Return the folder of generated source, a pathlib.Path.

    It is NBOPT_CACHE_DIR, or ``nbopt`` in the user's cache folder. Numba's cache files hold pickles, so the
    folder is used only if it belongs to the user and nobody else can enter it (mode 0700). Otherwise, and for
    users without a home, it is a private temporary folder, which lasts as long as the process, and there is
    one warning. ``~`` is expanded. A relative path counts from the working directory of its first use.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    wanted = os.environ.get("NBOPT_CACHE_DIR") or os.path.join(base, "nbopt")
    return _usable_folder(os.path.expanduser(wanted), os.getpid())


@functools.cache
def _usable_folder(path, process):
    try:
        if path.startswith("~"):
            raise FileNotFoundError(
                f"no home folder is known for {path.split(os.sep)[0]}; set NBOPT_CACHE_DIR or HOME to a "
                "folder"
            )
        folder = _absolute(path)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.stat(folder)
        if hasattr(os, "getuid"):
            if found.st_uid != os.getuid():
                raise PermissionError("it belongs to another user")
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise PermissionError(
                    f"others may enter it (mode {stat.S_IMODE(found.st_mode):04o}); type: chmod 700 {folder}"
                )
        with tempfile.TemporaryFile(dir=folder):
            pass
        return folder
    except OSError as error:
        temporary = pathlib.Path(tempfile.mkdtemp(prefix="nbopt-"))
        atexit.register(_remove, temporary, process)
        _warn_once(
            f"folder {path}",
            f"the cache folder {path} is not used: {error}. Kernels are kept in {temporary} until this "
            "process ends",
        )
        return temporary


@functools.cache
def _absolute(path):
    return pathlib.Path(os.path.abspath(path))


def _remove(folder, process):
    if os.getpid() == process:  # a forked child leaves its parent's folder alone
        shutil.rmtree(folder, ignore_errors=True)


# What generated modules import and compile into themselves.
_HELPERS = (
    "cpu.chunks",
    "cpu.drivers",
    "cpu.ends",
    "cpu.folds",
    "cpu.instructions",
    "cpu.objects",
    "cpu.pipeline",
    "cpu.primitives",
    "cpu.random_bits",
    "cpu.walks",
    "cuda.helpers",
    "cuda.memory",
    "cuda.memory_mlir",
    "cuda.primitives",
    "cuda.primitives_mlir",
    "lowering.formulas",
    "meaning.tree",
    "meaning.xoroshiro",
)


# Numba's settings by which the same text becomes other machine code. (The processor is in Numba's own key.)
_SETTINGS = (
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "DISABLE_INTEL_SVML",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
)


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _toolchain():
    """Return what a cached kernel depends on besides its own text.

    Numba checks only the file that a function stands in.
    """
    specs = [importlib.util.find_spec(f"nbopt_backends.{name}") for name in _HELPERS]
    # Each module's file as it is installed: source or bytecode, in a folder or in an archive.
    helpers = b"".join(spec.loader.get_data(spec.origin) for spec in specs)
    versions = f"{sys.version_info[:3]} {numba.__version__} {llvmlite.__version__} "
    versions += f"{_version('numba-cuda')} {_version('numba-cuda-mlir')}"
    settings = [str(getattr(numba.config, name, None)) for name in _SETTINGS]
    return hashlib.sha256(helpers + f"{versions} {settings}".encode()).hexdigest()


def text_of(module):
    """Return the source of an installed module, or the module itself if it is installed without.

    `load` and `compiled` take both.
    """
    try:
        return inspect.getsource(module)
    except OSError:
        return module


def load(text, stem):
    """Return the module that `text` makes, running it where that hasn't happened in this process.

    Parameters
    ----------
    text : str or types.ModuleType
        Python source. A module is what `text_of` returns where there is no source; it is returned as it is.
    stem : str
        A word for the module's name, which is ``nbopt_<stem>_<digest of the content>``.

    Returns
    -------
    types.ModuleType
        Its file is ``module.__file__``.
    """
    if isinstance(text, types.ModuleType):
        return text
    name = _name(text, stem)
    with _lock:
        if name in sys.modules:
            return sys.modules[name]
        path = place(text, stem)
        module = types.ModuleType(name)
        module.__file__ = str(path)
        # Numba looks the module up by its name when it loads a cached kernel.
        sys.modules[name] = module
        try:
            exec(compile(text, str(path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def _name(text, stem):
    return f"nbopt_{stem}_{hashlib.sha256((_toolchain() + text).encode()).hexdigest()[:16]}"


def place(text, stem):
    """Return the path of a module's text, after writing it where it isn't there, or None if it has no text.

    Parameters
    ----------
    text, stem
        As for `load`.
    """
    if isinstance(text, types.ModuleType):
        return None
    path = cache_folder() / f"{_name(text, stem)}.py"
    write(path, text.encode())
    return path


@contextlib.contextmanager
def alone(path):
    """Keep other processes away from a module's files while the block runs.

    It yields whether they are kept away. They are not where one of them stays for too long. Where there are
    no locks (some network folders) nobody can be kept away.
    """
    import filelock  # when it is needed: importing it takes longer than all the locks of a process

    lock = filelock.FileLock(path.with_suffix(".lock"), timeout=_PATIENCE, mode=0o600)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except (OSError, NotImplementedError):
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


def write(path, content):
    """Bring the file to this content, by a rename, so that nobody sees half of it.

    Its time stays where nothing changes. It returns whether the file has the content now; if not, it has
    warned.
    """
    try:
        if path.read_bytes() == content:
            return True
    except OSError:
        pass
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        _warn_once(f"writing {path.parent}", f"a kernel can't be written to {path}: {error}")
        return False
    return True


def warn_of_waiting(file):
    """Warn, once, that a kernel is compiled without the cache, since another process keeps its lock."""
    trouble = f"another process has kept {file} locked for {_PATIENCE} s; it is compiled without the cache"
    _warn_once(f"waiting {cache_folder()}", trouble)


def warn_of_writing(error):
    """Warn, once, that kernels can't be cached."""
    trouble = f"kernels can't be cached in {cache_folder()}: {error}"
    _warn_once(f"writing {cache_folder()}", f"{trouble}. They are compiled again in every process")


def warn_of_damage():
    """Warn, once, that cached kernels were damaged."""
    trouble = f"cached kernels in {cache_folder()} were damaged and have been built again"
    _warn_once(f"damage {cache_folder()}", trouble)


def compiled(make, module):
    """Compile a function of a generated module, with Numba's cache on disk wherever that works.

    Numba would run whatever machine code a damaged file holds, so a digest is kept beside each of its files
    and checked first. One process at a time looks at a module's files and writes them, so those that start
    together compile once.

    Parameters
    ----------
    make : callable
        ``make(cache)`` compiles with or without the cache and returns the result.
    module : types.ModuleType
        As `load` returned it. One that is installed without its source has no place in the cache.
    """
    with while_compiling(cache_folder):
        return _compiled(make, module)


def _compiled(make, module):
    if module.__spec__ is not None:
        return make(False)
    with _lock, alone(pathlib.Path(module.__file__)) as undisturbed:
        if undisturbed:
            return _cached(make, module)
        warn_of_waiting(module.__file__)
        return make(False)


def _cached(make, module):
    damaged = not _sound(module)
    if not damaged:
        try:
            return _sealed(make(True), module)
        except Exception:
            damaged = bool(_cache_files(module))  # else the cache can't be used, or the error is real
    _discard(_cache_files(module))
    try:
        result = _sealed(make(True), module)
    except Exception as error:
        result = make(False)
        warn_of_writing(error)
    else:
        if damaged:
            warn_of_damage()
    return result


def _cache_files(module):
    """Return the paths of Numba's files for a module.

    They lie beside it, or in a folder of Numba's own if NUMBA_CACHE_DIR names one.
    """
    folder = numbas_folder(module.__file__)
    return sorted(folder.glob(f"{module.__name__}.*.nb[ic]"))


def numbas_folder(file):
    """Return the folder of Numba's cache files for a module, given its file's name."""
    if numba.config.CACHE_DIR:
        return pathlib.Path(numba.config.CACHE_DIR) / UserProvidedCacheLocator.get_suitable_cache_subpath(
            file
        )
    return pathlib.Path(file).parent / "__pycache__"


def _digest_file(path):
    return path.with_name(path.name + ".sha256")


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest().encode()


def _sound(module):
    """Return whether every cache file of a module has the content that its digest says.

    Files without a digest go first: whoever wrote them was ended before it was through.
    """
    _discard([path for path in _cache_files(module) if not _digest_file(path).exists()])
    try:
        return all(_digest_file(path).read_bytes() == _digest(path) for path in _cache_files(module))
    except OSError:
        return False


def _sealed(result, module):
    """Write the digests of a module's cache files; return `result`."""
    for path in _cache_files(module):
        write(_digest_file(path), _digest(path))
    return result


def _discard(paths):
    for path in paths:
        for leftover in (path, _digest_file(path)):
            try:
                leftover.unlink(missing_ok=True)
            except OSError:
                pass
