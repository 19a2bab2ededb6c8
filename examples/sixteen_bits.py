"""Train with weights kept in 16 bits, rounded to nearest or stochastically, beside float32.

A weight in bfloat16 has 8 significant bits, and late in a training most updates are smaller than half the
distance to the next such number: rounded to nearest they are lost, however often they come. Rounded
stochastically, each has its chance to move the weight, and on average all of it arrives. This example trains
two networks in three settings, from the same seeds, draws their losses and prints a table::

    python examples/sixteen_bits.py              # less than a minute
    python examples/sixteen_bits.py --full       # longer, from more seeds: minutes
    python examples/sixteen_bits.py --quick      # a run of seconds
    python examples/sixteen_bits.py --compare    # a longer table of optimizers and learning rates, no picture

Only the stored weights differ between the settings. A step starts from them alone: the forward pass widens
them, and the float32 copy is never updated. Activations, gradients and, by default, the optimizer's states
are float32 everywhere.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import ml_dtypes
import numpy as np
from digits import LAYERS, OPTIMIZERS, Dense, accuracy, cross_entropy, forward, load_data
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import nbopt

SETTINGS = {  # name -> the dtype of the weights, and stochastic_round
    "float32": (np.float32, False),
    "bfloat16, to nearest": (ml_dtypes.bfloat16, False),
    "bfloat16, stochastic": (ml_dtypes.bfloat16, True),
}
STYLES = ("C0-", "C3-", "C2--")  # dashed, since the last lies on the first
CONTEXT = 16  # how many characters the language model sees
WIDTH = 16  # how many numbers stand for one character


class StoredDense(Dense):
    """A `digits.Dense` whose weights are kept in `dtype`, and computed with in float32."""

    def __init__(self, fan_in, fan_out, rng, *, dtype, **options):
        super().__init__(fan_in, fan_out, rng, **options)
        self.stored = self.W.astype(dtype), self.b.astype(dtype)
        self.parameters = nbopt.Parameters(*zip(self.stored, (self.dW, self.db)), name=self.name)

    def forward(self, x):
        """Widen the weights and return the outputs."""
        self.W, self.b = (array.astype(np.float32) for array in self.stored)
        return super().forward(x)


class Embedding(StoredDense):
    """The first layer: gives every character (batch, CONTEXT) its row of weights.

    They are returned as (batch, CONTEXT * WIDTH).
    """

    def forward(self, x):
        """Return the vectors of the characters, side by side."""
        one_hot = np.eye(len(self.dW), dtype=np.float32)[x.ravel()]
        return super().forward(one_hot).reshape(len(x), -1)

    def backward(self, dy):
        """Write the gradients of the weights; characters have none."""
        super().backward(dy.reshape(-1, WIDTH))


class Task(NamedTuple):
    """What to learn, and how."""

    title: str
    data: tuple  # x (n, ...) to train with, x to test with, their labels (n,)
    network: object  # network(rng, dtype) -> list of StoredDense
    optimizer: object  # optimizer(stochastic_round) -> nbopt.Optimizer
    seeds: int
    epochs: int
    steps: int  # of an epoch
    batch_size: int


def digits_task(name="Adam", size="usual"):
    """Return the job of examples/digits.py, with its own settings of the optimizer called `name`."""
    data = load_data()

    def network(rng, dtype):
        return [
            StoredDense(n, m, rng, dtype=dtype, relu=layer != "output", name=layer) for layer, n, m in LAYERS
        ]

    def optimizer(stochastic_round):
        return getattr(nbopt, name)(**OPTIMIZERS[name], stochastic_round=stochastic_round)

    seeds, epochs = {"quick": (1, 8), "usual": (2, 20), "full": (5, 30)}[size]
    return Task(f"Digits, {name}", data, network, optimizer, seeds, epochs, len(data[0]) // 64, 64)


def language_task(rate=2e-3, size="usual"):
    """Return a language model's job, with Adam from `rate` to 0.

    It guesses the next character of the texts of Python's ``help()``.
    """
    texts = ["".join(list(topics.values())[start::10]) for start in range(10)]
    alphabet, codes = np.unique(list("".join(texts)), return_inverse=True)
    codes = np.split(codes, [len(texts[0])])[::-1]  # one topic in ten is for the test
    x, x_test = (sliding_window_view(part[:-1], CONTEXT) for part in codes)
    labels, labels_test = (part[CONTEXT:] for part in codes)
    sizes = (CONTEXT * WIDTH, 512, 256, len(alphabet))

    def network(rng, dtype):
        embedding = Embedding(len(alphabet), WIDTH, rng, dtype=dtype, relu=False, name="embedding")
        names = ("hidden1", "hidden2", "output")
        dense = [
            StoredDense(n, m, rng, dtype=dtype, relu=name != "output", name=name)
            for name, (n, m) in zip(names, pairwise(sizes))
        ]
        return [embedding, *dense]

    seeds, epochs = {"quick": (1, 1), "usual": (1, 8), "full": (3, 24)}[size]

    def optimizer(stochastic_round):
        return nbopt.Adam(stochastic_round, rate, schedule=nbopt.PolySchedule(epochs, 1))

    data = x, x_test[::5], labels, labels_test[::5]
    return Task(
        f"Characters of Python's help, Adam from {rate:g} to 0",
        data,
        network,
        optimizer,
        seeds,
        epochs,
        100,
        128,
    )


def train(task, dtype, stochastic_round, seed, state_dtype=None):
    """Train a fresh network.

    Returns the mean training loss of every epoch, the test accuracy, and the share of the weights that the
    last step changed.
    """
    # The backend becomes the current one. Its seed decides the random bits, and with them the whole run.
    nbopt.gen_backend(backend="cpu", batch_size=task.batch_size, rng_seed=seed)
    rng = np.random.default_rng(seed)
    x, x_test, labels, labels_test = task.data
    network, optimizer = task.network(rng, dtype), task.optimizer(stochastic_round)
    optimizer.state_dtype = state_dtype  # None: float32
    layers = [layer.parameters for layer in network]
    one_hot = np.eye(network[-1].dW.shape[1], dtype=np.float32)
    losses = []
    for epoch in range(task.epochs):
        total = 0.0
        for batch in rng.choice(len(x), (task.steps, task.batch_size), replace=False):
            loss, gradient = cross_entropy(forward(network, x[batch]), one_hot[labels[batch]])
            for layer in reversed(network):
                gradient = layer.backward(gradient)
            optimizer.optimize(layers, epoch)
            total += loss
        losses.append(total / (task.steps * task.batch_size))
    # Each layer's W is still what the last forward pass used: the weights before the last step.
    moved = np.concatenate([(layer.stored[0] != layer.W).ravel() for layer in network])
    return losses, accuracy(network, x_test, labels_test), moved.mean()


def run(task, state_dtype=None):
    """Train `task` in all settings; print a table; return a dict of setting -> losses (seeds, epochs)."""
    curves = {}
    print(f"\n{task.title}: {task.seeds} seeds, {task.epochs} epochs of {task.steps} steps")
    print(
        f"  {'weights':22}{'training loss, mean (range)':34}{'test accuracy (range)':32}moved in the last "
        "step"
    )
    for name, setting in SETTINGS.items():
        seeds = tqdm(range(task.seeds), desc=name, leave=False)
        runs = [train(task, *setting, seed, state_dtype) for seed in seeds]
        curves[name] = np.array([losses for losses, _, _ in runs])
        last, accuracies, moved = (
            curves[name][:, -1],
            np.array([r[1] for r in runs]),
            np.mean([r[2] for r in runs]),
        )
        loss = f"{last.mean():#.3g} ({last.min():#.3g} to {last.max():#.3g})"
        score = f"{accuracies.mean():.2%} ({accuracies.min():.2%} to {accuracies.max():.2%})"
        print(f"  {name:22}{loss:34}{score:32}{moved:.1%}", flush=True)
    return curves


def draw(results, path):
    """Draw the losses side by side into a PNG file: means, and ranges over the seeds.

    The losses are a dict of title -> what `run` returns.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")  # without pyplot: Agg, no window
    for axes, (title, curves) in zip(figure.subplots(1, len(results)), results.items()):
        for style, (name, losses) in zip(STYLES, curves.items()):
            epochs = np.arange(1, losses.shape[1] + 1)
            axes.plot(epochs, losses.mean(axis=0), style, label=name)
            axes.fill_between(
                epochs, losses.min(axis=0), losses.max(axis=0), color=style[:2], alpha=0.2, linewidth=0
            )
        wide = min(map(np.min, curves.values())) * 10 < max(map(np.max, curves.values()))
        axes.set(title=title, xlabel="epoch", ylabel="training loss", yscale="log" if wide else "linear")
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(argv=None):
    """Train, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more seeds and epochs: minutes")
    parser.add_argument("--quick", action="store_true", help="one seed and fewer epochs: seconds")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="the digits with every optimizer, the language model at several rates; no picture",
    )
    parser.add_argument(
        "--state-dtype",
        choices=["bfloat16", "float16", "float32"],
        help="of the optimizer's states, float32 by default",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("digits-out/sixteen_bits.png"), help="the picture's file"
    )
    args = parser.parse_args(argv)
    size = "full" if args.full else "quick" if args.quick else "usual"
    if args.compare:
        tasks = [
            *(digits_task(name, size) for name in OPTIMIZERS),
            *(language_task(rate, size) for rate in (1e-3, 2e-3, 4e-3, 8e-3)),
        ]
    else:
        tasks = [digits_task(size=size), language_task(size=size)]
    with threadpool_limits(1, user_api="blas"):  # matrices this small are multiplied faster by one thread
        results = {task.title: run(task, args.state_dtype) for task in tasks}
    if not args.compare:
        draw(results, args.out)
        print(f"\nThe picture is {args.out}.")


if __name__ == "__main__":
    main()
