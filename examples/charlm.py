"""Train a small language model in PyTorch, letter by letter, with nbopt for the update.

The model is ordinary PyTorch: an embedding, a GRU and a linear layer that guesses the next
letter. `nbopt.torch.Optimizer` takes the place of one of torch.optim's; the rest of the
program would look the same without it::

    python examples/charlm.py                                # RMSProp, less than a minute
    python examples/charlm.py --optimizer Adam --steps 300
    python examples/charlm.py --bf16                         # parameters in 16 bits
    python examples/charlm.py --compare                      # AdamW and Muon, two minutes

The text is what Python's ``help()`` says about the language, which comes with Python. An
untrained model, which takes all letters for equally likely, is at a loss of 4.6.
"""

import argparse
import os
import time
from pathlib import Path
from pydoc_data import topics

# Matrices this small are multiplied faster by one thread. Others would go on spinning after each product.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from matplotlib.figure import Figure
from tqdm import trange

import nbopt
import nbopt.torch

# What each optimizer is given for this job.
OPTIMIZERS = {
    "GradientDescentMomentum": {"learning_rate": 0.5, "momentum_coef": 0.9},
    "RMSProp": {"learning_rate": 4e-3},
    "Adagrad": {"learning_rate": 0.03},
    "Adadelta": {},
    "Adam": {"learning_rate": 5e-3},
}
LENGTH = 48  # of the pieces of text that the model learns from, in letters


class Model(torch.nn.Module):
    """Guesses the next letter from those before."""

    def __init__(self, letters, width=128):
        super().__init__()
        self.embedding = torch.nn.Embedding(letters, 32)
        self.gru = torch.nn.GRU(32, width, batch_first=True)
        self.output = torch.nn.Linear(width, letters)

    def forward(self, x, memory=None):
        """Return scores for the letters after ``x``, and the memory to go on from.

        ``x`` is (batch, length), scores are (batch, length, letters).
        """
        y, memory = self.gru(self.embedding(x), memory)
        return self.output(y), memory


def load_text():
    """Return the text as a tensor of letters' numbers, and the letters."""
    lines = "\n".join(topics.topics[key] for key in sorted(topics.topics)).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines if any(map(str.isalpha, line)))
    letters = sorted(set(text))
    number = {letter: n for n, letter in enumerate(letters)}
    return torch.tensor([number[letter] for letter in text]), letters


def train(model, optimizer, text, *, steps, batch_size=32):
    """Train a model in place; return the loss per letter of every step."""
    losses = []
    progress = trange(steps, desc="training", unit="step")
    for _ in progress:
        start = torch.randint(len(text) - LENGTH - 1, (batch_size, 1))
        piece = text[start + torch.arange(LENGTH + 1)]
        optimizer.zero_grad()
        scores, _ = model(piece[:, :-1])
        loss = torch.nn.functional.cross_entropy(scores.float().flatten(0, 1), piece[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}")
    return losses


@torch.no_grad()
def write(model, letters, beginning="The ", length=300, temperature=0.6):
    """Return text that the model writes; at a low temperature it prefers what it is sure of."""
    written, memory = beginning, None
    x = torch.tensor([[letters.index(letter) for letter in beginning]])
    for _ in range(length):
        scores, memory = model(x, memory)
        x = torch.multinomial(torch.softmax(scores[:, -1].float() / temperature, 1), 1)
        written += letters[x.item()]
    return written


def draw(losses, title, path):
    """Draw the loss of every step, and their running mean, into a PNG file."""
    means, mean = [], losses[0]
    for loss in losses:
        mean += 0.05 * (loss - mean)
        means.append(mean)
    figure = Figure(figsize=(8, 5), layout="constrained")  # without pyplot: Agg, no window
    axes = figure.subplots()
    axes.plot(losses, alpha=0.3)
    axes.plot(means, color="C0")
    axes.set(title=title, xlabel="step", ylabel="loss per letter")
    figure.savefig(path, dpi=120)


def compare(text, letters, steps, seed, path):
    """Train by AdamW and by Muon, and draw the losses over steps and over time into a PNG file."""
    width = 128
    figure = Figure(figsize=(10, 4), layout="constrained")
    over_steps, over_time = figure.subplots(1, 2, sharey=True)
    for name in ("AdamW", "Muon"):
        torch.manual_seed(seed)
        model = Model(len(letters), width)
        if name == "AdamW":
            optimizer = nbopt.torch.AdamW(model.parameters(), lr=5e-3, gradient_clip_norm=1.0, seed=seed)
        else:
            # A GRU keeps the matrices of its three gates in one; each is orthogonalised.
            hidden, others = nbopt.torch.muon_groups(model)
            hidden.update(split=(width,) * 3, lr=0.02, weight_decay=0.01)
            others.update(lr=5e-3, weight_decay=0.01)
            optimizer = nbopt.torch.Muon(
                [hidden, others], adjust_lr_fn="match_rms_adamw", gradient_clip_norm=1.0, seed=seed
            )
        began = time.perf_counter()
        losses = train(model, optimizer, text, steps=steps)
        seconds = time.perf_counter() - began
        mean, means = losses[0], []
        for loss in losses:
            mean += 0.03 * (loss - mean)
            means.append(mean)
        label = f"{name}: {sum(losses[-100:]) / len(losses[-100:]):.2f} at the end"
        over_steps.plot(means, label=label)
        over_time.plot([seconds * (step + 1) / steps for step in range(steps)], means)
        print(f"{label}, {1000 * seconds / steps:.1f} ms a step")
    over_steps.set(xlabel="step", ylabel="loss per letter", ylim=(1.2, 3))
    over_time.set(xlabel="seconds")
    over_steps.legend()
    figure.savefig(path, dpi=120)


def main(argv=None):
    """Train, draw the loss and write some text; return the losses of all steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--optimizer", default="RMSProp", choices=OPTIMIZERS)
    add("--learning-rate", type=float, help="in place of the one that suits this job")
    add("--steps", type=int, default=800)
    add(
        "--bf16",
        action="store_true",
        help="keep parameters in bfloat16, without a copy in 32 bits, and round them stochastically",
    )
    add("--compare", action="store_true", help="train by AdamW and by Muon, and draw both losses")
    add("--seed", type=int, default=0)
    add("--plot", type=Path, default=Path("charlm.png"), help="file for the picture of the loss")
    args = parser.parse_args(argv)

    torch.set_num_threads(1)  # matrices this small are multiplied faster by one thread than by several
    torch.manual_seed(args.seed)
    text, letters = load_text()
    if args.compare:
        return compare(text, letters, args.steps, args.seed, args.plot)
    model = Model(len(letters))
    options = dict(OPTIMIZERS[args.optimizer], gradient_clip_norm=1.0)
    if args.optimizer == "Adadelta":
        del options["gradient_clip_norm"]
    if args.learning_rate is not None:
        options["learning_rate"] = args.learning_rate
    if args.bf16:
        model.bfloat16()
        options["stochastic_round"] = True
    optimizer = nbopt.torch.Optimizer(
        model.parameters(), getattr(nbopt, args.optimizer)(**options), seed=args.seed
    )
    losses = train(model, optimizer, text, steps=args.steps)
    draw(losses, f"{args.optimizer}{', bfloat16' if args.bf16 else ''}", args.plot)
    print(write(model, letters))
    print(
        f"The loss went from {losses[0]:.2f} to {sum(losses[-20:]) / len(losses[-20:]):.2f}; its curve is in "
        f"{args.plot}."
    )
    return losses


if __name__ == "__main__":
    main()
