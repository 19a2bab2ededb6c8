"""NumbaCPU: fused kernels over NumPy arrays, on all cores."""

import threading
from functools import partial

import numba
import numpy as np
from numba import int64, types

from nbopt.errors import BackendError
from nbopt_backends.arrays.host import HostBackend
from nbopt_backends.cpu import chunks as cpu_chunks
from nbopt_backends.cpu import ends as cpu_ends
from nbopt_backends.cpu import objects
from nbopt_backends.cpu import sums as cpu_sums
from nbopt_backends.cpu.drivers import drivers
from nbopt_backends.cpu.launch import CpuLaunch, CpuTurns, pieces_of
from nbopt_backends.cpu.pipeline import KernelCompiler
from nbopt_backends.cpu.plan import CpuPlan, in_order
from nbopt_backends.cpu.records import Matrices
from nbopt_backends.cpu.threads import Faster, Threads, parallel_for, threading_layer
from nbopt_backends.lowering import source
from nbopt_backends.lowering.narrow import narrow_text
from nbopt_backends.lowering.slices import sliced_text
from nbopt_backends.lowering.text import Dialect, kernel_text, scalars_text
from nbopt_backends.meaning.tree import tiles_of
from nbopt_backends.plans.compiled import CompiledBackend

DIALECT = Dialect(
    name="cpu",
    ops={},
    header="from nbopt_backends.cpu.primitives import *\n\n",
    kernel="""{comment}
def update(row, offset, n, place, scalars, random, sums):
{setup}
{loops}
""",
    loop="""for start in range(0, n, {block}):
{before}
    for k in range(min({block}, n - start)):
        i = start + k
{body}""",
    tile_loop="""for start in range(tile, tile + m, {block}):
{before}
    for k in range(min({block}, tile + m - start)):
        i = start + k
{body}""",
)


# All that may be relaxed without giving up NaN and infinities.
_FAST = {"contract", "reassoc", "arcp", "afn", "nsz"}
#: What is compiled by its name, see `NumbaCPU.driver`.
_DRIVEN = [(module, source.text_of(module)) for module in (cpu_chunks, cpu_ends, cpu_sums)]


