"""The norm of the gradients, kept for whoever wants to look at it."""

from __future__ import annotations

import math
from typing import Any

from nbopt.arrays.tensor import Tensor


class GradNorm:
    """The part of `nbopt.Optimizer` that says how large the gradients of the last call were.

    A step that needs the norm stores it in a slot of its own, ``grad_norm``, also if it is skipped.
    """

    _cache: Any
    _backend: Any

    @property
    def grad_norm(self) -> float | None:
        """The norm of the gradients of the last call, before any clip.

        It is that of all gradients together, divided by the batch size and the loss scale. None if the call
        needed no norm: only `gradient_clip_norm` and `skip_nonfinite` do. On a device, reading it waits for
        the steps so far. Not part of the description.
        """
        tensor = self.grad_norm_tensor
        return None if tensor is None else float(tensor.get()[0])

    @property
    def grad_norm_tensor(self) -> Tensor | None:
        """The same as one float64 of the backend, which each call overwrites, or None.

        The host does not wait for it.
        """
        kept = self._cache()
        return kept.norm if kept.sums_norm else None

    def _norm_slot(self) -> Tensor:
        """Return the tensor into which a step stores the norm."""
        be, kept = self._backend(), self._cache()
        if not isinstance(kept.norm, Tensor) or kept.norm.be is not be:
            kept.norm = be.array([math.nan], "float64", "grad_norm")
        return kept.norm
