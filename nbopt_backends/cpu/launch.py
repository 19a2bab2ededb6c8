"""What runs a step on the CPU, at once or piece by piece."""

from array import array
from operator import itemgetter

from nbopt_backends.cpu.plan import records_of
from nbopt_backends.plans.launch import Launch


class CpuLaunch(Launch):
    """A step that is ready to run; `joined` is as in `NumbaCPU._joined`."""

    __slots__ = ()

    def __call__(self, count):
        """Run the step; `count` is how many there were before it."""
        for plan, numbers in zip(self.plans, self.numbers):
            plan.give(numbers)
        step = array("Q", (self.backend.rng_seed, count, 1))
        self.run(step, self.joined[1])

    def run(self, step, segments):
        """Run segments of the step; `step` is as in `nbopt_backends.cpu.drivers.run_stages`."""
        passes, address = 0, step.buffer_info()[0]
        for run, stages, n_stages in segments:
            if n_stages:
                passes += run(stages, n_stages, address)
            elif step[2] or not stages.guarded:
                run()
        self.backend.launches += passes  # apart from the call, in which other threads count theirs


class CpuTurns(CpuLaunch):
    """A step that is ready to run piece by piece; `joined` is as in `pieces_of`."""

    __slots__ = ()

    def __call__(self, count, turns):
        """Run the step, see `nbopt.Backend.update`."""
        for plan, numbers in zip(self.plans, self.numbers):
            plan.give(numbers)
        step = array("Q", (self.backend.rng_seed, count, 1))
        _, parts, ends, together, _ = self.joined
        if not together:
            self.run(step, parts[None])
        order = turns(together)
        try:
            piece = next(order)
            while True:
                self.run(step, parts.get(piece, ()))
                piece = order.send(bool(step[2]))
        except StopIteration:
            pass
        self.run(step, ends)


def pieces_of(plans, pieces, runner):
    """Return what runs several plans piece by piece.

    Parameters
    ----------
    plans : list of CpuPlan
    pieces : list of int
        To which each belongs.
    runner : callable
        ``runner(elements)`` returns what runs records over so many elements.

    Returns
    -------
    key : tuple
        What it depends on.
    parts : dict of (int or None) to list of tuple
        The segments of each piece, as in `NumbaCPU._joined`. None: what comes before all pieces.
    ends : list of tuple
        The same for what comes after all pieces.
    together : bool
        Whether what comes before reads the parameters of all pieces.
    kept : tuple
        What all this points to.
    """
    first, key = plans[0], ([plan.number for plan in plans], pieces)
    if first.joined is None or first.joined[0] != key:
        parts, ends, together, entries = _by_pieces(plans, pieces)
        sizes = dict.fromkeys(parts, 0)
        for plan, piece in zip(plans, pieces):
            sizes[piece] = sizes.get(piece, 0) + plan.elements
        sizes[None] = sum(plan.elements for plan in plans)

        def segments(records, elements):
            return [(runner(elements), records.ctypes.data, len(records))] if len(records) else []

        found = {piece: segments(part, sizes[piece]) for piece, part in parts.items()}
        first.joined = key, found, segments(ends, 0), together, (parts, ends, entries)
    return first.joined


def _by_pieces(plans, pieces):
    """Return the stages of a step that runs piece by piece.

    Parameters
    ----------
    plans : list of CpuPlan
    pieces : list of int
        To which each belongs.

    Returns
    -------
    parts : dict of (int or None) to numpy.ndarray
        The records by piece. None: what comes before all pieces, which is everything up to the last reduction
        over the step and the last condition.
    ends : numpy.ndarray
        What comes after all pieces: counters, and stores of numbers that all pieces read.
    together : bool
        Whether what comes before reads the parameters of all pieces.
    entries : list of numpy.ndarray
        As for `in_order`.
    """
    kept: list = []
    found = [
        (order, record, plan, piece) for plan, piece in zip(plans, pieces) for order, record in plan.records
    ]
    found.sort(key=itemgetter(0))
    joins = [order for order, record, *_ in found if record.rank is not None or record.function == "decide"]
    last = max(joins, default=(False, -1, 0))
    parts: dict = {None: []}
    ends = []
    for order, record, plan, piece in found:
        first = order <= last
        place = (
            ends
            if order[0] or (record.shares and not first)
            else parts.setdefault(None if first else piece, [])
        )
        place.append((order, record, plan))
    together = any(record.passes for _, record, _ in parts[None])
    records = {piece: records_of(own, plans, kept) for piece, own in parts.items()}
    return records, records_of(ends, plans, kept), together, kept
