"""Lion, Tiger, Yogi and AdaBelief."""

from typing import Any

from nbopt import checks, optimizers
from nbopt.optimizers.states import State
from nbopt.torch.dropin import DropIn
from nbopt.torch.sourced import Arguments, SourcedRule


class DecayedRule(SourcedRule):
    """Base of rules whose weight decay the package has and nbopt's rule has not."""

    meant = {"weight_decay": "weight_decay", "weight_decouple": "decoupled_weight_decay"}
    notes = {
        **SourcedRule.notes,
        "weight_decay": "Weight decay.",
        "weight_decouple": "Whether the parameter shrinks by lr * weight_decay. "
        "Else weight_decay * p is added to the gradient.",
    }
    checked = {
        **SourcedRule.checked,
        "weight_decay": checks.non_negative,
        "decoupled_weight_decay": checks.boolean,
    }

    def settle(self, found):
        """Have the parameter decay in the base class, beside its own `param_decay`."""
        if self.weight_decay and self.decoupled_weight_decay:
            self.param_decay = (self.param_decay or 0.0) + self.weight_decay


class LionRule(SourcedRule, optimizers.Lion):
    """nbopt's Lion in pytorch_optimizer's words."""

    given = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "maximize": False}
    renamed = {"momentum": "exp_avg"}


class Lion(DropIn, Arguments):
    """`pytorch_optimizer.Lion`, run by nbopt: steps of one size along the sign of momentum and gradient.

    The formula is that of `nbopt.Lion`.

    References
    ----------
    X. Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, 2023; formula,
    arguments, group keys and states of pytorch_optimizer's Lion, without `fixed_decay` and `weight_decouple`,
    which is always True.
    """

    made_of = LionRule


class TigerRule(SourcedRule, optimizers.Tiger):
    """nbopt's Tiger in pytorch_optimizer's words."""

    given = {"lr": 1e-3, "beta": 0.965, "weight_decay": 0.01, "weight_decouple": True, "maximize": False}
    renamed = {"mean": "exp_avg"}


class Tiger(DropIn, Arguments):
    """`pytorch_optimizer.Tiger`, run by nbopt: steps of one size along the sign of a running mean.

    The formula is that of `nbopt.Tiger`.

    References
    ----------
    J. Su, "Tiger: A Tight-fisted Optimizer", https://github.com/bojone/tiger, 2023; formula, arguments, group
    keys and states of pytorch_optimizer's Tiger, without `fixed_decay`.
    """

    made_of = TigerRule


class YogiRule(DecayedRule, optimizers.Yogi):
    """nbopt's Yogi in pytorch_optimizer's words. Both states start from `initial_accumulator`."""

    given = {
        "lr": 1e-2, "betas": (0.9, 0.999), "initial_accumulator": 1e-6, "weight_decay": 0.0,
        "weight_decouple": True, "eps": 1e-3,
        "maximize": False,
    }  # fmt: skip
    meant = {**DecayedRule.meant, "initial_accumulator": "initial_accumulator_value"}
    renamed = {"mean": "exp_avg", "mean_square": "exp_avg_sq"}

    def states(self, shape):
        """Declare the states, and what they start from."""
        return dict.fromkeys(self.state_names, State(init=self.initial_accumulator_value))


class Yogi(DropIn, Arguments):
    """`pytorch_optimizer.Yogi`, run by nbopt: Adam whose mean square moves by small parts only.

    The formula is that of `nbopt.Yogi`, but that the mean starts from `initial_accumulator` as well.

    References
    ----------
    M. Zaheer et al., "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018; formula, arguments, group
    keys and states of pytorch_optimizer's Yogi, without `fixed_decay`.
    """

    made_of = YogiRule


class AdaBeliefRule(DecayedRule, optimizers.AdaBelief):
    """nbopt's AdaBelief in pytorch_optimizer's words."""

    given: dict[str, Any] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0, "weight_decouple": True, "eps": 1e-16,
        "maximize": False,
    }  # fmt: skip
    renamed = {"mean": "exp_avg", "variance": "exp_avg_var"}

    def settle(self, found):
        """Have one epsilon in both places."""
        super().settle(found)
        self.epsilon_root = self.epsilon


class AdaBelief(DropIn, Arguments):
    """`pytorch_optimizer.AdaBelief`, run by nbopt.

    It is Adam that divides by how far gradients stray from their mean.

    The formula is that of `nbopt.AdaBelief`, with one number for both epsilons.

    References
    ----------
    J. Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", NeurIPS
    2020, arXiv:2010.07468; formula, arguments, group keys and states of pytorch_optimizer's AdaBelief,
    without `rectify`, `n_sma_threshold`, `degenerated_to_sgd`, `ams_bound` and `fixed_decay`.
    """

    made_of = AdaBeliefRule
