"""The cutter: from a trace to the program of stages that moves the fewest bytes."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nbopt.language.lines import ELEMENT, cone_of, over_the_step
from nbopt.language.making import Made
from nbopt.language.scalars import ScalarCode

if TYPE_CHECKING:
    from nbopt.language.lines import Line
    from nbopt.language.program import Program


def cut(
    names: Iterable[str],
    slots: Iterable[int],
    code: Iterable[Line],
    tests: Iterable[Any] = (),
    guard: int | None = None,
    ndim: int | None = None,
    waits: Iterable[int] = (),
) -> tuple[Program, ScalarCode]:
    """Cut a trace into the stages that a backend runs, and the scalar code that gives the host's numbers.

    Lines that nothing needs are left out.

    Parameters
    ----------
    names : tuple of str
        The slots'.
    slots : tuple of int
        The slots' extents.
    code : sequence of tuples
        The trace.
    tests : sequence of (int, bool)
        Values that the scalar code is to give as well, see `ScalarCode`.
    guard : int, optional
        The level at which all conditions of the step are known, which is that of this trace's unless another
        update of the step has a later one.
    ndim : int, optional
        How many axes the parameters have, if that matters.
    waits : sequence of int
        The levels at which the reductions over the step are known, in the order of the trace, if they must
        wait for those of other traces.

    Returns
    -------
    program : Program
    scalars : ScalarCode
        Its outputs are the numbers that the host gives.
    """
    return _cut(tuple(names), tuple(slots), tuple(code), tuple(tests), guard, ndim, tuple(waits))


@functools.lru_cache(maxsize=256)  # a rule that is traced at every step is cut once
def _cut(
    names: tuple[str, ...],
    slots: tuple[int, ...],
    code: tuple[Line, ...],
    tests: tuple[Any, ...],
    guard: int | None,
    ndim: int | None,
    waits: tuple[int, ...],
) -> tuple[Program, ScalarCode]:
    floors = {line: level - 1 for line, level in zip(over_the_step(code), waits)}
    earliest = best = Made(names, slots, code, guard, ndim, floors)
    if behind := _behind_the_guard(earliest):
        earliest = best = Made(names, slots, code, guard, ndim, {**floors, **behind})
    program = earliest.cut()
    for move in _moves(earliest, len(program.levels)):
        cutter = Made(names, slots, code, guard, ndim, {**best.floors, **move})
        other = cutter.cut()
        same = len(other.levels) == len(program.levels) and (other.verdict, other.over_the_step()) == (
            program.verdict,
            program.over_the_step(),
        )
        if same and _moved(other) < _moved(program):
            best, program = cutter, other
    return program, ScalarCode.of(code, best.given, tests)


def _behind_the_guard(cutter: Made) -> dict[int, int]:
    """Return the floors of functions of matrices that the step's condition does not need: it comes first.

    A pass that is left out if the condition is false then leaves their operands. So a backend may go through
    the matrices in batches, each from its operands to the stores, in the workspace of one batch.
    """
    if cutter.guard is None:
        return {}
    code = cutter.code
    conditions = cone_of(code, [index for index, line in enumerate(code) if line[0] == "only_if"])
    lines = [index for index, line in enumerate(code) if line[0] == "matrix" and index not in conditions]
    return dict.fromkeys(lines, cutter.guard)


def _moved(program: Program) -> int:
    # Kernels are shared by dtypes, so all slots count alike.
    return sum(program.bytes_moved([1] * len(program.names)))


def _moves(cutter: Made, levels: int) -> list[dict[int, int]]:
    """Return what may save bytes: one store or reduction over elements that waits, or all such stores.

    Dicts of line to level.
    """
    code, place = cutter.code, cutter.place
    # A counter is stored by skipped steps as well, in which a later pass may not run.
    counted = cone_of(code, [index for index, knows in enumerate(cutter.knows) if knows])
    stores = [index for index in place if code[index][0] == "store" and cutter.extents[index] == ELEMENT]
    reductions = [
        index
        for index in place
        if code[index][0] == "reduce" and cutter.extents[code[index][3]] == ELEMENT and index not in counted
    ]
    moves = [
        dict.fromkeys(stores, level)
        for level in range(1, levels)
        if any(place[index] < level for index in stores)
    ]
    moves += [{index: level} for index in stores for level in range(place[index] + 1, levels)]
    return moves + [{index: level} for index in reductions for level in range(place[index] + 1, levels - 1)]
