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
from nbopt_backends.plans.plan import Layout, layout_key


class Captured:
    """What the replays of a captured step use. It is kept with the optimizer.

    Attributes
    ----------
    plans : list of DevicePlan
    joined : Joined
    told : bool
        Whether there was a warning, see `tell_of_moved`.
    """

    def __init__(self, plans, together):
        self.plans, self.joined, self.told = plans, together, False

    def is_elsewhere(self, plans):
        """Return whether gradients of a later step are in other memory than at the capture."""
        pairs = [(own.layout, later.layout) for own, later in zip(self.plans, plans)]
        return len(plans) == len(self.plans) and any(
            own.table.shape == later.table.shape and (own.table[:, 1] != later.table[:, 1]).any()
            for own, later in pairs
        )


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


def tell_of_moved(updates, plans):
    """Warn once if a graph reads gradients elsewhere than a later step of its optimizer does.

    Parameters
    ----------
    updates : sequence of Update
    plans : list of DevicePlan
        Theirs.
    """
    last = updates[0].captures[-1] if updates and updates[0].captures else None
    if last is not None and not last.told and last.is_elsewhere(plans):
        last.told = True
        warnings.warn(
            "gradients are in other memory than at the capture of a step into a CUDA graph, whose replays go "
            "on to read that of before: write new gradients into the same arrays, or capture the step again",
            RuntimeWarning,
            stacklevel=2,
        )


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
        together = joined(plans)
        for plan, update in zip(plans, updates):
            plan.give(update.numbers, 0, 0)
            backend.upload(plan.image.device, plan.image.host)
        for matrices in together.matrices:
            matrices.reserve()
        device.synchronize(private)
    return CapturedLaunch(backend, updates, Captured(plans, together), stream)
