"""Train the character model of `charlm.py` with its optimizer in the host's memory, and without.

Parameters are bfloat16, with float32 masters. Offloaded, masters and states are in the host's
memory, and the GPU keeps parameters and gradients alone. The weights are the same, to the bit::

    python examples/offload.py                 # on a GPU if there is one
    python examples/offload.py --device cpu    # works as well, and saves nothing
    python examples/offload.py --width 2048    # a larger model

The picture has the time of a step and, of a GPU, the memory that it takes.
"""

import argparse
import os
import time
from pathlib import Path

# Matrices this small are multiplied faster by one thread. Others would go on spinning after each product.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from charlm import LENGTH, Model, load_text
from matplotlib.figure import Figure
from tqdm import trange

import nbopt.torch


def train(text, letters, device, *, offload, width, steps, batch_size=32):
    """Train a new model.

    Returns
    -------
    parameters : list of torch.Tensor
    losses : list of float
    milliseconds : float
        Of a step with its backward pass, the median.
    memory : int
        The most bytes of the GPU that were in use; 0 without one.
    """
    torch.manual_seed(0)
    model = Model(len(letters), width).to(device, torch.bfloat16)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    options = {"lr": 5e-3, "gradient_clip_norm": 1.0}
    if offload:
        optimizer = nbopt.torch.Offload(model, nbopt.torch.AdamW, **options)
    else:
        optimizer = nbopt.torch.AdamW(model.parameters(), master_weights=True, **options)
    losses, times = [], []
    for step in trange(steps, desc="with offload" if offload else "without", unit="step"):
        torch.manual_seed(step)
        start = time.perf_counter()
        pieces = text[torch.randint(len(text) - LENGTH - 1, (batch_size, 1)) + torch.arange(LENGTH + 1)]
        pieces = pieces.to(device)
        optimizer.zero_grad()
        scores, _ = model(pieces[:, :-1])
        loss = torch.nn.functional.cross_entropy(scores.float().flatten(0, 1), pieces[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        times.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    parameters = [param.detach().cpu() for param in model.parameters()]
    return parameters, losses, 1000 * sorted(times)[len(times) // 2], memory


def draw(runs, path):
    """Draw losses, times and memory of both runs into a PNG file."""
    figure = Figure(figsize=(11, 3.5), layout="constrained")  # without pyplot: Agg, no window
    curve, times, memory = figure.subplots(1, 3)
    for (name, (_, losses, _, _)), style in zip(runs.items(), ("-", "--")):
        curve.plot(losses, style, label=name)
    curve.set(xlabel="step", ylabel="loss per letter")
    curve.legend()
    times.bar([*runs], [milliseconds for _, _, milliseconds, _ in runs.values()])
    times.set(ylabel="milliseconds a step")
    memory.bar([*runs], [taken / 2**20 for *_, taken in runs.values()])
    memory.set(ylabel="MiB of the GPU")
    figure.savefig(path, dpi=120)


def main(argv=None):
    """Train twice, compare the weights, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--width", type=int, default=128)
    add("--steps", type=int, default=40)
    add("--plot", type=Path, default=Path("offload.png"), help="file for the picture")
    args = parser.parse_args(argv)

    torch.set_num_threads(1)  # matrices this small are multiplied faster by one thread than by several
    text, letters = load_text()
    device = torch.device(args.device)
    runs = {
        name: train(text, letters, device, offload=offload, width=args.width, steps=args.steps)
        for name, offload in (("without", False), ("with offload", True))
    }
    for name, (_, losses, milliseconds, memory) in runs.items():
        taken = f", {memory / 2**20:.0f} MiB of the GPU" if memory else ""
        print(f"{name}: a loss of {losses[-1]:.3f}, {milliseconds:.1f} ms a step{taken}")
    same = all(map(torch.equal, runs["without"][0], runs["with offload"][0]))
    print(f"The weights are {'equal to the bit' if same else 'NOT EQUAL'}.")
    draw(runs, args.plot)
    return same


if __name__ == "__main__":
    raise SystemExit(not main())
