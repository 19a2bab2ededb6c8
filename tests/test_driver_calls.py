"""What a step costs the host: how often it calls the driver, and functions of Python.

The emulated driver counts its calls, see tests/emulator/.
"""

import ctypes
import os
import sys

import pytest

import nbopt

pytestmark = pytest.mark.gpu
if "EMULATED_KERNELS" not in os.environ:
    pytest.skip("the emulated driver counts calls: see tests/emulator/run.py", allow_module_level=True)


def calls():
    """How often each function of the driver has been called so far."""
    emulated_calls = ctypes.CDLL("libcuda.so.1").emulated_calls
    emulated_calls.restype = ctypes.c_char_p
    lines = [line.split() for line in emulated_calls().decode().splitlines()]
    return {name.removesuffix("_v2"): int(count) for name, count in lines}


def counted(steps, action):
    """How often each function is called in a step, if it is."""
    before = calls()
    for _ in range(steps):
        action()
    return {
        name: (count - before.get(name, 0)) / steps
        for name, count in calls().items()
        if count != before.get(name, 0)
    }


@pytest.fixture
def job():
    """Return a function of an optimizer that returns what makes its next step, and the layer."""
    with nbopt.use_backend("cuda", rng_seed=0) as be:

        def made(optimizer, dtype="float32"):
            pairs = [(be.ones(100, dtype), be.ones(100, dtype)) for _ in range(3)]
            layer = nbopt.Parameters(*pairs)

            def step():
                optimizer.optimize([layer], 0)

            for _ in range(3):
                step()
            return step, layer

        yield made


NOTHING_NEW = {"cuCtxGetCurrent": 1.0, "cuLaunchKernelEx": 1.0}
ONE_COPY = {**NOTHING_NEW, "cuMemcpyHtoDAsync": 1.0}


@pytest.mark.parametrize(
    ("make", "dtype", "expected"),
    [
        (nbopt.RMSProp, "float32", NOTHING_NEW),
        (nbopt.Adam, "float32", ONE_COPY),
        (lambda: nbopt.RMSProp(stochastic_round=True), "bfloat16", ONE_COPY),
    ],
    ids=["rmsprop", "adam", "stochastic"],
)
def test_driver(job, make, dtype, expected):
    """A steady step is one launch, and one copy where a number is another. There are no events."""
    step, _ = job(make(), dtype)
    assert counted(10, step) == expected


@pytest.mark.parametrize(
    ("make", "skips", "launches"),
    [
        (lambda: nbopt.RMSProp(gradient_clip_norm=1.0), False, 2),
        (lambda: nbopt.Adam(gradient_clip_norm=1.0), False, 2),
        (nbopt.LAMB, False, 2),
        (lambda: nbopt.LAMB(gradient_clip_norm=1.0), False, 3),
        (nbopt.RMSProp, True, 2),
    ],
    ids=["rmsprop with a norm clip", "adam with one", "lamb", "lamb with one", "skipping"],
)
@pytest.mark.rest("rmsprop*", "adam*", "lamb with*")
def test_what_is_small_needs_no_launch(job, make, skips, launches):
    """Reductions end, numbers are computed, and counters count, at the end of the pass before."""
    optimizer = make()
    optimizer.skip_nonfinite = skips
    step, _ = job(optimizer)
    assert counted(10, step)["cuLaunchKernelEx"] == launches


CAPTURABLE = {
    "rmsprop": (nbopt.RMSProp, "float32", 1),
    "adam": (nbopt.Adam, "float32", 1),
    "stochastic": (lambda: nbopt.Adam(stochastic_round=True), "bfloat16", 1),
    "norm clip": (lambda: nbopt.Adam(gradient_clip_norm=1.0), "float32", 2),
    "lamb": (nbopt.LAMB, "float32", 2),
}


@pytest.mark.parametrize("name", CAPTURABLE)
@pytest.mark.rest("adam", "norm clip")
def test_what_a_graph_captures(job, name):
    """Under `capturable` a step is as few launches: counts and what follows from them are in passes."""
    make, dtype, launches = CAPTURABLE[name]
    optimizer = make()
    optimizer.capturable = True
    step, _ = job(optimizer, dtype)
    assert counted(10, step) == {"cuCtxGetCurrent": 1.0, "cuLaunchKernelEx": launches}


def test_copies_without_events(job):
    """Of two thousand copies few need an event, and each step uses the rate that it was given."""
    optimizer = nbopt.GradientDescentMomentum(1.0, 0.0)
    step, layer = job(optimizer)

    def other_rate():
        optimizer.learning_rate = 2.0 / optimizer.learning_rate
        step()

    before = layer.params[0].get()
    found = counted(2000, other_rate)
    assert (before - layer.params[0].get() == 1000 * (1.0 + 2.0)).all()
    assert found["cuMemcpyHtoDAsync"] == 1
    assert found["cuEventRecord"] < 0.01
    assert found.get("cuEventSynchronize", 0) < 0.01


@pytest.mark.parametrize(("make", "most"), [(nbopt.RMSProp, 25), (nbopt.Adam, 30)])
def test_python(job, make, most):
    """A steady step calls few functions of Python."""
    (step, _), found = job(make()), []

    def note(frame, event, argument):
        if event == "call":
            found.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(before)
    assert len(found) - 1 <= most, found  # without `step` itself
