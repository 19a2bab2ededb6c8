"""Copies between a device and the host, on streams of their own. Of a CPU they are plain copies."""

import torch


class Copies:
    """Two streams of a GPU: one to the host, one back. A device that is the host has none, and no events.

    Attributes
    ----------
    device : torch.device
    pinned : bool
        Whether the host's memory should be pinned, so that copies run beside everything else.
    """

    def __init__(self, device):
        self.device, self.pinned = device, device.type == "cuda"
        self._down = self._up = None
        if self.pinned:
            self._down, self._up = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def now(self):
        """Return an event of what the device was given so far, by whoever calls."""
        return torch.cuda.current_stream(self.device).record_event() if self.pinned else None

    def down(self, targets, sources, *after):
        """Copy from the device to the host.

        Parameters
        ----------
        targets, sources : list of torch.Tensor
            A source may be freed as soon as this returns.
        *after : event
            What the copies wait for.

        Returns
        -------
        event
            Of these copies and all earlier ones to the host.
        """
        return self._copied(self._down, targets, sources, after)

    def up(self, targets, sources, *after):
        """Copy from the host to the device, as `down` does."""
        return self._copied(self._up, targets, sources, after)

    @torch.no_grad()
    def _copied(self, stream, targets, sources, after):
        if stream is None:
            _copy(targets, sources)
            return None
        for event in filter(None, after):
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            _copy(targets, sources, non_blocking=True)
            for source in sources:
                if source.is_cuda:  # its memory must not be another tensor's before it is read
                    source.record_stream(stream)
            return stream.record_event()

    def wait(self, event):
        """Have the host wait for an event."""
        if event is not None:
            event.synchronize()

    def hold(self, *events):
        """Have the device wait for events before it does what it is given from now on. The host doesn't."""
        for event in filter(None, events):
            torch.cuda.current_stream(self.device).wait_event(event)


def _copy(targets, sources, non_blocking=False):
    """Copy tensors into others of their shapes, by one call: from Python each would cost twice as much."""
    if targets:
        torch._foreach_copy_(targets, sources, non_blocking)
