"""Functions of matrices in rounds, so that the matrices of all rounds share one piece of memory.

In a round some parameters take all stages from the first on that leaves matrices in workspace, then the next
ones do. So the workspace is as large as a round, not as all parameters.
"""

import math

import numpy as np

from nbopt.language.lines import ELEMENT
from nbopt.language.stages import Combine, Pass, Verdict
from nbopt_backends.cpu.records import Matrices
from nbopt_backends.matrices.stage import batches_of, rounds_of
from nbopt_backends.meaning.slices import shape_of

_ALIGNED = 64  # bytes


def rounds_of_plan(plan):
    """Return which parameters go through functions of matrices together.

    Parameters
    ----------
    plan : CpuPlan

    Returns
    -------
    rounds : list of list of int
        The rows of each round. Empty if all go together: because they fit, because there are no functions of
        matrices, or because a reduction over the step or a condition needs what comes of all of them.
    first : tuple or None
        The place in the order of the step of the first stage that is done in rounds.
    """
    program, layout = plan.program, plan.layout
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


def workspace_of(plan):
    """Make the memory of a plan's workspace, and enter its addresses into the table.

    Slices have memory of their own, and so has each slot of matrices, for the largest round.

    Parameters
    ----------
    plan : CpuPlan

    Returns
    -------
    list of dict of int to list of numpy.ndarray
        For each round, and each slot that holds matrices: the batches of equal shapes, ``[batch, *shape]``.
        They are in the same order for all slots.
    """
    program = plan.program
    together = {row for group in plan.layout.groups for row in group.rows}
    rounds = [set(rows) for rows in plan.rounds] or [together]
    batches: list[dict] = [{} for _ in rounds]
    for slot in range(len(program.names) - program.workspace, len(program.names)):
        if program.extents[slot] != ELEMENT:
            _placed(plan, slot, [together])
            continue
        for own, found in zip(batches, _placed(plan, slot, rounds)):
            own[slot] = found
    return batches


def _placed(plan, slot, rounds):
    """Make the memory of one slot, and return the batches of each round."""
    layout, extent, places, size = plan.layout, plan.program.extents[slot], [], 0
    for number, rows in enumerate(rounds):
        start = 0
        for group in layout.groups:
            shapes = {row: shape for row, shape in layout.shapes(group).items() if row in rows}
            if extent != ELEMENT:
                shapes = {row: shape_of(shape, extent) for row, shape in shapes.items()}
            for shape, together in batches_of(shapes).items():
                batch, dtype = (len(together), *shape), np.dtype(group.arithmetic)
                places.append((number, start, batch, dtype, together))
                start += -(-math.prod(batch) * dtype.itemsize // _ALIGNED) * _ALIGNED
        size = max(size, start)
    memory = np.zeros(size, np.uint8)
    plan.kept_alive(memory)
    batches: list[list] = [[] for _ in rounds]
    for number, start, batch, dtype, together in places:
        own = np.ndarray(batch, dtype, memory, start)
        batches[number].append(own)
        layout.table[together, slot] = own.ctypes.data + np.arange(len(own)) * own.strides[0]
    return batches


def in_rounds(found, plans):
    """Return the stages of several plans as lists that follow each other, one for each round.

    Counters, and stores of numbers that all plans read, come after all rounds.

    Parameters
    ----------
    found : list of (tuple, Record or Matrices, CpuPlan)
        In the order of the step.
    plans : list of CpuPlan

    Returns
    -------
    list of list
        Of such stages; those that are done in rounds have the entries of a round's parameters alone.
    """
    divided = [plan for plan in plans if plan.rounds]
    if not divided:
        return [found]
    first = min(plan.first_of_round for plan in divided)
    before: list = []
    after: list = []
    rounds: dict = {(plan.number, number): [] for plan in divided for number in range(len(plan.rounds))}
    for order, record, plan in found:
        matrices = isinstance(record, Matrices)
        if order[0] or (not matrices and record.shares and order >= first):
            after.append((order, record, plan))
        elif not plan.rounds or order < plan.first_of_round or (not matrices and record.rows is None):
            before.append((order, record, plan))
        elif matrices:
            rounds[plan.number, record.round].append((order, record, plan))
        else:
            for number, rows in enumerate(plan.rounds):
                own = record.of(rows)
                if len(own.entries):
                    rounds[plan.number, number].append((order, own, plan))
    return [before, *rounds.values(), after]
