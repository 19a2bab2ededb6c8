"""What compare.py measures: a function for each row of its table, which returns a `Result`."""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from benchmarks import OPTIMIZERS, Job, mirrored_job, peers
from benchmarks.models import MODELS
from benchmarks.side_by_side import between_steps, measure, measure_cold, median, ratio
from benchmarks.startup import EMPTY_CACHE, FIRST_STEP, cached, prepare
from benchmarks.streaming import arrays_of, moved_bytes, streaming_step

import nbopt

HERE = Path(__file__).parent

ROWS = {}


class Result:
    """What one row found.

    Attributes
    ----------
    seconds : dict of contender -> numpy.ndarray
        A value for each turn.
    checks : list of dict
        what, value, low, high, unit, bar (such as ``">= 0.95"``, or None), met.
    facts : dict
        Whatever else is worth keeping.
    """

    def __init__(self, seconds=None, **facts):
        self.seconds, self.checks, self.facts = seconds or {}, [], facts

    def check(self, what, values, unit, bar=None):
        """Add a value with its interval, as `ratio` and `median` give them, and hold it against the bar."""
        value, low, high = values
        met = None
        if bar:
            sign, bound = bar.split()
            met = value >= float(bound) if sign == ">=" else value <= float(bound)
        self.checks.append(
            {"what": what, "value": value, "low": low, "high": high, "unit": unit, "bar": bar, "met": met}
        )

    def faster(self, than, bar=None, of="nbopt"):
        """Add how many times as long as ours another contender takes.

        Of several contenders it is the best one, by their medians.
        """
        names = [name for name in ([than] if isinstance(than, str) else than) if name in self.seconds]
        if not names:
            self.checks.append(
                {
                    "what": f"{than} is absent",
                    "value": None,
                    "low": None,
                    "high": None,
                    "unit": "",
                    "bar": bar,
                    "met": None,
                }
            )
            return
        best = min(names, key=lambda name: np.median(self.seconds[name]))
        self.check(f"{best} / {of}", ratio(self.seconds[best], self.seconds[of]), "x", bar)

    def as_dict(self):
        times = {
            name: {"median": float(np.median(s)), "turns": [float(f"{x:.4g}") for x in s]}
            for name, s in self.seconds.items()
        }
        return {"checks": self.checks, "seconds": times, **self.facts}


def row(name, what, chosen_by_name_only=False):
    """Register a function that measures something and returns a `Result`.

    It is given the scale that it should work at.
    """

    def decorator(function):
        ROWS[name] = (what, function, chosen_by_name_only)
        return function

    return decorator


class Scale:
    """How much to measure: all of it, or just enough to see that everything runs."""

    def __init__(self, quick):
        self.quick = quick
        self.large = [(2_000_000 if quick else 50_000_000,)]
        self.rounds = 5 if quick else 40
        self.few = 3 if quick else 15  # for what takes seconds a turn, or starts a process


def side_by_side(steps, rounds, **facts):
    """Measure contenders: name -> a function that makes the step.

    One that can't run here is left out, with the reason.
    """
    made, absent = {}, {}
    for name, make in steps.items():
        try:
            made[name] = make()
        except NotImplementedError as reason:
            absent[name] = str(reason)
    return Result(measure(made, rounds), absent=absent, **facts)


# --- the memory's speed ---


def bandwidth(optimizer):
    def measured(scale):
        job = Job(OPTIMIZERS[optimizer](), scale.large)
        arrays = arrays_of(job)
        stream, way = streaming_step(*arrays)
        result = Result(
            measure({"nbopt": job.step, "streaming": stream}, scale.rounds),
            bytes=moved_bytes(*arrays),
            streaming_by=way,
        )
        result.faster("streaming", ">= 0.95")
        return result

    return measured


for _optimizer in ("momentum", "rmsprop", "adagrad", "adadelta", "adam"):
    row(f"bandwidth-{_optimizer}", f"{_optimizer}, one tensor of 50 M: of streaming bandwidth")(
        bandwidth(_optimizer)
    )


@row("mirror", "AdamW, float32 masters of 50 M, gradients and mirrors in bfloat16: of streaming bandwidth")
def mirrored(scale):
    job = mirrored_job(scale.large)
    arrays = arrays_of(job)
    stream, way = streaming_step(*arrays)
    steps = {
        "nbopt": lambda: job.step,
        "streaming": lambda: stream,
        "PyTorch fused and a copy": lambda: peers.mirrored_torch_step(scale.large),
        "DeepSpeed CPUAdam and a copy": lambda: peers.mirrored_deepspeed_step(scale.large),
    }
    result = side_by_side(steps, scale.rounds, bytes=moved_bytes(*arrays), streaming_by=way)
    result.faster("streaming", ">= 0.95")
    result.faster("PyTorch fused and a copy", ">= 1.4")
    result.faster("DeepSpeed CPUAdam and a copy", ">= 1")
    return result


