"""Fit a curve through noisy points: NumPy, a gradient written by hand, and nbopt.

The curve is a sum of bumps whose places, widths and heights are all learned, 75 numbers in
all. The gradient takes ten lines; nbopt does the update::

    python examples/regression.py
    python examples/regression.py --optimizer Adam --plot adam.png

The points lie around ``sin(3 x) + x / 2``, with noise of standard deviation 0.1, so no curve gets
the mean squared error much below 0.01.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import trange

import nbopt

# What each optimizer is given for this job.
OPTIMIZERS = {
    "GradientDescentMomentum": {"learning_rate": 0.02, "momentum_coef": 0.9},
    "RMSProp": {"learning_rate": 5e-3, "schedule": nbopt.ExpSchedule(5e-3)},
    "Adagrad": {"learning_rate": 0.1},
    "Adadelta": {},
    "Adam": {"learning_rate": 0.02},
}


class Bumps:
    """``y(x) = sum of height * exp(-(x - place)^2 * sharpness)``, over `count` bumps.

    ``parameters`` shows the arrays and their gradients to the optimizer, without a copy.
    """

    def __init__(self, count, rng):
        self.place = np.linspace(-3, 3, count).astype(np.float32)
        self.sharpness = np.full(count, 4, np.float32)
        self.height = rng.normal(0, 0.1, count).astype(np.float32)
        self.gradients = [np.zeros(count, np.float32) for _ in range(3)]
        self.parameters = nbopt.Parameters(
            *zip((self.place, self.sharpness, self.height), self.gradients), name="bumps"
        )

    def __call__(self, x):
        """Return the curve at the points ``x`` (n,)."""
        return np.exp(-((x[:, None] - self.place) ** 2) * self.sharpness) @ self.height

    def backward(self, x, y):
        """Write the gradients of the squared error, summed over the points, and return that error."""
        distance = x[:, None] - self.place  # (points, bumps)
        bump = np.exp(-(distance**2) * self.sharpness)
        error = bump @ self.height - y
        weighted = 2 * error[:, None] * bump
        d_place, d_sharpness, d_height = self.gradients
        d_height[:] = weighted.sum(axis=0)
        d_place[:] = (weighted * distance).sum(axis=0) * 2 * self.sharpness * self.height
        d_sharpness[:] = -(weighted * distance**2).sum(axis=0) * self.height
        return float(error @ error)


def truth(x):
    """Return what the points lie around."""
    return np.sin(3 * x) + x / 2


def train(curve, optimizer, x, y, *, steps):
    """Fit the curve in place; return the mean squared error of every step."""
    # Gradients are sums over the points, and are divided by their number.
    nbopt.gen_backend(backend="cpu", batch_size=len(x))
    losses = []
    progress = trange(steps, desc=type(optimizer).__name__, unit="step")
    for step in progress:
        losses.append(curve.backward(x, y) / len(x))
        optimizer.optimize([curve.parameters], step)
        if step % 100 == 0:
            progress.set_postfix(error=f"{losses[-1]:.4f}")
    return losses


def draw(curve, x, y, losses, path):
    """Draw the points, the curve and the errors into a PNG file."""
    figure = Figure(figsize=(11, 4), layout="constrained")  # without pyplot: Agg, no window
    left, right = figure.subplots(1, 2)
    fine = np.linspace(-3, 3, 300, dtype=np.float32)
    left.plot(x, y, ".", color="0.7", label="points")
    left.plot(fine, truth(fine), "--", label="what they lie around")
    left.plot(fine, curve(fine), label="the fitted curve")
    left.legend()
    right.semilogy(losses)
    right.set(xlabel="step", ylabel="mean squared error")
    figure.savefig(path, dpi=120)


def fit(optimizer, path, *, steps=3000, seed=0):
    """Fit a curve through new points, and draw it into a PNG file; return the mean squared errors."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, 300).astype(np.float32)
    y = (truth(x) + rng.normal(0, 0.1, len(x))).astype(np.float32)
    curve = Bumps(25, rng)
    losses = train(curve, optimizer, x, y, steps=steps)
    draw(curve, x, y, losses, path)
    print(f"The mean squared error went from {losses[0]:.3f} to {losses[-1]:.4f}; the picture is in {path}.")
    return losses


def main(argv=None):
    """Fit and draw; return the mean squared errors of all steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--optimizer", default="RMSProp", choices=OPTIMIZERS)
    add("--steps", type=int, default=3000)
    add("--seed", type=int, default=0)
    add("--plot", type=Path, default=Path("regression.png"), help="file for the picture")
    args = parser.parse_args(argv)
    optimizer = getattr(nbopt, args.optimizer)(**OPTIMIZERS[args.optimizer])
    return fit(optimizer, args.plot, steps=args.steps, seed=args.seed)


if __name__ == "__main__":
    main()
