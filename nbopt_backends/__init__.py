"""The implementations behind `nbopt.Backend`.

Importing this package imports neither Numba nor any device library.
"""

import importlib

_HOMES = {"NumbaCPU": "cpu.backend", "NumbaCUDA": "cuda.numba_cuda", "Reference": "meaning.reference"}

__all__ = ["NumbaCPU", "NumbaCUDA", "Reference"]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f"nbopt_backends.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
