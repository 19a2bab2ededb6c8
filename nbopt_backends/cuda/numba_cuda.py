"""NumbaCUDA: fused kernels on an NVIDIA GPU.

The one file that uses numba.cuda, so that moving to its successor is one file's work.
"""

import importlib.metadata
import importlib.util
import os
import warnings
import weakref
from types import FunctionType

import numpy as np

from nbopt.errors import ArgumentError, BackendError, DeviceMemoryError, LayoutError
from nbopt_backends.cuda.backend import DeviceBackend
from nbopt_backends.cuda.dialects import DIALECT, FAST, SIMULATED
from nbopt_backends.cuda.products import HostProducts, products_of
from nbopt_backends.lowering import formulas as scalar
from nbopt_backends.lowering import source

try:
    if importlib.util.find_spec("numba_cuda") is None:
        raise ImportError("Numba's own, older numba.cuda is not enough")
    from numba import cuda
    from numba.cuda import cgutils, types  # noqa: F401  (cuda_primitives takes them from here)
    from numba.cuda.core.targetconfig import ConfigStack  # noqa: F401
    from numba.cuda.cudadrv import driver as cuda_driver
    from numba.cuda.cudadrv import nvvm
    from numba.cuda.extending import intrinsic  # noqa: F401
except Exception as error:  # versions of Numba and numba-cuda that don't fit lead to others than ImportError
    cuda, _missing = None, f"{type(error).__name__}: {error}"
else:
    _missing = "numba.cuda can't be imported"

SIMULATING = cuda is not None and hasattr(cuda, "simulator") and not hasattr(cuda_driver, "binding")

_INSTALL = 'pip install "nbopt[cuda13]" (for a driver of CUDA 13) or "nbopt[cuda12]"'
# What each generation of the toolkit asks of the driver:
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
_OLDEST_DRIVERS = {12: "525", 13: "580"}

_started = False  # whether this process has used CUDA
_forked = False  # whether it is the child of one that had
_kept: list = []  # what such a child must not give back


def _after_fork():
    global _forked
    _forked = _forked or _started


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_FORKED = (
    "this process was forked from one that had started CUDA, which does not survive a fork: start workers by "
    'multiprocessing.get_context("spawn"), or use the GPU in the children only'
)


class _Entered:
    """A block in which a context is the thread's current one.

    It stays so after the block where the thread had none, as with CUDA's runtime: memory can be given back in
    a context only, and Python decides when that is. Where another library works on another GPU in this
    thread, that is the current one again.
    """

    __slots__ = ("_context", "_handle", "_pushed")

    def __init__(self, context, handle):
        self._context, self._handle = context, handle

    def __enter__(self):
        current = int(cuda_driver.driver.cuCtxGetCurrent())
        if current != self._handle:
            self._context.push()
        self._pushed = current not in (0, self._handle)

    def __exit__(self, *exception):
        if self._pushed:
            self._context.pop()


class _Memory:
    """Keeps device memory until it goes itself, on whatever thread that is."""

    __slots__ = ("__weakref__",)

    def __init__(self, device, pointer):
        # The list keeps the pointer out of whatever garbage this belongs to: Numba would free it there,
        # without a context.
        weakref.finalize(self, device.release, [pointer])


