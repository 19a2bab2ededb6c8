"""The state of random bits in device memory, so that graphs which are replayed advance it."""

import threading

import numpy as np

from nbopt_backends.cuda.ends import ends_kernel


class Counter:
    """What a backend's random bits depend on, from the first step on that may be captured into a graph.

    Attributes
    ----------
    advance : callable
        Queues the count of an update on a stream, given its handle.
    address : int or None
        Where the seed and the number of updates so far are, two uint64; None as long as the host counts.
    """

    def __init__(self, backend):
        self._backend, self._memory, self.advance, self.address = backend, None, None, None
        self._lock = threading.Lock()

    def begin(self, seed, updates):
        """Let the device count from now on. Without effect if it does so already."""
        with self._lock:
            if self.address is None:
                self._memory = self._backend.allocate((2,), np.uint64)
                self.set(seed, updates)
                kernel, device = ends_kernel(self._backend, "advance"), self._backend.device
                with device.entered():
                    self.advance = device.prepared(kernel, 1, (self._memory.address,))
                self.address = self._memory.address

    def set(self, seed, updates):
        """Write the state, in place."""
        self._backend.upload(self._memory, np.array([seed, updates], np.uint64))

    def get(self):
        """Return the seed and the number of updates. The host waits for them."""
        seed, updates = self._backend.downloaded(self._memory).tolist()
        return seed, updates
