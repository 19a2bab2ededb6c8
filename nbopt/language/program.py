"""Program: the stages of a rule, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nbopt.language.lines import ELEMENT, STEP, TENSOR, Line, is_slice
from nbopt.language.stages import Combine, Matrix, Pass, Scalars, Stage, Verdict


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
