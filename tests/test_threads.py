"""Several Python threads at once, forked processes, and Numba's own settings.

All run under each of Numba's threading layers.

A layer is chosen once for a process, and a mistake ends the process, so each scenario is a process of its
own."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from numba import cfunc, int64, types

import nbopt
from nbopt_backends.cpu import threads
from nbopt_backends.cpu.instructions import call_scalars, int64_at, put_int64

# What all scenarios share. Prints, at the end, one line of JSON. The interpreter changes threads as often as
# it can.
COMMON = """
import json, os, sys, threading
import numpy as np
import numba
import nbopt
from nbopt_backends.cpu import threads
sys.setswitchinterval(1e-6)

# Threads are woken for arrays of a size that a test has time for. Whether they were is counted.
assert threads._FEW < threads._FEW_FOR_WORKQUEUE
threads._FEW = threads._FEW_FOR_WORKQUEUE = threads._MANY = 1 << 14
parallel_launches = []
run = threads.Threads.run

def counted(self, function, *args):
    parallel_launches.append(1)
    return run(self, function, *args)

threads.Threads.run = counted

class Loop(nbopt.Optimizer):
    "neon's way: assignments of its own, which all such optimizers share the kernels and plans of."

    learning_rate = 0.1

    def optimize(self, layer_list, epoch):
        for (param, grad), states in nbopt.get_param_list(layer_list):
            if len(states) == 0:
                states.append(self.be.zeros_like(grad))
            states[0][:] = states[0] * 0.5 + grad
            param[:] = param - self.learning_rate * states[0]

OPTIMIZERS = {
    "rmsprop": lambda: nbopt.RMSProp(gradient_clip_norm=0.1),
    "adam": lambda: nbopt.Adam(param_clip_value=0.9),
    "momentum": lambda: nbopt.GradientDescentMomentum(0.1, 0.9),
    "loop": Loop,
    "loop too": Loop,
}
# Above and below that size.
SIZES = (40_000, 300)

class Job:
    "One optimizer with layers of its own."

    def __init__(self, name):
        rng = np.random.default_rng(list(OPTIMIZERS).index(name))
        small = np.float32(0.01)
        arrays = [
            (rng.random(n, np.float32), rng.standard_normal(n).astype(np.float32) * small) for n in SIZES
        ]
        self.optimizer, self.layers = OPTIMIZERS[name](), [nbopt.Parameters(pair) for pair in arrays]

    def steps(self, steps):
        for epoch in range(steps):
            self.optimizer.optimize(self.layers, epoch)
        return self

    def values(self):
        return [layer.params[0].tobytes() for layer in self.layers]

def expected(steps):
    with nbopt.use_backend("reference"):
        return {name: Job(name).steps(steps).values() for name in OPTIMIZERS}
"""

STEPPING = """
STEPS = 40
want = expected(STEPS)
be = nbopt.set_backend("cpu")
jobs = {name: Job(name) for name in OPTIMIZERS}
barrier, failures = threading.Barrier(len(jobs)), []

def work(name):
    barrier.wait()  # so that even the first step, which compiles, is taken by all at once
    try:
        jobs[name].steps(STEPS)
    except BaseException as error:
        failures.append(f"{name}: {error!r}")

workers = [threading.Thread(target=work, args=(name,)) for name in jobs]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(json.dumps({
    "layer": numba.threading_layer(),
    "parallel": len(parallel_launches) > STEPS,
    "failures": failures,
    "wrong": [name for name, job in jobs.items() if job.values() != want[name]],
    # Two launches with the norm clip and one without. An assignment is one, and each loop makes two for each
    # of two layers.
    "launches missing": STEPS * (2 + 1 + 1 + 4 + 4) - be.launches,
    "updates missing": STEPS * (1 + 1 + 1 + 4 + 4) - be.rng_get_state()["updates"],
}))
"""

FORKING = """
import multiprocessing, signal, warnings
# From Python 3.12 on there is this warning, of what is tested here.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
want, more = expected(3), expected(6)
be = nbopt.set_backend("cpu")

def train(jobs, want):
    "Train on, and start afresh too: known kernels and, with Adagrad, one that the parent has not compiled."
    signal.alarm(60)  # a child that hangs ends by this signal
    right = all(job.steps(3).values() == want[name] for name, job in jobs.items())
    layer = nbopt.Parameters((np.ones(40_000, np.float32), np.ones(40_000, np.float32)))
    nbopt.Adagrad(gradient_clip_norm=1.0).optimize([layer], 0)
    out = be.zeros(1)
    out[:] = be.sum(be.wrap(layer.params[0]) * 0 + 1)
    return 0 if right and (layer.params[0] < 1).all() and out.get()[0] == 40_000 else 1

def forked(jobs, want):
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = train(jobs, want)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def in_multiprocessing(jobs, want):
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(train(jobs, want)))
    process.start()
    process.join()
    return process.exitcode

report = {"forked before the first step": forked({name: Job(name) for name in OPTIMIZERS}, want)}
jobs = {name: Job(name).steps(3) for name in OPTIMIZERS}
report["parallel"] = len(parallel_launches) > 3
report["forked"] = forked(jobs, more)
report["multiprocessing"] = in_multiprocessing(jobs, more)
report["parent"] = 0 if all(job.steps(3).values() == more[name] for name, job in jobs.items()) else 1
print(json.dumps({"layer": numba.threading_layer(), **report}))
"""

SETTINGS = """
def settings():
    return {name: repr(value) for name, value in vars(numba.config).items() if name.isupper()}

