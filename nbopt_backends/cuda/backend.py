"""DeviceBackend: arrays in a GPU's memory, updates of them, and reductions. What drives the device, and compiles for it, is the subclass's."""

import math
import threading
from functools import partial

import numpy as np

from nbopt.arrays.tensor import Tensor
from nbopt.errors import LayoutError
from nbopt.interface.update import Update
from nbopt.language.program import Program
from nbopt_backends.arrays.checks import convert, given_values, misfit
from nbopt_backends.arrays.device import DeviceArray, from_foreign
from nbopt_backends.cuda.kernels import update_text
from nbopt_backends.cuda.plan import device_plan, skipping_together
from nbopt_backends.cuda.reductions import sums_text
from nbopt_backends.cuda.streams import Streams, UploadRing, stream_handle
from nbopt_backends.lowering import source
from nbopt_backends.meaning.reduction import tile_count
from nbopt_backends.plans.compiled import CompiledBackend
from nbopt_backends.plans.plan import Layout, layout_key

_FILL = Program(("out",), (("store", 0, ~0),), 1)
_COPY = Program(("out", "x"), (("load", 1), ("store", 0, 0)), 0)
_FACTOR = Program(("grad",), (), 1, 0)  # no instructions: only the norm-clip factor, scalar 0
_KINDS = {"max": 0, "min": 1, "argmax": 2, "argmin": 3}


