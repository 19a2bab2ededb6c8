"""What a step needs beyond the user's arrays."""

import numpy as np

import nbopt

from . import OPTIMIZERS, Job
from .models import MODELS


class Peak:
    """The process's peak, parameters, gradients and states (40 to 100 MB) included.

    Nothing more should be parameter-sized.
    """

    params = list(OPTIMIZERS)
    param_names = ["optimizer"]

    def setup(self, optimizer):
        self.job = Job(OPTIMIZERS[optimizer](), [(5_000_000,)], backend="cpu")

    def peakmem_step(self, optimizer):
        self.job.step()


def growth(shapes, steps=100):
    """Return by how many megabytes the process's peak grows over `steps` steps of RMSProp.

    Each step has new gradients. The gradients themselves are not counted: a warm-up has as many sets of them
    alive at once.
    """
    job = Job(nbopt.RMSProp(), shapes)

    def train(count):
        for _ in range(count):
            job.layers[0].grads = [np.full(shape, 0.01, np.float32) for shape in shapes]
            job.step()

    train(5)
    _forget_peak()  # compiling took more than the steps do, and would hide what they take
    train(5)
    before = _peak()
    train(steps)
    return _peak() - before


def _forget_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError as error:
        raise NotImplementedError(
            f"a process's peak of memory can be reset on Linux only: {error}"
        ) from error


def _peak():
    # Not getrusage's: a process inherits that one's from its parent.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


class Growth:
    params = ["one tensor", "resnet50", "300 tensors"]
    param_names = ["model"]
    unit = "MB"
    shapes = {"one tensor": [(20_000_000,)], "300 tensors": [(1000,)] * 300}

    def track_growth_of_100_steps(self, model):
        nbopt.set_backend("cpu")
        return growth(MODELS[model]() if model in MODELS else self.shapes[model])