# --- other libraries ---


def against(optimizer, shapes, rounds, torch=(), optax=False, deepspeed=False, **facts):
    """Measure an optimizer beside other libraries' over the same shapes."""
    how = {
        "PyTorch foreach": {"foreach": True},
        "PyTorch for-loop": {"foreach": False},
        "PyTorch fused": {"fused": True},
    }
    steps = {"nbopt": lambda: Job(OPTIMIZERS[optimizer](), shapes).step}
    for name in torch:
        steps[name] = lambda name=name: peers.torch_step(optimizer, shapes, **how[name])
    if optax:
        steps["optax jit"] = lambda: peers.optax_step(optimizer, shapes)
    if deepspeed:
        steps["DeepSpeed CPUAdam"] = lambda: peers.deepspeed_step(shapes)
    return side_by_side(steps, rounds, tensors=len(shapes), elements=sum(map(math.prod, shapes)), **facts)


BOTH = ("PyTorch foreach", "PyTorch for-loop")


@row("rmsprop-50M", "RMSProp, one tensor of 50 M")
def rmsprop_large(scale):
    result = against("rmsprop", scale.large, scale.few, torch=BOTH, optax=True)
    result.faster("PyTorch foreach", ">= 6")
    result.faster("optax jit", ">= 1.5")
    return result


@row("adam-50M", "Adam, one tensor of 50 M (1.0 within 5% noise)")
def adam_large(scale):
    result = against("adam", scale.large, scale.rounds, torch=["PyTorch fused"], optax=True, deepspeed=True)
    result.faster("PyTorch fused", ">= 0.95")
    result.faster("DeepSpeed CPUAdam")
    result.faster("optax jit")
    return result


@row("resnet50", "RMSProp, ResNet-50's 161 tensors")
def resnet50(scale):
    result = against("rmsprop", MODELS["resnet50"](), scale.few, torch=BOTH, optax=True)
    result.faster(BOTH, ">= 2.8")
    result.faster("optax jit")
    return result


@row("gpt2", "Adam, GPT-2 small's 148 tensors, 124 M")
def gpt2(scale):
    shapes = MODELS["gpt2"](**({"layers": 2, "width": 64} if scale.quick else {}))
    result = against("adam", shapes, scale.few, torch=["PyTorch fused"], optax=True, deepspeed=True)
    result.faster("PyTorch fused")
    result.faster("optax jit")
    return result


@row("embeddings", "Adagrad, a recommender's 38 tensors, 57 M, nearly all of it in four")
def embeddings(scale):
    result = against(
        "adagrad",
        MODELS["embeddings"](2 if scale.quick else 32),
        scale.few,
        torch=["PyTorch foreach", "PyTorch fused"],
    )
    result.faster(["PyTorch foreach", "PyTorch fused"])
    return result


@row("300-rmsprop", "RMSProp, 300 tensors of 1000")
def many_rmsprop(scale):
    result = against("rmsprop", [(1000,)] * 300, scale.rounds, torch=BOTH, optax=True)
    result.faster("PyTorch foreach", ">= 20")
    result.faster("optax jit")
    return result


@row("300-adam", "Adam, 300 tensors of 1000")
def many_adam(scale):
    result = against(
        "adam", [(1000,)] * 300, scale.rounds, torch=["PyTorch fused"], optax=True, deepspeed=True
    )
    result.faster("PyTorch fused", ">= 10")
    result.faster("DeepSpeed CPUAdam")
    return result


@row("300-layers", "RMSProp, the same in 300 layers: against one layer")
def many_layers(scale):
    jobs = {"nbopt": True, "nbopt, 300 layers": False}
    seconds = measure(
        {name: Job(nbopt.RMSProp(), [(1000,)] * 300, one_layer=one).step for name, one in jobs.items()},
        scale.rounds,
    )
    result = Result(seconds)
    result.faster("nbopt, 300 layers")
    return result


