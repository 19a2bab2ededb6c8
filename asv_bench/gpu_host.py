"""What a step costs the host on a GPU, and the first step: rows of `gpu.py`."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import nbopt

_ROOT = Path(__file__).parents[1]
_FIRST = """
import time
import numpy as np
import nbopt
with nbopt.use_backend("cuda") as be:
    layer = nbopt.Parameters((be.ones(1000), be.ones(1000)))
    optimizer = nbopt.AdamW()
    be.synchronize()
    start = time.perf_counter()
    optimizer.optimize([layer], 0)
    be.synchronize()
    print(time.perf_counter() - start)
"""


def until_it_returns(bench, steps, count=300):
    """Time contenders by the clock until a call returns. The device is idle before it.

    Returns {name: seconds}.
    """
    times = {name: [] for name in steps}
    for _ in range(20 if bench.quick else count):
        for name, step in steps.items():
            bench.cuda.synchronize()
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    bench.cuda.synchronize()
    return {name: np.array(values) for name, values in times.items()}


def torch_steps(bench, shapes):
    """Return a step of the adapter's Adam, and one of PyTorch's fused one, over tensors of their own."""
    import nbopt.torch

    torch, steps = bench.torch, {}
    for name, make in (
        ("nbopt.torch Adam", lambda params: nbopt.torch.Adam(params)),
        ("PyTorch fused Adam", lambda params: torch.optim.Adam(params, fused=True)),
    ):
        params = [torch.nn.Parameter(torch.rand(shape, device="cuda")) for shape in shapes]
        for param in params:
            param.grad = torch.rand_like(param)
        steps[name] = make(params).step
        for _ in range(4):
            steps[name]()
    return steps


def host_time(bench):
    """How long the host takes for a step, in microseconds."""
    for label, shapes, bars in (
        ("1 x 100", [(100,)], {"native RMSProp": 45, "native Adam": 45, "nbopt.torch Adam": 56}),
        ("300 x 1000", [(1000,)] * 300, {"native Adam": 120, "nbopt.torch Adam": 220}),
    ):
        makes = {"native RMSProp": nbopt.RMSProp, "native Adam": nbopt.Adam}
        # With one set of gradients, as a captured or a hand-written loop has them.
        steps = {name: bench.job(make(), shapes, sets=1)[0] for name, make in makes.items() if name in bars}
        if bench.torch is not None:
            steps |= torch_steps(bench, shapes)
        for name, seconds in until_it_returns(bench, steps).items():
            found, bar = float(np.median(seconds) * 1e6), bars.get(name)
            bench.add(
                f"host us, {label}: {name}",
                found,
                f"<= {bar}" if bar else "-",
                None if bar is None else found <= bar,
                seconds={name: seconds},
            )


def first_step(bench):
    """The first step of AdamW in a new process, imports and the GPU's context not counted."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        for label, bar in (("empty", 3.0), ("filled", 0.8)):
            environment = {**os.environ, "NBOPT_CACHE_DIR": folder}
            path = os.pathsep.join([str(_ROOT), environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
            done = subprocess.run(
                [sys.executable, "-c", _FIRST],
                env={**environment, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                check=True,
            )
            seconds = float(done.stdout.split()[-1])
            bench.add(f"AdamW's first step, {label} cache: seconds", seconds, f"<= {bar}", seconds <= bar)
