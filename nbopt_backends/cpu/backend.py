"""NumbaCPU: fused kernels over NumPy arrays, on all cores."""

import threading
from array import array
from functools import partial
from types import FunctionType

import numba
import numpy as np
from numba import float64, int64, types

from nbopt.errors import BackendError
from nbopt.language.ops import compute_dtype
from nbopt_backends.arrays.host import HostBackend
from nbopt_backends.cpu import drivers as cpu_drivers
from nbopt_backends.cpu.reductions import reduction_text
from nbopt_backends.cpu.threads import Threads, threading_layer
from nbopt_backends.lowering import source
from nbopt_backends.lowering.text import Dialect, kernel_text
from nbopt_backends.meaning.reduction import tile_count
from nbopt_backends.plans.compiled import CompiledBackend
from nbopt_backends.plans.plan import Launch, Layout, Plan, layout_key

DIALECT = Dialect(
    name="cpu",
    ops={},
    header="from nbopt_backends.cpu.primitives import *\n\n",
    kernel="""{comment}
def update(row, offset, n, place, scalars, random):
{setup}
{loops}
""",
    loop="""for start in range(0, n, {block}):
{before}
    for k in range(min({block}, n - start)):
        i = start + k
{body}""",
)

# All that may be relaxed without giving up NaN and infinities.
_FAST = {"contract", "reassoc", "arcp", "afn", "nsz"}
_SKIP = -1.0  # in place of the norm-clip factor, see cpu_reductions
_DRIVERS = source.text_of(cpu_drivers)


