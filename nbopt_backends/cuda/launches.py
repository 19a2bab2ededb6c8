"""What a step launches: kernels, passes that are to become kernels, and work that queues itself."""

from collections.abc import Callable
from typing import NamedTuple


class Kernel(NamedTuple):
    """A launch of a kernel.

    Attributes
    ----------
    text : str
        Of its module.
    stem : str
        See `nbopt_backends.lowering.source.load`.
    name : str
        The kernel's.
    blocks : int
    arguments : tuple of int
    """

    text: str
    stem: str
    name: str
    blocks: int
    arguments: tuple

    def prepared(self, backend):
        """Return what queues it on a stream, given its handle. It is compiled now."""
        kernel = backend.kernel(self.text, self.stem, self.name)
        return backend.device.prepared(kernel, self.blocks, self.arguments)


class PassLaunch(NamedTuple):
    """One launch of a pass, or of what ends its reductions.

    Attributes
    ----------
    text : callable
        Returns its kernel's text, given a `Closing`.
    name : str
        The kernel's.
    blocks : int
    arguments : tuple of int
        But for `after`.
    arrivals : int
        How many arrive at `after`: parameters if it reduces, else blocks.
    reduces : bool
    begins : bool
        Whether it can have small stages at its beginning.
    outputs : tuple of (int, int)
        See `Closing`.
    """

    text: Callable
    name: str
    blocks: int
    arguments: tuple
    arrivals: int
    reduces: bool
    begins: bool
    outputs: tuple


class Queued(NamedTuple):
    """What queues work on a stream by itself, given its handle."""

    queue: Callable

    def prepared(self, backend):
        """Return what queues it."""
        return self.queue
