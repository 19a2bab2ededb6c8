"""Rounds: parameters take functions of matrices one batch after the other, in one piece of memory.

In a round some parameters take all stages from the first on that leaves matrices in workspace, then the next
ones do. So the workspace is as large as a round, not as all parameters.
"""

import math
from typing import NamedTuple

import numpy as np

from nbopt.language.lines import ELEMENT
from nbopt.language.stages import Combine, Pass, Verdict
from nbopt_backends.matrices.stage import WORKSPACE
from nbopt_backends.meaning.slices import shape_of

_BATCH, _SLICE = 256, 16  # bytes that batches, and slices of a parameter, begin at multiples of


def batches_of(shapes):
    """Return which of some parameters make up each batch: those of one shape.

    Parameters
    ----------
    shapes : dict of int to tuple of int
        By their rows.

    Returns
    -------
    dict of tuple of int to list of int
        The shapes and the rows. Those without elements are left out.
    """
    found: dict[tuple, list[int]] = {}
    for row, shape in shapes.items():
        if math.prod(shape):
            found.setdefault(shape, []).append(row)
    return found


def rounds_of(functions, shapes):
    """Return which of some parameters go through functions of matrices together.

    A round takes as much workspace as the matrices of one shape do, or as the functions allow, if that is
    less. One parameter is never cut.

    Parameters
    ----------
    functions : list of Product or Orthogonalize
    shapes : dict of int to (tuple of int, int)
        The shapes and the bytes of an element, by the parameters' rows.

    Returns
    -------
    list of list of int
        The rows of each round.
    """
    sizes = {row: math.prod(shape) * itemsize for row, (shape, itemsize) in shapes.items()}
    batches: dict[tuple, list[int]] = {}
    for row, (shape, itemsize) in shapes.items():
        batches.setdefault((*sorted(shape), itemsize), []).append(row)
    totals = [sum(sizes[row] for row in rows) for rows in batches.values()]
    allowed = [getattr(function, "workspace", None) or WORKSPACE for function in functions]
    most, left = min(max(totals, default=0), *allowed), 0
    found: list[list[int]] = []
    for total, rows in zip(totals, batches.values()):
        for number, row in enumerate(rows):
            needed = total if number == 0 and total <= most else sizes[row]
            if not found or needed > left:
                found.append([])
                left = most
            found[-1].append(row)
            left -= sizes[row]
    return found


def rounds_of_plan(program, layout):
    """Return which parameters go through functions of matrices together.

    Parameters
    ----------
    program : Program
    layout : Layout

    Returns
    -------
    rounds : list of list of int
        The rows of each round. Empty if all go together: because they fit, because there are no functions of
        matrices, or because a reduction over the step or a condition needs what comes of all of them.
    first : tuple or None
        The place in the order of the step of the first stage that is done in rounds.
    """
    functions = program.matrices()
    slots = {slot for one in functions for slot in (*one.sources, one.output)}
    first = None
    for order, stage in program.order():
        if isinstance(stage, Pass) and first is None and not slots.isdisjoint(stage.written()):
            first = order
        joins = isinstance(stage, Verdict) or (isinstance(stage, Combine) and stage.over == "step")
        if joins and first is not None:
            return [], None
    if first is None:
        return [], None
    shapes = {
        row: (shape, np.dtype(group.arithmetic).itemsize)
        for group in layout.groups
        for row, shape in layout.shapes(group).items()
    }
    rounds = rounds_of([one.function for one in functions], shapes)
    if len(rounds) < 2:
        return [], None
    empty = set(range(layout.n_rows)) - shapes.keys()
    return [[*rounds[0], *empty], *rounds[1:]], first


class Place(NamedTuple):
    """Where a slot of some parameters of equal shapes lies in the workspace.

    Attributes
    ----------
    slot, round : int
    start, step : int
        The bytes before the first parameter's, and from one to the next.
    batch : tuple of int
        ``(batch, *shape)``. Matrices follow each other without gaps.
    dtype : str
    rows : list of int
        Of the parameters.
    """

    slot: int
    round: int
    start: int
    step: int
    batch: tuple[int, ...]
    dtype: str
    rows: list[int]


def places_of(program, layout, rounds):
    """Return where the workspace of each parameter lies in one piece of memory, and how large that is.

    Slices have memory of their own, and so has each slot of matrices, for the largest round.

    Parameters
    ----------
    program : Program
    layout : Layout
    rounds : list of list of int
        As `rounds_of_plan` returns them.

    Returns
    -------
    places : list of Place
        In the same order of batches for all slots that hold matrices.
    size : int
        Bytes.
    """
    together = {row for group in layout.groups for row in group.rows}
    places: list[Place] = []
    first = 0
    for slot in range(len(program.names) - program.workspace, len(program.names)):
        extent, ends = program.extents[slot], []
        for number, own in enumerate([*map(set, rounds)] if rounds and extent == ELEMENT else [together]):
            start = first
            for group in layout.groups:
                itemsize = np.dtype(group.arithmetic).itemsize
                shapes = {row: shape for row, shape in layout.shapes(group).items() if row in own}
                if extent != ELEMENT:
                    shapes = {row: shape_of(shape, extent) for row, shape in shapes.items()}
                for shape, rows in batches_of(shapes).items():
                    step = math.prod(shape) * itemsize
                    if extent != ELEMENT:
                        step = -(-step // _SLICE) * _SLICE
                    places.append(
                        Place(slot, number, start, step, (len(rows), *shape), group.arithmetic, rows)
                    )
                    start += -(-len(rows) * step // _BATCH) * _BATCH
            ends.append(start)
        first = max(ends)
    return places, first
