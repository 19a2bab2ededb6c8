"""Device: what drives one GPU."""

import ctypes
import os
import weakref

import numpy as np

from nbopt.errors import BackendError, DeviceMemoryError, LayoutError
from nbopt_backends.cuda.products import products_of
from nbopt_backends.cuda.toolchain import cuda, cuda_driver, driver, handle_of

_NON_BLOCKING = 1

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
    """A block in which a device is the thread's current one: see `Device.enter`."""

    __slots__ = ("_device", "_pushed")

    def __init__(self, device):
        self._device = device

    def __enter__(self):
        self._pushed = self._device.enter()

    def __exit__(self, *exception):
        if self._pushed:
            self._device.leave()


class _Streams(dict):
    """Handle of a stream -> how the driver's functions take it fastest."""

    def __missing__(self, handle):
        made = self[handle] = driver.CUstream(handle)
        return made


def _checked(found):
    """Return what a function of the driver has returned, without its status; raise if that is an error."""
    if found[0]:
        _refuse(found[0])
    return found[1] if len(found) == 2 else None


def _refuse(status):
    name, text = (
        value.decode() for _, value in (driver.cuGetErrorName(status), driver.cuGetErrorString(status))
    )
    raise BackendError(f"the CUDA driver reports {name}: {text}")


class _Event:
    """An event of the driver's, until this goes itself."""

    __slots__ = ("__weakref__", "handle")

    def __init__(self, device, handle):
        self.handle = handle
        weakref.finalize(self, device.destroy, handle)


class _Memory:
    """Keeps device memory until it goes itself, on whatever thread that is."""

    __slots__ = ("__weakref__",)

    def __init__(self, device, pointer):
        # The list keeps the pointer out of whatever garbage this belongs to: Numba would free it there,
        # without a context.
        weakref.finalize(self, device.release, [pointer])


class _Relaxed:
    """A block in which this thread may do what the capture of a stream otherwise forbids."""

    __slots__ = ("_before",)

    def __enter__(self):
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._before = _checked(driver.cuThreadExchangeStreamCaptureMode(relaxed))

    def __exit__(self, *exception):
        _checked(driver.cuThreadExchangeStreamCaptureMode(self._before))


