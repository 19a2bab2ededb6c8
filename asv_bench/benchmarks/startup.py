"""From nothing to the first step, each in a process of its own."""

import os
import subprocess
import sys

# A perceptron of 0.5 M weights: some of its tensors are worth several threads, some are not.
PREPARE = """
import os, tempfile
{cache}
import numpy as np
import nbopt
from benchmarks import OPTIMIZERS, pairs
nbopt.set_backend("cpu")
layer = nbopt.Parameters(*pairs([(784, 512), (512,), (512, 256), (256,), (256, 10), (10,)]))
optimizer = OPTIMIZERS["{optimizer}"]({options})
"""
FIRST_STEP = "optimizer.optimize([layer], 0)"
EMPTY_CACHE = 'folder = tempfile.TemporaryDirectory(); os.environ["NBOPT_CACHE_DIR"] = folder.name'


def cached(folder):
    """Return the line that makes `folder` the cache of kernels."""
    return f'os.environ["NBOPT_CACHE_DIR"] = {str(folder)!r}'


def prepare(optimizer, cache, options=""):
    """Return the code that goes before `FIRST_STEP` in a fresh process, imports included."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return f"import sys; sys.path.insert(0, {here!r})\n" + PREPARE.format(
        optimizer=optimizer, cache=cache, options=options
    )


class Import:
    number = 1
    repeat = (3, 10, 30.0)

    def timeraw_nbopt(self):
        return "import nbopt"

    def timeraw_cpu_backend(self):
        return 'nbopt.set_backend("cpu")', "import nbopt"


class FirstStep:
    """The first `optimize` of a process, imports not counted."""

    number = 1
    repeat = (3, 10, 30.0)
    params = ["rmsprop", "adam"]
    param_names = ["optimizer"]

    def setup_cache(self):
        folder = os.path.join(os.getcwd(), "kernels")
        for optimizer in self.params:
            subprocess.run(
                [sys.executable, "-c", prepare(optimizer, cached(folder)) + FIRST_STEP], check=True
            )
        return folder

    def timeraw_kernels_from_disk(self, folder, optimizer):
        return FIRST_STEP, prepare(optimizer, cached(folder))

    def timeraw_kernels_compiled(self, folder, optimizer):
        return FIRST_STEP, prepare(optimizer, EMPTY_CACHE)
