"""Prodigy and DAdaptAdam, which find their learning rate."""

import torch

from nbopt import optimizers
from nbopt.torch.dropin import DropIn
from nbopt.torch.sourced import Arguments, SourcedRule


class AdaptedRule(SourcedRule):
    """Base of rules that find a rate: one for all groups of the optimizer."""

    def converted(self, word, value):
        """Return None for a growth without bound."""
        return None if word == "growth_rate" and value == float("inf") else value


class ProdigyRule(AdaptedRule, optimizers.Prodigy):
    """nbopt's Prodigy in prodigyopt's words."""

    given = {
        "lr": 1.0, "betas": (0.9, 0.999), "beta3": None, "eps": 1e-8, "weight_decay": 0.0, "decouple": True,
        "use_bias_correction": False,
        "safeguard_warmup": False, "d0": 1e-6, "d_coef": 1.0, "growth_rate": float("inf"),
    }  # fmt: skip
    meant = {"decouple": "decoupled", "beta3": "beta_3"}
    renamed = {
        "mean": "exp_avg", "mean_square": "exp_avg_sq", "total": "s", "start": "p0",
        "numerator": "d_numerator",
    }  # fmt: skip
    counter = "k"

    def adapted(self, name, value, param):
        """Return a state of prodigyopt's in the parameter's shape: it is flat there, or one 0 for all."""
        if name in ("s", "p0") and isinstance(value, torch.Tensor) and value.numel() in (1, param.numel()):
            return value.expand(param.shape) if value.numel() == 1 else value.reshape(param.shape)
        return value

    def settle(self, found):
        """Warn of a rate that is meant for another optimizer."""
        self._check_together()


class Prodigy(DropIn, Arguments):
    """`prodigyopt.Prodigy`, run by nbopt: Adam that finds its learning rate by itself.

    The formula is that of `nbopt.Prodigy`. ``group["d"]``, ``group["d_max"]`` and ``group["d_numerator"]``
    are tensors of one float64, which all groups share, so that no step waits for a GPU. All groups with
    gradients must agree on what they depend on; only `eps`, `weight_decay` and `decouple` may differ.

    References
    ----------
    K. Mishchenko, A. Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", arXiv:2306.06101,
    2023; formula, arguments, group keys and states of prodigyopt's Prodigy, without `slice_p` and
    `fsdp_in_use`.
    """

    made_of = ProdigyRule


class DAdaptAdamRule(AdaptedRule, optimizers.DAdaptAdam):
    """nbopt's DAdaptAdam in pytorch_optimizer's words."""

    given = {
        "lr": 1.0, "betas": (0.9, 0.999), "d0": 1e-6, "growth_rate": float("inf"), "weight_decay": 0.0,
        "weight_decouple": False,
        "bias_correction": False, "eps": 1e-8, "maximize": False,
    }  # fmt: skip
    meant = {"bias_correction": "bias_correction"}
    renamed = {
        "mean": "exp_avg",
        "mean_square": "exp_avg_sq",
        "total": "s",
        "numerator": "numerator_weighted",
    }


class DAdaptAdam(DropIn, Arguments):
    """`pytorch_optimizer.DAdaptAdam`, run by nbopt: Adam that finds its learning rate by itself.

    The formula is that of `nbopt.DAdaptAdam`. ``group["d"]`` and ``group["numerator_weighted"]`` are as in
    `Prodigy`.

    References
    ----------
    A. Defazio, K. Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", arXiv:2301.07733, 2023; formula,
    arguments, group keys and states of pytorch_optimizer's DAdaptAdam, without `fixed_decay`.
    """

    made_of = DAdaptAdamRule
