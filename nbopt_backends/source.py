"""Generated source: where it is kept, how it becomes a module, and how Numba's results are cached beside it.

The text is compiled in memory and never read back: files are there for people, tracebacks and Numba's cache. A module's name comes from its
content, so a changed kernel is another module.
"""

import atexit
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import threading
import time
import types
import warnings

import llvmlite
import numba

_lock = threading.RLock()
_warned: set[str] = set()  # the kinds of trouble that were warned of


def _warn_once(trouble, text):
    if trouble not in _warned:
        _warned.add(trouble)
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def cache_folder():
    """Return the folder of generated source, a pathlib.Path: NBOPT_CACHE_DIR, or ``nbopt`` in the user's cache folder.

    Numba's cache files hold pickles, so the folder is used only if it belongs to the user and nobody else can enter it (mode 0700).
    Otherwise it is a private temporary folder, which lasts as long as the process, and there is one warning.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return _usable_folder(os.environ.get("NBOPT_CACHE_DIR") or os.path.join(base, "nbopt"), os.getpid())


@functools.cache
def _usable_folder(path, process):
    folder = pathlib.Path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.stat(folder)
        if hasattr(os, "getuid"):
            if found.st_uid != os.getuid():
                raise PermissionError("it belongs to another user")
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise PermissionError(f"others may enter it (mode {stat.S_IMODE(found.st_mode):04o}); type: chmod 700 {folder}")
        with tempfile.TemporaryFile(dir=folder):
            pass
        return folder
    except OSError as error:
        temporary = pathlib.Path(tempfile.mkdtemp(prefix="nbopt-"))
        atexit.register(_remove, temporary, process)
        _warn_once(f"folder {folder}", f"the cache folder {folder} is not used: {error}. Kernels are kept in {temporary} until this process ends")
        return temporary


def _remove(folder, process):
    if os.getpid() == process:  # a forked child leaves its parent's folder alone
        shutil.rmtree(folder, ignore_errors=True)


# What generated modules import and compile into themselves.
_HELPERS = ("cpu_drivers.py", "cpu_primitives.py", "cuda_primitives.py", "scalar.py", "xoroshiro.py")


def _numba_cuda_version():
    try:
        return importlib.metadata.version("numba-cuda")
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _toolchain():
    """Return what a cached kernel depends on besides its own text: Numba checks only the file that a function stands in."""
    here = pathlib.Path(__file__).parent
    helpers = b"".join((here / name).read_bytes() for name in _HELPERS)
    versions = f"{sys.version_info[:3]} {numba.__version__} {llvmlite.__version__} {_numba_cuda_version()}"
    return hashlib.sha256(helpers + versions.encode()).hexdigest()


def load(text, stem):
    """Return the module that `text` makes, running it where that hasn't happened in this process.

    Parameters
    ----------
    text : str
        Python source.
    stem : str
        A word for the module's name, which is ``nbopt_<stem>_<digest of the content>``.

    Returns
    -------
    types.ModuleType
        Its file is ``module.__file__``.
    """
    name = f"nbopt_{stem}_{hashlib.sha256((_toolchain() + text).encode()).hexdigest()[:16]}"
    with _lock:
        if name in sys.modules:
            return sys.modules[name]
        path = cache_folder() / f"{name}.py"
        _write(path, text)
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


def _write(path, text):
    """Bring the file to this content, by a rename, so that nobody sees half of it. Its time stays where nothing changes."""
    try:
        if path.read_text() == text:
            return
    except (OSError, UnicodeDecodeError):
        pass
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        _warn_once(f"writing {path.parent}", f"the kernel's text can't be written to {path}: {error}")


def compiled(make, module):
    """Compile a function of a generated module, with Numba's cache on disk wherever that works.

    Numba would run whatever machine code a damaged file holds, so a digest is kept beside each of its files and checked first.

    Parameters
    ----------
    make : callable
        ``make(cache)`` compiles with or without the cache and returns the result.
    module : types.ModuleType
        As `load` returned it.
    """
    with _lock:
        if not _sound(module):
            time.sleep(0.1)  # another process may be between writing a file and its digest
        damaged = not _sound(module)
        if not damaged:
            try:
                return _sealed(make(True), module)
            except Exception:
                damaged = bool(_cache_files(module))  # else the cache can't be used, or the error is real
        _discard(module)
        try:
            result = _sealed(make(True), module)
        except Exception as error:
            result = make(False)
            _warn_once(f"writing {cache_folder()}", f"kernels can't be cached in {cache_folder()}: {error}. They are compiled again in every process")
        else:
            if damaged:
                _warn_once(f"damage {cache_folder()}", f"cached kernels in {cache_folder()} were damaged and have been built again")
        return result


def _cache_files(module):
    return sorted((pathlib.Path(module.__file__).parent / "__pycache__").glob(f"{module.__name__}.*.nb[ic]"))


def _digest_file(path):
    return path.with_name(path.name + ".sha256")


def _sound(module):
    """Return whether every cache file of a module has the content that its digest says."""
    try:
        return all(_digest_file(path).read_text() == hashlib.sha256(path.read_bytes()).hexdigest() for path in _cache_files(module))
    except (OSError, UnicodeDecodeError):
        return False


def _sealed(result, module):
    """Write the digests of a module's cache files; return `result`."""
    if not _sound(module):
        for path in _cache_files(module):
            _write(_digest_file(path), hashlib.sha256(path.read_bytes()).hexdigest())
    return result


def _discard(module):
    for path in _cache_files(module):
        for leftover in (path, _digest_file(path)):
            try:
                leftover.unlink(missing_ok=True)
            except OSError:
                pass
