"""Whether results are right on a GPU: rows of `gpu.py`."""

import multiprocessing
import os

import numpy as np
from benchmarks import OPTIMIZERS

import nbopt


def over_2_31(bench):
    """One tensor of more than 2^31 elements."""
    n = (1 << 31) + 1001
    with bench.be.device.entered():
        free = bench.cuda.current_context().get_memory_info().free
    if bench.quick or free < 13 * n:
        bench.add("a tensor of more than 2^31 elements", "not run", "right", None)
        return
    param, grad = bench.be.ones(n), bench.be.ones(n)
    grad[-1000:] = 16.0
    nbopt.GradientDescentMomentum(1.0, 0.5).optimize([nbopt.Parameters((param, grad))], 0)
    right = bool(
        (param[-1000:].get() == -15).all()
        and (param[2**31 - 1000 : 2**31].get() == 0).all()
        and (param[:1000].get() == 0).all()
    )
    bench.add("a tensor of more than 2^31 elements", "right" if right else "WRONG", "right", right)


COMPARED = {
    **OPTIMIZERS,
    "momentum": lambda: nbopt.GradientDescentMomentum(0.1, 0.9, wdecay=0.01, gradient_clip_norm=0.1),
    "rmsprop": lambda: nbopt.RMSProp(gradient_clip_norm=0.1, gradient_clip_value=0.01, param_clip_value=1.0),
}
DTYPES = ("float32", "float64", "bfloat16", "float16")


def compared(name, dtype):
    """Return a new optimizer of `COMPARED`, for parameters of a dtype."""
    optimizer = COMPARED[name]()
    optimizer.stochastic_round = dtype.endswith("16")
    return optimizer


def compile_for_both(name, dtype):
    """Compile what `same_bits_as_the_cpu` runs, into the folder on disk."""
    for backend in ("cuda", "cpu"):
        with nbopt.use_backend(backend) as be:
            nbopt.compile(compared(name, dtype), [nbopt.Parameters((be.zeros(3, dtype), be.zeros(3, dtype)))])


def same_bits_as_the_cpu(bench):
    """Three steps of every optimizer over the same random values, on the CPU and on the GPU.

    In 16 bits they round stochastically.
    """
    shapes = [(3_000_017 if not bench.quick else 30_017,), (513, 1025), (7, 11, 13)]
    with multiprocessing.get_context("spawn").Pool(
        min(8, os.cpu_count() or 1)
    ) as pool:  # compiling takes a second or three, for each of 72
        pool.starmap(compile_for_both, [(name, dtype) for name in COMPARED for dtype in DTYPES], chunksize=1)
    different = []
    for name in COMPARED:
        for dtype in DTYPES:
            found = []
            for backend in (bench.be, "cpu"):
                rng = np.random.default_rng(3)
                with nbopt.use_backend(backend) as be:
                    layer = nbopt.Parameters(
                        *[
                            (be.array(rng.standard_normal(s), dtype), be.array(rng.standard_normal(s), dtype))
                            for s in shapes
                        ]
                    )
                    be.rng_set_state({"seed": 1, "updates": 0})
                    optimizer = compared(name, dtype)
                    for epoch in range(3):
                        optimizer.optimize([layer], epoch)
                    tensors = [*layer.params, *(state for states in layer.states for state in states)]
                    found.append(b"".join(tensor.get().tobytes() for tensor in tensors))
            if found[0] != found[1]:
                different.append(f"{name} {dtype}")
    bench.add(
        "every optimizer against the CPU's bits",
        "equal" if not different else ", ".join(different),
        "equal",
        not different,
    )
