"""What is queued on a GPU's streams: the order among them, and copies from pinned memory.

Events keep the order. The host does not wait.
"""

import sys
import threading
import weakref

from nbopt.errors import ArgumentError


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
    """

    def __init__(self, device, device_id):
        self._device, self._device_id = device, device_id
        self.given = None
        self.last = 0
        self._lock = threading.Lock()
        self._library = None
        self._waited_for = set()
        self._event = None

    def current(self):
        """Return the handle of the stream that the next launch runs on."""
        if self.given is not None:
            return self.given
        library = sys.modules.get(self._library) if self._library else None
        if library is None:
            return 0
        if self._library == "torch":
            return library.cuda.current_stream(self._device_id).cuda_stream
        return library.cuda.get_current_stream().ptr

    @property
    def library(self):
        """Str or None : the library that the arrays come from."""
        return self._library

    def follow(self, library):
        """Take a library's current stream from now on, where none was given."""
        self._library = library

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
        """Return the stream to launch on, after what must come before it."""
        stream = self.current()
        if stream != self.last or self._waited_for:
            with self._lock:
                self._order(self.last, stream)
                while self._waited_for:
                    self._order(self._waited_for.pop(), stream)
                self.last = stream
        return stream


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
    """Pinned buffers for asynchronous copies, used in turn.

    A buffer is written again only when the copy from it is done.

    Parameters
    ----------
    device : object
        See `nbopt_backends.cuda.device.Device`.
    """

    length = 16

    def __init__(self, device):
        self._device = device
        self._buffers = [None] * self.length
        self._events = [None] * self.length
        self._next = 0
        for held in (self._buffers, self._events):
            weakref.finalize(self, device.release, held)

    def upload(self, address, values, stream):
        """Queue a copy of `values`, uint8, to a device address."""
        turn, self._next = self._next, (self._next + 1) % self.length
        if self._events[turn] is None:
            self._events[turn] = self._device.event()
        else:
            # It was done long ago, unless the device is this many copies behind.
            self._device.wait_on_host(self._events[turn])
        buffer = self._buffers[turn]
        if buffer is None or len(buffer) < len(values):
            buffer = self._buffers[turn] = self._device.pinned(max(4096, 2 * len(values)))
        buffer[: len(values)] = values
        self._device.copy_in(address, buffer[: len(values)], stream)
        self._device.record(self._events[turn], stream)
