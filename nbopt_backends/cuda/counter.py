"""The state of random bits in device memory, so that graphs which are replayed advance it."""

import threading

import numpy as np

from nbopt_backends.cuda.small import Small, named_text


class _Own(threading.local):
    """What each thread has: whether the launches that it has just queued count the update."""

    counted = False


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
        self._lock, self._own = threading.Lock(), _Own()

    def begin(self, seed, updates):
        """Let the device count from now on. Without effect if it does so already."""
        with self._lock:
            if self.address is None:
                self._memory = self._backend.allocate((2,), np.uint64)
                self.set(seed, updates)
                with self._backend.device.entered():
                    launch = self.stage(self._memory.address).alone(self._backend)
                    self.advance = launch.prepared(self._backend)
                self.address = self._memory.address

    @staticmethod
    def stage(address):
        """Return the small stage that counts an update, given the counter's address."""
        return Small(named_text("advance"), "advance", (address,), 1)

    def note(self):
        """Note that what this thread has queued counts the update."""
        self._own.counted = True

    def is_counted(self):
        """Return whether `note` was called in this thread since this was asked."""
        found, self._own.counted = self._own.counted, False
        return found

    def set(self, seed, updates):
        """Write the state, in place."""
        self._backend.upload(self._memory, np.array([seed, updates], np.uint64))

    def get(self):
        """Return the seed and the number of updates. The host waits for them."""
        seed, updates = self._backend.downloaded(self._memory).tolist()
        return seed, updates
