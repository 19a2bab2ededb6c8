"""Stages: what a trace becomes before a backend runs it.

`nbopt.language.cutter.cut` makes a `Program` of a trace: a list of stages that run one after the other. All
values of elements that have one level share a pass over memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nbopt.language.lines import ELEMENT, LEAVES, Line


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


def _values(line: Line) -> Any:
    """Return the operands of a line of a stage."""
    op, *rest = line
    return [] if op in LEAVES else rest[1:2] if op in ("store", "round") else rest
