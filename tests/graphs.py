"""CUDA graphs for tests, by the driver alone: PyTorch and CuPy do the same."""

from contextlib import contextmanager

from cuda.bindings import driver


def _done(result):
    assert result[0] == driver.CUresult.CUDA_SUCCESS, result[0]
    return result[1] if len(result) > 1 else None


class Graph:
    """A stream of its own, and the graph that is captured from it."""

    def __init__(self, be):
        self.be = be
        with be.device.entered():
            self.stream = int(_done(driver.cuStreamCreate(1)))

    @contextmanager
    def capture(self, given=True):
        """Capture what the backend does, in the mode in which most is forbidden.

        The backend is given the stream, unless a library says which one it is.
        """
        be = self.be
        be.synchronize()
        if given:
            be.stream = self.stream
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        with be.device.entered():
            _done(driver.cuStreamBeginCapture(self.stream, mode))
        try:
            yield
        finally:
            with be.device.entered():
                result, made = driver.cuStreamEndCapture(self.stream)
            if given:
                be.stream = None
        assert result == driver.CUresult.CUDA_SUCCESS, result
        with be.device.entered():
            self.made = _done(driver.cuGraphInstantiate(made, 0))
            self.nodes = _done(driver.cuGraphGetNodes(made)[::2])

    def replay(self, times=1):
        """Launch the graph so many times, after what the backend has queued, and wait for it."""
        self.be.synchronize()
        with self.be.device.entered():
            for _ in range(times):
                _done(driver.cuGraphLaunch(self.made, self.stream))
            _done(driver.cuStreamSynchronize(self.stream))
