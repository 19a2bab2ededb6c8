"""Capture of steps into CUDA graphs.

A replay reads the memory that the capture has seen, whatever the host has done since. So a captured step gets
tables, numbers, workspace and partial sums of its own. They are filled while nothing of the graph runs, on a
stream that is not captured, and nobody writes them later. What changes from replay to replay (the count of
steps, the state of random bits, a learning rate in memory) is read and written on the device.
"""

import warnings

from nbopt.errors import StateError
from nbopt_backends.cuda.stages import joined
from nbopt_backends.cuda.streams import NOT_HERE
from nbopt_backends.plans.layout import Layout, layout_key


class Captured:
    """What the replays of a captured step use. It is kept with the optimizer.

    Attributes
    ----------
    plans : list of DevicePlan
    joined : Joined
    numbers : list of list of float
        Those that the host gave.
    told : bool
        Whether there was a warning, see `tell_of_changes`.
    """

    def __init__(self, plans, together, numbers):
        self.plans, self.joined, self.numbers, self.told = plans, together, numbers, False

    def changes(self, updates, plans):
        """Return in words how a later step of the same parameters differs, or an empty string."""
        if [plan.program for plan in plans] != [plan.program for plan in self.plans]:
            return ""  # it may be over other parameters
        pairs = [(own.layout.table, later.layout.table) for own, later in zip(self.plans, plans)]
        if any(own.shape != later.shape or (own[:, 0] != later[:, 0]).any() for own, later in pairs):
            return ""
        if any((own[:, 1] != later[:, 1]).any() for own, later in pairs):
            return (
                "gradients are in other memory than at the capture of a step into a CUDA graph, whose "
                "replays go on to read that of before: write new gradients into the same arrays"
            )
        if [update.numbers for update in updates] != self.numbers:
            return (
                "a hyper-parameter has changed since a step was captured into a CUDA graph, whose replays go "
                "on with that of before: make a learning rate that changes an array of one element on the GPU"
            )
        return ""


class CapturedLaunch:
    """A step that is ready to be recorded. There is no `again`: each capture has memory of its own."""

    def __init__(self, backend, updates, captured, stream):
        self._backend, self._updates, self._captured, self._stream = backend, updates, captured, stream

    def __call__(self, count):
        """Record the launches; the `count` is on the device."""
        device, together = self._backend.device, self._captured.joined
        for update in self._updates:
            update.captures.append(self._captured)
        with device.entered(), device.relaxed():
            for launch in together.launches:
                launch(self._stream)
        self._backend.launches += together.passes
        self._backend.counter.note()


def tell_of_changes(updates, plans):
    """Warn once if a graph repeats, or reads elsewhere, what is another one in a later step.

    Parameters
    ----------
    updates : sequence of Update
    plans : list of DevicePlan
        Theirs.
    """
    last = updates[0].captures[-1] if updates and updates[0].captures else None
    changes = last.changes(updates, plans) if last is not None and not last.told else ""
    if changes:
        last.told = True
        warnings.warn(f"{changes}, or capture the step again", RuntimeWarning, stacklevel=2)


def captured(backend, updates, stream):
    """Return what records a step on a stream that is being captured.

    Parameters
    ----------
    backend : DeviceBackend
    updates : sequence of Update
    stream : int

    Returns
    -------
    CapturedLaunch

    Raises
    ------
    StateError
        If something in the step can't be captured.
    """
    device = backend.device
    if any(update.captures is None for update in updates):
        raise StateError(NOT_HERE)
    with device.entered(), device.relaxed(), backend.streams.aside() as private:
        plans = []
        for update in updates:
            arrays, kept = backend.checked_columns(update)
            key = layout_key(arrays, kept, update.listing)
            plan = backend.new_plan(update, Layout(arrays, update.program, key, backend.memory))
            plan.refresh(update, arrays)
            plans.append(plan)
        backend.check_together(updates)
        for plan, update in zip(plans, updates):
            plan.share(update.shared)
        together = joined(plans, True)
        for plan, update in zip(plans, updates):
            plan.give(update.numbers, 0, 0)
            backend.upload(plan.image.device, plan.image.host)
        for matrices in together.matrices:
            matrices.reserve()
        device.synchronize(private)
    return CapturedLaunch(
        backend, updates, Captured(plans, together, [update.numbers for update in updates]), stream
    )