@row("1x100", "RMSProp, one tensor of 100, the whole call")
def tiny(scale):
    result = against("rmsprop", [(100,)], scale.rounds, torch=BOTH, optax=True)
    result.faster("PyTorch for-loop", ">= 2")
    result.check("nbopt", tuple(1e6 * x for x in median(result.seconds["nbopt"])), "us", "<= 30")
    return result


def fixed_cost(count):
    def measured(scale):
        result = against("rmsprop", [(1000,)] * count, scale.few, torch=BOTH, optax=True)
        result.faster(BOTH)
        return result

    return measured


for _count in (1, 3, 10, 30, 100, 1000):
    row(f"fixed-cost-{_count}", f"RMSProp, {_count} tensors of 1000")(fixed_cost(_count))


# --- small steps as a training has them: other work runs between two of them ---


class OnlyAdds(nbopt.Optimizer):
    """Moves the memory that another optimizer moves, and does nothing but additions.

    Parameters
    ----------
    like : nbopt.Optimizer
    """

    state_names = ("first", "second")

    def __init__(self, like):
        super().__init__()
        self.count = len(like.states_in_use())

    def states_in_use(self):
        """Return the names of as many states."""
        return self.state_names[: self.count]

    def rule(self, step, param, grad, *states):
        """Add each array to the next one."""
        for state in states:
            state[:] = state + grad
            grad = state
        param[:] = param + grad


#: name -> a function that makes the step over some shapes.
COLD = {
    "RMSProp": lambda shapes: Job(nbopt.RMSProp(), shapes).step,
    "Adam": lambda shapes: Job(nbopt.Adam(), shapes).step,
    "RMSProp's memory": lambda shapes: Job(OnlyAdds(nbopt.RMSProp()), shapes).step,
    "Adam's memory": lambda shapes: Job(OnlyAdds(nbopt.Adam()), shapes).step,
    "nbopt.torch RMSProp": lambda shapes: peers.adapter_step("rmsprop", shapes),
    "nbopt.torch Adam": lambda shapes: peers.dropin_step("adam", shapes),
    "PyTorch foreach RMSprop": lambda shapes: peers.torch_step("rmsprop", shapes, foreach=True),
    "PyTorch for-loop RMSprop": lambda shapes: peers.torch_step("rmsprop", shapes, foreach=False),
    "PyTorch fused Adam": lambda shapes: peers.torch_step("adam", shapes, fused=True),
}


def cold(shapes, checks):
    """Measure small steps with other work between them.

    `checks` are (slower, faster, bar): how many times as long the first one takes. The memory of an optimizer
    is a step that does nothing but additions.
    """

    def measured(scale):
        result = Result(absent={}, tensors=len(shapes))
        for library, between in between_steps().items():
            steps = {}
            for name, make in COLD.items():
                try:
                    steps[name] = make(shapes)
                except NotImplementedError as reason:
                    result.facts["absent"][name] = str(reason)
            seconds = measure_cold(steps, between, 2 * scale.rounds)
            result.seconds.update({f"{name}, after {library}": s for name, s in seconds.items()})
            for slower, faster, bar in checks:
                if slower in seconds:
                    what = f"{slower} / {faster}, after {library}"
                    result.check(what, ratio(seconds[slower], seconds[faster]), "x", bar)
        return result

    return measured


row("cold-300", "300 tensors of 1000, other work between the steps")(
    cold(
        [(1000,)] * 300,
        [
            ("PyTorch foreach RMSprop", "RMSProp", ">= 17"),
            ("PyTorch fused Adam", "Adam", ">= 12"),
            ("PyTorch foreach RMSprop", "nbopt.torch RMSProp", ">= 6"),
            ("PyTorch fused Adam", "nbopt.torch Adam", None),
            ("Adam", "RMSProp", "<= 1.4"),
            ("RMSProp", "RMSProp's memory", None),
            ("Adam", "Adam's memory", None),
            ("PyTorch fused Adam", "Adam's memory", None),
        ],
    )
)
row("cold-1x100", "one tensor of 100, other work between the steps")(
    cold(
        [(100,)],
        [
            ("PyTorch for-loop RMSprop", "RMSProp", ">= 4"),
            ("PyTorch fused Adam", "Adam", None),
            ("Adam", "RMSProp", "<= 1.2"),
        ],
    )
)


# --- the optimizer for PyTorch ---


