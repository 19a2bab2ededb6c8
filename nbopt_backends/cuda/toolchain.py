"""The toolchain: it makes kernels of Python functions, and says what is missing where it can't.

There are two. numba-cuda is the older one. It has a simulator, and does not work with NumPy 2.5.
numba-cuda-mlir is its successor. This is the one file that imports them, and the others take from here what
they need. `primitives` and `primitives_mlir` are written for one each.
"""

import importlib.metadata
import importlib.util
import os

import numpy as np

from nbopt_backends.lowering import formulas as scalar
from nbopt_backends.lowering import source

_NAMES = {"numba-cuda": "numba_cuda", "numba-cuda-mlir": "numba_cuda_mlir"}


def _chosen():
    """Return the name of the toolchain: what NBOPT_CUDA_COMPILER says, or one that fits what is installed."""
    wanted = os.environ.get("NBOPT_CUDA_COMPILER")
    if wanted:
        return wanted
    there = [name for name, module in _NAMES.items() if importlib.util.find_spec(module)]
    new = np.lib.NumpyVersion(np.__version__) >= "2.5.0"
    preferred = "numba-cuda-mlir" if new and os.environ.get("NUMBA_ENABLE_CUDASIM") != "1" else "numba-cuda"
    return preferred if preferred in there or not there else there[0]


NAME = _chosen()
MLIR = NAME == "numba-cuda-mlir"

try:
    if NAME not in _NAMES or importlib.util.find_spec(_NAMES[NAME]) is None:
        raise ImportError(f"there is no {NAME}; Numba's own, older numba.cuda is not enough")
    if MLIR:
        from cuda.core import ObjectCode
        from numba_cuda_mlir import cuda, tools, types
        from numba_cuda_mlir._mlir import ir  # noqa: F401  (primitives_mlir takes them from here)
        from numba_cuda_mlir._mlir.dialects import arith, func, llvm  # noqa: F401
        from numba_cuda_mlir._mlir.dialects import math as math_dialect  # noqa: F401
        from numba_cuda_mlir._mlir.extras import types as T  # noqa: F401, N812
        from numba_cuda_mlir.extending import intrinsic
        from numba_cuda_mlir.lowering_utilities import get_or_insert_function  # noqa: F401
        from numba_cuda_mlir.numba_cuda.cudadrv import driver as cuda_driver
    else:
        from numba import cuda
        from numba.cuda import cgutils, types  # noqa: F401  (primitives takes them from here)
        from numba.cuda.core.targetconfig import ConfigStack  # noqa: F401
        from numba.cuda.cudadrv import driver as cuda_driver
        from numba.cuda.cudadrv import nvvm
        from numba.cuda.extending import intrinsic  # noqa: F401
except Exception as error:  # versions that don't fit lead to others than ImportError
    cuda = cuda_driver = driver = None
    _missing = f"{type(error).__name__}: {error}"
else:
    _missing = "numba.cuda can't be imported"
    driver = getattr(cuda_driver, "binding", None)  # cuda.bindings.driver; the simulator has none

SIMULATING = cuda is not None and hasattr(cuda, "simulator") and driver is None

INSTALL = 'pip install "nbopt[cuda13]" (for a driver of CUDA 13) or "nbopt[cuda12]"'
# What each generation of the toolkit asks of the driver:
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
_OLDEST_DRIVERS = {12: "525", 13: "580"}


def problem():
    """Return why no kernel can be compiled and run on this machine and what to do, or None if they can."""
    if NAME not in _NAMES:
        return f"NBOPT_CUDA_COMPILER is {NAME!r}, and can be {' or '.join(_NAMES)}"
    if cuda is None or not _importable():
        return (
            f"{NAME}, through which the GPU is used, is not installed or can't be imported "
            f"({_missing}); type: {INSTALL}"
        )
    if SIMULATING:
        return None
    if os.environ.get("NUMBA_DISABLE_CUDA", "0") not in ("", "0"):
        return f"{NAME} uses no GPU while NUMBA_DISABLE_CUDA is set: unset it before Python starts"
    if source.text_of(scalar) is scalar:
        return (
            "kernels for a GPU are made from nbopt's source, and it is installed without (.pyc files "
            "only): install it with its .py files"
        )
    nothing = (
        "no NVIDIA GPU with a working driver was found{}. With one, numba-cuda is needed too: " + INSTALL
    )
    if not cuda.is_available():
        return (
            _without_compiler("it is not installed")
            if cuda_driver.driver.is_available
            else nothing.format("")
        )
    try:
        driver = cuda_driver.driver.get_version()
        count = len(cuda.gpus)
    except Exception as error:  # whatever the driver, or its absence, leads to
        return nothing.format(f" ({' '.join(str(error).split())})")
    if count == 0:
        return "the driver finds no NVIDIA GPU: is it hidden by CUDA_VISIBLE_DEVICES?"
    try:
        if not MLIR:
            nvvm.NVVM()  # numba-cuda takes it to be available until it is used
    except Exception as error:
        return _without_compiler(" ".join(str(error).split())[:200])
    return too_old(driver, _toolkit()) or _unfit()


def _importable():
    """Return whether what this module has imported can still be imported."""
    try:
        importlib.import_module("numba_cuda_mlir.cuda" if MLIR else "numba.cuda")
    except ImportError:
        return False
    return True


def versions():
    """Return what ``python -m nbopt`` says about the toolchain, a dict of label -> text."""
    return {
        "driver": "CUDA " + ".".join(map(str, cuda_driver.driver.get_version())),
        "toolkit": "CUDA " + ".".join(map(str, _toolkit())),
        NAME: importlib.metadata.version(NAME),
    }


