"""Train the network of `digits.py` with the optimizers that people use today, and draw their losses.

::

    python examples/family.py                                # a minute; writes docs/images/family.png
    python examples/family.py --epochs 3 --out curves.png

Each has a learning rate that suits this job, tried by hand: a picture of how they go, not a contest. Prodigy
and DAdaptAdam find theirs.
"""

import argparse
from pathlib import Path

import numpy as np
from digits import accuracy, load_data, train
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

import nbopt

#: Title of a picture -> name of an optimizer -> its arguments.
PANELS = {
    "one rate for all, or for each parameter": {
        "AdamW": {"learning_rate": 1e-3},
        "LAMB": {"learning_rate": 3e-3},
        "LARS": {"learning_rate": 1.0, "trust_coefficient": 1e-3},
        "Adafactor": {"learning_rate": 3e-2},
        "CAME": {},
        "SM3": {"learning_rate": 0.1, "momentum_coef": 0.9},
    },
    "momentum in other ways": {
        "AdamW": {"learning_rate": 1e-3},
        "AdEMAMix": {"learning_rate": 1e-3, "warmup": 400},
        "ADOPT": {"learning_rate": 1e-3},
        "Adan": {"learning_rate": 1e-3},
        "Lion": {"learning_rate": 1e-4},
        "Tiger": {"learning_rate": 1e-4},
        "MARS": {"learning_rate": 3e-3},
        "StableAdamW": {"learning_rate": 1e-3},
    },
    "no rate or no schedule to choose": {
        "AdamW": {"learning_rate": 1e-3},
        "Prodigy": {},
        "DAdaptAdam": {},
        "ScheduleFreeSGD": {"learning_rate": 1.0},
        "ScheduleFreeAdamW": {"learning_rate": 3e-3},
        "ScheduleFreeRAdam": {"learning_rate": 3e-3},
    },
}


def curves_of(panels, epochs):
    """Return the losses of each optimizer, by its name, and print how many test images it gets right."""
    x, x_test, labels, labels_test = load_data()
    curves = {}
    for name, options in {name: given for panel in panels.values() for name, given in panel.items()}.items():
        optimizer = getattr(nbopt, name)(**options)
        with threadpool_limits(1, user_api="blas"):  # faster than several threads for matrices this small
            network, curves[name] = train(optimizer, x, labels, epochs=epochs)
        if hasattr(optimizer, "eval"):
            optimizer.eval([layer.parameters for layer in network])
        print(f"{name}: test accuracy {accuracy(network, x_test, labels_test):.2%}")
    return curves


def draw(panels, curves, path):
    """Draw the losses of each panel into a PNG file."""
    figure = Figure(figsize=(12, 4), layout="constrained")  # without pyplot: Agg, no window
    for axes, (title, names) in zip(figure.subplots(1, len(panels), sharey=True), panels.items()):
        for name in names:
            axes.semilogy(np.arange(1, len(curves[name]) + 1), curves[name], label=name)
        axes.set(title=title, xlabel="epoch", ylim=(1e-4, 3))
        axes.legend(fontsize="small")
    figure.axes[0].set_ylabel("mean training loss")
    figure.savefig(path, dpi=100)


def main(argv=None):
    """Train and draw; return the losses by optimizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "family.png"
    )
    args = parser.parse_args(argv)
    curves = curves_of(PANELS, args.epochs)
    draw(PANELS, curves, args.out)
    print(f"The losses are in {args.out}.")
    return curves


if __name__ == "__main__":
    main()
