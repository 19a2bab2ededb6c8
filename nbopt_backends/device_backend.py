"""DeviceBackend: fused updates over arrays in a GPU's memory. What drives the device, and compiles for it, is the subclass's.

A step's launches take addresses of tables in device memory. Those that stay (chunks, tiles, geometries) are copied there when a plan is made;
those that change (scalars, addresses) lie one after the other in one image on the host, and what has changed in it is copied by one
asynchronous copy from pinned memory. The host reads nothing back in a step, and waits for nothing.
"""

import math
import sys
import threading
from functools import partial

import numpy as np

from nbopt.errors import ArgumentError, LayoutError, ShapeError
from nbopt.ops import compute_dtype
from nbopt.tensor import Tensor
from nbopt.trace import Program
from nbopt.update import Update
from nbopt_backends import source
from nbopt_backends.chunks import chunk_table
from nbopt_backends.cuda_kernels import update_text
from nbopt_backends.cuda_reductions import sums_text
from nbopt_backends.device_array import DeviceArray, from_foreign
from nbopt_backends.host import ArrayBackend, convert, given_values
from nbopt_backends.plan import MOST_LAYOUTS, Layout, Plan, layout_key
from nbopt_backends.reduction import TILE, tile_count
from nbopt_backends.xoroshiro import BLOCK

_MOST_ASSIGNMENTS = 256  # as on the CPU
_FILL = Program(("out",), (("store", 0, ~0),), 1)
_COPY = Program(("out", "x"), (("load", 1), ("store", 0, 0)), 0)
_FACTOR = Program(("grad",), (), 1, 0)  # no instructions: only the norm-clip factor, scalar 0
_KINDS = {"max": 0, "min": 1, "argmax": 2, "argmin": 3}


