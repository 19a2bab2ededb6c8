"""DeviceBackend: arrays in a GPU's memory, updates of them, and reductions.

What drives the device, and compiles for it, is the subclass's.
"""

import math
import threading
from operator import is_

import numpy as np

from nbopt.arrays.tensor import Tensor
from nbopt.errors import LayoutError
from nbopt.interface.update import Update
from nbopt.language.program import Program
from nbopt_backends.arrays.checks import convert, given_values, misfit
from nbopt_backends.arrays.device import DeviceArray, from_foreign
from nbopt_backends.cuda.capture import captured, tell_of_changes
from nbopt_backends.cuda.counter import Counter
from nbopt_backends.cuda.launches import Kernel
from nbopt_backends.cuda.plan import DevicePlan
from nbopt_backends.cuda.reductions import sums_text
from nbopt_backends.cuda.stages import joined, planned_together
from nbopt_backends.cuda.streams import Rings, Streams, stream_handle
from nbopt_backends.lowering import source
from nbopt_backends.meaning.tree import tiles_of
from nbopt_backends.plans.compiled import CompiledBackend
from nbopt_backends.plans.launch import Launch

_FILL = Program.of(("out",), (("store", 0, ~0, 0),), 1)
_COPY = Program.of(("out", "x"), (("load", 1), ("store", 0, 0, 0)))
_KINDS = {"max": 0, "min": 1, "argmax": 2, "argmin": 3}


class DeviceLaunch(Launch):
    """A step that is ready to be queued; `joined` is a `nbopt_backends.cuda.stages.Joined`."""

    __slots__ = ()

    def __init__(self, backend, plans, updates, joined):
        super().__init__(backend, plans, updates, joined)
        # Memory that can be exchanged under its tensor has to be looked at in each step, and memory for
        # functions of matrices has to be reserved before anything changes.
        if plans[0].pointers or joined.matrices:
            self.serials = None

    def again(self, numbers):
        """Do what `Launch.again` does, unless the step is captured: then it has memory of its own."""
        streams = self.backend.streams
        if (streams.given or streams.library) and streams.captured():
            return False
        self.numbers = (numbers,)  # as the base class does: a call less in each step
        return self.serials is not None and self.plans[0].serials is self.serials

    def __call__(self, count):
        """Queue the step; `count` is how many there were before it."""
        backend, device = self.backend, self.backend.device
        left = device.enter()
        try:
            stream = backend.streams.ready()
            for plan, numbers in zip(self.plans, self.numbers):
                changed = plan.give(numbers, backend.rng_seed, count)
                if changed:
                    backend.rings.own.upload(plan.image.device.address, changed, stream)
                    plan.new_tables = plan.new_numbers = False
            for launch in self.joined.launches:
                launch(stream)
        finally:
            if left:
                device.leave()
        backend.launches += self.joined.passes
        if self.joined.counts:
            backend.counter.note()


