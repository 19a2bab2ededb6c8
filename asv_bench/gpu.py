"""Measure the CUDA backend: a short table, and all measurements as JSON.

    python asv_bench/gpu.py --json gpu.json
    python asv_bench/gpu.py --quick             # small sizes: does everything run?
    python asv_bench/gpu.py --tune              # launches of other shapes

Times of large steps are between two device events; those of many small tensors are wall time, Python
included. Contenders take turns, and ratios are those of medians. Gradients are fresh random values (16 Mi of
them, repeated in larger tensors), two sets in turn; what a kernel writes is poisoned with NaN first wherever
nothing reads it.
"""

import argparse
import datetime
import json
import math
import platform
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

# From a checkout, installed or not.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from benchmarks.models import gpt2, resnet50  # noqa: E402
from gpu_graphs import by_libraries, replay  # noqa: E402
from gpu_host import first_step, host_time  # noqa: E402
from gpu_right import over_2_31, same_bits_as_the_cpu  # noqa: E402

import nbopt  # noqa: E402
from nbopt_backends.cuda import stages as device_stages  # noqa: E402

BYTES = {"rmsprop": 20, "adam": 28}  # moved per element in float32
OURS = {"rmsprop": nbopt.RMSProp, "adam": nbopt.Adam}


class Bench:
    """What all rows need: the backend, events, random device arrays."""

    def __init__(self, quick):
        from nbopt_backends.cuda.toolchain import cuda

        self.cuda, self.quick = cuda, quick
        self.be = nbopt.set_backend("cuda", rng_seed=0)
        self.rng = np.random.default_rng(0)
        self.large = 1 << (22 if quick else 28)
        self.rounds = 5 if quick else 30
        self.rows = []
        try:
            import torch

            self.torch = torch if torch.cuda.is_available() else None
        except ImportError:
            self.torch = None

    def random(self, shape, scale=1.0, dtype="float32"):
        """Return a tensor of random values in [0, scale)."""
        size = math.prod(shape)
        values = self.rng.random(min(size, 1 << 24), np.float32) * np.float32(scale)
        if values.size == size:
            return self.be.array(values.reshape(shape), dtype)
        whole, part = self.be.empty(shape, dtype), self.be.array(values, dtype)
        for start in range(0, size, part.size):
            here = whole[start : start + part.size]
            here[:] = part[: here.size]
        return whole

    def job(self, optimizer, shapes, sets=2, dtype="float32"):
        """Return a function that makes a step, past its first steps, and the layer.

        Each step has the other one of two sets of gradients.
        """
        params = [self.random(shape, dtype=dtype) for shape in shapes]
        grads = [[self.random(shape, 0.01, dtype) for shape in shapes] for _ in range(sets)]
        layer = nbopt.Parameters(*zip(params, grads[0]))
        turn = 0

        def step():
            nonlocal turn
            turn = (turn + 1) % sets
            layer.grads = grads[turn]
            optimizer.optimize([layer], 0)

        for _ in range(2 * sets):
            step()
        self.be.synchronize()
        return step, layer

    def torch_job(self, name, shapes, **how):
        """Return the same for PyTorch."""
        torch = self.torch
        options = {"rmsprop": {"lr": 2e-3, "alpha": 0.95, "eps": 1e-6}, "adam": {"lr": 1e-3, "eps": 1e-8}}[
            name
        ]
        params = [torch.nn.Parameter(torch.rand(shape, device="cuda")) for shape in shapes]
        grads = [[torch.rand(shape, device="cuda") * 0.01 for shape in shapes] for _ in range(2)]
        optimizer = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}[name](params, **options, **how)
        turn = 0

        def step():
            nonlocal turn
            turn = 1 - turn
            for param, grad in zip(params, grads[turn]):
                param.grad = grad
            optimizer.step()

        for _ in range(4):
            step()
        torch.cuda.synchronize()
        return step

    def on_device(self, steps):
        """Time contenders between device events, in turns.

        Returns {name: seconds}. All run on the default stream.

        A step before the one that is timed keeps the device busy while Python prepares the latter, whose time
        is the device's alone."""
        times = {name: [] for name in steps}
        for _ in range(self.rounds):
            for name, step in steps.items():
                start, end = self.cuda.event(timing=True), self.cuda.event(timing=True)
                step()
                start.record()
                step()
                end.record()
                end.synchronize()
                times[name].append(self.cuda.event_elapsed_time(start, end) / 1e3)
        return {name: np.array(values) for name, values in times.items()}

    def on_the_wall(self, steps, count=20):
        """Time contenders by the clock, Python included: batches of steps, then one wait."""
        times = {name: [] for name in steps}
        for _ in range(self.rounds):
            for name, step in steps.items():
                self.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(count):
                    step()
                self.cuda.synchronize()
                times[name].append((time.perf_counter() - start) / count)
        return {name: np.array(values) for name, values in times.items()}

    def add(self, what, value, bar, met, **facts):
        """Add a row and print it."""
        seconds = facts.pop("seconds", None) or {}
        facts["seconds"] = {
            name: {"median": float(np.median(v)), "all": [float(f"{x:.4g}") for x in v]}
            for name, v in seconds.items()
        }
        self.rows.append({"what": what, "value": value, "bar": bar, "met": met, **facts})
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        mark = {True: "yes", False: "NO", None: "-"}[met]
        print(f"{what:78} {shown:>12}  {bar:>10}  {mark}", flush=True)

    def faster(self, what, seconds, other, bar):
        """Add how many times as long as ours the other contender takes."""
        ratio = float(np.median(seconds[other]) / np.median(seconds["nbopt"]))
        self.add(what, ratio, f">= {bar}x", ratio >= bar, seconds=seconds)


