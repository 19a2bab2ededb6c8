"""Adafactor, CAME and SM3, whose states take little memory."""

from typing import Any

import torch

from nbopt import optimizers
from nbopt.errors import ArgumentError
from nbopt.torch.dropin import DropIn
from nbopt.torch.masters import has_master
from nbopt.torch.sourced import Arguments, SourcedRule


class AdafactorRule(SourcedRule, optimizers.Adafactor):
    """nbopt's Adafactor in PyTorch's words. Each parameter has its own count of steps."""

    given: dict[str, Any] = dict.fromkeys(("lr", "beta2_decay", "eps", "d", "weight_decay"), 0.0) | {
        "maximize": False
    }
    renamed = {"row": "row_var", "column": "col_var", "mean_square": "variance"}
    counter = ""
    counts_each = True

    @classmethod
    def parameters(cls):
        """Return nothing: the arguments are those of the PyTorch that is installed."""
        return []

    @classmethod
    def documentation(cls):
        """Return nothing, for the same reason."""
        return ""

    def converted(self, word, value):
        """Return 0 for an epsilon that follows from the parameters' dtype."""
        return 0.0 if word == "eps" and value is None else value

    def settle(self, found):
        """Take the dtype's epsilon, unless the group says another one."""
        if found["eps"][0] is None:
            dtypes = {
                torch.float32 if self.masters and has_master(param) else param.dtype
                for param in found["params"]
            }
            if len(dtypes) > 1:
                raise ArgumentError(
                    f"eps[0] is that of the parameters' dtype, and a group has "
                    f"{', '.join(map(str, dtypes))}: write eps=(1e-7, 1e-3), or give each dtype a group"
                )
            self.epsilon_1 = torch.finfo(*dtypes).eps if dtypes else 0.0


class Adafactor(DropIn, torch.optim.Adafactor):
    """`torch.optim.Adafactor`, run by nbopt: mean squares that are kept for rows and columns alone.

    The formula is that of `nbopt.Adafactor`, with the parameter's own count of steps.

    NaN in a gradient makes all of its parameter NaN, as the bound of the step is NaN then. PyTorch does so
    for matrices. Of vectors it makes only these elements NaN, as Python's ``max(1, nan)`` is 1. With
    ``skip_nonfinite=True`` such a step stores nothing.

    References
    ----------
    N. Shazeer, M. Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv:1804.04235,
    2018; formula, arguments, group keys and states of `torch.optim.Adafactor`.
    """

    made_of = AdafactorRule


class CAMERule(SourcedRule, optimizers.CAME):
    """nbopt's CAME in pytorch_optimizer's words."""

    given = {
        "lr": 2e-4, "betas": (0.9, 0.999, 0.9999), "weight_decay": 0.0, "weight_decouple": True,
        "clip_threshold": 1.0, "eps1": 1e-30,
        "eps2": 1e-16, "maximize": False,
    }  # fmt: skip
    renamed = {
        "mean": "exp_avg", "mean_square": "exp_avg_sq", "row": "exp_avg_sq_row", "column": "exp_avg_sq_col",
        "residual_row": "exp_avg_res_row", "residual_column": "exp_avg_res_col",
    }  # fmt: skip
    squeezed = True


class CAME(DropIn, Arguments):
    """`pytorch_optimizer.CAME`, run by nbopt.

    It is Adafactor with a mean of steps, which are shorter where they vary.

    The formula is that of `nbopt.CAME`. What belonged to the whole optimizer, `clip_threshold`, `eps1` and
    `eps2`, are keys of a group.

    References
    ----------
    Y. Luo et al., "CAME: Confidence-guided Adaptive Memory Efficient Optimization", arXiv:2307.02047, 2023;
    formula, arguments, group keys and states of pytorch_optimizer's CAME, without `ams_bound` and
    `fixed_decay`.
    """

    made_of = CAMERule


class SM3Rule(SourcedRule, optimizers.SM3):
    """nbopt's SM3 in pytorch_optimizer's words."""

    given = {"lr": 0.1, "momentum": 0.0, "beta": 0.0, "eps": 1e-30, "maximize": False}
    renamed = {"momentum": "momentum_buffer", "largest": "accumulator_0"}

    def called(self, name):
        """Return the package's name of a state: each axis has one."""
        return self.renamed.get(name, name.replace("largest", "accumulator"))


class SM3(DropIn, Arguments):
    """`pytorch_optimizer.SM3`, run by nbopt: Adagrad with one number for each row, each column and so on.

    The formula is that of `nbopt.SM3`. There is no momentum_buffer without momentum.

    References
    ----------
    R. Anil et al., "Memory-Efficient Adaptive Optimization", arXiv:1901.11150, 2019; formula, arguments,
    group keys and states of pytorch_optimizer's SM3.
    """

    made_of = SM3Rule
