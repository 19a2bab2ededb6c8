"""A backend in one file. Each program becomes the text of a Python function over whole NumPy arrays, which stands for a kernel.

A package that installs it makes it known by an entry point, and then ``nbopt.set_backend("toy")`` finds it::

    [project.entry-points."nbopt.backends"]
    toy = "toy_backend:ToyBackend"
"""

import math

import numpy as np

import nbopt
from nbopt.errors import ArgumentError, DtypeError, LayoutError, OperandError
from nbopt.language.ops import PRIMITIVES
from nbopt_backends.arrays.memory import check_disjoint
from nbopt_backends.meaning.reduction import norm_factor, tile_sums, tree_sum


class ToyBackend(nbopt.Backend):
    """Stores float32 and float64 in NumPy arrays, and rounds to nearest."""

    name = "toy"

    def __init__(self, **options):
        super().__init__(**options)
        self.kernels = {}

    # --- arrays: what a tensor's `storage` is, and the ways into and out of it ---

    @classmethod
    def storage_dtype(cls, dtype):
        """Return `dtype` as a numpy.dtype, or raise DtypeError."""
        if dtype is None or np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise DtypeError(f"the toy backend stores float32 and float64, not {dtype}: convert it by x.astype(numpy.float32)")
        return np.dtype(dtype)

    def adopt(self, obj):
        """Return the storage that shares the memory of `obj`."""
        if type(obj) is not np.ndarray or not obj.dtype.isnative:
            raise OperandError(f"the toy backend wraps plain NumPy arrays in native byte order, not {type(obj).__name__}: be.array(x) copies")
        self.storage_dtype(obj.dtype)
        return obj

    def allocate(self, shape, dtype):
        """Return new storage in C order."""
        return np.empty(shape, dtype)

    def to_numpy(self, tensor):
        """Return a copy of the tensor's values."""
        return tensor.storage.copy()

    def set_values(self, tensor, values):
        """Copy an array, a tensor or a number into `tensor`."""
        tensor.storage[...] = values.get() if isinstance(values, nbopt.Tensor) else values

    # --- steps and assignments ---

    def prepare(self, update):
        """Do everything that can fail, without changing a value; return what launches the update."""
        columns = update.columns(update)  # one list of tensors for each slot; new states are made here
        update.arrays = [[tensor.storage for tensor in column] for column in columns]
        roundings = [update.stochastic_round, *(tensor.rounding for column in columns for tensor in column)]
        if not all(isinstance(rounding, bool) for rounding in roundings):  # True loses no bits of these dtypes, a number of bits does
            raise ArgumentError("the toy backend rounds to nearest: set stochastic_round and rounding to False")
        for array, written, label in _labelled(update):
            if written and not array.flags.writeable:
                raise LayoutError(f"{label()} is read-only, and a step writes it")
        if update.plans is not None:  # the operands of an assignment may overlap: a kernel loads copies
            check_disjoint(_labelled(update))
        rows = list(zip(*update.arrays))  # one row for each parameter; an assignment has a single one
        if update.program not in self.kernels:
            self.kernels[update.program] = compiled(kernel_text(update.program))
            self.compilations += 1
        kernel = self.kernels[update.program]

        scalars = list(update.scalars)

        def look(count):  # what is known of the gradients before anything changes
            divisor = update.scaled_divisor()
            if update.loss_scale is not None and update.program.divisor is not None:
                scalars[update.program.divisor] = divisor
            if not update.norm_is_needed:
                return True
            total, factor = self._factor([row[1] for row in rows], update.clip_norm or 1.0, divisor)
            if update.clip_norm is not None:
                scalars[update.program.factor] = factor
            return bool(np.isfinite(total))

        def launch(count):
            if update.verdict is None:
                look(count)
            elif not update.verdict.finite(count):  # of this update, or of another one of the step
                update.skipped.storage[...] += 1
                return
            with np.errstate(all="ignore"):
                for row in rows:
                    kernel(row, scalars, np.result_type(*row))  # arithmetic in float64 if any slot is float64
            self.launches += len(rows)

        if update.verdict is not None:
            update.verdict.looks.append(look)
        return launch

    def check_together(self, updates):
        """Check that no update of one step writes what another one uses."""
        check_disjoint([value for update in updates for value in _labelled(update)])

    def explain(self, update):
        """Return the texts of the update's kernels, a list."""
        return [kernel_text(update.program)]

    # --- reductions; the fixed shape of sums gives the other backends' bits ---

    def reduce(self, op, tensor, axis, shape):
        """Reduce over an axis (None: over all elements); return a new tensor of shape `shape`."""
        array = tensor.storage if axis is None else np.moveaxis(tensor.storage, axis, -1)
        matrix = array.reshape(math.prod(shape), -1 if array.size else 0)
        found = tree_sum(matrix) if op == "sum" else getattr(np, op)(matrix, axis=1)
        return self.wrap(np.asarray(found, tensor.dtype).reshape(shape))

    def norm_factor(self, grads, clip_norm):
        """Return ``clip_norm / max(||grads|| / bsz, clip_norm)``."""
        return self._factor([grad.storage for grad in grads], clip_norm, self.bsz)[1]

    def _factor(self, grads, clip_norm, divisor):
        with np.errstate(all="ignore"):
            sums = [tile_sums(np.square(grad.ravel())) for grad in grads if grad.size]
        return tuple(map(float, norm_factor(np.concatenate(sums), clip_norm, divisor))) if sums else (0.0, 1.0)


def kernel_text(program):
    """Return a program as Python: a function of one array for each slot, the scalars' values, and the arithmetic's dtype."""
    lines = ["def kernel(arrays, scalars, dtype):", "    s = [dtype.type(x) for x in scalars]"]
    for index, (op, *operands) in enumerate(program.code):
        if op == "load":
            value = f"arrays[{operands[0]}].astype(dtype)  # {program.names[operands[0]]}"
        else:
            values = [f"s[{~x}]" if x < 0 else f"v{x}" for x in (operands[1:] if op == "store" else operands)]
            value = f"{op}({', '.join(values)})"
        if op == "store":  # what is read afterwards is what was stored, after rounding
            lines.append(f"    arrays[{operands[0]}][...] = {values[0]}")
            value = f"arrays[{operands[0]}].astype(dtype)  # {program.names[operands[0]]}"
        lines.append(f"    v{index} = {value}")
    return "\n".join(lines) + "\n"


def compiled(text):
    """Return the function that a kernel's text makes; its vocabulary is the op table."""
    names = {op.name: op.numpy for op in PRIMITIVES.values()}
    exec(text, names)
    return names["kernel"]


def _labelled(update):
    """Return (array, whether the program writes it, what to call it) of all arrays, as `check_disjoint` takes them."""
    names, written = update.program.names, update.program.written()
    return [(array, slot in written, lambda name=names[slot]: name) for slot, column in enumerate(update.arrays) for array in column]
