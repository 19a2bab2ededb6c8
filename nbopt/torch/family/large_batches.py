"""LAMB and LARS."""

from typing import Any

from nbopt import checks, optimizers
from nbopt.torch.dropin import DropIn
from nbopt.torch.sourced import Arguments, SourcedRule


class LAMBRule(SourcedRule, optimizers.LAMB):
    """nbopt's LAMB in pytorch_optimizer's words."""

    given = {
        "lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0, "weight_decouple": True,
        "grad_averaging": True, "max_grad_norm": 1.0,
        "pre_norm": False, "eps": 1e-6, "maximize": False,
    }  # fmt: skip
    notes = {
        **SourcedRule.notes,
        "max_grad_norm": "The largest norm of all gradients together, with pre_norm=True. 0: none.",
        "pre_norm": "Whether that holds.",
    }
    checked = {
        **SourcedRule.checked,
        "max_grad_norm": checks.non_negative,
        "pre_norm": checks.boolean,
    }
    renamed = {"mean": "exp_avg", "mean_square": "exp_avg_sq"}
    pre_norm: Any = False
    max_grad_norm: Any = 1.0

    def settle(self, found):
        """Clip the norm, if that is asked for."""
        if self.pre_norm and self.max_grad_norm and not self.gradient_clip_norm:
            self.gradient_clip_norm = self.max_grad_norm


class LAMB(DropIn, Arguments):
    """`pytorch_optimizer.Lamb`, run by nbopt: Adam whose step is as long for each parameter as the parameter.

    The formula is that of `nbopt.LAMB`. No epsilon is added to the norm that max_grad_norm bounds.

    References
    ----------
    Y. You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    arXiv:1904.00962, 2019; formula, arguments, group keys and states of pytorch_optimizer's Lamb, without
    `rectify`, `n_sma_threshold`, `degenerated_to_sgd`, `adam` and `fixed_decay`.
    """

    made_of = LAMBRule


class LARSRule(SourcedRule, optimizers.LARS):
    """nbopt's LARS in pytorch_optimizer's words."""

    given = {
        "lr": 1e-3, "weight_decay": 0.0, "momentum": 0.9, "dampening": 0.0, "trust_coefficient": 1e-3,
        "nesterov": False, "maximize": False,
    }  # fmt: skip
    renamed = {"velocity": "momentum_buffer"}


class LARS(DropIn, Arguments):
    """`pytorch_optimizer.LARS`, run by nbopt.

    It is momentum, with a rate for each matrix in proportion to its norm.

    The formula is that of `nbopt.LARS`.

    References
    ----------
    Y. You, I. Gitman, B. Ginsburg, "Large Batch Training of Convolutional Networks", arXiv:1708.03888, 2017;
    formula, arguments, group keys and states of pytorch_optimizer's LARS.
    """

    made_of = LARSRule
