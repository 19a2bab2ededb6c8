"""A backend in one file.

Each program becomes the text of a Python function over whole NumPy arrays, which stands for a kernel.

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
from nbopt_backends.meaning.reference import Interpreter, run_stages
from nbopt_backends.meaning.tree import row_sums


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
            raise DtypeError(
                f"the toy backend stores float32 and float64, not {dtype}: convert it by "
                "x.astype(numpy.float32)"
            )
        return np.dtype(dtype)

    def adopt(self, obj):
        """Return the storage that shares the memory of `obj`."""
        if type(obj) is not np.ndarray or not obj.dtype.isnative:
            raise OperandError(
                f"the toy backend wraps plain NumPy arrays in native byte order, not {type(obj).__name__}: "
                "be.array(x) copies"
            )
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

    def prepare(self, updates):
        """Do everything that can fail, without changing a value; return what runs the updates."""
        given = [
            (update, *self._looked_at(update), [tensor.storage for tensor in update.shared])
            for update in updates
        ]
        check_disjoint(
            [value for update in updates if update.plans is not None for value in _labelled(update)]
        )
        for stage in (stage for update in updates for stage in update.program.passes()):
            if stage not in self.kernels:
                self.kernels[stage] = compiled(kernel_text(stage))
                self.compilations += 1

        def run(count):
            passes = run_stages([ToyStep(self.kernels, *one, self.rng_seed, count) for one in given])
            self.launches += passes

        return run

    def _looked_at(self, update):
        """Return the update's arrays by slot, and for each that nothing is rounded stochastically."""
        columns = update.columns(update)  # one list of tensors for each slot; new states are made here
        update.arrays = [[tensor.storage for tensor in column] for column in columns]
        roundings = [update.stochastic_round, *(tensor.rounding for column in columns for tensor in column)]
        # True loses no bits of these dtypes, a number of bits does.
        if not all(isinstance(rounding, bool) for rounding in roundings):
            raise ArgumentError(
                "the toy backend rounds to nearest: set stochastic_round and rounding to False"
            )
        for array, written, label in _labelled(update):
            if written and not array.flags.writeable:
                raise LayoutError(f"{label()} is read-only, and a step writes it")
        return update.arrays, [[0] * len(column) for column in columns]

    def explain(self, update):
        """Return the texts of the update's kernels, a list."""
        return [kernel_text(stage) for stage in update.program.passes()]

    # --- reductions; the fixed shape of sums gives the other backends' bits ---

    def reduce(self, op, tensor, axis, shape):
        """Reduce over an axis (None: over all elements); return a new tensor of shape `shape`."""
        array = tensor.storage if axis is None else np.moveaxis(tensor.storage, axis, -1)
        matrix = array.reshape(math.prod(shape), -1 if array.size else 0)
        found = row_sums(matrix) if op == "sum" else getattr(np, op)(matrix, axis=1)
        return self.wrap(np.asarray(found, tensor.dtype).reshape(shape))


class ToyStep(Interpreter):
    """Runs passes by kernels, and leaves the other stages to the reference's interpreter."""

    def __init__(self, kernels, *given):
        super().__init__(*given)
        self.kernels = kernels

    def run_pass(self, level, stage, number, row):
        """Run the kernel of a pass over one parameter, given its number and its arrays."""
        self.keep(
            level, stage, number, self.kernels[stage](row, self.numbers[number], self.dtype_of(row).type)
        )


def kernel_text(stage):
    """Return a pass as Python.

    It is a function of one array for each slot, the parameter's numbers, and the arithmetic's type.
    """
    lines = ["def kernel(arrays, numbers, dtype):"]

    def value(operand):
        return f"dtype(numbers[{~operand}])" if operand < 0 else f"v{operand}"

    for index, (op, *operands) in enumerate(stage.code):
        array = f"arrays[{operands[0]}]"
        if op == "load":
            result = f"{array}.astype(dtype)  # {stage.names[operands[0]]}"
        elif op == "round":
            result = f"numpy.asarray({value(operands[1])}).astype({array}.dtype).astype(dtype)"
        elif op == "store":  # what is read afterwards is what was stored, after rounding
            lines.append(f"    {array}[...] = {value(operands[1])}")
            result = f"{array}.astype(dtype)  # {stage.names[operands[0]]}"
        else:
            result = f"{op}({', '.join(map(value, operands))})"
        lines.append(f"    v{index} = {result}")
    return "\n".join(
        [*lines, f"    return [{', '.join(value(operand) for _, operand in stage.reductions)}]", ""]
    )


def compiled(text):
    """Return the function that a kernel's text makes; its vocabulary is the op table."""
    names = {op.name: op.numpy for op in PRIMITIVES.values()} | {"numpy": np}
    exec(text, names)
    return names["kernel"]


def _labelled(update):
    """Return (array, whether the program writes it, what to call it) of all arrays.

    `check_disjoint` takes them so.
    """
    names, written = update.program.names, update.program.written()
    return [
        (array, slot in written, lambda name=names[slot]: name)
        for slot, column in enumerate(update.arrays)
        for array in column
    ]