def adapter(shapes, bar, fresh=False):
    """Measure steps over PyTorch's tensors.

    Where gradients are `fresh`, the time of setting them is taken off all contenders.
    """

    def measured(scale):
        steps = {"nbopt.torch": lambda: peers.adapter_step("rmsprop", shapes, fresh)}
        for name, foreach in zip(BOTH, (True, False)):
            steps[name] = lambda foreach=foreach: peers.torch_step("rmsprop", shapes, fresh, foreach=foreach)
        if fresh:
            steps["setting"] = lambda: peers.setting_gradients(shapes)
        result = side_by_side(steps, scale.few, tensors=len(shapes))
        setting = result.seconds.pop("setting", 0.0)
        result.seconds = {name: seconds - setting for name, seconds in result.seconds.items()}
        result.faster("PyTorch foreach", bar, of="nbopt.torch")
        result.faster("PyTorch for-loop", of="nbopt.torch")
        return result

    return measured


row("adapter-300", "nbopt.torch, RMSProp, 300 tensors of 1000")(adapter([(1000,)] * 300, ">= 10"))
row("adapter-300-fresh", "nbopt.torch, RMSProp, 300 tensors of 1000, other gradients at every step")(
    adapter([(1000,)] * 300, ">= 10", fresh=True)
)
row("adapter-resnet50", "nbopt.torch, RMSProp, ResNet-50's 161 tensors")(
    adapter(MODELS["resnet50"](), ">= 2")
)


@row(
    "training-loop",
    "AdamW in a training loop: a transformer of 3.2 M parameters in 54 tensors, the time of step() alone",
)
def training_loop(scale):
    """Steps between backward passes, as in training.

    The passes empty the caches and wake PyTorch's threads.
    """
    steps = {
        "nbopt.torch": lambda parameters: peers.adapter(parameters, nbopt.AdamW()),
        "PyTorch": lambda parameters: peers.requires_torch().optim.AdamW(parameters),
        "PyTorch fused": lambda parameters: peers.requires_torch().optim.AdamW(parameters, fused=True),
    }
    try:
        seconds = peers.timed_in_training(steps, 4 if scale.quick else 60)
    except NotImplementedError as reason:
        return Result(absent={name: str(reason) for name in steps})
    result = Result(seconds)
    result.faster("PyTorch", of="nbopt.torch")
    result.faster("PyTorch fused", of="nbopt.torch")
    return result


# --- the norm clip ---


@row("norm-clip", "Adam, one tensor of 50 M, with the norm clip against without")
def norm_clip(scale):
    clipped = Job(nbopt.Adam(gradient_clip_norm=1.0), scale.large)
    free = nbopt.Adam()  # over the same arrays, states included
    free.optimize(clipped.layers, 0)
    steps = {"clipped": clipped.step, "free": lambda: free.optimize(clipped.layers, 0)}
    result = Result(measure(steps, scale.rounds))
    result.check("clipped / free", ratio(result.seconds["clipped"], result.seconds["free"]), "x", "<= 1.25")
    return result


# --- sixteen bits ---


@row(
    "sixteen-bits",
    "RMSProp, one tensor of 50 M, in 16 bits: against float32, and stochastic against nearest rounding",
)
def sixteen_bits(scale):
    def made(dtype, state_dtype=None, stochastic_round=False):
        return Job(
            nbopt.RMSProp(stochastic_round=stochastic_round, state_dtype=state_dtype), scale.large, dtype
        ).step

    steps = {
        "float32": made("float32"),
        "bf16": made("bfloat16"),
        "bf16 stochastic": made("bfloat16", stochastic_round=True),
        "all bf16": made("bfloat16", "bfloat16"),
        "all bf16 stochastic": made("bfloat16", "bfloat16", True),
        "fp16": made("float16"),
        "fp16 stochastic": made("float16", stochastic_round=True),
    }
    result = Result(measure(steps, scale.rounds))
    bars = {
        "bf16": "<= 0.75",
        "fp16": "<= 0.75",
        "all bf16 stochastic": "<= 0.60",
        "all bf16": None,
        "fp16 stochastic": None,
    }
    for name, bar in bars.items():
        result.check(f"{name} / float32", ratio(result.seconds[name], result.seconds["float32"]), "x", bar)
    result.check(
        "bf16 stochastic / nearest",
        ratio(result.seconds["bf16 stochastic"], result.seconds["bf16"]),
        "x",
        "<= 1.10",
    )
    result.check(
        "all bf16 stochastic / nearest",
        ratio(result.seconds["all bf16 stochastic"], result.seconds["all bf16"]),
        "x",
    )
    return result


# --- in a fresh process ---


