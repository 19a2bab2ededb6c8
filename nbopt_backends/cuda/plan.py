"""DevicePlan: the plan of a step over arrays in device memory.

A step's launches take addresses of tables in device memory. Those that stay (chunks, tiles, geometries) are copied there when a plan is made;
those that change (scalars, addresses) lie one after the other in one image on the host, and what has changed in it is copied by one
asynchronous copy from pinned memory. The host reads nothing back in a step, and waits for nothing.
"""

import numpy as np

from nbopt.language.ops import compute_dtype
from nbopt_backends.cuda.kernels import threads_per_chunk
from nbopt_backends.meaning.reduction import TILE, tile_count
from nbopt_backends.meaning.xoroshiro import BLOCK
from nbopt_backends.plans.chunks import chunk_table
from nbopt_backends.plans.plan import Plan

LARGEST_CHUNK = 16384  # elements; `asv_bench/gpu.py --tune` times others


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
    """Arrays one after the other in one piece of memory, each at a multiple of 16 bytes: on the host, and in the same places on the device.

    Attributes
    ----------
    size : int
        Bytes so far.
    host : numpy.ndarray
        uint8: the memory on the host.
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
        self.device = backend.allocate(self.host.shape, self.host.dtype)
        for part in self._parts:
            given = part.values
            part.values = self.host[part.offset : part.offset + given.nbytes].view(given.dtype).reshape(given.shape)
            part.values[...] = given
            part.address = self.device.address + part.offset


class DevicePlan(Plan):
    """A plan whose tables are in device memory. Its launches and passes are (kernel, blocks, arguments).

    Parameters
    ----------
    backend : DeviceBackend
    update : Update
    layout : Layout
        From here on it writes its addresses into the image.

    Attributes
    ----------
    image : Pack
        What changes from step to step: first the scalars, then the address tables.
    scalars : list of Part
        Each group's scalars, in its arithmetic.
    settings : Part
        What the norm clip needs: the norm to clip to, the divisor.
    divisor : Part
        The divisor without a loss scale that is on the device, float64.
    random : Part
        The seed and the update count.
    rounds : bool
        Whether anything is rounded stochastically, so that `random` is used.
    tables : list of Part
        Each group's address table.
    scalar_bytes : int
        Where in the image the address tables begin.
    new_tables, new_scalars : bool
        Whether the image differs from the device's memory there.
    pointers : dict
        Index in `Update.tensors` -> address, for tensors whose memory can be exchanged under the same object.
    loss_scale : (int, numpy.dtype) or None
        The address and dtype of the update's loss scale, which the launches have.
    skipped : Tensor or None
        The update's counter, whose address they have.
    skip : Part
        One int64 on the device: whether the step is skipped.
    together : (tuple, DeviceArray) or None
        The addresses of `skip` and `skipped` of the plans that this one, the first of them, was last skipped together with; on the device as well.
    kept_alive : list
        What else the launches' addresses point to.
    """

    def __init__(self, backend, update, layout):
        super().__init__(backend, update, layout, [], [])
        self.loss_scale, self.skipped = _memory_of(update.loss_scale), update.skipped
        self.new_tables = self.new_scalars = True
        self.pointers = {}
        self.together = None
        self.kept_alive = []
        self.rounds = any(any(group.kept) for group in layout.groups)
        image = self.image = Pack()
        size = max(update.program.n_scalars, 1)
        self.scalars = [image.add(np.zeros(size, group.arithmetic)) for group in layout.groups]
        self.settings = image.add(np.zeros(2, compute_dtype(group.arithmetic for group in layout.groups)))
        self.divisor = image.add(np.zeros(1, np.float64))
        self.random = image.add(np.zeros(2, np.uint64))
        self.scalar_bytes = image.size
        self.tables = [image.add(group.table) for group in layout.groups]
        image.allocate(backend)
        for group, table in zip(layout.groups, self.tables):
            group.table = table.values

    # --- is it the plan of an update? ---

    def fits(self, backend, update):
        """Return what `Plan.fits` does, for a loss scale in this very memory and for this counter."""
        return super().fits(backend, update) and self.skipped is update.skipped and self.loss_scale == _memory_of(update.loss_scale)

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
        """Do what `Plan.take` does for gradients on this GPU, and note that the tables must be copied, and which of these can move."""
        backend, device = self.backend, self.backend.device_id
        if any(tensor.storage.home is not backend and tensor.storage.home.device_id != device for tensor in gradients):
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

    def set_scalars(self, values):
        """Write each group's scalars into the image."""
        for part in self.scalars:
            own = part.values
            new = np.array(values, own.dtype)
            if new.tobytes() != own[: len(new)].tobytes():
                own[: len(new)] = new
                self.new_scalars = True

    def set_settings(self, clip_norm, divisor):
        """Write what the norm clip needs into the image."""
        own, exact = self.settings.values, self.divisor.values
        new = np.array([clip_norm, divisor], own.dtype)
        if new.tobytes() != own.tobytes() or exact[0] != divisor:
            own[:], exact[0] = new, divisor
            self.new_scalars = True


