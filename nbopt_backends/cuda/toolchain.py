"""The toolchain: it makes kernels of Python functions, and says what is missing where it can't.

The one file that uses numba.cuda, so that moving to its successor is one file's work. The others take from
here what they need of it.
"""

import importlib.metadata
import importlib.util
import os

import numpy as np

from nbopt_backends.lowering import formulas as scalar
from nbopt_backends.lowering import source

try:
    if importlib.util.find_spec("numba_cuda") is None:
        raise ImportError("Numba's own, older numba.cuda is not enough")
    from numba import cuda
    from numba.cuda import cgutils, types  # noqa: F401  (primitives takes them from here)
    from numba.cuda.core.targetconfig import ConfigStack  # noqa: F401
    from numba.cuda.cudadrv import driver as cuda_driver
    from numba.cuda.cudadrv import nvvm
    from numba.cuda.extending import intrinsic  # noqa: F401
except Exception as error:  # versions of Numba and numba-cuda that don't fit lead to others than ImportError
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
    try:
        from numba import cuda as installed
    except ImportError:
        installed = None
    if cuda is None or installed is None:
        return (
            "numba-cuda, through which the GPU is used, is not installed or can't be imported "
            f"({_missing}); type: {INSTALL}"
        )
    if SIMULATING:
        return None
    if os.environ.get("NUMBA_DISABLE_CUDA", "0") not in ("", "0"):
        return "numba-cuda uses no GPU while NUMBA_DISABLE_CUDA is set: unset it before Python starts"
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
        nvvm.NVVM()  # numba-cuda takes it to be available until it is used
    except Exception as error:
        return _without_compiler(" ".join(str(error).split())[:200])
    return too_old(driver, _toolkit()) or _unfit()


def versions():
    """Return what ``python -m nbopt`` says about the toolchain, a dict of label -> text."""
    return {
        "driver": "CUDA " + ".".join(map(str, cuda_driver.driver.get_version())),
        "toolkit": "CUDA " + ".".join(map(str, _toolkit())),
        "numba-cuda": importlib.metadata.version("numba-cuda"),
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
    signature = types.void(*[types.int64] * function.__code__.co_argcount)
    kernel = cuda.jit(signature, cache=cache, fastmath=fast_math)(function)
    return kernel, not sum(kernel.stats.cache_hits.values())


def handle_of(kernel):
    """Return the driver's handle of what `compiled` returns, an int.

    The kernel is loaded on the thread's current device, if it isn't yet.
    """
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
    try:
        # As the first compilation does: numba-cuda seems usable until then.
        from numba.cuda.np import arraymath, arrayobj  # noqa: F401
    except Exception as error:
        pair = (
            f"numba-cuda {importlib.metadata.version('numba-cuda')} does not work with NumPy {np.__version__}"
        )
        return (
            f"{pair} ({' '.join(str(error).split())[:200]}); type: {INSTALL}, which installs versions "
            "that fit"
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
