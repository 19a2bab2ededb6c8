"""Lines: what a trace consists of.

A trace is straight-line code. Each line gives a value, which later lines know by its position:

    ("number", k)                 the trace's number k: a Python number that stood in the rule
    ("source", name)              a number of the step that the host knows: "lr", "t", "self.decay", ...
    ("size",)                     the number of elements of the parameter
    ("length", axes)              the number of elements of a slice: along the axes of this extent
    ("taken",)                    1 if the step stores what `step.only_if` guards, else 0
    ("load", slot)                read a slot; emitted at its first use only
    ("store", slot, value)        write a slot; the line's value is what was stored, after rounding; a fourth
                                  entry is the assignment's number, if it is not its place among the stores
    ("reduce", op, over, value)   the sum, max or min of all elements of a parameter ("tensor"), of all
                                  parameters ("step"), or along some axes: then `over` is the extent of the
                                  result
    ("matrix", function, operand, ...)
                                  a function of whole matrices, see `nbopt.language.matrices`
    ("only_if", value)            store nothing where the value is 0 or NaN
    (op, operand, ...)            a primitive of `nbopt.language.ops`

Each value has an extent, which says what it varies with: STEP (one number for all parameters), TENSOR (one
for each parameter), ELEMENT, or a slice: the parameter and some of its axes. An extent is a set of bits, so
that an operation has the union of its operands' extents: bit 0 is the parameter, bit k + 1 its axis k, and
ELEMENT has all bits. A reduction has a smaller one. A trace with slices is for one number of axes.

A value's *level* is the number of reductions and functions of matrices on the longest way to it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

STEP, TENSOR, ELEMENT = 0, 1, -1
#: Lines that are computed from nothing.
LEAVES = ("number", "source", "size", "length", "taken", "load")
#: Lines whose values are known after a pass: each is one level above its operands.
BETWEEN = ("reduce", "matrix")
#: A line of a trace, or of a stage.
Line = tuple[Any, ...]


def is_number(extent: int) -> bool:
    """Return whether a value of this extent is one number for each parameter, or for all."""
    return extent in (STEP, TENSOR)


def is_slice(extent: int) -> bool:
    """Return whether a value of this extent varies with some axes of the parameter."""
    return extent > TENSOR


def along(axes: Iterable[int]) -> int:
    """Return the extent of what varies with the parameter and some of its axes."""
    return TENSOR | sum(2 << axis for axis in axes)


def axes_of(extent: int, ndim: int) -> list[int]:
    """Return which of the axes of a parameter an extent varies with, as a list."""
    return [axis for axis in range(ndim) if extent & 2 << axis]


def extents_of(
    code: Sequence[Line], slots: Sequence[int], known: Sequence[int] = (), ndim: int | None = None
) -> list[int]:
    """Return the extent of each line of a trace.

    Parameters
    ----------
    code : sequence of tuples
    slots : sequence of int
        The slots' extents.
    known : sequence of int
        The extents of the first lines.
    ndim : int, optional
        How many axes the parameters have.

    Returns
    -------
    list of int
    """
    extents: list[Any] = [*known]
    every = along(range(ndim)) if ndim else ELEMENT
    for line in code[len(extents) :]:
        if line[0] in ("load", "store"):
            extents.append(slots[line[1]])
        elif line[0] == "reduce":
            extents.append({"step": STEP, "tensor": TENSOR}.get(line[2], line[2]))
        elif line[0] == "matrix":
            extents.append(ELEMENT)
        elif line[0] in ("size", "length"):
            extents.append(TENSOR)
        else:
            found = functools.reduce(operator.or_, (extents[operand] for operand in operands_of(line)), STEP)
            extents.append(ELEMENT if found == every else found)
    return extents


def operands_of(line: Line) -> Any:
    """Return the positions of the values that a line of a trace is computed from."""
    op, *rest = line
    if op in LEAVES:
        return []
    return rest[1:2] if op == "store" else rest[2:] if op == "reduce" else rest[op == "matrix" :]


def levels_of(code: Sequence[Line], floors: dict[int, int]) -> list[int]:
    """Return the level of each line of a trace.

    Parameters
    ----------
    code : sequence of tuples
    floors : dict of int to int
        Line -> the level before which it must not stand.

    Returns
    -------
    list of int
    """
    levels: list[int] = []
    for index, line in enumerate(code):
        level = max((levels[operand] for operand in operands_of(line)), default=0)
        levels.append(max(level, floors.get(index, 0)) + 1 if line[0] in BETWEEN else level)
    return levels


def loses(code: Sequence[Line], slot: int) -> bool:
    """Return whether a trace computes a value from a slot that is neither stored nor part of another value.

    Parameters
    ----------
    code : sequence of tuples
        The trace.
    slot : int

    Returns
    -------
    bool
    """
    computed: set[int] = set()
    read: set[int] = set()
    for index, line in enumerate(code):
        operands = operands_of(line)
        read.update(operands)
        if line == ("load", slot) or (line[0] != "store" and computed.intersection(operands)):
            computed.add(index)
    return bool(computed - read)


def needed_of(code: Sequence[Line]) -> set[int]:
    """Return the lines that stores and conditions are computed from, themselves included."""
    return cone_of(code, [index for index, line in enumerate(code) if line[0] in ("store", "only_if")])


def over_the_step(code: Sequence[Line]) -> list[int]:
    """Return the lines that are reductions over the step, as far as they are needed."""
    needed = needed_of(code)
    return [
        index
        for index, line in enumerate(code)
        if line[0] == "reduce" and line[2] == "step" and index in needed
    ]


def knowing(code: Sequence[Line]) -> list[bool]:
    """Return for each line whether it is computed from whether the step is taken."""
    knows: list[bool] = []
    for line in code:
        knows.append(line[0] == "taken" or any(knows[operand] for operand in operands_of(line)))
    return knows


def cone_of(code: Sequence[Line], lines: Iterable[int]) -> set[int]:
    """Return the lines that some lines are computed from, themselves included."""
    found = set(lines)
    for index in range(len(code) - 1, -1, -1):
        if index in found:
            found.update(operands_of(code[index]))
    return found
