"""``python -m nbopt``: what is installed, what can be used, and whether it gives the right results.

``--json`` prints the same as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import nbopt
from nbopt.backends import backend_problem, known_backends
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.matrix import MatrixOptimizer
from nbopt.terminal import coloured, is_terminal

#: What is checked in float64, too: to compile every optimizer twice takes long.
_IN_FLOAT64 = ("Adam", "GradientDescentMomentum", "LAMB", "RMSProp, centered", "SM3")
_SAME = "same bits"


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("numpy", "numba", "llvmlite", "ml_dtypes", "numba-cuda", "tbb"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


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


def _columns() -> list[tuple[str, str]]:
    names = [name for name in nbopt.available_backends() if name != "reference"]
    return [(name, dtype) for name in names for dtype in ("float32", "float64")]


def self_check() -> Iterator[tuple[str, list[str]]]:
    """Run every optimizer on every usable backend and compare bit for bit with the reference.

    Yields
    ------
    (str, list of str)
        An optimizer, and for each backend and dtype ``"same bits"``, ``"DIFFERS"``, ``"FAILS: ..."`` with the
        error, or nothing if it is not tried.
    """
    columns = _columns()
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
                cells.append(_SAME if equal else "DIFFERS")
            except Exception as error:
                cells.append(f"FAILS: {type(error).__name__}: {error}")
        yield label, cells


def _reports() -> dict[str, dict[str, Any]]:
    """Return what the backends say of themselves and of their devices."""
    found = {}
    for name in ("cpu", "cuda"):
        if backend_problem(name) is None:
            be: Any = nbopt.set_backend(name)  # these two have a report
            found[name] = be.report()
    return found


def _is_good(cells: Sequence[str]) -> bool:
    return all(cell in ("", _SAME) for cell in cells)


def _as_json() -> bool:
    columns = [" ".join(column) for column in _columns()]
    found = {
        label: {column: cell for column, cell in zip(columns, cells) if cell} for label, cells in self_check()
    }
    good = bool(columns) and all(_is_good([*cells.values()]) for cells in found.values())
    report = {
        "nbopt": nbopt.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": _versions(),
        "backends": {name: backend_problem(name) or "usable" for name in known_backends()},
        "reports": _reports(),
        "self-check": found,
        "good": good,
    }
    print(json.dumps(report, indent=2, default=str))
    return good


def _as_text() -> bool:
    terminal = is_terminal()

    def shown(text: str, colour: str) -> str:
        return coloured(text, colour) if terminal else text

    print(
        shown(f"nbopt {nbopt.__version__}", "bold")
        + f", Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    print(", ".join(f"{package} {version}" for package, version in _versions().items()))
    print("\n" + shown("backends", "bold"))
    for name in known_backends():
        problem = backend_problem(name)
        print(f"  {name:12}" + (shown("usable", "green") if problem is None else f"not usable: {problem}"))
    for name, report in _reports().items():
        print("\n" + shown({"cpu": "CPU", "cuda": "GPU"}[name], "bold"))
        for label, value in report.items():
            print(f"  {label:28}{value}")
    print("\n" + shown("self-check against the reference", "bold"))
    good = _table(shown, terminal)
    end = "everything is as it should be" if good else "something is wrong, see above"
    print("\n" + shown(end, "green" if good else "red"))
    return good


def _table(shown: Any, terminal: bool) -> bool:
    """Print the table of the self-check, a line at a time; return whether all is well."""
    columns, good = [" ".join(column) for column in _columns()], True
    if not columns:
        print("  nothing to compare: only the reference can be used here")
        return False
    rule = "─" * (40 + 16 * len(columns))
    print(f"  {'optimizer':40}" + "".join(f"{column:>16}" for column in columns))
    if terminal:
        print(f"  {rule}")
        print(shown("  compiling the first kernels ...", "grey"), end="\r", flush=True)
    for label, cells in self_check():
        good = good and _is_good(cells)
        texts = [shown(f"{cell:>16}", "green" if _is_good([cell]) else "red") for cell in cells]
        print(f"  {label:40}" + "".join(texts))
    if terminal:
        print(f"  {rule}")
    return good


def main(arguments: Sequence[str] = ()) -> int:
    """Print the report; return the exit status, 1 when a check failed.

    Parameters
    ----------
    arguments : sequence of str
        Of the command line.

    Returns
    -------
    int
    """
    parser = argparse.ArgumentParser(
        "python -m nbopt", description="Show what is installed, and check every optimizer on every backend."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return 0 if (_as_json if parser.parse_args(arguments).json else _as_text)() else 1


if __name__ == "__main__":
    os.environ.setdefault("NBOPT_QUIET", "1")  # the table shows that it is at work
    sys.exit(main(sys.argv[1:]))
