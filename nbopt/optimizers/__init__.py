"""The optimizers, also available as ``nbopt.RMSProp`` and so on."""

import importlib
from typing import Any

from nbopt.layers import get_param_list
from nbopt.naming import offer

#: Public name -> the module that has it. A module is imported when a name of its is asked for.
_HOMES = {
    "ADOPT": "adopt", "ASGD": "asgd", "CAME": "came", "LAMB": "lamb", "LARS": "lars", "MARS": "mars",
    "SM3": "sm3", "AMSGrad": "amsgrad", "AdEMAMix": "ademamix", "AdaBelief": "adabelief", "AdaMax": "adamax",
    "AdaMuon": "adamuon", "Adadelta": "adadelta", "Adafactor": "adafactor", "Adagrad": "adagrad",
    "Adam": "adam", "AdamW": "adamw", "Adan": "adan", "DAdaptAdam": "dadaptadam",
    "GradientDescentMomentum": "momentum", "Lion": "lion", "MultiOptimizer": "multi", "Muon": "muon",
    "NAdam": "nadam", "NorMuon": "normuon", "Optimizer": "base", "Prodigy": "prodigy", "RAdam": "radam",
    "RMSProp": "rmsprop", "Rprop": "rprop", "ScheduleFreeAdamW": "schedulefreeadamw",
    "ScheduleFreeRAdam": "schedulefreeradam", "ScheduleFreeSGD": "schedulefreesgd",
    "ShiftAdaMax": "shift_adamax", "StableAdamW": "stableadamw", "State": "states", "Step": "step",
    "Tiger": "tiger", "Yogi": "yogi",
}  # fmt: skip

__all__ = [*_HOMES, "get_param_list"]


def every() -> list[Any]:
    """Import all modules, and return what has a public name, in the order of the names."""
    return [getattr(importlib.import_module(f"{__name__}.{home}"), name) for name, home in _HOMES.items()]


def __dir__() -> list[str]:
    return [*__all__]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


offer({f"nbopt.{name}": f"{__name__}.{home}" for name, home in _HOMES.items()})