report = {}
before = settings()
numba.set_num_threads(2)
cases = [("as they are", None, 2), ("one", 1, 2), ("more than now", 2, 1), ("more than there are", 64, 1)]
for name, limit, current in cases:
    numba.set_num_threads(current)
    parallel_launches.clear()
    with nbopt.use_backend("cpu", num_threads=limit) as be:
        right = all(Job(job).steps(3).values() == want for job, want in expected(3).items())
        out = be.zeros(1)
        out[:] = be.sum(be.ones(100_000))
        right = right and bool(out.get()[0] == 100_000)
        more, parallel = numba.get_num_threads() - current, bool(parallel_launches)
        report[name] = {"threads": more, "right": right, "parallel": parallel}
numba.set_num_threads(2)
changed = [name for name, value in settings().items() if before.get(name) != value]
print(json.dumps({"report": report, "changed": changed}))
"""

IMPORTABLE = {
    "omp": "from numba.np.ufunc import omppool",
    "tbb": "from numba.np.ufunc import tbbpool",
    "workqueue": "from numba.np.ufunc import workqueue",
}


def start(code, **environment):
    """Run `code` in another process, with two threads and this nbopt."""
    path = os.pathsep.join(
        [str(pathlib.Path(nbopt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    # pip puts TBB's library where the loader does not look.
    libraries = os.pathsep.join(
        [os.path.join(sys.prefix, "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    ).rstrip(os.pathsep)
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "LD_LIBRARY_PATH": libraries,
        "NUMBA_NUM_THREADS": "2",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def scenario(code, **environment):
    """Run a scenario and return its report."""
    done = start(COMMON + code, **environment)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def why_not(layer):
    """Return why this threading layer can't be used here, or an empty text."""
    done = start(IMPORTABLE[layer])
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


@pytest.fixture(params=IMPORTABLE)
def layer(request):
    if why_not(request.param):
        pytest.skip(f"Numba's threading layer {request.param} can't be loaded here: {why_not(request.param)}")
    return request.param


def test_launch_goes_the_faster_way(monkeypatch):
    """Of one thread and several it takes what is faster, and notices when that changes."""
    clock, cost, taken = [0.0], {"one": 1.0, "two": 2.0}, []
    monkeypatch.setattr(threads, "perf_counter", lambda: clock[0])

    def way(name):
        def run(number):
            clock[0] += cost[name]
            taken.append(name)
            return number

        return run

    launch = threads.Faster(way("two"), way("one"))
    assert [launch(number) for number in range(300)] == list(range(300))
    assert {*taken[:10]} == {"one", "two"}
    assert 1 <= taken[10:].count("two") <= 6
    cost.update(one=3.0)
    for number in range(300):
        launch(number)
    assert taken[-50:].count("two") >= 48


@pytest.mark.rest("omp")
def test_threads_may_step_different_optimizers_at_once(layer):
    report = scenario(STEPPING, NUMBA_THREADING_LAYER=layer)
    assert report == {
        "layer": layer,
        "parallel": True,
        "failures": [],
        "wrong": [],
        "launches missing": 0,
        "updates missing": 0,
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
@pytest.mark.rest("omp")
def test_a_process_forked_after_a_parallel_step_trains_and_so_does_its_parent(layer):
    report = scenario(FORKING, NUMBA_THREADING_LAYER=layer)
    assert report == {
        "layer": layer,
        "parallel": True,
        "forked before the first step": 0,
        "forked": 0,
        "multiprocessing": 0,
        "parent": 0,
    }


def test_numbas_number_of_threads_and_its_settings_are_left_as_they_were():
    report = scenario(SETTINGS)
    limits = {"as they are": True, "one": False, "more than now": True, "more than there are": True}
    assert report["report"] == {
        limit: {"threads": 0, "right": True, "parallel": parallel} for limit, parallel in limits.items()
    }
    assert report["changed"] == []


@pytest.mark.skipif(threads.numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_late_thread():
    """A thread that is held up finds its share done by another one, and no entry is done twice."""
    entries = 200

    @cfunc(types.void(int64, int64, int64))
    def nothing(argument, entry, step):
        return

    @cfunc(types.void(int64, int64, int64))
    def first_waits(function, entry, done):
        put_int64(entry, 1, int64_at(entry, 1) + 1)
        if int64_at(entry, 0) == 0:
            for _ in range(10**8):
                call_scalars(function, 0, 0, 0)  # so that memory is read anew
                if int64_at(done, 3) == entries - 1:
                    put_int64(entry, 2, 1)
                    break
        else:
            put_int64(done, 3, int64_at(done, 3) + 1)  # one thread alone does these

    table = np.zeros((entries, 3), np.int64)  # number, how often it was done, whether all others were
    table[:, 0] = np.arange(entries)
    step = np.array([0, 0, 1, 0], np.int64)
    given = [0, 0, first_waits.address, nothing.address, table.ctypes.data, table.strides[0], entries]
    record = np.array([given], np.int64)
    with nbopt.use_backend("cpu", num_threads=2) as be:
        be.threads.run(be._run_stages(), be._together(), record.ctypes.data, 1, step.ctypes.data)
    assert table[:, 1].tolist() == [1] * entries
    assert table[0, 2] == 1


def test_processes_of_one_machine_share_its_threads(monkeypatch):
    """A process of torchrun takes its share, unless the user has said how many threads there are."""
    every = threads.numba.config.NUMBA_NUM_THREADS
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    for given, expected in (("2", max(1, every // 2)), ("1000", 1), ("1", every), ("", every), ("x", every)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", given)
        assert threads.Threads().allowed() == expected
        assert threads.Threads(every).allowed() == every
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("NUMBA_NUM_THREADS", str(every))
    assert threads.Threads().allowed() == every