class _Tables:
    """The tables of a plan that stay: they are copied to the device once.

    Attributes
    ----------
    chunks, views, tiles : list of Part
        Each group's; `views` are the addresses of geometries, where some slots are strided, and `tiles` are for the norm only.
    factors, divisors : Part or None
        Where on the device the kernels write the norm-clip factor, and the divisor with a loss scale: (address, size of the number) of each.
    skip : Part
        One int64: whether the step is skipped.
    memory : DeviceArray
        Of all of them.
    """

    def __init__(self, plan, update):
        layout, groups = plan.layout, plan.layout.groups
        pack = Pack()
        chunk = _chunk(plan.backend.device, layout)
        self.chunks = [pack.add(_chunks(group, chunk)) for group in groups]
        geometries = [[pack.add(geometry) for geometry in group.geometries or ()] for group in groups]
        self.views = [pack.add(np.zeros(len(own), np.int64)) for own in geometries]
        self.skip = pack.add(np.zeros(1, np.int64))
        self.tiles = [pack.add(_tile_table(group, layout)) for group in groups] if update.norm_is_needed else []
        self.factors = self.divisors = None
        if update.clip_norm is not None:
            self.factors = pack.add(np.array([_place(part, update.program.factor) for part in plan.scalars], np.int64))
        if update.loss_scale is not None:
            divisor = update.program.divisor
            places = [] if divisor is None else [_place(part, divisor) for part in plan.scalars]
            self.divisors = pack.add(np.array([*places, _place(plan.settings, 1)], np.int64))
        pack.allocate(plan.backend)
        for view, own in zip(self.views, geometries):
            view.values[:] = [geometry.address for geometry in own]
        plan.backend.upload(pack.device, pack.host)
        self.memory = pack.device


def device_plan(backend, update, layout, slot=1):
    """Return a plan with everything compiled and allocated. `slot` is the one whose norm is looked at."""
    plan = DevicePlan(backend, update, layout)
    tables = _Tables(plan, update)
    plan.kept_alive.append(tables.memory)
    plan.skip = tables.skip
    if update.program.code:
        plan.launches = [_update_launch(plan, update, tables, number) for number in range(len(layout.groups))]
    if layout.groups:
        if update.loss_scale is not None:
            plan.passes.append(_scaling(plan, update, tables))
        if update.norm_is_needed:
            plan.passes += _norm_passes(plan, update, tables, slot)
    return plan


def skipping_together(plans):
    """Return the launch that has all of several plans, whose passes have run, skipped where one is."""
    backend, first = plans[0].backend, plans[0]
    addresses = tuple((plan.skip.address, plan.skipped.storage.address) for plan in plans)
    if first.together is None or first.together[0] != addresses:
        table = backend.allocate((len(plans), 2), np.int64)
        backend.upload(table, np.array(addresses, np.int64))
        first.together = addresses, table
    kernel = backend.sums_kernel("skip_together", "float64", "float64", "float64")
    return kernel, 1, (first.together[1].address, len(plans))