def compiled(function, cache, fast_math):
    """Return a kernel made of a function, all of whose arguments are int64, and whether it was compiled now.

    Parameters
    ----------
    function : callable
        Of a module of `source.load`.
    cache : bool
        Whether what was compiled is kept on disk beside the module, and found there.
    fast_math : bool
    """
    if MLIR:
        return _compiled_by_mlir(function, cache, fast_math)
    signature = types.void(*[types.int64] * function.__code__.co_argcount)
    kernel = cuda.jit(signature, cache=cache, fastmath=fast_math)(function)
    return kernel, not sum(kernel.stats.cache_hits.values())


class _Code:
    """A kernel's machine code, by numba-cuda-mlir, which is loaded when its handle is asked for."""

    def __init__(self, code, name):
        self._object, self._name = ObjectCode.from_cubin(code), name

    @property
    def handle(self):
        """The driver's handle."""
        return int(self._object.get_kernel(self._name).handle)


def _compiled_by_mlir(function, cache, fast_math):
    """Do what `compiled` does. The machine code is kept beside the module."""
    count = function.__code__.co_argcount
    capability = tuple(cuda.get_current_device().compute_capability)
    name, place = _mangled(function.__name__, count), None
    if cache:
        folder = source.numbas_folder(function.__code__.co_filename)
        place = folder / f"{function.__module__}.{name}.{'_'.join(map(str, capability))}.nbc"
        if place.exists():
            return _Code(place.read_bytes(), name), False
    code = cuda.compile_cubin(
        function, types.void(*[types.int64] * count), cc=capability, fastmath=fast_math, abi="numba"
    )
    if place is not None:
        place.parent.mkdir(exist_ok=True)
        source.write(place, code)
    return _Code(code, name), True


def _mangled(name, count):
    """Return how a kernel of so many int64 arguments is called in its machine code."""
    return f"_Z{len(name)}{name}{'x' * count}"


def ptx(text, stem, name, count, compute_capability, fast_math=False):
    """Return a kernel's PTX, as ptxas gets it. Needs no GPU.

    The arguments are those of `ltoir`.
    """
    if not MLIR:
        return linked(ltoir(text, stem, name, count, compute_capability, fast_math), compute_capability)
    before, tools._cached_cc = tools._cached_cc, compute_capability  # else it asks a GPU
    try:
        return cuda.compile_ptx(
            getattr(source.load(text, stem), name),
            types.void(*[types.int64] * count),
            cc=compute_capability,
            fastmath=fast_math,
        )[0]
    finally:
        tools._cached_cc = before


def handle_of(kernel):
    """Return the driver's handle of what `compiled` returns, an int.

    The kernel is loaded on the thread's current device, if it isn't yet.
    """
    if MLIR:
        return kernel.handle
    (made,) = kernel.overloads.values()
    return int(made.library.get_cufunc().kernel.handle)


def ltoir(text, stem, name, count, compute_capability, fast_math=False):
    """Return a kernel as NVVM leaves it, and as `linked` and a launch take it. Needs no GPU.

    Parameters
    ----------
    text : str
        A module's, from `cuda_kernels`.
    stem : str
        See `source.load`.
    name : str
        Which function of it.
    count : int
        How many int64 arguments it takes.
    compute_capability : tuple of int
        Such as ``(9, 0)``.
    """
    signature = types.void(*[types.int64] * count)
    function = getattr(source.load(text, stem), name)
    return cuda.compile(
        function,
        signature,
        cc=compute_capability,
        device=False,
        abi="numba",
        output="ltoir",
        fastmath=fast_math,
    )[0]


def linked(code, compute_capability):
    """Return what link-time optimization makes of `ltoir`'s result: the PTX that ptxas gets before a launch.

    Needs no GPU.
    """
    linker = cuda_driver._Linker(cc=compute_capability, lto=True)
    linker.add_ltoir(code)
    return linker.get_linked_ptx().decode()


def too_old(driver, toolkit):
    """Return what to do if a driver is too old for a toolkit, or None if it isn't.

    The driver is given by the (major, minor) of the CUDA that it supports.
    """
    if toolkit is None or driver[0] >= toolkit[0]:
        return None
    wanted = _OLDEST_DRIVERS.get(toolkit[0], "newer")
    mend = (
        f'type: pip uninstall cuda-toolkit && pip install "nbopt[cuda{driver[0]}]"'
        if driver[0] in _OLDEST_DRIVERS
        else "both 12 and 13 are newer"
    )
    return (
        f"the driver supports CUDA {'.'.join(map(str, driver))} and the installed toolkit is "
        f"{'.'.join(map(str, toolkit))}: update the driver (to {wanted} or later), or install the toolkit "
        f"that fits it ({mend})"
    )


def _unfit():
    """Return what to do where numba-cuda does not work with the installed NumPy, or None where it does."""
    if MLIR:
        return None
    try:
        # As the first compilation does: numba-cuda seems usable until then.
        from numba.cuda.np import arraymath, arrayobj  # noqa: F401
    except Exception as error:
        pair = (
            f"numba-cuda {importlib.metadata.version('numba-cuda')} does not work with NumPy {np.__version__}"
        )
        return (
            f"{pair} ({' '.join(str(error).split())[:200]}). numba-cuda-mlir does; type: {INSTALL}, which "
            'installs it on Python 3.12 and later, or: pip install "numpy<2.5"'
        )
    return None


def _without_compiler(why):
    return (
        f"the driver works, and the CUDA toolkit's compiler (NVVM) can't be used ({why}); type: {INSTALL}, "
        "or set CUDA_HOME to the folder of a toolkit that is installed, such as /usr/local/cuda"
    )


def _toolkit():
    try:
        return tuple(cuda.runtime.get_version())
    except Exception:  # no toolkit where numba-cuda looks for it: compiling will say so
        return None
