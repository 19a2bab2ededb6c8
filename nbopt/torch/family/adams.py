"""Descendants of Adam: AdEMAMix, ADOPT, Adan, MARS and StableAdamW."""

from typing import Any

from nbopt import checks, optimizers
from nbopt.errors import ArgumentError
from nbopt.torch.dropin import DropIn
from nbopt.torch.sourced import Arguments, SourcedRule

_MOMENTS = {"mean": "exp_avg", "mean_square": "exp_avg_sq"}


class AdEMAMixRule(SourcedRule, optimizers.AdEMAMix):
    """nbopt's AdEMAMix in pytorch_optimizer's words."""

    given = {
        "lr": 1e-3, "betas": (0.9, 0.999, 0.9999), "weight_decay": 0.0, "weight_decouple": False,
        "alpha": 5.0, "t_alpha_beta3": None,
        "eps": 1e-8, "maximize": False,
    }  # fmt: skip
    renamed = {**_MOMENTS, "slow_mean": "exp_avg_slow"}


class AdEMAMix(DropIn, Arguments):
    """`pytorch_optimizer.AdEMAMix`, run by nbopt: Adam with a second, very slow mean of gradients.

    The formula is that of `nbopt.AdEMAMix`.

    References
    ----------
    M. Pagliardini, P. Ablin, D. Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", arXiv:2409.03137,
    2024; formula, arguments, group keys and states of pytorch_optimizer's AdEMAMix, without `fixed_decay`.
    """

    made_of = AdEMAMixRule


def fourth_root(step):
    """Return the fourth root of a step's number: the bound of `ADOPT` where none is given."""
    return step**0.25


class ADOPTRule(SourcedRule, optimizers.ADOPT):
    """nbopt's ADOPT in pytorch_optimizer's words. The bound is any function of the step's number."""

    given: dict[str, Any] = {
        "lr": 1e-3, "betas": (0.9, 0.9999), "clip_lambda": fourth_root, "weight_decay": 0.0,
        "weight_decouple": False, "eps": 1e-6,
        "maximize": False,
    }  # fmt: skip
    notes = {
        **SourcedRule.notes,
        "clip_lambda": "A function from the step's number to the bound of divided gradients. None: no bound.",
    }
    renamed = _MOMENTS
    largest: Any = None
    rooted = False

    def update_of(self, *args, **options):
        """Compute the bound of the coming step, on the host unless that does not know which one it is."""
        function = self.__dict__.get("clip_lambda")
        self.rooted = function is fourth_root and self.counts_on_device(self._backend())
        if function is None or self.rooted:
            self.largest = None
        elif self.counts_on_device(self._backend()):
            raise ArgumentError(
                "a graph would repeat the bound of one step, so with capturable=True clip_lambda is None or "
                "nbopt.torch.family.adams.fourth_root"
            )
        else:
            self.largest = float(function(self.t + 1))
        return super().update_of(*args, **options)

    def _bound(self, step):
        """Return the bound of divided gradients in this step, if there is one."""
        return step.t**0.25 if self.rooted else self.largest

    def settle(self, found):
        """Refuse what is no function."""
        function = found["clip_lambda"]
        if function is not None and not callable(function):
            raise ArgumentError(f"clip_lambda is a function of the step's number, or None; not {function!r}")


class ADOPT(DropIn, Arguments):
    """`pytorch_optimizer.ADOPT`, run by nbopt: Adam that divides by a mean square of the gradients before.

    The formula is that of `nbopt.ADOPT`. `clip_lambda` is a key of a group.

    References
    ----------
    S. Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any beta_2 with the Optimal Rate",
    arXiv:2411.02853, 2024; formula, arguments, group keys and states of pytorch_optimizer's ADOPT, without
    `fixed_decay`.
    """

    made_of = ADOPTRule


