"""The CUDA backend, made to take NumPy arrays, so that tests which wrap them run on it as they are.

Each NumPy array that is wrapped (with all that it is a view of) has a mirror in device memory. Before the
device is told anything, what the host has written since goes to the mirrors; after it, they come back.
"""

import weakref

import numpy as np

from nbopt_backends.arrays.device import DeviceArray
from nbopt_backends.arrays.host import HostBackend
from nbopt_backends.arrays.memory import byte_range
from nbopt_backends.cuda.numba_cuda import NumbaCUDA


class MirroredCUDA(NumbaCUDA):
    """See above."""

    def __init__(self, **options):
        super().__init__(**options)
        self.mirrors = {}
        self.copy_in, self.copy_out = self.device.copy_in, self.device.copy_out
        for name in ("copy_in", "copy_out", "zero"):
            setattr(self.device, name, self.between_mirroring(getattr(self.device, name)))
        prepared = self.device.prepared
        self.device.prepared = lambda *what: self.between_mirroring(prepared(*what))

    def between_mirroring(self, method):
        def mirrored(*arguments):
            for key, (root, _, memory) in list(self.mirrors.items()):
                if root() is None:
                    del self.mirrors[key]
                else:
                    self.copy_in(memory.address, bytes_of(root()), 0)
            try:
                return method(*arguments)
            finally:
                self.device.synchronize(0)
                for root, _, memory in self.mirrors.values():
                    if root() is not None:
                        values = np.empty(memory.nbytes, np.uint8)
                        self.copy_out(values, memory.address, 0)
                        if bytes_of(root()).tobytes() != values.tobytes():
                            bytes_of(root(), write=True)[:] = values

        return mirrored

    def adopt(self, obj):
        if not isinstance(obj, np.ndarray):
            return super().adopt(obj)
        array = HostBackend.adopt(self, obj)
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        start = byte_range(root)[0]
        if id(root) not in self.mirrors or self.mirrors[id(root)][0]() is not root:
            memory = self.allocate((max(1, bytes_of(root).size),), np.dtype(np.uint8))
            self.mirrors[id(root)] = weakref.ref(root), start, memory
            if root.size:
                self.copy_in(memory.address, bytes_of(root), 0)
        memory = self.mirrors[id(root)][2]
        address = memory.address + array.__array_interface__["data"][0] - start
        return DeviceArray(
            self, address, array.shape, array.dtype, array.strides, (root, memory), not array.flags.writeable
        )


def bytes_of(root, write=False):
    """All bytes of an array's memory, as a uint8 array that shares it."""
    start, end = byte_range(root)

    class Memory:
        __array_interface__ = {
            "version": 3,
            "shape": (end - start,),
            "typestr": "|u1",
            "data": (start, not write),
        }

    return np.asarray(Memory())
