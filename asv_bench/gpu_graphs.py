"""The rows of `gpu.py` on CUDA graphs."""

import time

import numpy as np
from cuda.bindings import driver

import nbopt


def _done(result):
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the CUDA driver reports {result[0]!r}")
    return result[1] if len(result) > 1 else None


def captured(be, step):
    """Return a function that replays a step, which is captured into a graph by the driver.

    Parameters
    ----------
    be : NumbaCUDA
    step : callable
        Takes a step of an optimizer that is `capturable` and has taken one before.
    """
    be.synchronize()
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    with be.device.entered():
        stream = _done(driver.cuStreamCreate(1))
        be.stream = int(stream)
        _done(driver.cuStreamBeginCapture(stream, mode))
        step()
        graph = _done(driver.cuGraphInstantiate(_done(driver.cuStreamEndCapture(stream)), 0))
        be.stream = None
    return lambda: driver.cuGraphLaunch(graph, stream)


def replay(bench):
    """How long the host takes to replay a captured step, and whether replays are steps."""
    be = bench.be
    for name, make in (("RMSProp", nbopt.RMSProp), ("Adam", nbopt.Adam)):
        optimizer = make()
        optimizer.capturable = True
        layer = nbopt.Parameters((be.ones((1, 100)), be.ones((1, 100))))
        optimizer.optimize([layer], 0)
        again, times = captured(be, lambda o=optimizer, own=layer: o.optimize([own], 0)), []
        for _ in range(200):
            bench.cuda.synchronize()
            start = time.perf_counter()
            again()
            times.append(1e6 * (time.perf_counter() - start))
        bench.cuda.synchronize()
        took = float(np.median(times))
        what = f"{name}, 1 x 100: replay of a captured step, host us"
        bench.add(what, took, "<= 5", took <= 5, seconds={"replay": np.array(times) / 1e6})
        bench.add(f"{name}: steps after 200 replays", optimizer.t, "201", optimizer.t == 201)
