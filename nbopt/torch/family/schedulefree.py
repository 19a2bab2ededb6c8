"""ScheduleFreeSGD, ScheduleFreeAdamW and ScheduleFreeRAdam."""

from typing import Any

import torch

from nbopt import optimizers
from nbopt.errors import StateError
from nbopt.torch.dropin import DropIn
from nbopt.torch.masters import MASTER
from nbopt.torch.sourced import Arguments, SourcedRule

#: The state that keeps a parameter while an average stands in its place.
_KEPT = "training"


class ScheduleFreeRule(SourcedRule):
    """Base of nbopt's Schedule-Free rules in schedulefree's words."""

    meant = {"warmup_steps": "warmup", "weight_lr_power": "weight_lr_power"}
    renamed = {"fast": "z", "mean_square": "exp_avg_sq"}
    counter = "k"
    momentum_name: str

    @classmethod
    def defaults_of(cls, given):
        """Return the keys of a group. It begins in eval mode."""
        return {**super().defaults_of(given), "train_mode": False}


class Averaged(DropIn):
    """The part of Schedule-Free optimizers that puts averages in place of parameters.

    They begin in eval mode, as schedulefree's do: call ``optimizer.train()`` before the first step.
    """

    param_groups: Any

    @torch.no_grad()
    def eval(self):
        """Put averages in place of the parameters, for evaluation.

        The state ``"training"`` keeps each parameter until `train`.
        """
        self._check_means()
        for own in self._owned():
            if own.group["train_mode"]:
                own.read()
                beta = getattr(own.optimizer, own.optimizer.momentum_name)
                for param, states in self._fast(own.group):
                    states[_KEPT] = param.detach().clone()
                    # In float32 where there is a master, since bfloat16 would lose most of the difference.
                    last = states.get(MASTER.name, param) if self.master_weights else param
                    param.copy_(torch.lerp(last.detach(), states["z"].to(last.dtype), 1.0 - 1.0 / beta))
                own.group["train_mode"] = False

    @torch.no_grad()
    def train(self):
        """Put the parameters back, to the bit, so that steps go on as if `eval` had not been called.

        Averages that schedulefree has put there, as its state dicts of eval mode have them, become parameters
        by its formula.
        """
        self._check_means()
        for own in self._owned():
            if not own.group["train_mode"]:
                own.read()
                beta = getattr(own.optimizer, own.optimizer.momentum_name)
                for param, states in self._fast(own.group):
                    kept = states.pop(_KEPT, None)
                    if kept is None:
                        param.lerp_(states["z"].to(param.dtype), 1.0 - beta)
                    else:
                        param.copy_(kept)
                own.group["train_mode"] = True

    def _fast(self, group):
        return [(param, self.state[param]) for param in group["params"] if "z" in self.state.get(param, ())]

    def _check_means(self):
        super()._check_mode()

    def _check_mode(self):
        super()._check_mode()
        if not all(group["train_mode"] for group in self.param_groups):
            raise StateError(
                "the optimizer is in eval mode: write optimizer.train() before the next step, and "
                "optimizer.eval() before the parameters are used or saved for use"
            )


class ScheduleFreeSGDRule(ScheduleFreeRule, optimizers.ScheduleFreeSGD):
    """nbopt's ScheduleFreeSGD in schedulefree's words."""

    given = {
        "lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0,
    }  # fmt: skip


class ScheduleFreeSGD(Averaged, Arguments):
    """`schedulefree.SGDScheduleFree`, run by nbopt: gradient descent that averages parameters.

    The formula is that of `nbopt.ScheduleFreeSGD`. ``group["weight_sum"]`` and ``group["lr_max"]`` are
    tensors of one float64. There is no ``group["scheduled_lr"]``.

    References
    ----------
    A. Defazio et al., "The Road Less Scheduled", arXiv:2405.15682, 2024; formula, arguments, group keys and
    states of schedulefree's SGDScheduleFree.
    """

    made_of = ScheduleFreeSGDRule


class ScheduleFreeAdamWRule(ScheduleFreeRule, optimizers.ScheduleFreeAdamW):
    """nbopt's ScheduleFreeAdamW in schedulefree's words."""

    given = {
        "lr": 0.0025, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "warmup_steps": 0, "r": 0.0,
        "weight_lr_power": 2.0,
    }  # fmt: skip


class ScheduleFreeAdamW(Averaged, Arguments):
    """`schedulefree.AdamWScheduleFree`, run by nbopt: AdamW that averages parameters.

    The formula is that of `nbopt.ScheduleFreeAdamW`; the groups' keys are as in `ScheduleFreeSGD`.

    References
    ----------
    A. Defazio et al., "The Road Less Scheduled", arXiv:2405.15682, 2024; formula, arguments, group keys and
    states of schedulefree's AdamWScheduleFree.
    """

    made_of = ScheduleFreeAdamWRule


class ScheduleFreeRAdamRule(ScheduleFreeRule, optimizers.ScheduleFreeRAdam):
    """nbopt's ScheduleFreeRAdam in schedulefree's words."""

    given = {
        "lr": 0.0025, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "r": 0.0,
        "weight_lr_power": 2.0, "silent_sgd_phase": True,
    }  # fmt: skip


class ScheduleFreeRAdam(Averaged, Arguments):
    """`schedulefree.RAdamScheduleFree`, run by nbopt: RAdam that averages parameters.

    The formula is that of `nbopt.ScheduleFreeRAdam`; the groups' keys are as in `ScheduleFreeSGD`.

    References
    ----------
    A. Defazio et al., "The Road Less Scheduled", arXiv:2405.15682, 2024; formula, arguments, group keys and
    states of schedulefree's RAdamScheduleFree.
    """

    made_of = ScheduleFreeRAdamRule