def fresh(code):
    """Run Python code in a process of its own and return the number that it prints last."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE)
    if done.returncode:
        raise RuntimeError(f"a measurement failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


#: Name of a contender -> optimizer and the options of its constructor.
FIRST_STEPS = {
    "rmsprop": ("rmsprop", ""),
    "adam, norm clip": ("adam", "gradient_clip_norm=1.0"),
    "adamw": ("adamw", ""),
    "adamw, norm clip": ("adamw", "gradient_clip_norm=1.0"),
    "adamw, bfloat16 states": ("adamw", "state_dtype='bfloat16'"),
    "adamw, bfloat16 states, stochastic": ("adamw", "state_dtype='bfloat16', stochastic_round=True"),
}


def first_steps(cache, scale):
    """Return the seconds of the first step of each of `FIRST_STEPS`, in fresh processes."""
    clock = f"import time; start = time.perf_counter(); {FIRST_STEP}; print(time.perf_counter() - start)"
    found = {name: [] for name in FIRST_STEPS}
    for _ in range(scale.few):
        for name, (optimizer, options) in FIRST_STEPS.items():
            found[name].append(fresh(prepare(optimizer, cache, options) + clock))
    return {name: np.array(seconds) for name, seconds in found.items()}


def first_step_result(seconds, bar):
    result = Result(seconds)
    for name, values in seconds.items():
        result.check(name, median(values), "s", bar if name == "rmsprop" else None)
    return result


@row("first-step-cold", "first step of a process, no kernels on disk (imports not counted)")
def first_step_cold(scale):
    return first_step_result(first_steps(EMPTY_CACHE, scale), "<= 1.4")


@row("first-step-warm", "first step of a process, kernels on disk (imports not counted)")
def first_step_warm(scale):
    with tempfile.TemporaryDirectory() as folder:
        first_steps(cached(folder), Scale(quick=True))
        return first_step_result(first_steps(cached(folder), scale), "<= 0.35")


@row("memory-growth", "RMSProp, 100 steps with new gradients: growth of peak memory")
def memory_growth(scale):
    result = Result()
    cases = {"one tensor": scale.large, "resnet50": MODELS["resnet50"](), "300 tensors": [(1000,)] * 300}
    for name, shapes in cases.items():
        code = (
            "import nbopt; from benchmarks.memory import growth; nbopt.set_backend('cpu'); "
            f"print(growth({shapes}, 100))"
        )
        value = fresh(code)
        result.check(name, (value, value, value), "MB", "<= 10")
    return result


# --- counts ---


@row("launches", "launches per step and compilations from the second step on, ResNet-50, every optimizer")
def launches(scale):
    from numba.core import event

    result = Result()
    steps = 10
    for name, make in OPTIMIZERS.items():
        job = Job(make(), MODELS["resnet50"]())
        launched, compiled = job.be.launches, job.be.compilations
        with event.install_recorder("numba:compile") as recorder:
            for _ in range(steps):
                job.step()
        per_step = (job.be.launches - launched) / steps
        result.check(f"{name}: launches", (per_step,) * 3, "", "<= 1")
        total = float(job.be.compilations - compiled + len(recorder.buffer))
        result.check(f"{name}: compilations", (total,) * 3, "", "<= 0")
    return result


@row(
    "huge",
    "one tensor of 2^31 + 1000 elements, GradientDescentMomentum without momentum: wrong elements",
    chosen_by_name_only=True,
)
def huge(scale):
    """Two arrays of 8.6 GB. Every element is checked, piece by piece, against the rule in NumPy."""
    size, piece = 2**31 + 1000, 2**24 + 1
    param, grad = np.empty(size, np.float32), np.empty(size, np.float32)

    def values(low, high):
        # Different in every piece, so that a wrapped index can't go unnoticed.
        place = np.arange(low, high, dtype=np.int64)
        return (place % 1009).astype(np.float32), (place % 10007).astype(np.float32)

    pieces = [(low, min(low + piece, size)) for low in range(0, size, piece)]
    for low, high in pieces:
        param[low:high], grad[low:high] = values(low, high)
    nbopt.GradientDescentMomentum(learning_rate=0.125, momentum_coef=0.0).optimize(
        [nbopt.Parameters((param, grad))], 0
    )
    wrong = 0
    for low, high in pieces:
        p, g = values(low, high)
        wrong += np.count_nonzero(param[low:high] != np.float32(-0.125) * g + np.float32(1) * p)
    result = Result(elements=size)
    result.check("wrong elements", (float(wrong),) * 3, "", "<= 0")
    return result