def _update_launch(plan, update, tables, number):
    """Return the launch that updates one group."""
    backend, group, chunks = plan.backend, plan.layout.groups[number], tables.chunks[number]
    n_chunks = len(chunks.values)
    arguments = [plan.tables[number].address, chunks.address, n_chunks, plan.scalars[number].address]
    arguments += [plan.random.address] if any(group.kept) else []
    arguments += [tables.views[number].address] if group.geometries is not None else []
    arguments += [tables.skip.address] if plan.skips else []
    threads = threads_per_chunk(update.program, group.dtypes, group.geometries is not None, group.kept)
    return backend.kernel(backend.text(update, group), backend.stem, "update"), backend.device.blocks(n_chunks, threads), tuple(arguments)


def _scaling(plan, update, tables):
    """Return the launch that multiplies the divisor by the loss scale."""
    scale = update.loss_scale.storage
    kernel = plan.backend.sums_kernel("scale_divisor", scale.dtype.name, "float64", "float64")
    return kernel, 1, (plan.divisor.address, scale.address, tables.divisors.address, len(tables.divisors.values))


def _norm_passes(plan, update, tables, slot):
    """Return the launches that sum the squares of a slot and write the norm-clip factor, or whether the step is skipped."""
    backend, layout = plan.backend, plan.layout
    blocks = backend.device.blocks
    total = plan.settings.values.dtype.name
    sums = backend.allocate((max(1, int(layout.tile_starts[-1])),), total)
    plan.kept_alive.append(sums)
    passes = []
    for group, table, tiles, views in zip(layout.groups, plan.tables, tables.tiles, tables.views):
        kernel = backend.sums_kernel("square_sums", group.dtypes[slot], group.arithmetic, total)
        n_tiles = len(tiles.values)
        geometry = 0 if group.geometries is None else views.address
        arguments = (table.address, tiles.address, n_tiles, slot, table.values.shape[1], sums.address, geometry)
        passes.append((kernel, blocks(n_tiles), arguments))
    n = sums.size
    while n > TILE:
        n_tiles = tile_count(n)
        smaller = backend.allocate((n_tiles,), total)
        plan.kept_alive.append(smaller)
        kernel = backend.sums_kernel("row_sums", total, total, total)
        passes.append((kernel, blocks(n_tiles), (sums.address, 1, n, n_tiles, smaller.address)))
        sums, n = smaller, n_tiles
    if plan.skips:
        kernel = backend.sums_kernel("check_finite", total, total, total)
        passes.append((kernel, 1, (sums.address, n, tables.skip.address, update.skipped.storage.address)))
    if update.clip_norm is not None:
        kernel = backend.sums_kernel("norm_factor", total, total, total)
        passes.append((kernel, 1, (sums.address, n, plan.settings.address, tables.factors.address, len(tables.factors.values))))
    return passes


def _memory_of(tensor):
    """Return the address and dtype of a tensor, as they are now, or None for none."""
    if tensor is None:
        return None
    tensor.storage.refresh()
    return tensor.storage.address, tensor.dtype


def _place(part, index):
    """Return (address, size) of one number of a part."""
    size = part.values.itemsize
    return part.address + index * size, size


def _chunk(device, layout):
    """Return the number of elements of a chunk: large, but small enough that every processor of the GPU gets some."""
    elements = sum(group.elements for group in layout.groups)
    chunk = LARGEST_CHUNK
    while chunk > 1024 and elements < chunk * device.resident_blocks:
        chunk //= 2
    return chunk


def _chunks(group, chunk):
    """Return a group's chunk table; with stochastic rounding, chunks are blocks of the random stream, and a fourth column has their numbers."""
    if not any(group.kept):
        return chunk_table(group.sizes, chunk)
    table = chunk_table(group.sizes, BLOCK)
    return np.column_stack([table, group.first_blocks[table[:, 0]] + table[:, 1] // BLOCK])


def _tile_table(group, layout):
    """Return int64[tiles, 4] for the sums of squares of a group: row, offset, length, place among all tiles of the layout."""
    table = chunk_table(group.sizes, TILE)
    first = np.asarray(layout.tile_starts, np.int64)[group.rows]
    return np.column_stack([table, first[table[:, 0]] + table[:, 1] // TILE])