class DeviceBackend(CompiledBackend):
    """A backend over device memory. A subclass opens devices and compiles.

    Attributes
    ----------
    launches : int
        How many kernels have been queued that go over elements: those of passes, and of reductions outside a
        step. Those that work on numbers only don't count.
    device : object
        Drives the GPU: see `nbopt_backends.cuda.device.Device`.
    streams : Streams
        Which of the GPU's streams is launched on.
    rings : Rings
        The pinned memory that copies to the device go through.
    stream : int or None
        The stream that steps run on, by its handle; 0 is the default stream. None: the current stream of the
        library that the arrays come from (PyTorch's or CuPy's; the default stream with others). Assigning
        takes a handle or any library's stream object.
    """

    memory = "cuda"
    captures = True
    stem = "cuda_kernel"

    _functions: dict = {}
    _compile_lock = threading.RLock()

    def __init__(self, **options):
        super().__init__(**options)
        self.device = self.open_device(self.device_id)
        self.streams = Streams(self.device, self.device_id)
        self.rings = Rings(self.device)
        self.counter = Counter(self)

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
                f"the array is on GPU {number}, and the backend works on GPU {self.device_id}: move it "
                f"there, or make a backend with device_id={number}"
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
        with self.device.entered(), self.device.relaxed():
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
        return self.downloaded(self._contiguous(storage))

    def to_numpy(self, tensor):
        """Return a copy of the tensor's values as a NumPy array."""
        tensor.storage.refresh()
        return self.downloaded(self._contiguous(tensor.storage))

    def downloaded(self, storage):
        """Return the values of a contiguous DeviceArray as a NumPy array. The host waits for them."""
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

    def _run(self, program, numbers, storages):
        """Run a program of the backend's own over one tuple of arrays.

        It is no update of the user's, so the update count stays.
        """
        self.prepare(
            [Update(program, numbers, None, lambda update: [[Tensor(self, storage)] for storage in storages])]
        )(0)

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
                f"{tensor!r} is in the host's memory, and this backend works on the GPU's: "
                "nbopt.get_backend().array(x) makes a copy there"
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

    def prepare(self, updates):
        """Return a function that queues the updates on the device.

        For each pass it launches one kernel for each combination of dtypes, and a few small ones on numbers.
        """
        stream = self.streams.captured()
        if stream:
            return captured(self, updates, stream)
        counts = any(update.captures is not None for update in updates)
        if counts:
            self.counter.begin(self.rng_seed, self._updates)
            self.counts_on_device = True
        with self.device.entered():
            plans = [self.plan_of(update) for update in updates]
            self.check_together(updates)
            for plan, update in zip(plans, updates):
                plan.share(update.shared)
            together = plans[0].joined
            if (
                together is None
                or together.counter != self.counter.address
                or together.counts is not counts
                or len(together.others) != len(plans) - 1
                or not all(map(is_, together.others, plans[1:]))
            ):
                together = plans[0].joined = joined(plans, counts)
            for matrices in together.matrices:
                matrices.reserve()
        tell_of_changes(updates, plans)
        return DeviceLaunch(self, plans, updates, together)

    def new_plan(self, update, layout):
        """Return a plan with everything compiled and allocated."""
        return DevicePlan(self, update, layout)

    def capturing(self):
        """Return whether what is launched now is captured into a graph."""
        return self.streams.is_aside or bool(self.streams.captured())

    # --- random numbers ---

    def counted(self):
        """Queue the count of an update, unless the launches of its step do that."""
        if not self.counter.is_counted():
            with self.device.entered():
                self.counter.advance(self.streams.current())

    def rng_reset(self):
        """Do what `Backend.rng_reset` does."""
        super().rng_reset()
        self._write_counter()

    def rng_get_state(self):
        """Return what `Backend.rng_get_state` does. If the device counts, the host waits for it."""
        if self.counter.address is None:
            return super().rng_get_state()
        seed, updates = self.counter.get()
        return {"seed": seed, "updates": updates}

    def rng_set_state(self, state):
        """Do what `Backend.rng_set_state` does. What graphs read is written in place."""
        super().rng_set_state(state)
        self._write_counter()

    def _write_counter(self):
        if self.counter.address is not None:
            self.counter.set(self.rng_seed, self._updates)

    # --- compiled code ---

    def texts(self, update, layout):
        """Return the texts of the kernels that a step of the update launches, each with the stem of its file.

        What else is launched with others in the same step, such as a MultiOptimizer's, is not known here.
        """
        with self.device.entered():
            plan = self.new_plan(update, layout)
            launches, _ = planned_together([plan], update.captures is not None)
        kernels = [launch for launch in launches if isinstance(launch, Kernel)]
        return [*dict.fromkeys((kernel.text, kernel.stem) for kernel in kernels)]

    def sums_kernel(self, name, arithmetic):
        """Return a kernel of `reductions.sums_text`."""
        return self.kernel(self.marked(sums_text(self.dialect(), arithmetic)), "cuda_sums", name)

    def dialect(self):
        """Return how kernels are spelled: a `Dialect`."""
        raise NotImplementedError

    def kernel(self, text, stem, name):
        """Return one kernel of a generated module, compiled at first use; all its arguments are int64."""
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
        with self.device.entered():
            stream, result = self.streams.ready(), self.allocate(shape, matrix.dtype)
            if op == "sum":
                tiles = max(1, tiles_of(n))
                sums = self.allocate((m, tiles), np.float64)
                kernels = [
                    ("row_sums", m * tiles, (matrix.address, m, n, tiles, sums.address, result.address))
                ]
                if tiles > 1:
                    kernels.append(("fold_sums", m, (sums.address, m, tiles, result.address)))
            else:
                kernels = [("extremes", m, (matrix.address, m, n, _KINDS[op], result.address))]
            for name, pieces, arguments in kernels if m else ():
                kernel = self.sums_kernel(name, matrix.dtype.name)
                self.device.launch(kernel, self.device.blocks(pieces), stream, arguments)
            self.launches += bool(m)
        return Tensor(self, result)


def _broadcasts(shape, target):
    """Return whether values of one shape broadcast to another, as in NumPy."""
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False