class DeviceBackend(CompiledBackend):
    """A backend over device memory. A subclass opens devices and compiles.

    Attributes
    ----------
    device : object
        Drives the GPU: see `numba_cuda.Device`.
    streams : Streams
        Which of the GPU's streams is launched on.
    stream : int or None
        The stream that steps run on, by its handle; 0 is the default stream. None: the current stream of the library that the arrays come from
        (PyTorch's or CuPy's; the default stream with others). Assigning takes a handle or any library's stream object.
    """

    memory = "cuda"
    stem = "cuda_kernel"

    _functions: dict = {}
    _compile_lock = threading.RLock()

    def __init__(self, **options):
        super().__init__(**options)
        self.device = self.open_device(self.device_id)
        self.streams = Streams(self.device, self.device_id)
        self._rings = threading.local()

    def open_device(self, number):
        """Return what drives GPU `number`."""
        raise NotImplementedError

    # --- streams ---

    @property
    def stream(self):
        """Int or None : see the class."""
        return self.streams.given

    @stream.setter
    def stream(self, value):
        self.streams.given = None if value is None else stream_handle(value)

    def synchronize(self):
        """Wait until everything that was launched is done. An error of a kernel appears here."""
        with self.device.entered():
            self.device.synchronize(self.streams.last)

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
            self.streams.wait_for(obj.home.streams.current())
            return obj
        array = from_foreign(self, obj)
        if array.address % array.dtype.itemsize:
            raise LayoutError("the array's memory is not aligned to its elements: make a copy of it")
        return array

    def allocate(self, shape, dtype):
        """Return a new DeviceArray in C order."""
        dtype = np.dtype(dtype)
        with self.device.entered():
            address, owner = self.device.allocate(max(16, math.prod(shape) * dtype.itemsize))
        return DeviceArray(self, address, tuple(shape), dtype, owner=owner)

    def upload(self, target, values):
        """Copy a NumPy array to a contiguous DeviceArray of the same size, and wait for it."""
        with self.device.entered():
            stream = self.streams.ready()
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
                self.device.copy_out(values, storage.address, self.streams.ready())
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
        self.check_writable(tensor)
        if isinstance(values, Tensor) and values.be is self:
            if not _broadcasts(values.shape, tensor.shape):
                raise misfit(values.shape, tensor)
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
            self.upload(contiguous, host)
            if contiguous is not target:
                self._run(_COPY, [], [target, contiguous])

    def _fill(self, target, value):
        if value == 0 and math.copysign(1, value) > 0 and target.c_contiguous:
            if target.size:
                with self.device.entered():
                    self.device.zero(target.address, target.nbytes, self.streams.ready())
        else:
            self._run(_FILL, [value], [target])

    def array_of(self, tensor):
        """Return the tensor's DeviceArray, with the address of now."""
        storage = tensor.storage
        if not isinstance(storage, DeviceArray):
            raise LayoutError(
                f"{tensor!r} is in the host's memory, and this backend works on the GPU's: nbopt.get_backend().array(x) makes a copy there"
            )
        self.check_device(storage.home.device_id)
        storage.refresh()
        return storage

    def restrided(self, storage, shape, strides):
        """Return a view of a `DeviceArray`."""
        return storage.view(0, shape, strides)

    def copied(self, tensor):
        """Return what `array_of` does for a copy of the tensor."""
        copy = self.allocate(tensor.shape, tensor.dtype)
        self._run(_COPY, [], [copy, tensor.storage])
        return copy

    def broadcast(self, array, shape):
        """Return a view of another shape."""
        return array.broadcast(shape)

    # --- steps ---

    def prepare(self, update):
        """Return a function that queues the update on the device: one kernel for each combination of dtypes."""
        with self.device.entered():
            plan = self.plan_of(update)
        if update.verdict is not None:
            update.verdict.looks.append(partial(self._look, plan, update))
        return partial(self._step, plan, update)

    def check_together(self, updates):
        """Do what `ArrayBackend.check_together` does, and have the updates that look at their gradients skipped together, on the device."""
        super().check_together(updates)
        verdict = next((update.verdict for update in updates if update.verdict is not None), None)
        plans = [look.args[0] for look in verdict.looks if look.args[0].passes] if verdict else []  # without elements there is nothing to skip
        if len(plans) > 1:
            with self.device.entered():
                launch = skipping_together(plans)
            verdict.looks.append(partial(self._skip_together, launch))

    def _step(self, plan, update, count):
        with self.device.entered():
            if update.verdict is None:
                self._look(plan, update, count)
            else:
                update.verdict.finite(count)  # the kernels find out what it says
            self._run_launches(plan.launches, self.streams.ready())

    def _look(self, plan, update, count):
        """Bring the plan's tables up to date and run its passes; return True, since only the device knows what they find."""
        plan.set_scalars(update.scalars)
        if plan.rounds:
            plan.random.values[:] = self.rng_seed, count
            plan.new_scalars = True
        if plan.passes:
            plan.set_settings(update.clip_norm or 1.0, update.divisor)
        self._run_passes(plan)
        return True

    def _run_passes(self, plan):
        """Bring the device's copy of the plan's image up to date, and run what looks at the gradients."""
        stream = self.streams.ready()
        if plan.new_tables or plan.new_scalars:
            changed = plan.image.host if plan.new_tables else plan.image.host[: plan.scalar_bytes]
            self._ring().upload(plan.image.device.address, changed, stream)
            plan.new_tables = plan.new_scalars = False
        self._run_launches(plan.passes, stream)

    def _skip_together(self, launch, count):
        """Queue what gives all updates of a step the same flag; return True, as a look does."""
        self._run_launches([launch], self.streams.ready())
        return True

    def _run_launches(self, launches, stream):
        for kernel, blocks, arguments in launches:
            self.launches += 1
            self.device.launch(kernel, blocks, stream, arguments)

    def _ring(self):
        try:
            return self._rings.own
        except AttributeError:
            self._rings.own = UploadRing(self.device)
            return self._rings.own

    def new_plan(self, update, layout):
        """Return a plan with everything compiled and allocated."""
        return device_plan(self, update, layout)

    # --- compiled code ---

    def text(self, update, group):
        """Return the text of the kernel of an update's program for a group of its tensors."""
        strided, skips = group.geometries is not None, update.skipped is not None
        return self.marked(update_text(update.program, self._dialect(), group.dtypes, group.arithmetic, strided, group.kept, skips))

    def sums_kernel(self, name, dtype, arithmetic, total):
        """Return a kernel of `cuda_reductions`; the dtypes are those of `sums_text`."""
        return self.kernel(self.marked(sums_text(self._dialect(), dtype, arithmetic, total)), "cuda_sums", name)

    def _dialect(self):
        raise NotImplementedError

    def kernel(self, text, stem, name):
        """Return one kernel of a generated module, all of whose arguments are int64, compiled at first use."""
        key = (text, name, self.device.key)
        found = self._functions.get(key)
        if found is None:
            with self._compile_lock:
                module = source.load(text, stem)
                with self.device.entered():
                    found = source.compiled(lambda cache: self.compile(getattr(module, name), cache), module)
                self._functions[key] = found
        return found

    def compile(self, function, cache):
        """Return a compiled kernel, through the cache on disk if `cache` says so."""
        raise NotImplementedError

    # --- reductions ---

    def norm_factor(self, grads, clip_norm):
        """Return the factor that clips the norm of `grads`, a list of tensors, to `clip_norm`; a float."""
        with self.device.entered():
            arrays = [[self.array_of(grad) for grad in grads]]
            layout = Layout(arrays, [], layout_key(arrays), self.memory)
            if not layout.groups:
                return 1.0
            plan = device_plan(self, Update(_FACTOR, [1.0], None, None, clip_norm=clip_norm), layout, slot=0)
            plan.layout.refresh(arrays)
            plan.set_settings(clip_norm, self.bsz)
            self._run_passes(plan)
            factor = np.empty(1, plan.settings.values.dtype)
            written = next(part for part in plan.scalars if part.values.dtype == factor.dtype)
            self.device.copy_out(factor, written.address, self.streams.ready())
        return float(factor[0])

    def reduce(self, op, tensor, axis, shape):
        """Reduce a tensor over an axis (None: over all elements) and return a new tensor of shape `shape`."""
        storage = tensor.storage
        storage.refresh()
        n = tensor.size if axis is None else tensor.shape[axis]
        m = math.prod(shape)
        if axis is not None:
            storage = storage.with_axis_last(axis)
        if storage.dtype.itemsize == 2:  # and the result stays float32, for what it is used in
            matrix = self.allocate(storage.shape, np.float32)
            self._run(_COPY, [], [matrix, storage])
        else:
            matrix = self._contiguous(storage)
        dtype = matrix.dtype.name
        with self.device.entered():
            stream = self.streams.ready()
            while op == "sum":
                tiles = tile_count(n)
                result = self.allocate((m, tiles), matrix.dtype)
                if m:
                    kernel = self.sums_kernel("row_sums", dtype, dtype, dtype)
                    self.launches += 1
                    self.device.launch(kernel, self.device.blocks(m * tiles), stream, (matrix.address, m, n, tiles, result.address))
                if tiles == 1:
                    break
                matrix, n = result, tiles
            else:
                result = self.allocate((m, 1), matrix.dtype)
                if m:
                    kernel = self.sums_kernel("extremes", dtype, dtype, dtype)
                    self.launches += 1
                    self.device.launch(kernel, self.device.blocks(m), stream, (matrix.address, m, n, _KINDS[op], result.address))
        return Tensor(self, DeviceArray(self, result.address, tuple(shape), result.dtype, owner=result.owner))


def _broadcasts(shape, target):
    """Return whether values of one shape broadcast to another, as in NumPy."""
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False
