"""Muon, with AdamW for what is no hidden matrix."""

from typing import Any

import torch

from nbopt import checks
from nbopt.errors import ArgumentError, ShapeError
from nbopt.language.linear import checked_coefficients
from nbopt.language.matrices import ADJUSTMENTS, COEFFICIENTS, METHODS, Orthogonalize
from nbopt.optimizers.matrix import lengths_of_parts, orthogonal
from nbopt.optimizers.modifiers import decayed
from nbopt.torch.dropin import DropIn
from nbopt.torch.family.adam import AdamWRule
from nbopt.torch.rule import TorchRule
from nbopt.torch.states import Kept

#: What a group may say of its matrices -> check.
_MATRICES: dict[str, Any] = {
    "ns_coefficients": checked_coefficients,
    "ns_steps": checks.positive_int,
    "eps": checks.non_negative,
    "adjust_lr_fn": checks.one_of(None, *ADJUSTMENTS),
    "heads": checks.positive_int,
    "split": lengths_of_parts,
    "axis": checks.one_of(-2, -1),
    "flatten": checks.optional(checks.boolean),
    "method": checks.one_of(*METHODS),
    "workspace": checks.optional(checks.positive_int),
}


def _as_made(name, value):
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} must be True or False, not {value!r}")
    if not value:
        raise ArgumentError(f"{name} can't change after the group was made: make another optimizer")
    return value


class MuonRule(TorchRule):
    """PyTorch's Muon, for batches and blocks of matrices as well."""

    kept = (Kept("momentum_buffer"),)
    words = ("lr", "weight_decay", "momentum", "nesterov", "use_muon", *_MATRICES)
    checks = {**TorchRule.checks, **_MATRICES, "use_muon": _as_made}
    decoupled_weight_decay: Any = True
    momentum: Any = 0.95
    nesterov: Any = True
    ns_coefficients: Any = COEFFICIENTS
    ns_steps: Any = 5
    eps: Any = 1e-7
    adjust_lr_fn: Any = None
    heads: Any = 1
    split: Any = None
    axis: Any = -2
    flatten: Any = None
    method: Any = None
    workspace: Any = None
    use_muon: Any = True

    def converted(self, word, value):
        """Return what the attribute gets of a group's value. What is said of matrices may be None."""
        return value if word in _MATRICES else super().converted(word, value)

    def formula(self, step, param, grad, buffer):
        """One step; see the class."""
        buffer[:] = buffer + (1.0 - self.momentum) * (grad - buffer)
        update = orthogonal(
            self,
            param,
            grad + self.momentum * (buffer - grad) if self.nesterov else buffer,
            epsilon=self.eps,
            adjust=self.adjust_lr_fn or "original",
            heads=self.heads,
            split=self.split or (),
            axis=self.axis,
        )
        param[:] = decayed(param, step.lr * update, step.lr * self.weight_decay)


class _Arguments(getattr(torch.optim, "Muon", torch.optim.Optimizer)):  # type: ignore[misc]
    """The arguments of PyTorch's Muon and some more. PyTorch's constructor refuses what is no matrix."""

    def __init__(
        self,
        params,
        lr=1e-3,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=True,
        ns_coefficients=COEFFICIENTS,
        eps=1e-7,
        ns_steps=5,
        adjust_lr_fn=None,
        heads=1,
        split=None,
        axis=-2,
        flatten=None,
        method=None,
        workspace=None,
    ):
        numbers = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        for name, value in numbers.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1:
                raise ArgumentError(
                    f"a tensor that is {name} must have one element, not shape {tuple(value.shape)}"
                )
            checks.non_negative(name, value.item() if isinstance(value, torch.Tensor) else value)
        given = {
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "heads": heads,
            "split": split,
            "axis": axis,
            "flatten": flatten,
            "method": method,
            "workspace": workspace,
        }
        given = {name: check(name, given[name]) for name, check in _MATRICES.items()}
        defaults = {**numbers, "nesterov": nesterov, **given, "use_muon": True}
        torch.optim.Optimizer.__init__(self, params, defaults)

    def __setstate__(self, state):
        """Take over a state dict of PyTorch's as well, which does not say what is only here."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group):
        """Add a group, which has AdamW's defaults if it says ``use_muon=False``."""
        if isinstance(param_group, dict) and not param_group.get("use_muon", True):
            for name, value in (("betas", (0.9, 0.999)), ("eps", 1e-8)):
                param_group.setdefault(name, value)
        super().add_param_group(param_group)


class Muon(DropIn, _Arguments):
    """`torch.optim.Muon`, run by nbopt: steps along the mean of gradients, made orthogonal.

    With ``g`` the gradient, ``orth`` the orthogonalisation and ``a`` the factor of `adjust_lr_fn`::

        m = m + (1 - momentum) * (g - m)
        u = orth(g + momentum * (m - g))                 (nesterov=False: orth(m))
        p = p - (lr * a * u + lr * weight_decay * p)

    A parameter with three axes is a batch of matrices, such as experts. Groups may say further:

    ``heads=n``
        Cut each matrix into n blocks of rows, and orthogonalise each.
    ``split=(a, b, c)``
        Cut it into parts of so many rows first, such as joint queries, keys and values.
    ``axis=-1``
        Cut columns, not rows: for the projection of an attention's output.
    ``flatten=True``
        The parameter is one matrix of its first axis and all others, as for kernels of convolutions.
    ``method``, ``workspace``
        See `be.orthogonalize`.
    ``use_muon=False``
        The group is updated by AdamW, in the same call, with the keys ``"lr"``, ``"betas"``, ``"eps"`` (1e-8)
        and ``"weight_decay"``. `nbopt.torch.muon_groups` makes both groups of a model.

    On a CPU the products are in float32, or float64 for parameters in float64, where PyTorch's are in
    bfloat16. On a GPU they are in bfloat16.

    References
    ----------
    Formula, arguments, group keys and states of `torch.optim.Muon`.
    """

    made_of = MuonRule

    def rule_of(self, group):
        """Return a new rule for a group: Muon's or AdamW's."""
        if not group["use_muon"]:
            return AdamWRule()
        names = group.get("param_names", range(len(group["params"])))
        own = {name: check(name, group[name]) for name, check in _MATRICES.items()}
        cut = Orthogonalize(
            (), heads=own["heads"], split=own["split"] or (), axis=own["axis"], flatten=bool(own["flatten"])
        )
        for name, param in zip(names, group["params"]):
            shape = tuple(param.shape)
            try:
                if len(shape) < 2:
                    raise ShapeError(
                        f"it has shape {shape}, and Muon takes matrices. Put vectors, and matrices that are"
                        " flattened or cut to shards, into a group with use_muon=False"
                        " (nbopt.torch.muon_groups(model) makes both groups)"
                    )
                if len(shape) > 3 and own["flatten"] is None:
                    raise ShapeError(
                        f"it has shape {shape}: its group says flatten=True if it is a kernel of a "
                        "convolution, flatten=False if its last two axes are a matrix"
                    )
                cut.check(shape)
            except ShapeError as error:
                raise ShapeError(f"parameter {name} of a Muon group: {error}") from None
        return MuonRule()