class AdanRule(SourcedRule, optimizers.Adan):
    """nbopt's Adan in pytorch_optimizer's words. The last gradient is kept with the other sign."""

    given = {
        "lr": 1e-3, "betas": (0.98, 0.92, 0.99), "weight_decay": 0.0, "weight_decouple": False,
        "max_grad_norm": 0.0, "eps": 1e-8,
        "maximize": False,
    }  # fmt: skip
    notes = {**SourcedRule.notes, "max_grad_norm": "The largest norm of all gradients together. 0: none."}
    checked = {**SourcedRule.checked, "max_grad_norm": checks.non_negative}
    renamed = {**_MOMENTS, "mean_difference": "exp_avg_diff", "last_grad": "last_grad"}
    max_grad_norm: Any = 0.0

    def settle(self, found):
        """Clip the norm, if that is asked for."""
        if self.max_grad_norm and not self.gradient_clip_norm:
            self.gradient_clip_norm = self.max_grad_norm


class Adan(DropIn, Arguments):
    """`pytorch_optimizer.Adan`, run by nbopt: Adam with Nesterov's momentum.

    The formula is that of `nbopt.Adan`. No epsilon is added to the norm that max_grad_norm bounds. The last
    gradient is the state ``last_grad``, and ``begun`` says whether there is one. (There it is
    ``previous_grad``, with the other sign, and with `maximize` its first difference is twice the gradient.)

    References
    ----------
    X. Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
    arXiv:2208.06677, 2022; formula, arguments, group keys and states of pytorch_optimizer's Adan.
    """

    made_of = AdanRule


class MARSRule(SourcedRule, optimizers.MARS):
    """nbopt's MARS in pytorch_optimizer's words."""

    given = {
        "lr": 3e-3, "betas": (0.95, 0.99), "gamma": 0.025, "optimize_1d": False, "lr_1d": 3e-3,
        "betas_1d": (0.9, 0.95),
        "weight_decay": 0.0, "weight_decay_1d": 0.1, "eps": 1e-8, "maximize": False,
    }  # fmt: skip
    notes = {
        **SourcedRule.notes,
        "lr_1d": "The learning rate of parameters of one axis or none, as long as lr is as it was given.",
    }
    further = ("lr_1d_factor",)
    meant = {"lr_1d_factor": "rate_1d"}
    renamed = _MOMENTS

    @classmethod
    def defaults_of(cls, given):
        """Return the keys of a group: the rates keep their ratio when a schedule changes lr."""
        rate = float(given["lr"])
        return {**super().defaults_of(given), "lr_1d_factor": float(given["lr_1d"]) / rate if rate else 1.0}


class MARS(DropIn, Arguments):
    """`pytorch_optimizer.MARS`, run by nbopt: AdamW of gradients that are corrected by their last change.

    The formula is that of `nbopt.MARS`.

    References
    ----------
    H. Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training Large Models",
    arXiv:2411.10438, 2024; formula, arguments, group keys and states of pytorch_optimizer's MARS with
    mars_type="adamw", without `mars_type`, `ams_bound`, `fixed_decay` and `weight_decouple`, which is always
    True.
    """

    made_of = MARSRule


class StableAdamWRule(SourcedRule, optimizers.StableAdamW):
    """nbopt's StableAdamW in pytorch_optimizer's words."""

    given = {
        "lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 1e-2, "weight_decouple": True, "eps": 1e-8,
        "maximize": False,
    }  # fmt: skip
    renamed = _MOMENTS


class StableAdamW(DropIn, Arguments):
    """`pytorch_optimizer.StableAdamW`, run by nbopt: AdamW with shorter steps after gradients have grown.

    The formula is that of `nbopt.StableAdamW`.

    References
    ----------
    M. Wortsman et al., "Stable and low-precision training for large-scale vision-language models",
    arXiv:2304.13013, 2023; formula, arguments, group keys and states of pytorch_optimizer's StableAdamW,
    without `kahan_sum`: 16-bit parameters train with stochastic_round=True.
    """

    made_of = StableAdamWRule
