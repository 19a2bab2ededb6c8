"""The libraries that a user would pick instead.

Each function returns a callable that does one step over tensors of these shapes. Every one gets the same
values, in arrays of its own, and the settings that make it do the same work.
"""

import itertools
import time

import numpy as np

from . import OPTIMIZERS, pairs, requires_deepspeed, requires_optax, requires_torch

#: PyTorch's class and arguments for each of our optimizers.
TORCH = {
    "momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}),
    "rmsprop": ("RMSprop", {"lr": 2e-3, "alpha": 0.95, "eps": 1e-6}),
    "adagrad": ("Adagrad", {"lr": 0.01, "eps": 1e-6}),
    "adadelta": ("Adadelta", {"lr": 1.0, "rho": 0.95, "eps": 1e-6}),
    "adam": ("Adam", {"lr": 1e-3, "eps": 1e-8}),
}
#: optax's function and arguments.
OPTAX = {
    "momentum": ("sgd", {"learning_rate": 1e-3, "momentum": 0.9}),
    "rmsprop": ("rmsprop", {"learning_rate": 2e-3, "decay": 0.95, "eps": 1e-6}),
    "adagrad": ("adagrad", {"learning_rate": 0.01, "eps": 1e-6}),
    "adadelta": ("adadelta", {"learning_rate": 1.0, "rho": 0.95, "eps": 1e-6}),
    "adam": ("adam", {"learning_rate": 1e-3, "eps": 1e-8}),
}


def _torch_parameters(shapes):
    torch = requires_torch()
    parameters = []
    for param, grad in pairs(shapes):
        # Cloned, so that the memory is PyTorch's own.
        parameters.append(torch.nn.Parameter(torch.from_numpy(param).clone()))
        parameters[-1].grad = torch.from_numpy(grad).clone()
    return parameters


def torch_step(optimizer, shapes, fresh=False, **how):
    """PyTorch.

    `how` is ``foreach=True`` (many tensors per call), ``foreach=False`` (one at a time) or ``fused=True``.
    """
    name, options = TORCH[optimizer]
    torch = requires_torch()
    parameters = _torch_parameters(shapes)
    return _with_gradients(parameters, getattr(torch.optim, name)(parameters, **options, **how).step, fresh)


def mirrored_torch_step(shapes):
    """PyTorch's fused AdamW over float32 masters, and a copy of these to bfloat16."""
    torch = requires_torch()
    parameters = _torch_parameters(shapes)
    return _and_a_copy(torch.optim.AdamW(parameters, lr=1e-3, fused=True), parameters)


def mirrored_deepspeed_step(shapes):
    """DeepSpeed's CPUAdam over float32 masters, whose gradients are float32 too, and a copy to bfloat16."""
    adam = requires_deepspeed()
    parameters = _torch_parameters(shapes)
    return _and_a_copy(adam.DeepSpeedCPUAdam(parameters, lr=1e-3, adamw_mode=True), parameters)


def _and_a_copy(optimizer, parameters):
    mirrors = [param.detach().bfloat16() for param in parameters]

    def step():
        optimizer.step()
        for mirror, param in zip(mirrors, parameters):
            mirror.copy_(param.detach())

    return step


def adapter(parameters, optimizer):
    """nbopt's optimizer for PyTorch's tensors."""
    requires_torch()
    import nbopt.torch

    return nbopt.torch.Optimizer(parameters, optimizer)


def adapter_step(optimizer, shapes, fresh=False):
    """nbopt's step over PyTorch's tensors."""
    parameters = _torch_parameters(shapes)
    return _with_gradients(parameters, adapter(parameters, OPTIMIZERS[optimizer]()).step, fresh)


def dropin_step(optimizer, shapes):
    """PyTorch's class of the same name in nbopt, over PyTorch's tensors."""
    requires_torch()
    import nbopt.torch

    name, options = TORCH[optimizer]
    return getattr(nbopt.torch, name)(_torch_parameters(shapes), **options).step


def timed_in_training(optimizers, rounds, warm=3):
    """Train a small transformer with each optimizer in turn, and time ``step()`` alone.

    Parameters
    ----------
    optimizers : dict of name -> callable
        Called with the model's parameters; returns an optimizer.
    rounds, warm : int
        Steps that count, and steps before them that don't.

    Returns
    -------
    dict of name -> numpy.ndarray
        float64[rounds]: seconds of a step.
    """
    torch = requires_torch()
    nn = torch.nn

    class Model(nn.Module):
        def __init__(self, vocabulary=96, width=256, length=64):
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
            layer = nn.TransformerEncoderLayer(
                width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(layer, 4, nn.LayerNorm(width), enable_nested_tensor=False)
            self.out = nn.Linear(width, vocabulary)

        def forward(self, x):
            return self.out(self.layers(self.tokens(x) + self.places.weight))

    torch.manual_seed(0)
    first = Model()
    models = {name: Model() for name in optimizers}
    for model in models.values():
        model.load_state_dict(first.state_dict())
    made = {name: make(models[name].parameters()) for name, make in optimizers.items()}
    seconds = {name: [] for name in made}
    rng = np.random.default_rng(0)
    for _ in range(warm + rounds):
        x = torch.randint(96, (8, 65))
        for name in rng.permutation(list(made)):
            made[name].zero_grad()
            logits = models[name](x[:, :-1])
            nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).backward()
            start = time.perf_counter()
            made[name].step()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values[warm:]) for name, values in seconds.items()}


def setting_gradients(shapes):
    """What `fresh` adds to a step."""
    return _with_gradients(_torch_parameters(shapes), lambda: None, fresh=True)


def _with_gradients(parameters, step, fresh):
    """Return `step`, or a function that gives every parameter another gradient first.

    So do zero_grad and a backward pass.
    """
    if not fresh:
        return step
    turns = itertools.cycle([[p.grad for p in parameters], [p.grad.clone() for p in parameters]])

    def fresh_step():
        for p, grad in zip(parameters, next(turns)):
            p.grad = grad
        step()

    return fresh_step


def optax_step(optimizer, shapes):
    """optax under jit, parameters and states donated, so that XLA updates them in place."""
    optax = requires_optax()
    import jax
    import jax.numpy as jnp

    name, options = OPTAX[optimizer]
    transformation = getattr(optax, name)(**options)
    params, grads = ([jnp.array(values) for values in column] for column in zip(*pairs(shapes)))
    kept = [params, jax.jit(transformation.init)(params)]

    def update(params, state, grads):
        changes, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, changes), state

    update = jax.jit(update, donate_argnums=(0, 1))

    def step():
        kept[:] = jax.block_until_ready(update(*kept, grads))

    return step


def deepspeed_step(shapes):
    """DeepSpeed's CPUAdam, which ZeRO-Offload uses."""
    adam = requires_deepspeed()
    return adam.DeepSpeedCPUAdam(_torch_parameters(shapes), lr=1e-3, eps=1e-8, adamw_mode=False).step
