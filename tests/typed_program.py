"""A program of a user with rules of his own, which `mypy --strict` checks: see pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import nbopt


class SignMomentum(nbopt.Optimizer):
    """A rule with a state, a source, a reduction and a condition."""

    state_names = ("momentum",)

    def __init__(self, learning_rate: float = 1e-3, decay: float = 0.9, name: str | None = None) -> None:
        super().__init__(name=name)
        self.learning_rate, self.decay = learning_rate, decay

    def rule(self, step: nbopt.Step, param: nbopt.Slot, grad: nbopt.Expr, momentum: nbopt.Slot) -> None:
        """Go along the sign of a running mean, unless a gradient is not finite."""
        momentum[:] = self.decay * momentum + (1 - self.decay**step.t) * grad
        step.only_if(self.be.finite(step.norm(grad)))
        param[:] = param - step.lr * self.be.sgn(momentum)


class LargestOfRows(nbopt.Optimizer):
    """A rule with a state along each axis."""

    def states(self, shape: tuple[int, ...]) -> dict[str, nbopt.State]:
        """Declare a state along each axis."""
        return {f"along{axis}": nbopt.State(axes=(axis,)) for axis in range(len(shape))}

    def rule(self, step: nbopt.Step, param: nbopt.Slot, grad: nbopt.Expr, *states: nbopt.Slot) -> None:
        """Keep the largest squares, and go down in units of the gradient."""
        be = self.be
        square: nbopt.Expr = be.square(grad)
        for axis, state in enumerate(states):
            others = tuple(other for other in range(param.ndim) if other != axis)
            state[:] = be.maximum(state, be.max(square, axis=others) if others else square)
        param[:] = param - 0.1 * grad / be.sqrt(square + 1e-8)


def mistakes(optimizer: nbopt.Optimizer, param: nbopt.Slot) -> None:
    """Make mistakes that a type checker finds. (It also finds an ignored one that is none.)"""
    param.normalise()  # type: ignore[attr-defined]
    optimizer.be.square_root(param)  # type: ignore[attr-defined]
    optimizer.optimize(3, epoch=0)  # type: ignore[arg-type]
    nbopt.RMSProp(learning_rate="fast")  # type: ignore[arg-type]
    param[:] = "zero"  # type: ignore[assignment]


def main(folder: Path) -> float:
    """Train, explain, save and load."""
    be = nbopt.gen_backend("reference", batch_size=4)
    w, dw = np.zeros((4, 2), np.float32), np.ones((4, 2), np.float32)
    layers = [nbopt.Parameters((w, dw), name="linear"), nbopt.Parameters((w.copy(), dw), name="other")]
    schedule = nbopt.Schedule([10, 20], 0.1)
    optimizer = nbopt.MultiOptimizer(
        {"default": SignMomentum(decay=0.5), "linear": nbopt.Adam(learning_rate=0.1, schedule=schedule)}
    )
    for epoch in range(3):
        optimizer.optimize(layers, epoch)
    LargestOfRows().optimize([nbopt.Parameters((w, dw))], epoch=0)
    nbopt.save(folder / "run.safetensors", optimizer, layers)
    nbopt.load(folder / "run.safetensors", optimizer, layers)
    out = be.zeros((2, 3))
    out[:] = be.sqrt(be.ones((2, 3))) * 2.0 + 1
    return float(out.get().sum())


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
