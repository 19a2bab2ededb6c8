"""What is queued on a GPU's streams: the order among them, and copies from pinned memory.

Events keep the order. The host does not wait.
"""

import functools
import sys
import threading
import weakref
from contextlib import contextmanager

from nbopt.errors import ArgumentError, StateError

NOT_HERE = (
    "the current stream is being captured into a CUDA graph, which takes steps of optimizers with "
    "optimizer.capturable = True and nothing else of nbopt's: do this before the capture, or after it"
)


class _Own(threading.local):
    """What each thread has: the stream that it prepares a captured step on."""

    private = None


class Streams:
    """Which stream a backend launches on, and what that has to wait for.

    Parameters
    ----------
    device : object
        See `nbopt_backends.cuda.device.Device`.
    device_id : int
        The GPU's number.

    Attributes
    ----------
    given : int or None
        The handle of the stream that the user chose.
    last : int
        The handle of the stream that was launched on last.
    library : str or None
        The library that the arrays come from.
    """

    def __init__(self, device, device_id):
        self._device, self._device_id = device, device_id
        self.given = None
        self.last = 0
        self._lock = threading.Lock()
        self.library = None
        self._waited_for = set()
        self._event = None
        self._own = _Own()

    @property
    def is_aside(self):
        """Bool : whether this thread prepares a step that is captured, see `aside`."""
        return self._own.private is not None

    @contextmanager
    def aside(self):
        """Have this thread work on a private stream for a while, that waits for no other.

        Yields
        ------
        int
            Its handle.
        """
        self._own.private = self._device.private_stream()
        try:
            yield self._own.private
        finally:
            self._own.private = None

    def captured(self):
        """Return the handle of the stream that the next launch runs on if it is being captured, else 0."""
        stream = self.current()
        if not stream:  # the default stream can't be
            return 0
        with self._device.entered():
            return stream if self._device.is_capturing(stream) else 0

    def current(self):
        """Return the handle of the stream that the next launch runs on."""
        if self._own.private is not None:
            return self._own.private
        if self.given is not None:
            return self.given
        library = sys.modules.get(self.library) if self.library else None
        if library is None:
            return 0
        if self.library == "torch":
            return _torch_stream(library)(self._device_id)
        return library.cuda.get_current_stream().ptr

    def follow(self, library):
        """Take a library's current stream from now on, where none was given."""
        self.library = library

    def wait_for(self, stream):
        """Let the next launch wait for what a producer has queued on its stream.

        The stream is given as in __cuda_array_interface__.
        """
        if stream not in (None, 1):
            self._waited_for.add(int(stream))

    def order_before(self, stream):
        """Let a consumer's stream wait for what is queued here."""
        with self._device.entered():
            self._order(self.last, stream)

    def _order(self, first, then):
        if first != then:
            if self._event is None:
                self._event = self._device.event()
            self._device.record(self._event, first)
            self._device.wait(self._event, then)

    def ready(self):
        """Return the stream to launch on, after what must come before it.

        Raises
        ------
        StateError
            If the stream is being captured into a graph.
        """
        if self._own.private is not None:
            return self._own.private
        stream = self.given
        if stream is None:
            stream = self.current() if self.library else 0
        if stream and self._device.is_capturing(stream):
            raise StateError(NOT_HERE)
        if stream != self.last or self._waited_for:
            with self._lock:
                self._order(self.last, stream)
                while self._waited_for:
                    self._order(self._waited_for.pop(), stream)
                self.last = stream
        return stream


@functools.cache
def _torch_stream(torch):
    """Return what gives the handle of PyTorch's current stream on a GPU, given the GPU's number."""
    # A function of PyTorch's own, which its compiled code uses. It takes a tenth of the time.
    fast = getattr(getattr(torch, "_C", None), "_cuda_getCurrentRawStream", None)
    return fast or (lambda number: torch.cuda.current_stream(number).cuda_stream)


def stream_handle(value):
    """Return the handle of a stream.

    The stream is an int, or an object of PyTorch's, CuPy's, Numba's, or with __cuda_stream__.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return 0 if value == 1 else value
    if hasattr(value, "__cuda_stream__"):
        return int(value.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, Numba
        if hasattr(value, name):
            handle = getattr(value, name)
            return int(getattr(handle, "value", handle) or 0)
    raise ArgumentError(
        f"a stream is a handle (an int), None, or a stream object of PyTorch, CuPy or Numba; not {value!r}"
    )


class UploadRing:
    """Two pieces of pinned memory for asynchronous copies, which are filled in turn.

    Where one is full, or another stream follows, an event is recorded, and the other one is written again
    when the copies from it are done. So most copies go without an event.

    Parameters
    ----------
    device : object
        See `nbopt_backends.cuda.device.Device`.
    """

    least, copies = 1 << 16, 16  # bytes of a piece; how many copies have room in it, at least

    def __init__(self, device):
        self._device = device
        self._buffers, self._events = [None, None], [None, None]
        self._turn, self._stream, self._used, self._size = 0, None, 0, 0
        for held in (self._buffers, self._events):
            weakref.finalize(self, device.release, held)

    def upload(self, address, values, stream):
        """Queue a copy to a device address.

        Parameters
        ----------
        address : int
        values : memoryview
            Of bytes.
        stream : int
        """
        size, start = len(values), self._used
        if start + size > self._size or stream != self._stream:
            self._begin(size, stream)
            start = 0
        self._bytes[start : start + size] = values
        self._used = start + size + -size % 16
        self._device.copy_from(self._place + start, size, address, stream)

    def _begin(self, size, stream):
        """Go on with the other piece, for copies on a stream."""
        device, events = self._device, self._events
        if self._stream is not None:
            if events[self._turn] is None:
                events[self._turn] = device.event()
            device.record(events[self._turn], self._stream)
        self._turn, self._stream, self._size = 1 - self._turn, None, 0
        if events[self._turn] is not None:
            # It was done long ago, unless the device is a whole piece behind.
            device.wait_on_host(events[self._turn])
        buffer = self._buffers[self._turn]
        if buffer is None or len(buffer) < self.copies * size:
            buffer = self._buffers[self._turn] = device.pinned(max(self.least, 2 * self.copies * size))
        self._bytes, self._place = memoryview(buffer), buffer.ctypes.data
        self._stream, self._size = stream, len(buffer)


class Rings(threading.local):
    """Each thread's `UploadRing`.

    Attributes
    ----------
    own : UploadRing
        That of the thread that asks.
    """

    def __init__(self, device):
        self.own = UploadRing(device)