class Pack:
    """Arrays one after the other in one piece of memory, each at a multiple of 16 bytes."""

    def __init__(self):
        self._parts = []
        self.size = 0

    def add(self, array):
        """Add an array; return its offset in bytes."""
        offset = self.size
        self._parts.append((offset, array))
        self.size += -(-array.nbytes // 16) * 16
        return offset

    def image(self):
        """Return all of them as a uint8 array."""
        image = np.zeros(max(self.size, 16), np.uint8)
        for offset, array in self._parts:
            image[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return image


class DevicePlan(Plan):
    """A plan whose tables are in device memory.

    Attributes
    ----------
    image : numpy.ndarray
        uint8: what changes from step to step, first the scalars of each group, then what the norm clip needs, then the address tables.
    memory : DeviceArray
        The same on the device.
    scalars : list of numpy.ndarray
        Views of the image: each group's, in its arithmetic.
    settings : numpy.ndarray
        View of the image: the norm to clip to, the divisor.
    divisor : numpy.ndarray
        View of the image: the divisor without a loss scale that is on the device, float64.
    random : numpy.ndarray or None
        View of the image: the seed and the update count, where anything is rounded stochastically.
    scalar_bytes : int
        Where the address tables begin.
    new_tables, new_scalars : bool
        Whether the image differs from the device's memory there.
    pointers : dict
        Index in `Update.tensors` -> address, for tensors whose memory can be exchanged under the same object.
    kept_alive : list
        What the launches' addresses point to.
    """

    def __init__(self, backend, update, layout):
        super().__init__(backend, update, layout, [], [])
        self.loss_scale, self.skipped = update.loss_scale, update.skipped
        self.new_tables = self.new_scalars = True
        self.pointers = {}

    def fits(self, backend, update):
        """Return what `Plan.fits` does. The launches have the addresses of the loss scale and of the counter."""
        return super().fits(backend, update) and self.loss_scale is update.loss_scale and self.skipped is update.skipped

    def follow(self, update):
        """Do what `Plan.follow` does, and look at pointers, unless the caller has."""
        before = self.layout.pointed_at
        if not super().follow(update):
            return False
        if update.addresses is None:
            return not self.moved(update)
        self.new_tables |= self.layout.pointed_at != before
        return True

    def replace(self, update):
        """Do what `Plan.replace` does, and note that the tables must be copied."""
        before = self.serials
        if not super().replace(update):
            return False
        self.new_tables = True
        tensors = update.tensors
        changed = [index for index, (old, new) in enumerate(zip(before, self.serials)) if old != new]
        backend, device = self.backend, self.backend.device_id
        for index in changed:
            storage = tensors[index].storage
            if storage.home is not backend and storage.home.device_id != device:
                self.serials = None  # looked at afresh, it is refused
                return False
            self.note(index, storage)
        return True

    def note(self, index, storage):
        """Remember the address of an array whose memory can be exchanged."""
        if storage.pointer is not None:
            self.pointers[index] = storage.address
        elif self.pointers:
            self.pointers.pop(index, None)

    def moved(self, update):
        """Return whether a tensor of the update has other memory than the tables say."""
        if not self.pointers:
            return False
        tensors = update.tensors
        return any(tensors[index].storage.pointer() != address for index, address in self.pointers.items())

    def set_scalars(self, values):
        """Write each group's scalars into the image."""
        for own in self.scalars:
            new = np.array(values, own.dtype)
            if new.tobytes() != own[: len(new)].tobytes():
                own[: len(new)] = new
                self.new_scalars = True

    def set_settings(self, clip_norm, divisor):
        """Write what the norm clip needs into the image."""
        new = np.array([clip_norm, divisor], self.settings.dtype)
        if new.tobytes() != self.settings.tobytes() or self.divisor[0] != divisor:
            self.settings[:], self.divisor[0] = new, divisor
            self.new_scalars = True


class UploadRing:
    """Pinned buffers for asynchronous copies, used in turn: one is written again only when the copy from it is done.

    Parameters
    ----------
    device : object
        See `numba_cuda.Device`.
    """

    length = 16

    def __init__(self, device):
        self._device = device
        self._buffers = [None] * self.length
        self._events = [None] * self.length
        self._next = 0

    def upload(self, address, values, stream):
        """Queue a copy of `values`, uint8, to a device address."""
        turn, self._next = self._next, (self._next + 1) % self.length
        if self._events[turn] is None:
            self._events[turn] = self._device.event()
        else:
            self._device.wait_on_host(self._events[turn])  # done long ago, unless the device is this many copies behind
        buffer = self._buffers[turn]
        if buffer is None or len(buffer) < len(values):
            buffer = self._buffers[turn] = self._device.pinned(max(4096, 2 * len(values)))
        buffer[: len(values)] = values
        self._device.copy_in(address, buffer[: len(values)], stream)
        self._device.record(self._events[turn], stream)


class DeviceBackend(ArrayBackend):
    """A backend over device memory. A subclass opens devices and compiles.

    Attributes
    ----------
    device : object
        Drives the GPU: see `numba_cuda.Device`.
    stream : int or None
        The stream that steps run on, by its handle; 0 is the default stream. None: the current stream of the library that the arrays come from
        (PyTorch's or CuPy's; the default stream with others). Assigning takes a handle or any library's stream object.
    """

    memory = "cuda"
    dialect = None

    _functions: dict = {}
    _compile_lock = threading.RLock()

    def __init__(self, **options):
        super().__init__(**options)
        self.device = self.open_device(self.device_id)
        self._local = threading.local()  # plans hold addresses between prepare and launch, so each Python thread has its own
        self._stream_lock = threading.Lock()
        self._given_stream = None
        self._library = None
        self._last_stream = 0
        self._waited_for = set()
        self._ordering_event = None

    def open_device(self, number):
        """Return what drives GPU `number`."""
        raise NotImplementedError

    # --- streams ---

    @property
    def stream(self):
        """Int or None : see the class."""
        return self._given_stream

    @stream.setter
    def stream(self, value):
        self._given_stream = None if value is None else _stream_handle(value)

    def used_stream(self):
        """Return the handle of the stream that the next launch runs on."""
        if self._given_stream is not None:
            return self._given_stream
        library = sys.modules.get(self._library) if self._library else None
        if library is None:
            return 0
        if self._library == "torch":
            return library.cuda.current_stream(self.device_id).cuda_stream
        return library.cuda.get_current_stream().ptr

    def follow(self, library):
        """Take a library's current stream from now on, where none was given."""
        self._library = library

    def wait_for(self, stream):
        """Let the next launch wait for what a producer has queued on its stream, as __cuda_array_interface__ gives it."""
        if stream not in (None, 1):
            self._waited_for.add(int(stream))

    def order_before(self, stream):
        """Let a consumer's stream wait for what is queued here."""
        with self.device.entered():
            self._order(self._last_stream, stream)

    def _order(self, first, then):
        if first != then:
            if self._ordering_event is None:
                self._ordering_event = self.device.event()
            self.device.record(self._ordering_event, first)
            self.device.wait(self._ordering_event, then)

    def _ready_stream(self):
        """Return the stream to launch on, after what must come before it."""
        stream = self.used_stream()
        if stream != self._last_stream or self._waited_for:
            with self._stream_lock:
                self._order(self._last_stream, stream)
                while self._waited_for:
                    self._order(self._waited_for.pop(), stream)
                self._last_stream = stream
        return stream

    def synchronize(self):
        """Wait until everything that was launched is done. An error of a kernel appears here."""
        with self.device.entered():
            self.device.synchronize(self._last_stream)

    # --- arrays ---

    def check_device(self, number):
        """Raise LayoutError where an array is on another GPU than the backend's."""
        if number is not None and number != self.device_id:
            raise LayoutError(
                f"the array is on GPU {number}, and the backend works on GPU {self.device_id}: move it there, or make a backend with "
                f"device_id={number}"
            )

    def adopt(self, obj):
        """Return `obj` as a DeviceArray that shares its memory."""
        if isinstance(obj, DeviceArray):
            self.check_device(obj.home.device_id)
            self.wait_for(obj.home.used_stream())
            return obj
        array = from_foreign(self, obj)
        if array.address % array.dtype.itemsize:
            raise LayoutError("the array's memory is not aligned to its elements: make a copy of it")
        return array

    def allocate(self, shape, dtype):
        """Return a new DeviceArray in C order."""
        return self._allocated(shape, np.dtype(dtype))

    def _allocated(self, shape, dtype):
        with self.device.entered():
            address, owner = self.device.allocate(max(16, math.prod(shape) * dtype.itemsize))
        return DeviceArray(self, address, tuple(shape), dtype, owner=owner)

    def _upload(self, target, values):
        """Copy a NumPy array to a contiguous DeviceArray of the same size, and wait for it."""
        with self.device.entered():
            stream = self._ready_stream()
            self.device.copy_in(target.address, values.reshape(-1).view(np.uint8), stream)
            self.device.synchronize(stream)

    def picklable(self, storage):
        """Return the values as a NumPy array."""
        return self._downloaded(self._contiguous(storage))

    def to_numpy(self, tensor):
        """Return a copy of the tensor's values as a NumPy array."""
        tensor.storage.refresh()
        return self._downloaded(self._contiguous(tensor.storage))

    def _downloaded(self, storage):
        values = np.empty(storage.shape, storage.dtype)
        if values.size:
            with self.device.entered():
                self.device.copy_out(values, storage.address, self._ready_stream())
        return values

    def _contiguous(self, storage):
        """Return `storage`, or a copy of it in C order where it is strided."""
        if storage.c_contiguous:
            return storage
        copy = self.allocate(storage.shape, storage.dtype)
        self._run(_COPY, [], [copy, storage])
        return copy

    def _run(self, program, scalars, storages):
        """Run a program of the backend's own over one tuple of arrays. It is no update of the user's, so the update count stays."""
        self.prepare(Update(program, scalars, None, lambda update: [[Tensor(self, storage)] for storage in storages]))(0)

    def set_values(self, tensor, values):
        """Copy the values of an array, a tensor or a number into the tensor."""
        target = tensor.storage
        target.refresh()
        if target.readonly:
            raise LayoutError(f"{tensor!r} is read-only")
        if isinstance(values, Tensor) and values.be is self:
            if np.broadcast_shapes(values.shape, tensor.shape) != tensor.shape:
                raise ShapeError(f"values of shape {values.shape} don't fit {tensor!r}")
            self._run(_COPY, [], [target, values.storage])
            return
        given = given_values(tensor, values)
        host = np.empty(tensor.shape if given.ndim else (), tensor.dtype)
        convert(given, host, tensor)
        if given.ndim == 0:
            self._fill(target, float(host))
            return
        if host.size:
            contiguous = target if target.c_contiguous else self.allocate(host.shape, host.dtype)
            self._upload(contiguous, host)
            if contiguous is not target:
                self._run(_COPY, [], [target, contiguous])

    def _fill(self, target, value):
        if value == 0 and math.copysign(1, value) > 0 and target.c_contiguous:
            if target.size:
                with self.device.entered():
                    self.device.zero(target.address, target.nbytes, self._ready_stream())
        else:
            self._run(_FILL, [value], [target])

    def array_of(self, tensor):
        """Return a NumPy array with the tensor's address and layout. Its values are out of the host's reach."""
        storage = tensor.storage
        if not isinstance(storage, DeviceArray):
            raise LayoutError(f"{tensor!r} is in the host's memory, and this backend works on the GPU's: be.array(x) makes a copy there")
        self.check_device(storage.home.device_id)
        storage.refresh()
        return storage.layout()

    def copied(self, tensor):
        """Return what `array_of` does for a copy of the tensor."""
        copy = self.allocate(tensor.shape, tensor.dtype)
        self._run(_COPY, [], [copy, tensor.storage])
        return copy.layout()

    # --- steps ---

    def prepare(self, update):
        """Return a function that queues the update on the device: one kernel for each combination of dtypes."""
        with self.device.entered():
            plan = self._plan(update)
        return partial(self._step, plan, update)

    def _step(self, plan, update, count):
        with self.device.entered():
            plan.set_scalars(update.scalars)
            if plan.random is not None:
                plan.random[:] = self.rng_seed, count
                plan.new_scalars = True
            if plan.passes:
                plan.set_settings(update.clip_norm or 1.0, update.divisor)
            self._queue(plan)

    def _queue(self, plan):
        stream = self._ready_stream()
        if plan.new_tables or plan.new_scalars:
            size = len(plan.image) if plan.new_tables else plan.scalar_bytes
            self._ring().upload(plan.memory.address, plan.image[:size], stream)
            plan.new_tables = plan.new_scalars = False
        for kernel, blocks, arguments in (*plan.passes, *plan.launches):
            self.launches += 1
            self.device.launch(kernel, blocks, stream, arguments)

    def _ring(self):
        try:
            return self._local.ring
        except AttributeError:
            self._local.ring = UploadRing(self.device)
            return self._local.ring

    def _plan(self, update):
        plans = update.plans
        if plans is None:
            known = self._local.__dict__.setdefault("assignments", {})
            if len(known) > _MOST_ASSIGNMENTS:
                known.clear()
            plans = known.setdefault(update.program, [])
        elif update.key is not None:
            for plan in plans:
                if plan.fits(self, update) and plan.follow(update):
                    return plan
        arrays, kept = self.checked_columns(update)
        key = layout_key(arrays, kept, update.listing)
        for plan in plans:
            if plan.layout.key == key and plan.fits(self, update):
                break
        else:
            plan = self._new_plan(update, Layout(arrays, update.program.written(), kept, update.listing, self.memory), slot=1)
            plans.insert(0, plan)
            del plans[MOST_LAYOUTS:]
        plan.serials = None  # an interrupt from here on must not leave old serials with new addresses
        plan.layout.refresh(arrays)
        plan.new_tables = True
        plan.pointers = {}
        if update.key is not None and update.addresses is None:
            for index, tensor in enumerate(update.tensors):
                plan.note(index, tensor.storage)
        plan.serials = update.key
        return plan

    def _new_plan(self, update, layout, slot):
        """Return a plan with everything compiled and allocated. `slot` is the one whose norm is looked at."""
        program, groups = update.program, layout.groups
        total = compute_dtype(group.arithmetic for group in groups).name
        moving = Pack()
        scalars = [moving.add(np.zeros(max(program.n_scalars, 1), group.arithmetic)) for group in groups]
        settings = moving.add(np.zeros(2, total))
        divisor = moving.add(np.zeros(1, np.float64))
        random = moving.add(np.zeros(2, np.uint64))
        scalar_bytes = moving.size
        tables = [moving.add(group.table) for group in groups]

        plan = DevicePlan(self, update, layout)
        plan.image = moving.image()
        plan.memory = self._allocated(plan.image.shape, plan.image.dtype)
        plan.scalar_bytes = scalar_bytes
        plan.settings = plan.image[settings:][: 2 * np.dtype(total).itemsize].view(total)
        plan.divisor = plan.image[divisor:][:8].view(np.float64)
        plan.random = plan.image[random:][:16].view(np.uint64) if any(any(group.kept) for group in groups) else None
        plan.scalars = []
        for group, offset, table in zip(groups, scalars, tables):
            size = max(program.n_scalars, 1) * np.dtype(group.arithmetic).itemsize
            plan.scalars.append(plan.image[offset : offset + size].view(group.arithmetic))
            # From here on the layout writes addresses straight into the image.
            group.table = plan.image[table : table + group.table.nbytes].view(np.int64).reshape(group.table.shape)
        here = plan.memory.address

        def scalar(index):
            """Return where one of the program's scalars is in each group, and its size."""
            sizes = [np.dtype(group.arithmetic).itemsize for group in groups]
            return [(here + offset + index * size, size) for offset, size in zip(scalars, sizes)]

        fixed = Pack()
        chunk_tables = [self._chunks(group, layout) for group in groups]
        chunks = [fixed.add(table) for table in chunk_tables]
        geometries = [[fixed.add(geometry) for geometry in group.geometries or ()] for group in groups]
        views = [fixed.add(np.zeros(len(offsets), np.int64)) for offsets in geometries]
        skip = fixed.add(np.zeros(1, np.int64))
        tile_tables = [_tile_table(group, layout) for group in groups] if update.norm_is_needed else []
        tiles = [fixed.add(table) for table in tile_tables]
        factors = divisors = 0
        if update.clip_norm is not None:
            factors = fixed.add(np.array(scalar(program.factor), np.int64))
        if update.loss_scale is not None:
            size = np.dtype(total).itemsize
            divisors = fixed.add(np.array([*scalar(update.divisor_index), (here + settings + size, size)], np.int64))
        image = fixed.image()
        memory = self._allocated(image.shape, image.dtype)
        for offset, places in zip(views, geometries):
            image[offset : offset + 8 * len(places)].view(np.int64)[:] = np.array(places, np.int64) + memory.address
        self._upload(memory, image)
        there = memory.address
        plan.kept_alive = [memory]

        if program.code:
            for number, group in enumerate(groups):
                arguments = [here + tables[number], there + chunks[number], len(chunk_tables[number]), here + scalars[number]]
                arguments += [here + random] if any(group.kept) else []
                arguments += [there + views[number]] if group.geometries is not None else []
                arguments += [there + skip] if plan.skips else []
                kernel = self._function(self._text(program, group, plan.skips), "cuda_kernel", "update", len(arguments))
                plan.launches.append((kernel, self.device.blocks(len(chunk_tables[number])), tuple(arguments)))
        if not groups:
            return plan
        text = self._sums_text(total, total, total)
        if update.loss_scale is not None:
            scale = update.loss_scale.storage
            scaling = self._function(self._sums_text(scale.dtype.name, "float64", "float64"), "cuda_sums", "scale_divisor", 4)
            plan.passes.append((scaling, 1, (here + divisor, scale.address, there + divisors, len(groups) + 1)))
        if update.norm_is_needed:
            sums = self._allocated((max(1, int(layout.tile_starts[-1])),), np.dtype(total))
            plan.kept_alive.append(sums)
            for number, group in enumerate(groups):
                kernel = self._function(self._sums_text(group.dtypes[slot], group.arithmetic, total), "cuda_sums", "square_sums", 7)
                geometry = there + views[number] if group.geometries is not None else 0
                width, n_tiles = group.table.shape[1], len(tile_tables[number])
                arguments = (here + tables[number], there + tiles[number], n_tiles, slot, width, sums.address, geometry)
                plan.passes.append((kernel, self.device.blocks(n_tiles), arguments))
            n = sums.size
            while n > TILE:
                n_tiles = tile_count(n)
                smaller = self._allocated((n_tiles,), sums.dtype)
                plan.kept_alive.append(smaller)
                kernel = self._function(text, "cuda_sums", "row_sums", 5)
                plan.passes.append((kernel, self.device.blocks(n_tiles), (sums.address, 1, n, n_tiles, smaller.address)))
                sums, n = smaller, n_tiles
            if plan.skips:
                kernel = self._function(text, "cuda_sums", "check_finite", 4)
                plan.passes.append((kernel, 1, (sums.address, n, there + skip, update.skipped.storage.address)))
            if update.clip_norm is not None:
                kernel = self._function(text, "cuda_sums", "norm_factor", 5)
                plan.passes.append((kernel, 1, (sums.address, n, here + settings, there + factors, len(groups))))
        return plan

    def _chunks(self, group, layout):
        """Return a group's chunk table; with stochastic rounding, chunks are blocks of the random stream, and a fourth column has their numbers."""
        if not any(group.kept):
            return chunk_table(group.sizes, self._chunk(layout))
        table = chunk_table(group.sizes, BLOCK)
        return np.column_stack([table, group.first_blocks[table[:, 0]] + table[:, 1] // BLOCK])

    def _chunk(self, layout):
        """Return the number of elements of a chunk: large, but small enough that every processor of the GPU gets some."""
        elements = sum(group.elements for group in layout.groups)
        chunk = 16384
        while chunk > 1024 and elements < chunk * self.device.most_blocks:
            chunk //= 2
        return chunk

    # --- compiled code ---

    def _text(self, program, group, skips):
        strided = group.geometries is not None
        return update_text(program, self._dialect(), group.dtypes, group.arithmetic, strided, group.kept, skips) + self._mark()

    def _sums_text(self, dtype, arithmetic, total):
        return sums_text(self._dialect(), dtype, arithmetic, total) + self._mark()

    def _dialect(self):
        raise NotImplementedError

    def _mark(self):
        return "\n# fast_math\n" if self.fast_math else ""

    def _function(self, text, stem, name, count):
        """Return one kernel of a generated module, which takes `count` int64 arguments, compiled at first use."""
        key = (text, name, self.device.key)
        found = self._functions.get(key)
        if found is None:
            with self._compile_lock:
                module = source.load(text, stem)
                with self.device.entered():
                    found = source.compiled(lambda cache: self.compile(module, name, count, cache), module)
                self._functions[key] = found
        return found

    def compile(self, module, name, count, cache):
        """Return a compiled kernel of a module, through the cache on disk if `cache` says so."""
        raise NotImplementedError

    def explain(self, update):
        """Return the texts of the update's kernels."""
        arrays, kept = self.checked_columns(update)
        texts = []
        for group in Layout(arrays, update.program.written(), kept, memory=self.memory).groups:
            text = self._text(update.program, group, update.skipped is not None)
            texts.append(f"# {source.load(text, 'cuda_kernel').__file__}\n{text}")
        return texts

    # --- reductions ---

    def norm_factor(self, grads, clip_norm):
        """Return the factor that clips the norm of `grads`, a list of tensors, to `clip_norm`; a float."""
        with self.device.entered():
            arrays = [[self.array_of(grad) for grad in grads]]
            layout = Layout(arrays, [], memory=self.memory)
            if not layout.groups:
                return 1.0
            plan = self._new_plan(Update(_FACTOR, [1.0], None, None, clip_norm=clip_norm), layout, slot=0)
            plan.layout.refresh(arrays)
            plan.set_settings(clip_norm, self.bsz)
            self._queue(plan)
            factor = np.empty(1, plan.settings.dtype)
            number = [group.arithmetic for group in layout.groups].index(factor.dtype.name)
            offset = plan.scalars[number].__array_interface__["data"][0] - plan.image.__array_interface__["data"][0]
            self.device.copy_out(factor, plan.memory.address + offset, self._ready_stream())
        return float(factor[0])

    def reduce(self, op, tensor, axis, shape):
        """Reduce a tensor over an axis (None: over all elements) and return a new tensor of shape `shape`."""
        storage = tensor.storage
        storage.refresh()
        n = tensor.size if axis is None else tensor.shape[axis]
        m = math.prod(shape)
        if axis is not None:
            storage = storage.viewed(np.moveaxis(storage.layout(), axis, -1))
        if storage.dtype.itemsize == 2:  # and the result stays float32, for what it is used in
            matrix = self.allocate(storage.shape, np.float32)
            self._run(_COPY, [], [matrix, storage])
        else:
            matrix = self._contiguous(storage)
        text = self._sums_text(matrix.dtype.name, matrix.dtype.name, matrix.dtype.name)
        with self.device.entered():
            stream = self._ready_stream()
            while op == "sum":
                tiles = tile_count(n)
                result = self._allocated((m, tiles), matrix.dtype)
                if m:
                    kernel = self._function(text, "cuda_sums", "row_sums", 5)
                    self.launches += 1
                    self.device.launch(kernel, self.device.blocks(m * tiles), stream, (matrix.address, m, n, tiles, result.address))
                if tiles == 1:
                    break
                matrix, n = result, tiles
            else:
                result = self._allocated((m, 1), matrix.dtype)
                if m:
                    kernel = self._function(text, "cuda_sums", "extremes", 5)
                    self.launches += 1
                    self.device.launch(kernel, self.device.blocks(m), stream, (matrix.address, m, n, _KINDS[op], result.address))
        return Tensor(self, DeviceArray(self, result.address, tuple(shape), result.dtype, owner=result.owner))


def _tile_table(group, layout):
    """Return int64[tiles, 4] for the sums of squares of a group: row, offset, length, place among all tiles of the layout."""
    table = chunk_table(group.sizes, TILE)
    first = np.asarray(layout.tile_starts, np.int64)[group.rows]
    return np.column_stack([table, first[table[:, 0]] + table[:, 1] // TILE])


def _stream_handle(value):
    """Return the handle of a stream: an int, or an object of PyTorch's, CuPy's, Numba's, or with __cuda_stream__."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return 0 if value == 1 else value
    if hasattr(value, "__cuda_stream__"):
        return int(value.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, Numba
        if hasattr(value, name):
            handle = getattr(value, name)
            return int(getattr(handle, "value", handle) or 0)
    raise ArgumentError(f"a stream is a handle (an int), None, or a stream object of PyTorch, CuPy or Numba; not {value!r}")
