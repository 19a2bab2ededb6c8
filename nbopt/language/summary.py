"""A program in words, for `nbopt.explain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbopt.language.lines import STEP, axes_of, is_slice
from nbopt.language.stages import Combine, Matrix, Pass, Scalars

if TYPE_CHECKING:
    from nbopt.language.program import Program

_OVER = {"tensor": "of each parameter", "step": "of all parameters"}


def summary(program: Program, sizes: Sequence[int], shapes: Sequence[tuple[int, ...]] = ()) -> list[str]:
    """Return what the stages of a program do, one line for each.

    Parameters
    ----------
    program : Program
    sizes : sequence of int
        The bytes of an element of each slot.
    shapes : sequence of tuple of int
        The parameters', if their matrices matter.

    Returns
    -------
    list of str
    """
    lines, passes = [], 0
    moved = program.bytes_moved(sizes)
    for _, stage in program.stages():
        if isinstance(stage, Pass) and is_slice(stage.extent):
            text = f"over {_slices(program, stage.extent)}: {_moves(program, stage)}"
        elif isinstance(stage, Pass):
            text = f"pass {passes + 1}: {_moves(program, stage)}, {moved[passes]} bytes an element"
            passes += 1
        elif isinstance(stage, Combine) and not isinstance(stage.over, str):
            text = f"{program.names[stage.output]}: the {stage.op} for {_slices(program, stage.over)}"
        elif isinstance(stage, Combine):
            text = f"number {stage.output}: the {stage.op} {_OVER[stage.over]}"
        elif isinstance(stage, Matrix):
            flops = sum(map(stage.function.flops, shapes)) / 1e9
            sources = ", ".join(program.names[slot] for slot in stage.sources)
            text = f"{program.names[stage.output]}: {stage.function}, of {sources}; {flops:.3g} gigaflops"
        elif isinstance(stage, Scalars):
            text = _scalars(program, stage)
        else:
            text = f"if number {stage.condition} is 0 or NaN, nothing is stored but counters"
        lines.append(text)
    return lines


def _moves(program: Program, stage: Pass) -> str:
    kinds = ("loads", stage.read()), ("stores", stage.written())
    parts = [f"{what} {', '.join(program.names[slot] for slot in slots)}" for what, slots in kinds if slots]
    count = len(stage.reductions) + len(stage.folds)
    return "; ".join([*parts, f"{count} reduction{'s' * (count > 1)}"] if count else parts)


def _slices(program: Program, extent: int) -> str:
    axes = axes_of(extent, program.ndim or 0)
    return f"each index along {'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"


def _scalars(program: Program, stage: Scalars) -> str:
    stored = [program.names[line[1]] for line in stage.code if line[0] == "store"]
    if stored:
        return f"stores {', '.join(stored)}"
    numbers = ", ".join(str(output) for _, output in stage.outputs)
    return (
        f"number{'s' * (len(stage.outputs) > 1)} {numbers}: computed "
        f"{'once' if stage.extent == STEP else 'for each parameter'}"
    )