class Device:
    """One GPU: memory, copies, events and launches.

    What a step calls goes to the driver itself: through numba-cuda a launch takes six times as long.

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
        before = _checked(driver.cuCtxGetCurrent())
        self._context = cuda.gpus[number].get_primary_context()
        handle = self._context.handle
        self._handle = int(getattr(handle, "value", handle))  # a ctypes pointer in older versions
        # cuda-core drops what another library had set.
        if int(before) != int(_checked(driver.cuCtxGetCurrent())):
            _checked(driver.cuCtxSetCurrent(before))
        self._streams = _Streams()
        with self.entered():
            device = cuda.get_current_device()
            self.name = device.name if isinstance(device.name, str) else device.name.decode()
            self.compute_capability = tuple(device.compute_capability)
            self.resident_blocks = device.MULTIPROCESSOR_COUNT * (2048 // self.threads)
        self.key = (number, self.compute_capability)
        self._private = None

    def entered(self):
        """Return a context manager in which this is the thread's current device: see `enter`."""
        return _Entered(self)

    def enter(self):
        """Make this the thread's current device, and return whether `leave` must be called in the end.

        It stays current where the thread had none, as with CUDA's runtime: memory can be given back in a
        context only, and Python decides when that is. Where another library works on another GPU in this
        thread, that is to be the current one again.
        """
        if _forked:
            raise BackendError(_FORKED)
        current = int(driver.cuCtxGetCurrent()[1])
        if current == self._handle:
            return False
        self._context.push()
        return current != 0

    def leave(self):
        """Make the device that was the thread's current one before `enter` that again."""
        self._context.pop()

    def blocks(self, pieces, threads=None):
        """Return how many blocks to launch for so many pieces of work: see `launched_blocks`."""
        return launched_blocks(self, pieces, threads)

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
        with self.entered(), self.relaxed():
            things.clear()

    def destroy(self, event):
        """Give an event back, given as the driver knows it."""
        if not _forked:
            with self.entered():
                driver.cuEventDestroy(event)

    def pinned(self, size):
        """Return a new uint8 array in pinned host memory."""
        return cuda.pinned_array(size, np.uint8)

    def copy_in(self, address, values, stream):
        """Queue a copy of a contiguous host array to the device.

        It is asynchronous if the array is pinned.
        """
        self.copy_from(values.ctypes.data, values.nbytes, address, stream)

    def copy_from(self, place, size, address, stream):
        """Queue a copy to the device, from an address on the host."""
        found = driver.cuMemcpyHtoDAsync(address, place, size, self._streams[stream])
        if found[0]:
            _refuse(found[0])

    def copy_out(self, values, address, stream):
        """Copy from the device into a contiguous host array, and wait for it."""
        _checked(driver.cuMemcpyDtoHAsync(values.ctypes.data, address, values.nbytes, self._streams[stream]))
        self.synchronize(stream)

    def zero(self, address, size, stream):
        """Queue the zeroing of memory."""
        _checked(driver.cuMemsetD8Async(address, 0, size, self._streams[stream]))

    def event(self):
        """Return a new event, without timing."""
        return _Event(self, _checked(driver.cuEventCreate(int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))))

    def record(self, event, stream):
        """Record an event: it is done when what is queued on the stream now is done."""
        _checked(driver.cuEventRecord(event.handle, self._streams[stream]))

    def wait(self, event, stream):
        """Let what is queued on a stream from now on wait for an event."""
        _checked(driver.cuStreamWaitEvent(self._streams[stream], event.handle, 0))

    def wait_on_host(self, event):
        """Wait until an event is done."""
        _checked(driver.cuEventSynchronize(event.handle))

    def synchronize(self, stream):
        """Wait until everything queued on a stream is done."""
        _checked(driver.cuStreamSynchronize(self._streams[stream]))

    def is_capturing(self, stream):
        """Return whether a stream, not the default one, is being captured into a graph."""
        return int(_checked(driver.cuStreamIsCapturing(self._streams[stream]))) != 0

    def relaxed(self):
        """Return a context manager in which memory may be allocated and filled while streams are captured."""
        return _Relaxed()

    def private_stream(self):
        """Return the handle of a stream that waits for no other, not even for the default one."""
        if self._private is None:
            with self.entered():
                self._private = int(_checked(driver.cuStreamCreate(_NON_BLOCKING)))
        return self._private

    def device_of(self, address):
        """Return the number of the GPU that an address belongs to; LayoutError if it belongs to none."""
        attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        with self.entered():
            status, found = driver.cuPointerGetAttribute(attribute, driver.CUdeviceptr(address))
        if status:
            raise LayoutError("the array says that it is on a GPU, and the driver does not know its address")
        return int(found)

    def products(self, number, library):
        """Return what multiplies matrices in this memory, see `nbopt_backends.cuda.products`."""
        return products_of(number, library)

    def launch(self, kernel, blocks, stream, arguments):
        """Queue a kernel."""
        self.prepared(kernel, blocks, arguments)(stream)

    def prepared(self, kernel, blocks, arguments):
        """Return a function that queues a kernel on a stream, given its handle, as often as it is called.

        The kernel is loaded into the GPU's memory now.

        Parameters
        ----------
        kernel : object
            As `toolchain.compiled` returns it.
        blocks : int
        arguments : tuple of int
        """
        function = driver.CUfunction(handle_of(kernel))
        values = (ctypes.c_int64 * len(arguments))(*arguments)
        first = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * len(arguments))(*range(first, first + 8 * len(arguments), 8))
        place, streams, queue, threads = (
            ctypes.addressof(pointers),
            self._streams,
            driver.cuLaunchKernel,
            self.threads,
        )

        def launch(stream, _kept=(kernel, values, pointers)):
            (status,) = queue(function, blocks, 1, 1, threads, 1, 1, 0, streams[stream], place, 0)
            if status:
                _refuse(status)

        return launch
