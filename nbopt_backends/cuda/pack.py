"""Pack: many small arrays in one piece of device memory; Image: those that change from step to step."""

import math

import numpy as np

from nbopt.language.lines import axes_of


class Part:
    """One array of a `Pack`.

    Attributes
    ----------
    values : numpy.ndarray
        Its values; from `Pack.allocate` on a view of the pack's memory on the host.
    address : int or None
        Where it is on the device, from then on.
    """

    def __init__(self, values, offset):
        self.values, self.offset, self.address = values, offset, None


class Pack:
    """Arrays in one piece of memory, on the host and in the same places on the device.

    Each begins at a multiple of 16 bytes.

    Attributes
    ----------
    size : int
        Bytes so far.
    host : numpy.ndarray
        uint8: the memory on the host.
    bytes : memoryview
        Of it.
    device : DeviceArray
        That on the device. Nothing has been copied there yet.
    """

    def __init__(self):
        self._parts = []
        self.size = 0

    def add(self, array):
        """Add an array; return its `Part`."""
        part = Part(array, self.size)
        self._parts.append(part)
        self.size += -(-array.nbytes // 16) * 16
        return part

    def allocate(self, backend):
        """Make the memory, with the arrays' values on the host."""
        self.host = np.zeros(max(self.size, 16), np.uint8)
        self.bytes = memoryview(self.host)
        self.device = backend.allocate(self.host.shape, self.host.dtype)
        for part in self._parts:
            given = part.values
            part.values = (
                self.host[part.offset : part.offset + given.nbytes].view(given.dtype).reshape(given.shape)
            )
            part.values[...] = given
            part.address = self.device.address + part.offset


class Image(Pack):
    """What the host tells the device in a step: first the numbers, then the address table.

    Attributes
    ----------
    numbers : Part
        float64[rows, numbers]; one row if all parameters have the same. The host gives the first ones of each
        row, sizes and lengths.
    stride : int
        The bytes from one row's numbers to the next; 0 if all have the same.
    random : Part
        The seed and the update count.
    number_bytes : int
        Where the address table begins.
    table : Part
        That of the layout, which writes its addresses here from now on.
    """

    def __init__(self, backend, program, layout):
        super().__init__()
        numbers = np.zeros((len(layout.table) if program.differs() else 1, program.n_numbers))
        if program.size is not None:
            numbers[: layout.n_rows, program.size] = layout.sizes
        for number, extent in program.lengths:
            shapes = [structure[0] for structure in layout.key[0][0]]
            numbers[: layout.n_rows, number] = [
                math.prod(shape[axis] for axis in axes_of(extent, len(shape))) for shape in shapes
            ]
        self.stride = numbers.strides[0] if len(numbers) > 1 else 0
        self.numbers = self.add(numbers)
        self.random = self.add(np.zeros(2, np.uint64))
        self.number_bytes = self.size
        self.table = self.add(layout.table)
        self.allocate(backend)
        layout.table = self.table.values
