"""DevicePlan: the plan of a step over arrays in device memory.

A step's launches take addresses of tables in device memory. Those that stay (chunks, geometries) are copied
there when a plan is made; those that change (numbers, addresses) lie one after the other in one image on the
host, and what has changed in it is copied by one asynchronous copy from pinned memory. The host reads nothing
back in a step, and waits for nothing.
"""

import struct

from nbopt_backends.cuda.pack import Image
from nbopt_backends.cuda.stages import Stages
from nbopt_backends.cuda.walks import with_workspace
from nbopt_backends.matrices.rounds import rounds_of_plan
from nbopt_backends.plans.plan import Plan

_RANDOM = struct.Struct("2Q").pack


class DevicePlan(Plan):
    """A plan whose tables are in device memory.

    Parameters
    ----------
    backend : DeviceBackend
    update : Update
    layout : Layout
        From here on it writes its addresses into the image.

    Attributes
    ----------
    image : Image
        The numbers and addresses on the device.
    new_tables, new_numbers : bool
        Whether the image on the host differs from the device's there.
    pointers : dict
        Index in `Update.tensors` -> address, for tensors whose memory can be exchanged under the same object.
    rounds : list of list of int
    first_of_round : tuple or None
        See `rounds_of_plan`.
    batches : list of dict
        See `with_workspace`.
    stages : Stages
        What the launches of the plan's stages take besides.
    """

    def __init__(self, backend, update, layout):
        super().__init__(backend, update, layout)
        self.new_tables = self.new_numbers = True
        self.pointers = {}
        self.rounds, self.first_of_round = rounds_of_plan(update.program, layout)
        self._workspace, self.batches = with_workspace(backend, layout, update.program, self.rounds)
        self.image = Image(backend, update.program, layout)
        self.stages = Stages(backend, self)
        self._counter = backend.counter
        self._rounds = any(any(group.kept) for group in layout.groups)
        self._given, self._packed = None, struct.Struct(f"{update.program.n_given}d").pack

    # --- is it the plan of an update? ---

    def follow(self, update):
        """Do what `Plan.follow` does, and look at pointers, unless the caller has."""
        if update.addresses is not None:
            # Noted first: an interrupt must not leave new tables that are not copied.
            self.new_tables |= update.addresses.tobytes() != self.layout.pointed_at
            return super().follow(update)
        return super().follow(update) and not self._moved(update)

    def _moved(self, update):
        """Return whether a tensor of the update has other memory than the tables say."""
        if not self.pointers:
            return False
        tensors = update.tensors
        return any(tensors[index].storage.pointer() != address for index, address in self.pointers.items())

    def take(self, rows, gradients):
        """Do what `Plan.take` does, for gradients on this GPU.

        It also notes that the tables must be copied, and which of the gradients can move.
        """
        backend, device = self.backend, self.backend.device_id
        if any(
            tensor.storage.home is not backend and tensor.storage.home.device_id != device
            for tensor in gradients
        ):
            return False  # looked at afresh, it is refused
        if not super().take(rows, gradients):
            return False
        self.new_tables = True
        for row, tensor in zip(rows, gradients):
            self._note(2 * row + 1, tensor.storage)
        return True

    def noted(self):
        """Return what `restore` takes."""
        return super().noted(), self.pointers

    def restore(self, noted):
        """Make the tables what they were when `noted` was called, and note that they must be copied."""
        self.new_tables = True
        tables, self.pointers = noted
        super().restore(tables)

    def refresh(self, update, arrays):
        """Do what `Plan.refresh` does, and note which of the tensors can move."""
        self.put_aside()
        self.new_tables = True
        self.pointers = {}
        if update.key is not None and update.addresses is None:
            for index, tensor in enumerate(update.tensors):
                self._note(index, tensor.storage)
        super().refresh(update, arrays)

    def _note(self, index, storage):
        """Remember the address of an array whose memory can be exchanged."""
        if storage.pointer is not None:
            self.pointers[index] = storage.address
        elif self.pointers:
            self.pointers.pop(index, None)

    # --- what changes from step to step ---

    def share(self, tensors):
        """Note where the slots are that are one number for the whole step."""
        table = self.layout.table
        for slot, tensor in zip(self.program.shared(), tensors):
            address = self.backend.array_of(tensor).address
            if table[0, slot] != address:
                self.new_tables = True
                table[:, slot] = address

    def give(self, numbers, seed, count):
        """Write the numbers of the step that the host gives into the image.

        Returns
        -------
        memoryview or None
            Its bytes that differ from those on the device, from the beginning on. `new_tables` and
            `new_numbers` say so until they have been copied.
        """
        given, image = self._packed(*numbers), self.image
        if given != self._given:
            self.new_numbers = True
            if image.stride:
                image.numbers.values[:, : len(numbers)] = numbers
            else:
                image.bytes[: len(given)] = given  # they come first
            self._given = given
        if self._rounds and self._counter.address is None:
            self.new_numbers = True
            start = image.random.offset
            image.bytes[start : start + 16] = _RANDOM(seed, count)
        if self.new_tables:
            return image.bytes
        return image.bytes[: image.number_bytes] if self.new_numbers else None