def bandwidth(bench):
    """A step's bytes over its time, against a device-to-device copy in the same turns."""
    n = bench.large
    source, target = bench.random((n,)), bench.be.empty(n)
    target[:] = math.nan
    from nbopt_backends.cuda.toolchain import driver

    def copy():
        driver.cuMemcpyDtoDAsync(target.storage.address, source.storage.address, 4 * n, driver.CUstream(0))

    for name, make in OURS.items():
        step, _ = bench.job(make(), [(n,)])
        seconds = bench.on_device({"nbopt": step, "copy": copy})
        rates = {
            "nbopt": BYTES[name] * n / np.median(seconds["nbopt"]),
            "copy": 8 * n / np.median(seconds["copy"]),
        }
        share = float(rates["nbopt"] / rates["copy"])
        bench.add(
            f"{name}, {n / 2**20:.0f} Mi elements: bandwidth over a copy's",
            share,
            ">= 0.97",
            share >= 0.97,
            seconds=seconds,
            bytes_per_second=rates,
        )
    if not np.array_equal(target[:1000].get(), source[:1000].get()) or not np.array_equal(
        target[-1000:].get(), source[-1000:].get()
    ):
        raise RuntimeError("the copy did not copy: its time means nothing")


def against_torch(bench):
    """Large and small steps beside PyTorch's."""
    if bench.torch is None:
        bench.add("against PyTorch", "absent", "-", None)
        return
    bench.be.stream = 0  # PyTorch's default stream
    for name, how, bar in (("adam", {"fused": True}, 1.0), ("rmsprop", {"foreach": True}, 3.0)):
        steps = {
            "nbopt": bench.job(OURS[name](), [(bench.large,)])[0],
            "PyTorch": bench.torch_job(name, [(bench.large,)], **how),
        }
        bench.faster(
            f"{name}, {bench.large / 2**20:.0f} Mi: PyTorch {next(iter(how))} / nbopt",
            bench.on_device(steps),
            "PyTorch",
            bar,
        )
        del steps
        bench.torch.cuda.empty_cache()
    for label, shapes in (("300 x 1000", [(1000,)] * 300), ("ResNet-50", resnet50())):
        steps = {
            "nbopt": bench.job(nbopt.Adam(), shapes)[0],
            "PyTorch": bench.torch_job("adam", shapes, fused=True),
        }
        bench.faster(
            f"adam, {label}, wall time: PyTorch fused / nbopt", bench.on_the_wall(steps), "PyTorch", 1.0
        )
    bench.be.stream = None


def norm_clip(bench):
    """What the norm clip costs, and whether the host reads anything."""
    for name, make in OURS.items():
        clipped, _ = bench.job(make(gradient_clip_norm=1.0), [(bench.large,)])
        reads = []
        copy_out = bench.be.device.copy_out
        bench.be.device.copy_out = lambda *arguments: (reads.append(1), copy_out(*arguments))  # noqa: B023
        clipped()
        bench.be.device.copy_out = copy_out
        seconds = bench.on_device({"with": clipped, "without": bench.job(make(), [(bench.large,)])[0]})
        ratio = float(np.median(seconds["with"]) / np.median(seconds["without"]))
        bench.add(f"{name}, norm clip on: host reads in a step", len(reads), "0", not reads)
        bar = {"rmsprop": 1.22, "adam": 1.15}[name]
        bench.add(
            f"{name}, norm clip on: time over that without", ratio, f"<= {bar}", ratio <= bar, seconds=seconds
        )
    shapes = [(bench.large,)]
    steps = {
        name: bench.job(make(), shapes)[0] for name, make in (("lamb", nbopt.LAMB), ("adam", nbopt.Adam))
    }
    seconds = bench.on_device(steps)
    ratio = float(np.median(seconds["lamb"]) / np.median(seconds["adam"]))
    bench.add("lamb: time over adam's", ratio, "<= 1.45", ratio <= 1.45, seconds=seconds)


