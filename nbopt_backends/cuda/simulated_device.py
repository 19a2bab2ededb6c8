"""The device of Numba's CUDA simulator, which runs kernels as Python over host memory."""

import ctypes
from contextlib import nullcontext
from types import FunctionType

import numpy as np

from nbopt.errors import BackendError
from nbopt_backends.cuda.device import launched_blocks
from nbopt_backends.cuda.products import HostProducts
from nbopt_backends.cuda.toolchain import cuda


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

    def enter(self):
        """Return False: there is nothing to leave."""
        return False

    def blocks(self, pieces, threads=None):
        """Return how many blocks to launch, as `Device.blocks` does."""
        return launched_blocks(self, pieces, threads)

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
        self.copy_from(values.ctypes.data, values.nbytes, address, stream)

    def copy_from(self, place, size, address, stream):
        """Copy from one address to another."""
        ctypes.memmove(address, place, size)

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

    def is_capturing(self, stream):
        """Return False: the simulator has no graphs."""
        return False

    def relaxed(self):
        """Return a context manager that does nothing."""
        return nullcontext()

    def private_stream(self):
        """Return the handle of the default stream."""
        return 0

    def device_of(self, address):
        """Return 0."""
        return 0

    def products(self, number, library):
        """Return what multiplies matrices in this memory."""
        return HostProducts(self.synchronize)

    def launch(self, kernel, blocks, stream, arguments):
        """Run a kernel."""
        self.prepared(kernel, blocks, arguments)(stream)

    def prepared(self, kernel, blocks, arguments):
        """Return a function that runs a kernel, whatever stream it is given."""
        configured, values = kernel[blocks, self.threads], [*map(int, arguments)]
        return lambda stream: configured(*values)


def _bytes_at(address, size):
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def simulated_kernel(function):
    """Return a kernel that runs `function` without NumPy's floating-point warnings.

    Each thread has settings of its own for these.
    """
    errstate = np.errstate

    def run(*arguments):
        with errstate(all="ignore"):
            function(*arguments)

    # The simulator exchanges `cuda` in the globals of what it runs.
    return cuda.jit(
        FunctionType(run.__code__, function.__globals__, function.__name__, None, run.__closure__)
    )
