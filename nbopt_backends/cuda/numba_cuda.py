"""NumbaCUDA: fused kernels on an NVIDIA GPU."""

import numpy as np

from nbopt.errors import ArgumentError, BackendError
from nbopt_backends.cuda import toolchain
from nbopt_backends.cuda.backend import DeviceBackend
from nbopt_backends.cuda.device import Device, after_fork
from nbopt_backends.cuda.dialects import DIALECT, FAST, MLIR_DIALECT, MLIR_FAST, SIMULATED
from nbopt_backends.cuda.simulated_device import SimulatedDevice, simulated_kernel
from nbopt_backends.cuda.toolchain import MLIR, SIMULATING, cuda
from nbopt_backends.lowering import source


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
        return after_fork() or toolchain.problem()

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
            found |= toolchain.versions()
        found["cache folder"] = str(source.cache_folder())
        return found

    def dialect(self):
        """Return how kernels are spelled."""
        if SIMULATING:
            return SIMULATED
        exact, fast = (MLIR_DIALECT, MLIR_FAST) if MLIR else (DIALECT, FAST)
        return fast if self.fast_math else exact

    def compile(self, function, cache):
        """Return a compiled kernel, all of whose arguments are int64."""
        if SIMULATING:
            kernel, new = simulated_kernel(function), True
        else:
            kernel, new = toolchain.compiled(function, cache, self.fast_math)
        self.compilations += new
        return kernel
