"""Arguments outside of their ranges: those of every optimizer that people train with today, in both doors."""

import pytest

import nbopt
from nbopt.errors import ArgumentError
from tests.helpers import OTHERS

KINDS = {kind.__name__: kind for kind in OTHERS.values()}
NAN, INFINITE = float("nan"), float("inf")
NO_NUMBER = (NAN, INFINITE, "0.1", [0.1])
#: Argument -> what it may not be. Each argument that is no other optimizer's is here.
BAD = {
    **dict.fromkeys(
        ("learning_rate", "wdecay", "wdecay_1d", "epsilon", "epsilon_1", "epsilon_2", "gamma", "alpha",
         "rate_1d", "trust_coefficient", "average_power", "weight_lr_power", "warmup", "clip_exponent"),
        (-1e-3, *NO_NUMBER),
    ),
    **dict.fromkeys(
        ("beta", "beta_1", "beta_2", "beta_3", "beta_1_1d", "beta_2_1d", "momentum_coef", "dampening"),
        (-0.1, 1.5, *NO_NUMBER),
    ),
    **dict.fromkeys(("d0", "d_coef", "clip_threshold", "growth_rate"), (-1.0, 0.0, *NO_NUMBER)),
    "beta_2_decay": (0.1, *NO_NUMBER),
    **dict.fromkeys(
        ("decoupled", "grad_averaging", "nesterov", "optimize_1d", "bias_correction", "safeguard_warmup",
         "silent_sgd_phase", "cautious"),
        (2, "yes", None, NAN),
    ),
}  # fmt: skip
#: Bounds that are no others'.
EDGES = {
    "ScheduleFreeSGD": {"momentum_coef": (0.0, 1.0)},
    "ScheduleFreeAdamW": {"beta_1": (0.0, 1.0), "beta_2": (1.0,)},
    "ScheduleFreeRAdam": {"beta_1": (0.0, 1.0), "beta_2": (1.0,)},
    "Adafactor": {"clip_threshold": (0.5,)},
    "Prodigy": {"growth_rate": (0.5,), "beta_1": (1.0,), "beta_3": (1.0,)},
    "DAdaptAdam": {"growth_rate": (0.5,), "beta_2": (1.0,)},
    "LAMB": {"beta_1": (1.0,), "beta_2": (1.0,)},
}
COMMON = set(nbopt.Optimizer.hypers) - {"learning_rate"}


@pytest.mark.parametrize("name", KINDS)
def test_native(name):
    """Each argument of a class's own is refused out of its range, by the constructor and as an attribute."""
    kind = KINDS[name]
    own = [argument for argument in kind.hypers if argument not in COMMON]
    assert own
    for argument in own:
        for value in (*BAD[argument], *EDGES.get(name, {}).get(argument, ())):
            with pytest.raises(ArgumentError, match=argument):
                kind(**{argument: value})
            optimizer = kind()
            before = getattr(optimizer, argument)
            with pytest.raises(ArgumentError, match=argument):
                setattr(optimizer, argument, value)
            assert getattr(optimizer, argument) is before


def test_rate_far_from_one():
    """Prodigy warns of a rate that is meant for another optimizer, and of no other."""
    for rate in (1e-3, 100.0):
        with pytest.warns(UserWarning, match="it should be near 1"):
            nbopt.Prodigy(learning_rate=rate)
    nbopt.Prodigy(learning_rate=0.5)  # a warning would be an error here


#: Argument of nbopt.torch -> what it may not be.
TORCH_BAD = {
    **dict.fromkeys(("lr", "weight_decay", "weight_decay_1d", "lr_1d", "eps1", "eps2", "gamma", "alpha", "r",
                     "weight_lr_power", "trust_coefficient", "warmup_steps", "t_alpha_beta3", "max_grad_norm",
                     "initial_accumulator"), (-1e-3, NAN)),
    "eps": (-1e-3, NAN),
    "betas": ((1.5, 0.9, 0.9), 0.9, (-0.1, 0.9, 0.9), (0.9, NAN, 0.9)),
    "betas_1d": ((1.5, 0.9), (0.9, -0.1), (0.9,)),
    **dict.fromkeys(("beta", "momentum", "dampening", "beta3"), (-0.1, 1.5, NAN)),
    **dict.fromkeys(("d0", "d_coef", "clip_threshold", "d", "growth_rate"), (-1.0, NAN)),
    "beta2_decay": (0.5,),
    "clip_lambda": (0.5,),
    **dict.fromkeys(("weight_decouple", "decouple", "grad_averaging", "nesterov", "optimize_1d",
                     "bias_correction", "use_bias_correction", "safeguard_warmup", "silent_sgd_phase",
                     "maximize", "pre_norm"), (2, "yes")),
}  # fmt: skip


@pytest.mark.parametrize("name", [*KINDS, "Lion", "Yogi", "AdaBelief"])
def test_torch(name):
    """Each argument of a class for PyTorch is refused out of its range, by the constructor."""
    torch = pytest.importorskip("torch", reason="the door to PyTorch: pip install torch")
    import nbopt.torch

    kind = getattr(nbopt.torch, name)
    for argument, default in kind.made_of.given.items():
        for value in TORCH_BAD[argument]:
            if isinstance(value, tuple) and isinstance(default, tuple):
                value = value[: len(default)]
            with pytest.raises((ValueError, TypeError)):
                kind([torch.nn.Parameter(torch.zeros(3))], **{argument: value})
