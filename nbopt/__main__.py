"""``python -m nbopt``: what is installed, what can be used, and whether it gives the right results."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import nbopt
from nbopt.backends import backend_problem, known_backends
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.matrix import MatrixOptimizer

#: What is checked in float64, too: to compile every optimizer twice takes long.
_IN_FLOAT64 = ("Adam", "GradientDescentMomentum", "LAMB", "RMSProp, centered", "SM3")


def _versions() -> Iterator[tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError, version

    for package in ("numpy", "numba", "llvmlite", "ml_dtypes", "numba-cuda", "tbb"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def _optimizers() -> dict[str, Optimizer]:
    """Return one instance of every optimizer by its name, and of the options that make other kernels.

    Those of matrices are left out: a library makes their products, and its bits are its own.
    """
    chosen = {
        "GradientDescentMomentum": nbopt.GradientDescentMomentum(0.1, 0.9, wdecay=0.01),
        "GradientDescentMomentum, no momentum": nbopt.GradientDescentMomentum(0.1, 0.0, wdecay=0.01),
        "GradientDescentMomentum, nesterov": nbopt.GradientDescentMomentum(0.1, 0.9, nesterov=True),
        "RMSProp, clipped": nbopt.RMSProp(
            gradient_clip_norm=0.1, gradient_clip_value=0.01, param_clip_value=1.0
        ),
        "RMSProp, centered": nbopt.RMSProp(centered=True, momentum_coef=0.9),
    }
    for name in nbopt.optimizers.__all__:
        found = getattr(nbopt.optimizers, name)
        own = name not in chosen and "rule" in vars(found) and found is not nbopt.Optimizer
        if own and not issubclass(found, MatrixOptimizer):
            chosen[name] = found()
    return dict(sorted(chosen.items()))


def _trained(backend: str, optimizer: Optimizer, dtype: str) -> bytes:
    """Return all bytes of parameters and states after seven steps on `backend`."""
    rng = np.random.default_rng(7)
    with nbopt.use_backend(backend, rng_seed=7, batch_size=16) as be:
        pairs = [(rng.standard_normal(s), rng.standard_normal(s)) for s in ((300, 200), (64,), (), (3, 5, 7))]
        layer = nbopt.Parameters(*[(be.array(p, dtype), be.array(g, dtype)) for p, g in pairs])
        for epoch in range(7):  # RAdam's rule is another from the sixth on
            optimizer.optimize([layer], epoch)
        tensors = [*layer.params, *(state for states in layer.states for state in states)]
        return b"".join(tensor.get().tobytes() for tensor in tensors)


def self_check(write: Callable[[str], object] = print) -> bool:
    """Run every optimizer on every usable backend and compare bit for bit with the reference.

    Parameters
    ----------
    write : callable
        Takes the lines of the table.

    Returns
    -------
    bool
        Whether all results were equal.
    """
    backends = [name for name in nbopt.available_backends() if name != "reference"]
    columns = [(name, dtype) for name in backends for dtype in ("float32", "float64")]
    if not columns:
        write("nothing to compare: only the reference can be used here")
        return True
    write(f"{'optimizer':40}" + "".join(f"{f'{name} {dtype}':>16}" for name, dtype in columns))
    good = True
    for label in _optimizers():
        cells = []
        for name, dtype in columns:
            if dtype == "float64" and label not in _IN_FLOAT64:
                cells.append("")
                continue
            try:
                equal = _trained(name, _optimizers()[label], dtype) == _trained(
                    "reference", _optimizers()[label], dtype
                )
                cells.append("same bits" if equal else "DIFFERS")
            except Exception as error:
                equal = False
                cells.append(f"FAILS: {type(error).__name__}: {error}")
            good = good and equal
        write(f"{label:40}" + "".join(f"{cell:>16}" for cell in cells))
    return good


def main() -> int:
    """Print the report; return the exit status, 1 when a check failed."""
    print(
        f"nbopt {nbopt.__version__}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}"
    )
    print(", ".join(f"{package} {version}" for package, version in _versions()))
    print("\nbackends")
    for name in known_backends():
        problem = backend_problem(name)
        print(f"  {name:12}" + ("usable" if problem is None else f"not usable: {problem}"))
    for name, title in (("cpu", "CPU"), ("cuda", "GPU")):
        if backend_problem(name) is None:
            print(f"\n{title}")
            be: Any = nbopt.set_backend(name)  # these two have a report
            for label, value in be.report().items():
                print(f"  {label:28}{value}")
    print("\nself-check against the reference")
    good = self_check(lambda line: print("  " + line))
    print("\neverything is as it should be" if good else "\nsomething is wrong, see above")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
