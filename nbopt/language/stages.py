"""Stages: what a trace becomes before a backend runs it.

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

`nbopt.language.cutter.cut` makes a `Program` of it: a list of stages that run one after the other. A value's
*level* is the number of reductions and functions of matrices on the longest way to it, and all elements'
values of one level share a pass over memory.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

STEP, TENSOR, ELEMENT = 0, 1, -1
#: Lines that are computed from nothing.
LEAVES = ("number", "source", "size", "length", "taken", "load")
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


class Pass(NamedTuple):
    """One loop over all elements of all parameters.

    It loads, computes, stores, and makes partial results of reductions. A pass over slices is a loop over the
    elements of what varies with some axes only.

    Attributes
    ----------
    names : tuple of str
        The program's slots, which the kernel's text uses.
    code : tuple of tuples
        ``("load", slot)``, ``("store", slot, value, number)``, ``("round", slot, value, number)`` and ``(op,
        operand, ...)``. An operand from 0 on is an earlier line; one below 0 is a number of the parameter,
        ``~k`` being number k. A store's `number` is its place among the trace's stores, which random bits
        depend on. What is rounded only has the value that a store gives, and writes nothing.
    reductions : tuple of (str, int)
        Each reduction's op, and the operand that it reduces.
    guarded : bool
        Whether it is left out where the step's condition is false.
    extent : int
        What it loops over: ELEMENT, or a slice's.
    folds : tuple of (str, int, int)
        Each reduction along axes: its op, the operand, and the extent of the result.
    """

    names: tuple[Any, ...]
    code: tuple[Any, ...]
    reductions: tuple[Any, ...] = ()
    guarded: bool = False
    extent: int = ELEMENT
    folds: tuple[Any, ...] = ()

    def has_slices(self, extents: Sequence[int]) -> bool:
        """Return whether some of its values are slices of what it loops over.

        Parameters
        ----------
        extents : sequence of int
            The slots'.

        Returns
        -------
        bool
        """
        return (
            self.extent != ELEMENT
            or bool(self.folds)
            or any(extents[slot] != self.extent for slot in self.used())
        )

    def written(self) -> list[int]:
        """Return which slots are stored to.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] == "store"})

    def read(self) -> list[int]:
        """Return which slots are loaded.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] == "load"})

    def used(self) -> list[int]:
        """Return which slots are loaded, stored to, or only rounded for.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] in ("load", "store", "round")})

    def moved(self) -> list[int]:
        """Return which slots are loaded or stored to.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] in ("load", "store")})

    def scalars(self) -> list[int]:
        """Return which numbers of a parameter are used.

        Returns
        -------
        list of int
            Ascending.
        """
        operands = [operand for line in self.code for operand in _values(line)]
        operands += [reduction[1] for reduction in (*self.reductions, *self.folds)]
        return sorted({~operand for operand in operands if operand < 0})


class Combine(NamedTuple):
    """The end of a reduction: partial results of a pass, or a number of each parameter, become one number.

    Attributes
    ----------
    op : str
        ``"sum"``, ``"max"`` or ``"min"``.
    over : str or int
        ``"tensor"`` or ``"step"``; or the extent of the result, which is a slice.
    level : int
        Of the pass that has the partial results, the number of the level before.
    source : int
        Which of that pass's reductions, or of its folds if the result is a slice; or ``~k``: number k of each
        parameter.
    output : int
        Which number of the parameters it becomes, or which slot if it is a slice.
    guarded : bool
        As for `Pass`.
    extent : int
        That of the pass.
    rank : int or None
        Which of the trace's reductions over the step it is.
    """

    op: str
    over: str
    level: int
    source: int
    output: int
    guarded: bool = False
    extent: int = ELEMENT
    rank: int | None = None


class Matrix(NamedTuple):
    """A function of the matrices that passes before it have left in workspace.

    Attributes
    ----------
    function : Product or Orthogonalize
        See `nbopt.language.matrices`.
    sources : tuple of int
        The slots of its operands.
    output : int
        The slot of its result. It may be that of an operand, which nothing needs any more then.
    guarded : bool
        As for `Pass`. A backend may compute it all the same: nothing stores the result.
    """

    function: Any
    sources: tuple[int, ...]
    output: int
    guarded: bool = False


class Scalars(NamedTuple):
    """Arithmetic on numbers of parameters, in float64.

    Attributes
    ----------
    extent : int
        STEP: done once, and every parameter gets the outputs. TENSOR: done for each parameter.
    code : tuple of tuples
        As a pass's, with ``("taken",)`` besides.
    outputs : tuple of (int, int)
        A line, and which number of the parameters it becomes.
    guarded : bool
        As for `Pass`.
    """

    extent: int
    code: tuple[Any, ...]
    outputs: tuple[Any, ...]
    guarded: bool = False


class Verdict(NamedTuple):
    """The step's condition.

    If a condition of any update of the step is 0 or NaN, all that is guarded is left out.

    Attributes
    ----------
    condition : int
        Which number of the parameters it is.
    """

    condition: int


Stage = Pass | Combine | Matrix | Scalars | Verdict


class Program(NamedTuple):
    """A rule's structure, without a single number in it.

    Hashable: rules with the same structure share kernels.

    Attributes
    ----------
    names : tuple of str
        The slots' names.
    extents : tuple of int
        The slots' extents. One of extent STEP is the same memory for every parameter. Those of each parameter
        come first, then those of extent STEP, then workspace.
    n_given, n_numbers : int
        How many numbers of a parameter the host gives (the outputs of the scalar code), and how many there
        are.
    size : int or None
        Which number is the parameter's number of elements.
    levels : tuple of tuple
        The stages, level by level, in the order in which they run.
    ends : tuple of Scalars
        What runs after everything else, also where the step's condition is false: counters.
    verdict : int or None
        At which level the step's condition is known.
    ndim : int or None
        How many axes the parameters have, if that matters.
    workspace : int
        How many of the slots are workspace: slices, and operands and results of functions of matrices, that
        one stage leaves to others, in the dtype of the parameter's arithmetic.
    lengths : tuple of (int, int)
        Which numbers are numbers of elements along some axes: the number, and the extent that has these axes.
    """

    names: tuple[Any, ...]
    extents: tuple[Any, ...]
    n_given: int
    n_numbers: int
    size: int | None
    levels: tuple[Any, ...]
    ends: tuple[Any, ...] = ()
    verdict: int | None = None
    ndim: int | None = None
    workspace: int = 0
    lengths: tuple[Any, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], code: Sequence[Line], n_given: int = 0) -> Program:
        """Return a program of one pass.

        Parameters
        ----------
        names : tuple of str
        code : tuple of tuples
            As a pass's.
        n_given : int
            How many numbers the host gives.

        Returns
        -------
        Program
        """
        return cls(
            tuple(names),
            (ELEMENT,) * len(names),
            n_given,
            n_given,
            None,
            ((Pass(tuple(names), tuple(code)),),),
        )

    def stages(self) -> list[tuple[int, Stage]]:
        """Return all stages with their levels, in the order in which they run.

        Returns
        -------
        list of (int, Pass, Combine, Matrix, Scalars or Verdict)
        """
        found = [(level, stage) for level, stages in enumerate(self.levels) for stage in stages]
        return found + [(len(self.levels), end) for end in self.ends]

    def order(self) -> list[tuple[tuple[bool, int, int], Stage]]:
        """Return all stages with their places in the order of a step.

        The stages of several programs can be sorted by these places. Within a level, what the conditions are
        computed from comes before the conditions, and these before all else; functions of matrices come
        before the passes, and coarser slices before finer ones. Counters come last.

        Returns
        -------
        list of (tuple, Pass, Combine, Matrix, Scalars or Verdict)
            A place is (whether it is the end, the level, the part of the level).
        """
        found = []
        for level, stage in self.stages():
            found.append(((level == len(self.levels), level, _part(stage)), stage))
        return found

    def differs(self) -> bool:
        """Return whether parameters have numbers of their own, which others don't have.

        Returns
        -------
        bool
        """
        over_tensors = any(
            isinstance(stage, Combine) and stage.over == "tensor" for _, stage in self.stages()
        )
        each = any(isinstance(stage, Scalars) and stage.extent == TENSOR for _, stage in self.stages())
        return over_tensors or each or self.size is not None or bool(self.lengths)

    def passes(self) -> list[Pass]:
        """Return the passes over elements.

        Returns
        -------
        list of Pass
        """
        return [stage for stage in self.loops() if stage.extent == ELEMENT]

    def loops(self) -> list[Pass]:
        """Return the passes over elements and over slices.

        Returns
        -------
        list of Pass
        """
        return [stage for _, stage in self.stages() if isinstance(stage, Pass)]

    def matrices(self) -> list[Matrix]:
        """Return the functions of matrices.

        Returns
        -------
        list of Matrix
        """
        return [stage for _, stage in self.stages() if isinstance(stage, Matrix)]

    def over_the_step(self) -> list[tuple[str, int]]:
        """Return the reductions over the step, in the trace's order, with the levels where they are known.

        Returns
        -------
        list of (str, int)
            The op, the level.
        """
        found = [stage for _, stage in self.stages() if isinstance(stage, Combine) and stage.rank is not None]
        return [(stage.op, stage.level + 1) for stage in sorted(found, key=lambda stage: stage.rank or 0)]

    def without_shared_stores(self) -> Program:
        """Return the program without its stores to slots of extent STEP.

        Another program of the same step does them.

        Returns
        -------
        Program
        """

        def stays(stage: Stage) -> bool:
            return not isinstance(stage, Scalars) or bool(stage.outputs) or stage.extent != STEP

        levels = tuple(tuple(filter(stays, stages)) for stages in self.levels)
        return self._replace(levels=levels, ends=tuple(filter(stays, self.ends)))

    def columns(self) -> list[int]:
        """Return the slots that each parameter has, workspace aside.

        Returns
        -------
        list of int
        """
        return [
            slot
            for slot, extent in enumerate(self.extents[: len(self.extents) - self.workspace])
            if extent != STEP
        ]

    def shared(self) -> list[int]:
        """Return the slots that are one number for the whole step.

        Returns
        -------
        list of int
        """
        return [slot for slot, extent in enumerate(self.extents) if extent == STEP]

    def written(self) -> list[int]:
        """Return which slots are stored to.

        Returns
        -------
        list of int
            Ascending.
        """
        stages = [stage for _, stage in self.stages() if isinstance(stage, (Pass, Scalars))]
        return sorted({line[1] for stage in stages for line in stage.code if line[0] == "store"})

    def bytes_moved(self, sizes: Sequence[int]) -> list[int]:
        """Return how many bytes of elements, not of slices, the passes move for each element.

        Parameters
        ----------
        sizes : sequence of int
            The bytes of an element of each slot.

        Returns
        -------
        list of int
            One number for each pass.
        """
        moved = [
            [
                line[1]
                for line in one.code
                if line[0] in ("load", "store") and self.extents[line[1]] == ELEMENT
            ]
            for one in self.passes()
        ]
        return [sum(sizes[slot] for slot in slots) for slots in moved]


def _part(stage: Stage) -> int:
    if isinstance(stage, Combine):
        return 1 if stage.over == "step" else 0
    if isinstance(stage, Scalars):
        return 2 if stage.outputs else 4
    if isinstance(stage, Verdict):
        return 3
    if isinstance(stage, Matrix):
        return 5
    return 6 + stage.extent.bit_count() if is_slice(stage.extent) else 99


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


def _values(line: Line) -> Any:
    """Return the operands of a line of a stage."""
    op, *rest = line
    return [] if op in LEAVES else rest[1:2] if op in ("store", "round") else rest
