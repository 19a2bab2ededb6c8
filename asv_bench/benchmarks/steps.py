"""The time of one step."""

import nbopt

from . import OPTIMIZERS, Job, dtype_of, uniform, use_backend
from .models import MODELS

DEVICES = ["cpu", "cuda"]


def _not_for_the_reference(backend, size):
    if backend == "reference" and size > 100_000:
        raise NotImplementedError("the reference is there to be right: large arrays say nothing about it")


class OneTensor:
    """One tensor: small, where the fixed cost counts, and large, where the memory does."""

    params = (
        list(OPTIMIZERS),
        [*DEVICES, "reference"],
        [1_000, 100_000, 20_000_000],
        ["float32", "bfloat16"],
    )
    param_names = ["optimizer", "backend", "size", "dtype"]

    def setup(self, optimizer, backend, size, dtype):
        _not_for_the_reference(backend, size)
        self.job = Job(OPTIMIZERS[optimizer](), [(size,)], dtype, backend)

    def time_step(self, optimizer, backend, size, dtype):
        self.job.step()


class Storage:
    """RMSProp in every storage, rounded to nearest and stochastically.

    States are in the default dtype, and in the parameters' own.
    """

    params = (DEVICES, ["float64", "float32", "float16", "bfloat16"], ["default", "own"], [False, True])
    param_names = ["backend", "dtype", "state_dtype", "stochastic_round"]

    def setup(self, backend, dtype, state_dtype, stochastic_round):
        if dtype in ("float64", "float32") and (stochastic_round or state_dtype == "own"):
            raise NotImplementedError("the same as without")
        own = dtype_of(dtype) if state_dtype == "own" else None
        self.job = Job(
            nbopt.RMSProp(stochastic_round=stochastic_round, state_dtype=own), [(20_000_000,)], dtype, backend
        )

    def time_step(self, backend, dtype, state_dtype, stochastic_round):
        self.job.step()


class ManyTensors:
    """Tensors of 1000 elements, in one layer and in a layer each.

    These show the fixed cost of a step, and its growth with their number.
    """

    params = (["rmsprop", "adam"], DEVICES, [1, 10, 100, 300, 1000], ["one layer", "a layer each"])
    param_names = ["optimizer", "backend", "tensors", "layers"]

    def setup(self, optimizer, backend, tensors, layers):
        self.job = Job(
            OPTIMIZERS[optimizer](), [(1000,)] * tensors, backend=backend, one_layer=layers == "one layer"
        )

    def time_step(self, optimizer, backend, tensors, layers):
        self.job.step()


class NewGradients:
    """300 tensors whose gradients are new arrays at every step, as ``dW = x.T @ dy`` makes them."""

    params = DEVICES
    param_names = ["backend"]

    def setup(self, backend):
        self.job = Job(nbopt.RMSProp(), [(1000,)] * 300, backend=backend)
        self.layer = self.job.layers[0]
        self.sets = [[self.job.be.array(uniform(1000, scale=0.01)) for _ in range(300)] for _ in range(2)]
        if self.job.be.memory == "host":
            self.sets = [[tensor.get() for tensor in gradients] for gradients in self.sets]

    def time_step(self, backend):
        self.sets.reverse()
        self.layer.grads = self.sets[0]
        self.job.step()


class Model:
    """The tensors of real models."""

    params = (list(MODELS), ["momentum", "rmsprop", "adam"], DEVICES)
    param_names = ["model", "optimizer", "backend"]

    def setup(self, model, optimizer, backend):
        self.job = Job(OPTIMIZERS[optimizer](), MODELS[model](), backend=backend)

    def time_step(self, model, optimizer, backend):
        self.job.step()


class NormClip:
    """Adam with and without the clip of the gradients' norm, which reads all gradients once more."""

    params = ([None, 1.0], ["one tensor", "resnet50"], DEVICES)
    param_names = ["clip_norm", "model", "backend"]

    def setup(self, clip_norm, model, backend):
        shapes = [(20_000_000,)] if model == "one tensor" else MODELS[model]()
        self.job = Job(nbopt.Adam(gradient_clip_norm=clip_norm), shapes, backend=backend)

    def time_step(self, clip_norm, model, backend):
        self.job.step()


class SkipNonfinite:
    """Adam with and without a look at whether all gradients are finite, which reads them once more."""

    params = ([False, True], DEVICES)
    param_names = ["skip_nonfinite", "backend"]

    def setup(self, skip_nonfinite, backend):
        optimizer = nbopt.Adam()
        optimizer.skip_nonfinite = skip_nonfinite
        self.job = Job(optimizer, [(20_000_000,)], backend=backend)

    def time_step(self, skip_nonfinite, backend):
        self.job.step()


class Assignment:
    """``out[:] = expression`` outside an optimizer."""

    params = DEVICES
    param_names = ["backend"]

    def setup(self, backend):
        be = use_backend(backend)
        self.out, self.a = be.zeros(1000), be.array(uniform(1000))
        self.time_assign(backend)

    def time_assign(self, backend):
        self.out[:] = self.a * 0.5 + 0.1
        self.out.be.synchronize()
