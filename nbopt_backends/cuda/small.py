"""The text of small stages: those on the numbers of parameters, between the passes.

Each is a function that is a kernel, or a part of a pass's: what its last block does in the end, or each block
in the beginning, see `nbopt_backends.cuda.closing`.
"""

from typing import NamedTuple

from nbopt_backends.cuda.launches import Kernel
from nbopt_backends.cuda.numbers import fold_text
from nbopt_backends.lowering.text import indented, number_lines

#: What the record of a number that is copied is: the op, which says what it is over no elements; which
#: number; the address of int64[rows + 1], where each row's tiles begin; which number it becomes.
COPY_FIELDS = 4
#: That of a reduction over the step: the op, and which number the result is.
STEP_FIELDS = 2

#: How a function finds its share of the work: as a kernel, and as a part of one block of another kernel.
_ALONE = {"inline": "", "block": "int64(cuda.blockIdx.x)", "blocks": "int64(cuda.gridDim.x)"}
_INSIDE = {"inline": "@inline\n", "block": "int64(0)", "blocks": "int64(1)"}

_COPY = '''
{inline}def {name}(copies, n_copies, rows, numbers, stride):
    """Copy numbers of parameters: what is over the elements of one, and a number already.

    Parameters
    ----------
    copies, n_copies : int64
        Address of int64[n_copies, {copy_fields}].
    rows : int64
    numbers, stride : int64
        Address of the first row's numbers, and the bytes from one row's to the next.
    """
    k = {block} * cuda.blockDim.x + cuda.threadIdx.x
    while k < n_copies * rows:
        row, copy = k % rows, copies + k // rows * {copy_bytes}
        starts, own = load_int64(copy, 2, -1), numbers + row * stride
        found = of_nothing(load_int64(copy, 0, -1))
        if load_int64(starts, row + 1, -1) > load_int64(starts, row, -1):
            found = load_float64(own, load_int64(copy, 1, -1), -1)
        store_float64(own, load_int64(copy, 3, -1), -1, found)
        k += {blocks} * cuda.blockDim.x
'''

_FOLD_ROWS = '''
{inline}def {name}(ends, n_ends, results, n, numbers, stride, n_numbers, scratch):
    """Fold the parameters' results, and write what is over the step to the numbers of all.

    There is a block for each end.

    Parameters
    ----------
    ends, n_ends : int64
        Address of int64[n_ends, {step_fields}].
    results, n : int64
        Address of int64[n_ends, n]: the addresses of the results, in the order of the parameters.
    numbers, stride : int64
        Address of the first row's numbers, and the bytes from one row's to the next.
    n_numbers : int64
        How many rows have numbers of their own.
    scratch : int64
        Address of float64[n_ends, n].
    """
    c = {block}
    while c < n_ends:
        end, values = ends + c * {step_bytes}, scratch + c * n * 8
        op = load_int64(end, 0, -1)
        i = int64(cuda.threadIdx.x)
        while i < n:
            store_float64(values, i, -1, load_float64(load_int64(results, c * n + i, -1), 0, -1))
            i += cuda.blockDim.x
        cuda.syncthreads()
        fold(values, 8, n, op)
        found = load_float64(values, 0, -1) if n > 0 else of_nothing(op)
        row = int64(cuda.threadIdx.x)
        while row < n_numbers:
            store_float64(numbers + row * stride, load_int64(end, 1, -1), -1, found)
            row += cuda.blockDim.x
        c += {blocks}
'''

_JUDGE = '''
{inline}def {name}(condition, first, taken):
    """Write to `taken`, the address of an int64, whether the float64 `condition` holds: is neither 0 nor NaN.

    If it is not the `first` condition of a step, those before it must hold as well. For one block.
    """
    if cuda.threadIdx.x == 0:
        value = load_float64(condition, 0, -1)
        before = int64(1) if first != 0 else load_int64(taken, 0, -1)
        store_int64(taken, 0, -1, before if value == value and value != float64(0) else int64(0))
'''

_RUN = '''
{inline}def {name}(table, width, first, stride, rows, n_rows, verdict):
    """Do arithmetic on the numbers of so many parameters: a thread for each.

    Parameters
    ----------
    table, width : int64
        Address of int64[rows, width]: the addresses of the slots.
    first, stride : int64
        Address of the first row's numbers, and the bytes from one row's to the next.
    rows, n_rows : int64
        Address of int64[n_rows]: which parameters.
    verdict : int64
        Address of an int64: whether the step is taken.
    """
    taken = load_int64(verdict, 0, -1)
    k = {block} * cuda.blockDim.x + cuda.threadIdx.x
    while k < {rows}:
        number = load_int64(rows, k, -1)
        row, numbers = table + number * width * 8, first + number * stride
{body}
        k += {blocks} * cuda.blockDim.x
'''

_ADVANCE = '''
{inline}def {name}(state):
    """Count an update: `state` is the address of the seed and the count, two int64. For one block."""
    if cuda.threadIdx.x == 0:
        store_int64(state, 1, -1, load_int64(state, 1, -1) + int64(1))
'''

_TEXTS = {"copy_numbers": _COPY, "fold_rows": _FOLD_ROWS, "judge": _JUDGE, "advance": _ADVANCE}
_FIELDS = {
    "copy_fields": COPY_FIELDS,
    "copy_bytes": 8 * COPY_FIELDS,
    "step_fields": STEP_FIELDS,
    "step_bytes": 8 * STEP_FIELDS,
}


class Small(NamedTuple):
    """A small stage, and what its function is given.

    Attributes
    ----------
    text : str
        Of the function, with places for `_ALONE` or `_INSIDE`, and for its name.
    name : str
    arguments : tuple of int
    blocks : int
        As a kernel.
    repeatable : bool
        Whether blocks can run it at the same time: it gives the same numbers each time, and reads none of
        them.
    """

    text: str
    name: str
    arguments: tuple
    blocks: int
    repeatable: bool = False

    def inside(self, number):
        """Return the text as part `number` of another kernel, and the function's name there."""
        name = f"{self.name}_{number}"
        return self.text.format(name=name, **_INSIDE), name

    def alone(self, backend):
        """Return it as a launch of its own: a `Kernel`."""
        text = backend.marked(alone(self.text, self.name, backend.dialect()))
        return Kernel(text, "cuda_numbers", self.name, self.blocks, self.arguments)


def alone(text, name, dialect):
    """Return the text of the module in which a function of `named_text` or `scalars_text` is a kernel."""
    folds = fold_text(dialect) if "of_nothing" in text else ""
    return f"{dialect.header}{folds}{text.format(name=name, **_ALONE)}"


def named_text(name):
    """Return the text of one of `_TEXTS`, with the places of `Small.text`."""
    return _filled(_TEXTS[name], **_FIELDS)


def scalars_text(stage, dialect, dtypes):
    """Return the text of a stage of arithmetic on numbers, with the places of `Small.text`.

    The arguments are those of `number_lines`.
    """
    rows = "n_rows and taken != 0" if stage.guarded else "n_rows"
    return _filled(_RUN, rows=rows, body=indented(number_lines(stage, dialect, dtypes), 2))


def _filled(text, **values):
    """Fill in what does not depend on whether the function is a kernel."""
    open_places = {place: f"{{{place}}}" for place in ("name", *_ALONE)}
    return text.format(**values, **open_places)
