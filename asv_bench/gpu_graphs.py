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


def by_libraries(bench):
    """Capture steps as PyTorch and CuPy do, and compare with steps that are not captured."""
    if bench.torch is None:
        bench.add("captured by PyTorch", "absent", "-", None)
    else:
        _by_torch(bench, bench.torch)
    try:
        import cupy
    except ImportError:
        bench.add("captured by CuPy", "absent", "-", None)
    else:
        _by_cupy(bench, cupy)


def _by_torch(bench, torch):
    import nbopt.torch

    def trained(how):
        """Train a model for eight steps after three; return its parameters, and the host's time of a step."""
        torch.manual_seed(0)
        model, inputs = torch.nn.Linear(256, 256, device="cuda"), torch.randn(64, 256, device="cuda")
        optimizer = nbopt.torch.Adam(model.parameters(), lr=1e-3, capturable=True)
        run = torch.cuda.make_graphed_callables(model, (inputs.clone(),)) if how == "callables" else model

        def step():
            optimizer.zero_grad(set_to_none=how != "graph")
            run(inputs).square().mean().backward()
            optimizer.step()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        again = step
        if how == "graph":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.zero_grad(set_to_none=False)
                run(inputs).square().mean().backward()
                optimizer.step()
            again = graph.replay
        times = []
        for _ in range(8):
            torch.cuda.synchronize()
            start = time.perf_counter()
            again()
            times.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        return [param.detach() for param in model.parameters()], np.array(times)

    expected, _ = trained("eager")
    for how, what in (("graph", "torch.cuda.graph"), ("callables", "make_graphed_callables")):
        found, seconds = trained(how)
        right = all(torch.allclose(one, other, 1e-5, 1e-7) for one, other in zip(found, expected))
        what = f"{what} around a model and nbopt.torch.Adam"
        bench.add(f"{what}: values", "right" if right else "WRONG", "right", right)
        bench.add(f"{what}: host us", 1e6 * float(np.median(seconds)), "-", None, seconds={how: seconds})


def _by_cupy(bench, cupy):
    optimizer = nbopt.Adam()
    optimizer.capturable = True
    with cupy.cuda.Stream(non_blocking=True) as stream:
        layer = nbopt.Parameters((cupy.ones(100, cupy.float32), cupy.ones(100, cupy.float32)))
        optimizer.optimize([layer], 0)
        stream.begin_capture()
        optimizer.optimize([layer], 0)
        graph = stream.end_capture()
        for _ in range(20):
            graph.launch(stream)
        stream.synchronize()
        bench.add("captured by CuPy: steps after 20 replays", optimizer.t, "21", optimizer.t == 21)