class NumbaCPU(CompiledBackend, HostBackend):
    """The backend ``"cpu"``: each program becomes one Numba kernel.

    Threads share the chunks of all tensors.

    Parameters
    ----------
    **options
        Those of `nbopt.Backend`.
    """

    name = "cpu"
    takes_turns = True

    # Compiled code is shared by all instances of a process.
    _kernels = {}
    _functions = {}
    _parallel = None
    _compile_lock = threading.RLock()

    def __init__(self, **options):
        super().__init__(**options)
        self.threads = Threads(self.num_threads)

    @classmethod
    def problem(cls):
        """Return why the backend can't be used and what to do about it, or None where it can."""
        if numba.config.DISABLE_JIT:
            return (
                "Numba compiles nothing while NUMBA_DISABLE_JIT is set: unset it, or use the backend "
                '"reference", which is plain NumPy'
            )
        if numba.config.SLP_VECTORIZE:  # off since https://github.com/numba/numba/issues/8705
            return "LLVM makes wrong code of sums while NUMBA_SLP_VECTORIZE is set: unset it"
        return None

    # --- steps ---

    def prepare(self, updates):
        """Return a function that runs the updates.

        It is one call into compiled code, and one more after each function of matrices or piece.
        """
        plans, in_pieces = [*map(self.plan_of, updates)], updates[0].piece is not None
        if len(updates) > 1 and not in_pieces:
            self.check_together(updates)
        for plan, update in zip(plans, updates):
            if update.shared:
                plan.share(update.shared)
        if in_pieces:
            pieces = [update.piece for update in updates]
            return CpuTurns(self, plans, updates, pieces_of(plans, pieces, self._runner))
        return CpuLaunch(self, plans, updates, self._joined(plans))

    def _joined(self, plans):
        """Return what runs several plans together.

        Returns
        -------
        numbers : list of int
            The plans'.
        segments : list of tuple
            What runs records, their address, and how many they are; or what computes a function of matrices,
            its `Matrices`, and 0.
        parts, entries : list of numpy.ndarray
            What these point to.
        """
        first, numbers = plans[0], [plan.number for plan in plans]
        if first.joined is None or first.joined[0] != numbers:
            parts, entries = in_order(plans)
            elements = sum(plan.elements for plan in plans)
            products = any(isinstance(part, Matrices) for part in parts)
            segments = [
                (part.run, part, 0)
                if isinstance(part, Matrices)
                else (self._runner(elements, products), part.ctypes.data, len(part))
                for part in parts
            ]
            first.joined = numbers, segments, parts, entries
        return first.joined

    def _runner(self, elements, products=False):
        """Return what runs records over so many elements.

        It runs on all threads or, if the elements are few, on one; between the two on what is faster. Beside
        products of matrices it is one thread there: OpenMP's others would keep a core from the products for
        milliseconds (if PyTorch was imported first, they do as its settings say).
        """
        run_stages = self._run_stages()
        alone = partial(run_stages, 1, 0)
        if not self.threads.worthwhile(elements) or (products and not self.threads.certain(elements)):
            return alone
        together = self._together()

        def run(*arguments):
            if self.threads.serial():
                return alone(*arguments)
            return self.threads.run(run_stages, together, *arguments)

        return run if self.threads.certain(elements) else Faster(run, alone)

    def new_plan(self, update, layout):
        """Return a plan with everything compiled."""
        return CpuPlan(self, update, layout)

    # --- compiled code ---

    def kernel_of(self, stage, group):
        """Return the kernel of a pass for a group's dtypes and roundings, compiled at first use.

        Parameters
        ----------
        stage : Pass
        group : nbopt_backends.plans.layout.Group

        Returns
        -------
        object
            Its `address` is that of the compiled function.
        """
        return self._compiled((stage, group.dtypes, group.kept), lambda: self.text(stage, group), "update")

    def sliced_kernel_of(self, stage, group, extents, kind):
        """Return the kernel of a pass that knows slices, as `kernel_of` does.

        Parameters
        ----------
        stage : Pass
        group : nbopt_backends.plans.layout.Group
        extents : tuple of int
            The slots'.
        kind : (tuple of int, int)
            See `nbopt_backends.meaning.slices.kinds_of`.

        Returns
        -------
        object
        """
        key = stage, group.dtypes, group.kept, extents, kind
        return self._compiled(key, lambda: self.text_with_slices(stage, group, extents, kind), "update")

    def scalars_of(self, stage, dtypes):
        """Return a stage of arithmetic on numbers, compiled at first use.

        Parameters
        ----------
        stage : Scalars
        dtypes : dict
            Slot -> the name of its dtype, for each slot that the stage loads or stores.

        Returns
        -------
        object
            Its `address` is that of the compiled function.
        """
        return self._compiled(
            (stage, *sorted(dtypes.items())), lambda: scalars_text(stage, DIALECT, dtypes), "scalars"
        )

    def driver(self, name):
        """Return what a stage does with an entry, compiled at first use.

        Parameters
        ----------
        name : str
            Of a function in `chunks`, `ends` or `sums` of `nbopt_backends.cpu`.

        Returns
        -------
        object
            Its `address` is that of the compiled function.
        """
        found = NumbaCPU._functions.get(name)
        if found is None:
            text = next(text for module, text in _DRIVEN if name in vars(module))
            with NumbaCPU._compile_lock:
                found = NumbaCPU._functions[name] = self._compiled_module(text, name, "drivers")
        return found

    def text(self, stage, group):
        """Return the text of the kernel of a pass for a group of tensors."""
        return self.marked(kernel_text(stage, DIALECT, group.dtypes, group.arithmetic, group.kept))

    def text_with_slices(self, stage, group, extents, kind):
        """Return the text of the kernel of a pass that knows slices."""
        flags, width = kind
        given = stage, DIALECT, group.dtypes, group.arithmetic, group.kept, extents, flags
        return self.marked(narrow_text(*given, width) if width else sliced_text(*given))

    def _compiled(self, key, text, name):
        key = (*key, self.fast_math)
        found = NumbaCPU._kernels.get(key)
        if found is None:
            with NumbaCPU._compile_lock:
                found = NumbaCPU._kernels[key] = self._compiled_module(text(), name, self.stem)
        return found

    def _compiled_module(self, text, name, stem):
        self._check_now()
        found = objects.function_of(text, name, stem, self._compile)
        self.compilations += stem == self.stem and not found.found
        return found

    def _compile(self, function):
        """Return Numba's ``cfunc`` of a function of int64."""
        return numba.cfunc(
            types.void(*[int64] * function.__code__.co_argcount),
            error_model="numpy",
            fastmath=_FAST if self.fast_math and function.__name__ == "update" else False,
            pipeline_class=KernelCompiler,
        )(function)

    def _check_now(self):
        """Refuse to compile if a setting that came after the backend was made forbids it."""
        # Numba would return functions as they are.
        if problem := self.problem():
            raise BackendError(f'the backend "cpu" can\'t compile: {problem}')

    def _run_stages(self):
        """Return `run_stages` of `nbopt_backends.cpu.drivers`, to be called from Python."""
        with NumbaCPU._compile_lock:
            self._check_now()
            return drivers()[0]

    def _together(self):
        """Return the address of what `run_stages` needs to wake threads."""
        with NumbaCPU._compile_lock:
            if NumbaCPU._parallel is None:
                NumbaCPU._parallel = np.array([parallel_for(), drivers()[1]], np.int64)
        return NumbaCPU._parallel.ctypes.data

    # --- sums ---

    def sum_last_axis(self, matrix):
        """Return the sums of the rows of a C-contiguous (m, n) array."""
        m, n = matrix.shape
        sums = np.empty((m, max(1, tiles_of(n))))
        given = [matrix.ctypes.data, matrix.itemsize, m, n, sums.shape[1], sums.ctypes.data]
        rows = np.array(given, np.int64)
        stages = [("sum_tile", sums.size), ("sum_row", m)]
        records = np.array(
            [(0, 0, self.driver(name).address, rows.ctypes.data, 0, 1, count) for name, count in stages],
            np.int64,
        )
        self._runner(matrix.size)(records.ctypes.data, len(records), 0)
        self.launches += 1
        return sums[:, 0].astype(matrix.dtype)

    def report(self):
        """Return what ``python -m nbopt`` says about this backend.

        Returns
        -------
        dict
            Label -> text.
        """
        flushing = self.threads.flushing()
        flush = (
            "off on all threads"
            if not any(flushing)
            else f"ON in {sum(flushing)} of {len(flushing)}: results are not exact"
        )
        return {
            "threads": (
                f"{1 if self.threads.serial() else self.threads.wanted()} of {numba.config.NUMBA_NUM_THREADS}"
            ),
            "threading layer": threading_layer(),
            "flush to zero": flush,
            "cache folder": str(source.cache_folder()),
        }