class NumbaCPU(CompiledBackend, HostBackend):
    """The backend ``"cpu"``: each program becomes one Numba kernel, run over chunks of all tensors by a ``prange`` loop.

    Parameters
    ----------
    **options
        Those of `nbopt.Backend`.
    """

    name = "cpu"

    # Compiled code is shared by all instances of a process.
    _kernels = {}
    _functions = {}
    _compile_lock = threading.RLock()

    def __init__(self, **options):
        super().__init__(**options)
        self.threads = Threads(self.num_threads)

    @classmethod
    def problem(cls):
        """Return why the backend can't be used and what to do about it, or None where it can."""
        if numba.config.DISABLE_JIT:
            return 'Numba compiles nothing while NUMBA_DISABLE_JIT is set: unset it, or use the backend "reference", which is plain NumPy'
        if numba.config.SLP_VECTORIZE:  # off since https://github.com/numba/numba/issues/8705
            return "LLVM makes wrong code of sums while NUMBA_SLP_VECTORIZE is set: unset it"
        return None

    # --- steps ---

    def prepare(self, update):
        """Return a function that launches the update: one kernel for each combination of dtypes."""
        plan = self.plan_of(update)
        if self.threads.lost():
            for launch in plan.launches:
                launch.serial()  # compiles it now and not in the middle of a step
        scalars = [array(code, update.scalars) for code in plan.type_codes]
        if update.verdict is not None:
            update.verdict.looks.append(partial(self._look, plan, scalars, update))
        return partial(self._step, plan, scalars, array("Q", (self.rng_seed, 0)), update)

    def _step(self, plan, scalars, random, update, count):
        random[1] = count
        if update.verdict is None:
            self._look(plan, scalars, update, count)
        elif not update.verdict.finite(count):
            update.skipped.storage[...] += 1
            return
        for launch, values in zip(plan.launches, scalars):
            self._launch(launch, values.buffer_info()[0], random.buffer_info()[0])

    def _look(self, plan, scalars, update, count):
        """Complete the scalars by what depends on other tensors than the update's own; return whether the gradients are finite, if that matters."""
        divisor = update.scaled_divisor()
        if update.loss_scale is not None and update.program.divisor is not None:
            for values in scalars:
                values[update.program.divisor] = divisor
        if plan.passes:
            factor = self._factor(plan.passes, update.clip_norm or 1.0, divisor, plan.skips)
            if factor == _SKIP:
                return False
            if update.clip_norm is not None:
                for values in scalars:
                    values[update.program.factor] = factor
        return True

    def _launch(self, launch, *last):
        self.launches += 1
        if launch.parallel and not self.threads.serial():
            self.threads.run(launch.parallel, *launch.arguments, *last)
        else:
            launch.serial()(*launch.arguments, *last)

    def new_plan(self, update, layout):
        """Return a plan with everything compiled."""
        launches = [self._kernel_launch(update, group) for group in layout.groups]
        passes = self._square_sums(layout, 1) if update.norm_is_needed and layout.groups else []
        return Plan(self, update, layout, launches, passes)

    def _kernel_launch(self, update, group):
        kernel = self._kernel(update, group)
        name = "run_chunks" if group.geometries is None else "run_staged_chunks"
        arguments = (kernel.address, *group.arguments(), group.places.ctypes.data)
        return self._launch_of(_DRIVERS, "drivers", name, group.elements, arguments)

    def _launch_of(self, text, stem, name, elements, arguments):
        """Return a launch over so many elements, on all threads or, where they are few, on one."""
        serial = partial(self._function, text, stem, name, False)
        parallel = None
        if self.threads.worthwhile(elements):
            parallel = self._function(text, stem, name, True)
        else:
            serial()  # compiles it now and not in the middle of a step
        return Launch(serial, parallel, arguments)

    # --- compiled code ---

    def _kernel(self, update, group):
        """Return the kernel of an update's program for a group's dtypes and roundings, compiled at first use."""
        key = (update.program, group.dtypes, group.kept, self.fast_math)
        found = NumbaCPU._kernels.get(key)
        if found is None:
            with NumbaCPU._compile_lock:
                found = NumbaCPU._kernels[key] = self._compiled_kernel(self.text(update, group))
        return found

    def text(self, update, group):
        """Return the text of the kernel of an update's program for a group of its tensors."""
        return self.marked(kernel_text(update.program, DIALECT, group.dtypes, group.arithmetic, group.kept))

    def _compiled_kernel(self, text):
        module = source.load(text, self.stem)
        signature = types.void(*[int64] * 6)
        options = {"error_model": "numpy", "fastmath": _FAST if self.fast_math else False}
        kernel = source.compiled(lambda cache: numba.cfunc(signature, cache=cache, **options)(module.update), module)
        self.compilations += not kernel.cache_hits
        return kernel

    def _function(self, text, stem, name, parallel, signature=None):
        """Return one function of a generated module, compiled at first use. Without a signature its arguments are int64."""
        key = (text, name, parallel)
        found = NumbaCPU._functions.get(key)
        if found is None:
            with NumbaCPU._compile_lock:
                if problem := self.problem():  # set since the backend was made; Numba would return the function as it is
                    raise BackendError(f'the backend "cpu" can\'t compile: {problem}')
                module = source.load(text, stem)
                function = getattr(module, name)
                signature = signature or types.void(*[int64] * function.__code__.co_argcount)
                options = {"error_model": "numpy", "nogil": True, "parallel": parallel}

                def make(cache):
                    # A function object of its own for each variant: Numba's cache tells variants by the function's name.
                    return numba.njit(signature, cache=cache, **options)(_renamed(function, parallel))

                found = NumbaCPU._functions[key] = source.compiled(make, module)
        return found

    # --- the norm clip, and sums ---

    def _square_sums(self, layout, slot):
        """Return what sums the squares of one slot of a layout: the array of the tiles' sums, the launches, and what finishes."""
        total = compute_dtype(group.arithmetic for group in layout.groups).name
        sums = np.empty(max(1, layout.tile_starts[-1]), total)
        launches = []
        for group in layout.groups:
            text = reduction_text(group.dtypes[slot], group.arithmetic, total)
            name = "square_sums" if group.geometries is None else "staged_square_sums"
            tiles = group.first_tiles(layout.tile_starts)
            arguments = (slot, *group.arguments(), tiles.ctypes.data, sums.ctypes.data)
            launches.append((self._launch_of(text, "sums", name, group.elements, arguments), tiles))
        signature = float64(int64, int64, float64, float64, int64)
        finish = self._function(reduction_text(total, total, total), "sums", "norm_factor", False, signature)
        return sums, launches, finish

    def _factor(self, passes, clip_norm, divisor, skip):
        sums, launches, finish = passes
        for launch, _ in launches:  # beside it stands the array of its tiles, which must live as long
            self._launch(launch)
        return finish(sums.ctypes.data, len(sums), clip_norm, divisor, skip)

    def norm_factor(self, grads, clip_norm):
        """Return the factor that clips the norm of `grads`, a list of tensors, to `clip_norm`; a float."""
        arrays = [[np.ascontiguousarray(grad.storage) for grad in grads]]
        layout = Layout(arrays, [], layout_key(arrays))
        layout.refresh(arrays)
        return self._factor(self._square_sums(layout, 0), clip_norm, float(self.bsz), False) if layout.groups else 1.0

    def sum_last_axis(self, matrix):
        """Return the sums of the rows of a C-contiguous (m, n) array."""
        dtype = matrix.dtype.name
        text = reduction_text(dtype, dtype, dtype)
        m, n = matrix.shape
        while True:
            tiles = tile_count(n)
            sums = np.empty((m, tiles), dtype)
            arguments = (matrix.ctypes.data, m, n, tiles, sums.ctypes.data)
            self._launch(self._launch_of(text, "sums", "row_sums", matrix.size, arguments))
            if tiles == 1:
                return sums[:, 0]
            matrix, n = sums, tiles

    def report(self):
        """Return what ``python -m nbopt`` says about this backend.

        Returns
        -------
        dict
            Label -> text.
        """
        flushing = self.threads.flushing()
        flush = "off on all threads" if not any(flushing) else f"ON in {sum(flushing)} of {len(flushing)}: results are not exact"
        return {
            "threads": f"{1 if self.threads.serial() else self.threads.wanted()} of {numba.config.NUMBA_NUM_THREADS}",
            "threading layer": threading_layer(),
            "flush to zero": flush,
            "cache folder": str(source.cache_folder()),
        }


def _renamed(function, parallel):
    name = function.__name__ + ("_parallel" if parallel else "_serial")
    copy = FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)
    copy.__qualname__ = name
    return copy