def gpt(bench):
    """AdamW over GPT-2 124M's tensors, beside PyTorch's fused one."""
    shapes = gpt2(layers=2, width=64) if bench.quick else gpt2()
    steps = {"nbopt": bench.job(nbopt.AdamW(), shapes, sets=1)[0]}
    if bench.torch is not None:
        bench.be.stream = 0  # PyTorch's default stream
        steps["PyTorch"] = bench.torch_job("adam", shapes, fused=True)
    for name, values in bench.on_device(steps).items():
        found, bar = float(np.median(values) * 1e3), 1.75 if name == "nbopt" else None
        met = None if bar is None else found <= bar
        label = f"{name}: AdamW, GPT-2 124M's tensors: ms" if name == "nbopt" else "PyTorch: fused Adam: ms"
        bench.add(label, found, f"<= {bar}" if bar else "-", met, seconds={name: values})
    bench.be.stream = None


def sixteen_bits(bench):
    """RMSProp over 16-bit storage, rounded in both ways, beside float32 in the same turns."""
    shapes = [(bench.large,)]
    float32 = bench.job(nbopt.RMSProp(), shapes)[0]
    for dtype, state, bar in (
        ("bfloat16", "float32", 1.05),
        ("bfloat16", "bfloat16", 1.15 if "H200" in bench.be.device.name else 1.10),
        ("float16", "float32", None),
    ):
        steps = {"float32": float32}
        for how, rounding in (("nearest", False), ("stochastic", True)):
            steps[how] = bench.job(
                nbopt.RMSProp(stochastic_round=rounding, state_dtype=state), shapes, dtype=dtype
            )[0]
        seconds = bench.on_device(steps)
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        label = f"rmsprop, {dtype}, states {state}"
        ratio = medians["stochastic"] / medians["nearest"]
        met = None if bar is None else ratio <= bar
        bench.add(f"{label}: stochastic / nearest", ratio, f"<= {bar}" if bar else "-", met, seconds=seconds)
        bench.add(f"{label}: nearest / float32", medians["nearest"] / medians["float32"], "-", None)


def launch_shapes(bench):
    """How large chunks and blocks should be, and whether blocks should be as many as chunks.

    It is for whoever tunes the constants.
    """
    n = bench.large
    device, largest = bench.be.device, device_stages.LARGEST_CHUNK
    threads, resident = device.threads, device.resident_blocks
    bench.rounds = min(bench.rounds, 10)
    for name, make in OURS.items():
        layer = nbopt.Parameters((bench.random((n,)), bench.random((n,), 0.01)))
        for chunk in (4096, 8192, 16384, 32768, 65536):
            for block in (128, 256, 512):
                device_stages.LARGEST_CHUNK, device.threads = chunk, block
                steps = {}
                for how, most in (
                    ("a block a chunk", 2**31 - 1),
                    ("resident blocks", resident * threads // block),
                ):
                    device.most_blocks = most
                    steps[how] = partial(make().optimize, [layer], 0)
                    steps[how]()  # makes the plan, with these constants
                for how, values in bench.on_device(steps).items():
                    rate = float(BYTES[name] * n / np.median(values) / 1e9)
                    bench.add(
                        f"{name}: chunks of {chunk}, {block} threads, {how}: GB/s",
                        rate,
                        "-",
                        None,
                        seconds={how: values},
                    )
    device_stages.LARGEST_CHUNK, device.threads, device.most_blocks = largest, threads, 2**31 - 1


def main(argv=None):
    """Measure, print, write; return 1 where a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where all measurements go")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: does everything run?")
    parser.add_argument("--tune", action="store_true", help="time launches of other shapes instead")
    args = parser.parse_args(argv)
    problem = nbopt.backends.backend_problem("cuda")
    if problem:
        print(f"nothing was measured: {problem}", file=sys.stderr)
        return 2
    bench = Bench(args.quick)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    about = {"date": now, "python": platform.python_version(), "quick": args.quick}
    about |= {"command": " ".join([Path(sys.executable).name, *sys.argv]), **bench.be.report()}
    for package in ("nbopt", "numba", "numba-cuda", "numba-cuda-mlir", "numpy", "torch", "cupy"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            about[package] = None
    for key, value in about.items():
        print(f"{key:16} {value}")
    print(f"\n{'what':78} {'measured':>12}  {'bar':>10}  met")
    failures = []
    rows = (
        (launch_shapes,)
        if args.tune
        else (
            same_bits_as_the_cpu,
            host_time,
            first_step,
            bandwidth,
            against_torch,
            gpt,
            norm_clip,
            sixteen_bits,
            replay,
            by_libraries,
            over_2_31,
        )
    )
    for row in rows:
        try:
            row(bench)
        except Exception as error:  # the other rows are worth having
            failures.append(f"{row.__name__}: {type(error).__name__}: {error}")
            print(f"{row.__name__} FAILED: {type(error).__name__}: {error}", flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"about": about, "rows": bench.rows, "failures": failures}, indent=1) + "\n"
        )
    return 1 if failures or any(row["met"] is False for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
