"""Ratios and counts: what a change of machine leaves nearly alone, and a change of nbopt does not."""

import numba

from . import OPTIMIZERS, Job, mirrored_job, requires_deepspeed, requires_optax, requires_torch
from .models import MODELS
from .peers import adapter_step, deepspeed_step, mirrored_torch_step, optax_step, torch_step
from .side_by_side import measure, ratio
from .streaming import arrays_of, streaming_step

ROUNDS = 15
SHAPES = {
    "50 M": [(50_000_000,)],
    "resnet50": MODELS["resnet50"](),
    "300 x 1000": [(1000,)] * 300,
    "1 x 100": [(100,)],
}
MEMORY_BOUND = ["plain", "momentum", "rmsprop", "adagrad", "adadelta", "adam", "adamw", "lion"]


class Bandwidth:
    """The time of a plain loop over the same arrays, divided by that of a step.

    1 is all that the memory gives.
    """

    params = MEMORY_BOUND
    param_names = ["optimizer"]
    unit = "of streaming bandwidth"

    def setup(self, optimizer):
        self.job = Job(OPTIMIZERS[optimizer](), SHAPES["50 M"], backend="cpu")

    def track_fraction(self, optimizer):
        stream, _ = streaming_step(*arrays_of(self.job))
        seconds = measure({"nbopt": self.job.step, "streaming": stream}, ROUNDS)
        return ratio(seconds["streaming"], seconds["nbopt"])[0]


class Mirror:
    """AdamW's step over float32 masters, with gradients and mirrors in bfloat16: 28 bytes an element.

    PyTorch's takes float32 gradients, and a copy to bfloat16 comes after it.
    """

    params = (["streaming", "PyTorch fused"],)
    param_names = ["beside"]
    unit = "times our step's time"

    def setup(self, beside):
        self.job = mirrored_job(SHAPES["50 M"], backend="cpu")
        if beside == "PyTorch fused":
            requires_torch().set_num_threads(numba.get_num_threads())
            self.other = mirrored_torch_step(SHAPES["50 M"])
        else:
            self.other, _ = streaming_step(*arrays_of(self.job))

    def track_ratio(self, beside):
        seconds = measure({"nbopt": self.job.step, "other": self.other}, ROUNDS)
        return ratio(seconds["other"], seconds["nbopt"])[0]


class Launches:
    params = (list(OPTIMIZERS), ["cpu", "cuda"])
    param_names = ["optimizer", "backend"]
    steps = 10

    def setup(self, optimizer, backend):
        self.job = Job(OPTIMIZERS[optimizer](), SHAPES["resnet50"], backend=backend)

    def _of_a_step(self, counter):
        before = getattr(self.job.be, counter)
        for _ in range(self.steps):
            self.job.step()
        return (getattr(self.job.be, counter) - before) / self.steps

    def track_launches(self, optimizer, backend):
        return self._of_a_step("launches")

    track_launches.unit = "launches per step"

    def track_compilations(self, optimizer, backend):
        return self._of_a_step("compilations")

    track_compilations.unit = "compilations per step, from the second on"


class Peers:
    """How many times as long as ours the step of another library takes, on as many threads."""

    unit = "times our step's time"

    def _compare(self, optimizer, tensors, peer):
        job = Job(OPTIMIZERS[optimizer](), SHAPES[tensors], backend="cpu")
        seconds = measure({"nbopt": job.step, "peer": peer(SHAPES[tensors])}, ROUNDS)
        return ratio(seconds["peer"], seconds["nbopt"])[0]


class Torch(Peers):
    params = (["rmsprop", "adam"], list(SHAPES), ["foreach", "one at a time", "fused"])
    param_names = ["optimizer", "tensors", "implementation"]

    def setup(self, optimizer, tensors, implementation):
        if implementation == "fused" and optimizer == "rmsprop":
            raise NotImplementedError("PyTorch has no fused RMSprop")
        requires_torch().set_num_threads(numba.get_num_threads())

    def track_ratio(self, optimizer, tensors, implementation):
        how = {"fused": True} if implementation == "fused" else {"foreach": implementation == "foreach"}
        return self._compare(optimizer, tensors, lambda shapes: torch_step(optimizer, shapes, **how))


class TorchAdapter:
    """The time of PyTorch's foreach step, divided by that of nbopt.torch's, over PyTorch's tensors."""

    params = (["resnet50", "300 x 1000"], [False, True])
    param_names = ["tensors", "new gradients"]
    unit = Peers.unit

    def setup(self, tensors, fresh):
        requires_torch().set_num_threads(numba.get_num_threads())
        shapes = SHAPES[tensors]
        self.steps = {
            "nbopt": adapter_step("rmsprop", shapes, fresh),
            "peer": torch_step("rmsprop", shapes, fresh, foreach=True),
        }

    def track_ratio(self, tensors, fresh):
        seconds = measure(self.steps, ROUNDS)
        return ratio(seconds["peer"], seconds["nbopt"])[0]


class Optax(Peers):
    params = (["rmsprop", "adam"], list(SHAPES))
    param_names = ["optimizer", "tensors"]

    def setup(self, optimizer, tensors):
        requires_optax()

    def track_ratio(self, optimizer, tensors):
        return self._compare(optimizer, tensors, lambda shapes: optax_step(optimizer, shapes))


class DeepSpeed(Peers):
    params = list(SHAPES)
    param_names = ["tensors"]

    def setup(self, tensors):
        requires_deepspeed()

    def track_ratio(self, tensors):
        return self._compare("adam", tensors, deepspeed_step)
