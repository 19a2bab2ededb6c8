"""NumbaCPU: fused kernels over NumPy arrays, on all cores."""

import inspect
import threading
from array import array
from types import FunctionType

import numba
import numpy as np
from numba import float64, int64, types

from nbopt_backends import cpu_drivers, source
from nbopt_backends.cpu_reductions import reduction_text
from nbopt_backends.host import HostBackend
from nbopt_backends.lowering import Dialect, kernel_text
from nbopt_backends.plan import MOST_LAYOUTS, Layout, layout_key
from nbopt_backends.reduction import TILE, tile_count
from nbopt_backends.threads import Threads, threading_layer

DIALECT = Dialect(
    name="cpu",
    ops={},
    header="from nbopt_backends.cpu_primitives import *\n\n",
    kernel="""{comment}
def update(row, offset, n, scalars):
{setup}
    for i in range(n):
{body}
""",
)

# All that may be relaxed without giving up NaN and infinities.
_FAST = {"contract", "reassoc", "arcp", "afn", "nsz"}
# Below this many elements waking a second thread costs more than it saves.
_SERIAL = 16384
_TYPE_CODES = {"float32": "f", "float64": "d"}


class NumbaCPU(HostBackend):
    """The backend ``"cpu"``: each program becomes one Numba kernel, run over chunks of all tensors by a ``prange`` loop.

    Parameters are those of `nbopt.Backend`.
    """

    name = "cpu"

    # Compiled code is shared by all instances of a process.
    _kernels = {}
    _functions = {}
    _compile_lock = threading.RLock()

    def __init__(self, **options):
        super().__init__(**options)
        self.threads = Threads(self.num_threads)
        self._assignments = {}

    # --- steps ---

    def prepare(self, update):
        """Return a function that launches the update: one kernel for each combination of dtypes."""
        layout = self._layout(update)
        launches = []
        for group in layout.groups:
            kernel = self._kernel(update.program, group.dtypes, group.arithmetic)
            scalars = array(_TYPE_CODES[group.arithmetic], update.scalars)
            launches.append((self._driver(group), self._driver_arguments(group, kernel, scalars), scalars))
        factor = None
        if update.clip_norm is not None and layout.groups:
            factor = self._prepare_factor(layout, 1, update.clip_norm)

        def launch(count):
            if factor is not None:
                value = factor()
                for _, _, scalars in launches:
                    scalars[update.program.factor] = value
            for (function, parallel), arguments, _ in launches:
                self._launch(function, parallel, arguments)

        return launch

    def _launch(self, function, parallel, arguments):
        self.launches += 1
        if parallel:
            self.threads.run(function, *arguments)
        else:
            function(*arguments)

    def _layout(self, update):
        plans = update.plans
        if plans is None:
            if len(self._assignments) > 256:
                self._assignments.clear()
            plans = self._assignments.setdefault(update.program, [])
        if update.key is not None:
            for layout in plans:
                if layout.serials == update.key and layout.written == update.program.written():
                    return layout
        arrays = self.checked_columns(update)
        key = layout_key(arrays, update.program.written())
        for layout in plans:
            if layout.key == key:
                break
        else:
            layout = Layout(arrays, key, update.program.written())
            plans.insert(0, layout)
            del plans[MOST_LAYOUTS:]
        layout.refresh(arrays, update.key)
        return layout

    # --- compiled code ---

    def _kernel(self, program, dtypes, arithmetic):
        """Return the kernel of a program, compiled at first use."""
        key = (program, dtypes, self.fast_math)
        found = NumbaCPU._kernels.get(key)
        if found is None:
            with NumbaCPU._compile_lock:
                found = NumbaCPU._kernels[key] = self._compiled_kernel(self._text(program, dtypes, arithmetic))
        return found

    def _text(self, program, dtypes, arithmetic):
        return kernel_text(program, DIALECT, dtypes, arithmetic) + ("\n# fast_math\n" if self.fast_math else "")

    def _compiled_kernel(self, text):
        module = source.load(text, "kernel")
        signature = types.void(int64, int64, int64, int64)
        options = {"error_model": "numpy", "fastmath": _FAST if self.fast_math else False}
        kernel = source.compiled(lambda cache: numba.cfunc(signature, cache=cache, **options)(module.update), module)
        self.compilations += not kernel.cache_hits
        return kernel

    def _function(self, text, stem, name, signature, parallel):
        """Return one function of a generated module, compiled at first use."""
        key = (text, name, parallel)
        found = NumbaCPU._functions.get(key)
        if found is None:
            with NumbaCPU._compile_lock:
                module = source.load(text, stem)
                options = {"error_model": "numpy", "nogil": True, "parallel": parallel}

                def make(cache):
                    # A function object of its own for each variant: Numba's cache tells variants by the function's name.
                    return numba.njit(signature, cache=cache, **options)(_renamed(getattr(module, name), parallel))

                found = NumbaCPU._functions[key] = source.compiled(make, module)
        return found

    def _driver(self, group):
        parallel = group.elements > _SERIAL and self.threads.usable() > 1
        name, count = ("run_chunks", 6) if group.geometries is None else ("run_staged_chunks", 7)
        return self._function(_drivers_text(), "drivers", name, types.void(*[int64] * count), parallel), parallel

    def _driver_arguments(self, group, kernel, scalars):
        views = () if group.geometries is None else (group.views.ctypes.data,)
        chunks = group.chunks
        return kernel.address, group.table.ctypes.data, *views, group.table.shape[1], chunks.ctypes.data, len(chunks), scalars.buffer_info()[0]

    # --- the norm clip, and sums ---

    def _prepare_factor(self, layout, slot, clip_norm):
        """Return a function that computes the norm-clip factor of one slot of a layout."""
        total = "float64" if any(group.arithmetic == "float64" for group in layout.groups) else "float32"
        sums = np.empty(max(1, layout.tile_starts[-1]), total)
        passes = []
        for group in layout.groups:
            text = reduction_text(group.dtypes[slot], group.arithmetic, total)
            parallel = group.elements > _SERIAL and self.threads.usable() > 1
            views = () if group.geometries is None else (group.views.ctypes.data,)
            name = "staged_square_sums" if views else "square_sums"
            function = self._function(text, "sums", name, types.void(*[int64] * (7 + len(views))), parallel)
            tiles = group.first_tiles(layout.tile_starts)
            chunks = group.chunks
            place = (group.table.ctypes.data, *views, group.table.shape[1], slot, chunks.ctypes.data, len(chunks))
            passes.append((function, parallel, (*place, tiles.ctypes.data, sums.ctypes.data), tiles))
        finish = self._function(
            reduction_text(total, total, total), "sums", "norm_factor", float64(int64, int64, float64, float64), False
        )

        def factor():
            for function, parallel, arguments, _ in passes:  # the last entry keeps the array of tiles alive
                self._launch(function, parallel, arguments)
            return finish(sums.ctypes.data, len(sums), clip_norm, float(self.bsz))

        return factor

    def norm_factor(self, grads, clip_norm):
        """Return the factor that clips the norm of `grads`, a list of tensors, to `clip_norm`; a float."""
        arrays = [[np.ascontiguousarray(grad.storage) for grad in grads]]
        layout = Layout(arrays, None, [])
        layout.refresh(arrays, None)
        return self._prepare_factor(layout, 0, clip_norm)() if layout.groups else 1.0

    def sum_last_axis(self, matrix):
        """Return the sums of the rows of a C-contiguous (m, n) array."""
        dtype = matrix.dtype.name
        text = reduction_text(dtype, dtype, dtype)
        m, n = matrix.shape
        while True:
            tiles = tile_count(n)
            sums = np.empty((m, tiles), dtype)
            parallel = matrix.size > _SERIAL and self.threads.usable() > 1
            function = self._function(text, "sums", "row_sums", types.void(*[int64] * 5), parallel)
            self._launch(function, parallel, (matrix.ctypes.data, m, n, tiles, sums.ctypes.data))
            if tiles == 1:
                return sums[:, 0]
            matrix, n = sums, tiles

    def report(self):
        """Return what ``python -m nbopt`` says about this backend, a dict of label -> text."""
        flushing = self.threads.flushing()
        flush = "off on all threads" if not any(flushing) else f"ON in {sum(flushing)} of {len(flushing)}: results are not exact"
        return {
            "threads": f"{self.threads.usable()} of {numba.config.NUMBA_NUM_THREADS}",
            "threading layer": threading_layer(),
            "flush to zero": flush,
            "cache folder": str(source.cache_folder()),
        }

    def explain(self, update):
        """Return the texts of the update's kernels."""
        layout = self._layout(update)
        texts = []
        for group in layout.groups:
            text = self._text(update.program, group.dtypes, group.arithmetic)
            texts.append(f"# {source.load(text, 'kernel').__file__}\n{text}")
        return texts


def _drivers_text():
    return inspect.getsource(cpu_drivers)


def _renamed(function, parallel):
    name = function.__name__ + ("_parallel" if parallel else "_serial")
    return FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)