class Device:
    """One GPU: memory, copies, events and launches, by numba-cuda.

    Streams are handles (int, 0 is the default stream).

    Attributes
    ----------
    key : tuple
        What compiled kernels depend on.
    threads : int
        Threads of a block.
    most_blocks : int
        Blocks of the largest launch. As many as there is work for: the GPU starts one when another ends,
        which balances it.
    resident_blocks : int
        Blocks that the GPU runs at the same time, at most.
    """

    threads, most_blocks = 256, 2**31 - 1

    def __init__(self, number):
        global _started
        _started = True
        before = cuda_driver.driver.cuCtxGetCurrent()
        self._context = cuda.gpus[number].get_primary_context()
        handle = self._context.handle
        self._handle = int(getattr(handle, "value", handle))  # a ctypes pointer in older versions
        # cuda-core drops what another library had set.
        if int(before) != int(cuda_driver.driver.cuCtxGetCurrent()):
            cuda_driver.driver.cuCtxSetCurrent(before)
        with self.entered():
            device = cuda.get_current_device()
            self.name = device.name if isinstance(device.name, str) else device.name.decode()
            self.compute_capability = tuple(device.compute_capability)
            self.resident_blocks = device.MULTIPROCESSOR_COUNT * (2048 // self.threads)
        self.key = (number, self.compute_capability)
        self._streams = {}
        self._configured = {}

    def entered(self):
        """Return a context manager in which this is the thread's current device: see `_Entered`."""
        if _forked:
            raise BackendError(_FORKED)
        return _Entered(self._context, self._handle)

    def blocks(self, pieces, threads=None):
        """Return how many blocks to launch for so many pieces of work.

        A piece takes a block, or so many threads.
        """
        wanted = pieces if threads is None else -(-pieces * threads // self.threads)
        return max(1, min(wanted, self.most_blocks))

    def _stream(self, handle):
        found = self._streams.get(handle)
        if found is None:
            found = self._streams[handle] = cuda.external_stream(handle) if handle else cuda.default_stream()
        return found

    def allocate(self, size):
        """Return (address, owner) of new memory. The memory is given back when the owner goes."""
        try:
            owner = cuda.current_context().memalloc(size)
        except cuda_driver.CudaAPIError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            free, whole = cuda.current_context().get_memory_info()
            raise DeviceMemoryError(
                f"the GPU is out of memory: {size:,} bytes were asked for, {free:,} of {whole:,} are free. "
                "Nothing was changed. Free tensors, or have other libraries give back what they keep "
                "(torch.cuda.empty_cache(), cupy.get_default_memory_pool().free_all_blocks())"
            ) from None
        return int(owner.device_pointer_value), _Memory(self, owner)

    def release(self, things):
        """Empty a list of what holds memory or events, in this GPU's context.

        A forked child keeps them: they are its parent's.
        """
        if _forked:
            _kept.append(list(things))
            return
        with self.entered():
            things.clear()

    def pinned(self, size):
        """Return a new uint8 array in pinned host memory."""
        return cuda.pinned_array(size, np.uint8)

    def copy_in(self, address, values, stream):
        """Queue a copy of a contiguous host array to the device.

        It is asynchronous if the array is pinned.
        """
        cuda_driver.driver.cuMemcpyHtoDAsync(address, values.ctypes.data, values.nbytes, stream)

    def copy_out(self, values, address, stream):
        """Copy from the device into a contiguous host array, and wait for it."""
        cuda_driver.driver.cuMemcpyDtoHAsync(values.ctypes.data, address, values.nbytes, stream)
        self.synchronize(stream)

    def zero(self, address, size, stream):
        """Queue the zeroing of memory."""
        cuda_driver.driver.cuMemsetD8Async(address, 0, size, stream)

    def event(self):
        """Return a new event, without timing."""
        return cuda.event(timing=False)

    def record(self, event, stream):
        """Record an event: it is done when what is queued on the stream now is done."""
        event.record(self._stream(stream))

    def wait(self, event, stream):
        """Let what is queued on a stream from now on wait for an event."""
        event.wait(self._stream(stream))

    def wait_on_host(self, event):
        """Wait until an event is done."""
        event.synchronize()

    def synchronize(self, stream):
        """Wait until everything queued on a stream is done."""
        self._stream(stream).synchronize()

    def device_of(self, address):
        """Return the number of the GPU that an address belongs to; LayoutError if it belongs to none."""
        attribute = cuda_driver.binding.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        with self.entered():
            try:
                return int(
                    cuda_driver.driver.cuPointerGetAttribute(
                        attribute, cuda_driver.binding.CUdeviceptr(address)
                    )
                )
            except cuda_driver.CudaAPIError:
                raise LayoutError(
                    "the array says that it is on a GPU, and the driver does not know its address"
                ) from None

    def products(self, number, library):
        """Return what multiplies matrices in this memory, see `nbopt_backends.cuda.products`."""
        return products_of(number, library)

    def launch(self, kernel, blocks, stream, arguments):
        """Queue a kernel."""
        key = (kernel, blocks, self.threads, stream)
        configured = self._configured.get(key)
        if configured is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a small step does not fill the GPU
                configured = kernel[blocks, self.threads, self._stream(stream)]
            if len(self._configured) > 4096:
                self._configured.clear()
            self._configured[key] = configured
        configured(*arguments)


class SimulatedDevice:
    """The same over host memory, for Numba's CUDA simulator.

    Few threads: each is a Python thread, and no result depends on their number.
    """

    name, compute_capability, key = "simulator", (0, 0), ("simulator",)
    threads, most_blocks, resident_blocks = 4, 2, 2

    def __init__(self, number):
        if number != 0:
            raise BackendError(f"there is no GPU {number}: the simulator has number 0 only")

    def entered(self):
        """Return a context manager that does nothing."""
        return cuda.gpus[0]

    blocks = Device.blocks

    def allocate(self, size):
        """Return (address, owner) of new memory, with values that show where they are used."""
        owner = np.full(size + 15, 0xA5, np.uint8)
        return -(-owner.ctypes.data // 16) * 16, owner

    def release(self, things):
        """Empty a list."""
        things.clear()

    def pinned(self, size):
        """Return a new uint8 array."""
        return np.empty(size, np.uint8)

    def copy_in(self, address, values, stream):
        """Copy a contiguous array to an address."""
        _bytes_at(address, values.nbytes)[:] = values.reshape(-1).view(np.uint8)

    def copy_out(self, values, address, stream):
        """Copy from an address into a contiguous array."""
        values.reshape(-1).view(np.uint8)[:] = _bytes_at(address, values.nbytes)

    def zero(self, address, size, stream):
        """Zero memory."""
        _bytes_at(address, size)[:] = 0

    def event(self):
        """Return an event."""
        return cuda.event()

    def record(self, event, stream):
        """Do nothing: everything is done at once."""

    wait = record

    def wait_on_host(self, event):
        """Do nothing."""

    def synchronize(self, stream):
        """Do nothing."""

    def device_of(self, address):
        """Return 0."""
        return 0

    def products(self, number, library):
        """Return what multiplies matrices in this memory."""
        return HostProducts(self.synchronize)

    def launch(self, kernel, blocks, stream, arguments):
        """Run a kernel."""
        kernel[blocks, self.threads](*map(int, arguments))


def _bytes_at(address, size):
    import ctypes

    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


class NumbaCUDA(DeviceBackend):
    """The backend ``"cuda"``: each program becomes one numba-cuda kernel over all tensors.

    Tensors stay in device memory.

    Parameters are those of `nbopt.Backend`; ``device_id`` picks the GPU. See `DeviceBackend` for streams.
    """

    name = "cuda"

    def __init__(self, **options):
        problem = self.problem()
        if problem:
            raise BackendError(f'the backend "cuda" can\'t be used here: {problem}')
        super().__init__(**options)

    def open_device(self, number):
        """Return what drives GPU `number`."""
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
            raise ArgumentError(f"device_id must be the number of a GPU, an int from 0 on, not {number!r}")
        if SIMULATING:
            return SimulatedDevice(number)
        if number >= len(cuda.gpus):
            raise BackendError(f"there is no GPU {number}: device_id can be 0 to {len(cuda.gpus) - 1} here")
        return Device(int(number))

    @classmethod
    def problem(cls):
        """Return why the backend can't be used on this machine and what to do, or None if it can."""
        try:
            from numba import cuda as installed
        except ImportError:
            installed = None
        if cuda is None or installed is None:
            return (
                "numba-cuda, through which the GPU is used, is not installed or can't be imported "
                f"({_missing}); type: {_INSTALL}"
            )
        if SIMULATING:
            return None
        if _forked:
            return _FORKED
        if os.environ.get("NUMBA_DISABLE_CUDA", "0") not in ("", "0"):
            return "numba-cuda uses no GPU while NUMBA_DISABLE_CUDA is set: unset it before Python starts"
        if source.text_of(scalar) is scalar:
            return (
                "kernels for a GPU are made from nbopt's source, and it is installed without (.pyc files "
                "only): install it with its .py files"
            )
        nothing = (
            "no NVIDIA GPU with a working driver was found{}. With one, numba-cuda is needed too: " + _INSTALL
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

    def report(self):
        """Return what ``python -m nbopt`` says about this backend, a dict of label -> text."""
        found = {
            "GPU": (
                f"{self.device_id}: {self.device.name}, compute capability "
                f"{'.'.join(map(str, self.device.compute_capability))}"
            )
        }
        if not SIMULATING:
            with self.device.entered():
                free, whole = cuda.current_context().get_memory_info()
            found["memory"] = f"{free / 2**30:.1f} of {whole / 2**30:.1f} GiB free"
            found["driver"] = "CUDA " + ".".join(map(str, cuda_driver.driver.get_version()))
            found["toolkit"] = "CUDA " + ".".join(map(str, _toolkit()))
            found["numba-cuda"] = importlib.metadata.version("numba-cuda")
        found["cache folder"] = str(source.cache_folder())
        return found

    def dialect(self):
        """Return how kernels are spelled."""
        return SIMULATED if SIMULATING else FAST if self.fast_math else DIALECT

    def compile(self, function, cache):
        """Return a compiled kernel, all of whose arguments are int64."""
        if SIMULATING:
            self.compilations += 1
            return cuda.jit(_quiet(function))
        signature = types.void(*[types.int64] * function.__code__.co_argcount)
        kernel = cuda.jit(signature, cache=cache, fastmath=self.fast_math)(function)
        self.compilations += not sum(kernel.stats.cache_hits.values())
        return kernel


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
            f"{pair} ({' '.join(str(error).split())[:200]}); type: {_INSTALL}, which installs versions "
            "that fit"
        )
    return None


def _without_compiler(why):
    return (
        f"the driver works, and the CUDA toolkit's compiler (NVVM) can't be used ({why}); type: {_INSTALL}, "
        "or set CUDA_HOME to the folder of a toolkit that is installed, such as /usr/local/cuda"
    )


def _toolkit():
    try:
        return tuple(cuda.runtime.get_version())
    except Exception:  # no toolkit where numba-cuda looks for it: compiling will say so
        return None


def _quiet(function):
    """Return a function that runs `function` without NumPy's floating-point warnings.

    Each thread has settings of its own for these.
    """
    errstate = np.errstate

    def run(*arguments):
        with errstate(all="ignore"):
            function(*arguments)

    # The simulator exchanges `cuda` in the globals of what it runs.
    return FunctionType(run.__code__, function.__globals__, function.__name__, None, run.__closure__)
