"""Functions of matrices in rounds on the CPU: the workspace, and the records of each round."""

import numpy as np

from nbopt.language.lines import ELEMENT
from nbopt_backends.cpu.records import Matrices
from nbopt_backends.matrices.rounds import places_of


def workspace_of(plan):
    """Make the memory of a plan's workspace, and enter its addresses into the table.

    Parameters
    ----------
    plan : CpuPlan

    Returns
    -------
    list of dict of int to list of numpy.ndarray
        For each round, and each slot that holds matrices: the batches of equal shapes, ``[batch, *shape]``.
        They are in the same order for all slots.
    """
    places, size = places_of(plan.program, plan.layout, plan.rounds)
    memory = np.zeros(size, np.uint8)
    first = plan.kept_alive(memory)
    batches: list[dict] = [{} for _ in plan.rounds or [None]]
    for place in places:
        addresses = first + place.start + place.step * np.arange(len(place.rows))
        plan.layout.table[place.rows, place.slot] = addresses
        if plan.program.extents[place.slot] == ELEMENT:
            own = np.ndarray(place.batch, place.dtype, memory, place.start)
            batches[place.round].setdefault(place.slot, []).append(own)
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
