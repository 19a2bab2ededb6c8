"""Device: what drives one GPU."""

import os
import warnings
import weakref

import numpy as np

from nbopt.errors import BackendError, DeviceMemoryError, LayoutError
from nbopt_backends.cuda.products import products_of
from nbopt_backends.cuda.toolchain import cuda, cuda_driver

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


def after_fork():
    """Return why CUDA can't be used in a process that was forked from one that had, or None elsewhere."""
    return _FORKED if _forked else None


def launched_blocks(device, pieces, threads=None):
    """Return how many blocks to launch for so many pieces of work.

    A piece takes a block, or so many threads.
    """
    wanted = pieces if threads is None else -(-pieces * threads // device.threads)
    return max(1, min(wanted, device.most_blocks))


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
        """Return how many blocks to launch for so many pieces of work: see `launched_blocks`."""
        return launched_blocks(self, pieces, threads)

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
