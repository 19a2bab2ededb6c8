"""What the benchmarks share: optimizers, skips that say why, and arrays.

The arrays' pages are in memory before the clock starts.
"""

import importlib

import numpy as np

import nbopt
from nbopt.errors import NboptError


def _rectified(radam):
    """Return RAdam past its first steps, whose rule is another: another kernel, and a less usual one."""
    radam.t = 5
    return radam


#: name -> constructor. Every one is as in its users' hands: defaults, and a learning rate where there is
#: none.
OPTIMIZERS = {
    "plain": lambda **k: nbopt.GradientDescentMomentum(learning_rate=1e-3, momentum_coef=0.0, **k),
    "momentum": lambda **k: nbopt.GradientDescentMomentum(learning_rate=1e-3, momentum_coef=0.9, **k),
    "rmsprop": nbopt.RMSProp,
    "adagrad": nbopt.Adagrad,
    "adadelta": nbopt.Adadelta,
    "adam": nbopt.Adam,
    "shift_adamax": nbopt.ShiftAdaMax,
    "rmsprop_centered": lambda **k: nbopt.RMSProp(centered=True, momentum_coef=0.9, **k),
    "adamw": nbopt.AdamW,
    "amsgrad": nbopt.AMSGrad,
    "adamax": nbopt.AdaMax,
    "nadam": nbopt.NAdam,
    "radam": lambda **k: _rectified(nbopt.RAdam(**k)),
    "lion": nbopt.Lion,
    "yogi": nbopt.Yogi,
    "adabelief": nbopt.AdaBelief,
    "rprop": nbopt.Rprop,
    "asgd": nbopt.ASGD,
}


def parameterized(names, params):
    """Give a benchmark function its parameters: ``parameterized(["a", "b"], ([1, 2], ["x", "y"]))``."""

    def decorator(function):
        function.param_names = names
        function.params = params
        return function

    return decorator


def requires(module, why="is not installed"):
    """Skip the benchmark where a module can't be imported; to be called in ``setup``."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotImplementedError(f"{module} {why}: {error}") from error


def requires_torch():
    return requires("torch")


def requires_optax():
    requires("jax")
    return requires("optax")


def requires_deepspeed():
    """Skip the benchmark without DeepSpeed's CPUAdam.

    It is compiled at its first use, and so needs a C++ compiler.
    """
    requires("torch")
    adam = requires("deepspeed.ops.adam")
    try:
        importlib.import_module("deepspeed.ops.op_builder").CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # it gives whatever its build gives
        raise NotImplementedError(f"DeepSpeed's CPUAdam can't be built here: {error}") from error
    return adam


def use_backend(name, **options):
    """Set a backend and return it; skip the benchmark where it can't be used."""
    if name not in nbopt.available_backends():
        raise NotImplementedError(
            f"the backend {name} can't be used here: {nbopt.backends.backend_problem(name)}"
        )
    return nbopt.set_backend(name, rng_seed=0, **options)


def dtype_of(name):
    """Return a dtype by its name, bfloat16 included."""
    return np.dtype(requires("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def uniform(shape, dtype=np.float32, scale=1.0, seed=0):
    """Return an array of values in [0, scale).

    They stay away from 0, infinity and NaN in every optimizer's steps.
    """
    values = np.random.default_rng(seed).random(shape, np.float32)
    values *= np.float32(scale)
    return values if values.dtype == dtype else values.astype(dtype)


def pairs(shapes, dtype=np.float32, of_gradients=None):
    """Return [(param, grad), ...]: parameters in [0, 1), gradients in [0, 0.01)."""
    other = dtype if of_gradients is None else of_gradients
    return [(uniform(shape, dtype), uniform(shape, other, scale=0.01, seed=1)) for shape in shapes]


class Job:
    """An optimizer of ours and tensors for it, past its first steps.

    Kernels are compiled, states made and found again.

    Parameters
    ----------
    optimizer : nbopt.Optimizer
    shapes : list of tuple
    dtype : str
        Of parameters and gradients.
    gradients : str, optional
        That of gradients, if it is another one.
    backend : str, optional
        Which one to set; without it, the current one.
    one_layer : bool
        All tensors in one `nbopt.Parameters`, as PyTorch takes a flat list; or a layer for each.
    """

    def __init__(self, optimizer, shapes, dtype="float32", backend=None, one_layer=True, gradients=None):
        self.be = use_backend(backend) if backend else nbopt.get_backend()
        found = pairs(shapes, dtype_of(dtype), gradients and dtype_of(gradients))
        if self.be.memory != "host":
            found = [tuple(self.be.array(values, values.dtype) for values in pair) for pair in found]
        self.optimizer = optimizer
        self.layers = [nbopt.Parameters(*found)] if one_layer else [nbopt.Parameters(pair) for pair in found]
        try:
            self.step()
            self.step()
        except NboptError as error:
            raise NotImplementedError(f"the backend {self.be.name} refuses this: {error}") from error

    def step(self):
        self.optimizer.optimize(self.layers, 0)
        self.be.synchronize()


def mirrored_job(shapes, backend=None):
    """Return AdamW's `Job` over float32 masters, with gradients and mirrors in bfloat16."""
    return Job(nbopt.AdamW(mirror_dtype="bfloat16"), shapes, backend=backend, gradients="bfloat16")
