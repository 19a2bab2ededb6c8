"""Train a multi-layer perceptron on handwritten digits, with nbopt for the update.

The network is plain NumPy: each layer owns its arrays, computes its output and, going
back, the gradients of its weights. nbopt does the one thing that is left, a step of the
optimizer over all weights at once, in place::

    python examples/digits.py                                # RMSProp on the CPU
    python examples/digits.py --optimizer Adam --epochs 50
    python examples/digits.py --compare                      # all of neon's optimizers, one picture
    python examples/digits.py --backend cuda                 # on a GPU, with CuPy or PyTorch

The data are the 1797 images of 8 x 8 pixels that come with scikit-learn. RMSProp at its
default learning rate, 2e-3, gets about 98% of the test images right.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from tqdm import trange

import nbopt

# What each optimizer is given for this job. Adadelta finds its own step size.
OPTIMIZERS = {
    "GradientDescentMomentum": {"learning_rate": 0.1, "momentum_coef": 0.9},
    "RMSProp": {"learning_rate": 2e-3},
    "Adagrad": {"learning_rate": 0.01},
    "Adadelta": {},
    "Adam": {"learning_rate": 1e-3},
    "ShiftAdaMax": {"learning_rate": 4e-3},
}
LAYERS = (("hidden1", 64, 256), ("hidden2", 256, 128), ("output", 128, 10))


def array_library(backend):
    """Return what computes on a backend: NumPy, or CuPy or PyTorch, whichever is installed.

    Returns
    -------
    xp : module
        The network keeps to what the three spell alike.
    to_device : callable
        Copies a NumPy array to where `xp` works.
    """
    if backend not in ("cuda", "gpu"):
        return np, np.asarray
    try:
        import cupy

        return cupy, cupy.asarray
    except ImportError:
        pass
    try:
        import torch

        return torch, lambda values: torch.as_tensor(values, device="cuda")
    except ImportError:
        raise SystemExit(
            "--backend cuda computes gradients by CuPy or PyTorch, and neither is installed; type: pip "
            "install cupy-cuda13x"
        ) from None


class Dense:
    """A fully connected layer, ``y = x @ W + b``, with a ReLU unless it is the last.

    ``W`` and ``b`` are ordinary float32 arrays; ``dW`` and ``db``, of the same shapes,
    receive their gradients. `nbopt.Parameters` shows the pairs to the optimizer without
    a copy: a step changes ``W`` and ``b`` themselves.
    """

    def __init__(self, fan_in, fan_out, rng, *, relu, name, to_device=np.asarray):
        scale = np.sqrt(2 / fan_in)  # keeps the activations' variance through ReLUs
        self.W = to_device(rng.normal(0, scale, (fan_in, fan_out)).astype(np.float32))
        self.b = to_device(np.zeros(fan_out, dtype=np.float32))
        self.dW, self.db = self.W * 0, self.b * 0
        self.relu, self.name = relu, name
        self.parameters = nbopt.Parameters((self.W, self.dW), (self.b, self.db), name=name)

    def forward(self, x):
        """Return the outputs (batch, fan_out) for inputs (batch, fan_in)."""
        self.x = x
        self.y = x @ self.W + self.b
        if self.relu:
            self.y *= self.y > 0
        return self.y

    def backward(self, dy):
        """Write the gradients of W and b; return that of the inputs.

        ``dy`` (batch, fan_out), the loss's gradient by the outputs, is modified. The
        gradients are sums over the batch, not means: nbopt divides by the batch size.
        """
        if self.relu:
            dy *= self.y > 0
        self.dW[...] = self.x.T @ dy  # [...]: the same memory at every step
        self.db[...] = dy.sum(axis=0)
        return dy @ self.W.T


def forward(network, x):
    """Return the scores (batch, 10) of the images ``x`` (batch, 64)."""
    for layer in network:
        x = layer.forward(x)
    return x


def cross_entropy(scores, true, xp=np):
    """Return softmax's cross-entropy, summed over the batch, and its gradient by the scores.

    ``true`` (batch, 10) is 1 at the true class, else 0.
    """
    scores = scores - xp.amax(scores, axis=1, keepdims=True)  # so that exp can't overflow
    log_p = scores - xp.log(xp.exp(scores).sum(axis=1, keepdims=True))
    return -(log_p * true).sum(), xp.exp(log_p) - true


def accuracy(network, x, labels):
    """Return the share of images whose highest score is that of the true digit."""
    return float((forward(network, x).argmax(axis=1) == labels).sum()) / len(labels)


def load_data():
    """Return training images, test images (80% and 20%), training labels, test labels."""
    digits = load_digits()
    x = (digits.data / 8 - 1).astype(np.float32)  # pixels from [0, 16] to [-1, 1]
    # Always the same split, so that --seed changes the training and not the exam.
    return train_test_split(x, digits.target, test_size=0.2, random_state=0)


def train(optimizer, x, labels, *, backend="cpu", batch_size=64, epochs=30, seed=0):
    """Train a fresh network with a fresh nbopt optimizer.

    Parameters
    ----------
    optimizer : nbopt.Optimizer
    x, labels : array
        Images (n, 64), float32, and the digits (n,) that they show.
    backend : str
    batch_size, epochs, seed : int
        The seed decides the first weights, the order of images, and stochastic rounding.

    Returns
    -------
    network : list of Dense
    losses : list of float
        The mean training loss of every epoch.
    """
    if not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size is {batch_size}: use 1 to {len(x)}, the number of images")
    # The backend becomes the current one; it divides every gradient by its batch size.
    nbopt.gen_backend(backend=backend, batch_size=batch_size, rng_seed=seed)
    xp, to_device = array_library(backend)
    rng = np.random.default_rng(seed)
    network = [
        Dense(n, m, rng, relu=name != "output", name=name, to_device=to_device) for name, n, m in LAYERS
    ]
    x, true = to_device(x), to_device(np.eye(10, dtype=np.float32)[labels])
    layers = [layer.parameters for layer in network]
    steps = len(x) // batch_size  # full batches; the images left out differ every epoch
    losses = []
    progress = trange(epochs, desc=type(optimizer).__name__, unit="epoch")
    for epoch in progress:
        total = 0.0
        order = to_device(rng.permutation(len(x))[: steps * batch_size])
        for batch in order.reshape(steps, batch_size):
            loss, gradient = cross_entropy(forward(network, x[batch]), true[batch], xp)
            for layer in reversed(network):
                gradient = layer.backward(gradient)
            optimizer.optimize(layers, epoch)
            total += loss
        losses.append(float(total) / len(order))
        progress.set_postfix(loss=f"{losses[-1]:.4f}")
    return network, losses


def draw(curves, path):
    """Draw loss curves, a dict of name -> losses, into a PNG file."""
    figure = Figure(figsize=(8, 5), layout="constrained")  # without pyplot: Agg, no window
    axes = figure.subplots()
    for name, losses in curves.items():
        axes.semilogy(np.arange(1, len(losses) + 1), losses, label=name)
    axes.set(title="Handwritten digits", xlabel="epoch", ylabel="mean training loss")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(argv=None):
    """Train, test and write the results; return the test accuracy of ``--optimizer``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--backend", default="cpu", help="cpu, reference, or any registered name")
    add("--optimizer", default="RMSProp", choices=OPTIMIZERS)
    add("--learning-rate", type=float, help="in place of the one that suits this job")
    add("--batch-size", type=int, default=64)
    add("--epochs", type=int, default=30)
    add(
        "--stochastic-round",
        nargs="?",
        type=int,
        const=True,
        default=False,
        metavar="BITS",
        help="round the weights stochastically, to BITS mantissa bits if given",
    )
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("digits-out"), help="folder for the results")
    add("--compare", action="store_true", help="train with each of neon's optimizers, one picture")
    args = parser.parse_args(argv)
    if args.learning_rate is not None and (args.compare or args.optimizer == "Adadelta"):
        parser.error(
            "--learning-rate goes with one optimizer that has one: not with --compare (each has its own), "
            "not with Adadelta (it has none)"
        )

    x_train, x_test, labels_train, labels_test = load_data()
    args.out.mkdir(parents=True, exist_ok=True)
    curves, accuracies = {}, {}
    for name in OPTIMIZERS if args.compare else [args.optimizer]:
        options = dict(OPTIMIZERS[name], stochastic_round=args.stochastic_round)
        if args.learning_rate is not None:
            options["learning_rate"] = args.learning_rate
        # Matrices this small are multiplied faster by one thread than by several.
        with threadpool_limits(1, user_api="blas"):
            network, curves[name] = train(
                getattr(nbopt, name)(**options),
                x_train,
                labels_train,
                backend=args.backend,
                batch_size=args.batch_size,
                epochs=args.epochs,
                seed=args.seed,
            )
        _, to_device = array_library(args.backend)
        accuracies[name] = accuracy(network, to_device(x_test), to_device(labels_test))
        print(f"{name}: test accuracy {accuracies[name]:.2%}")
        arrays = {
            f"{layer.name}.{key}": tensor.get()
            for layer in network
            for key, ((tensor, _), _) in zip("Wb", layer.parameters.get_params())
        }
        np.savez(args.out / f"weights-{name}.npz", **arrays)
    picture = args.out / f"loss-{'compare' if args.compare else args.optimizer}.png"
    draw(curves, picture)
    print(f"The loss curve is in {picture}, the weights lie beside it.")
    return accuracies[args.optimizer]


if __name__ == "__main__":
    main()
