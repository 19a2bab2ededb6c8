"""What compare.py measures of the optimizers that people train with today.

They are timed beside Adam, and beside the packages that they are from.
"""

import numpy as np
from benchmarks import Job, peers, requires, requires_torch
from benchmarks.models import MODELS
from benchmarks.side_by_side import ratio
from rows import row, side_by_side

import nbopt
from nbopt.optimizers.matrix import MatrixOptimizer

#: Contender -> optimizer, and the most that its step may take over Adam's.
OVER_ADAM = {
    "LAMB": (nbopt.LAMB, "<= 1.5"),
    "Schedule-Free AdamW": (nbopt.ScheduleFreeAdamW, "<= 1.3"),
    "AdamW with a mean": (lambda: nbopt.AdamW(ema_decay=0.999), "<= 1.35"),
}
#: Class of nbopt.torch -> others of its kind. The first is held against the bar.
SOURCES = {
    "LAMB": ["pytorch_optimizer.Lamb"],
    "Adafactor": ["pytorch_optimizer.AdaFactor", "torch.optim.Adafactor"],
    "Prodigy": ["pytorch_optimizer.Prodigy", "prodigyopt.Prodigy"],
    "ScheduleFreeAdamW": ["schedulefree.AdamWScheduleFree"],
}


def over_adam(name):
    """Measure an optimizer and Adam over one tensor of 50 M elements."""
    make, bar = OVER_ADAM[name]

    def measured(scale):
        steps = {
            "Adam": lambda: Job(nbopt.Adam(), scale.large).step,
            name: lambda: Job(make(), scale.large).step,
        }
        result = side_by_side(steps, scale.rounds)
        result.check(f"{name} / Adam", ratio(result.seconds[name], result.seconds["Adam"]), "x", bar)
        return result

    return measured


for _name in OVER_ADAM:
    row(f"over-adam-{_name.lower().replace(' ', '-')}", f"{_name}, one tensor of 50 M: over Adam")(
        over_adam(_name)
    )


@row("costs", "every optimizer, a matrix of 4000 x 3000: over Adam")
def costs(scale):
    """Measure the column of the table in docs/optimizers.md.

    Muon's kind is left out, whose products take nearly all of the time.
    """
    shapes = [(400, 300)] if scale.quick else [(4000, 3000)]
    kinds = [kind for kind in nbopt.optimizers.every() if isinstance(kind, type)]
    given = {"GradientDescentMomentum": {"learning_rate": 1e-3, "momentum_coef": 0.9}}
    steps = {
        kind.__name__: lambda kind=kind: Job(kind(**given.get(kind.__name__, {})), shapes).step
        for kind in kinds
        if issubclass(kind, nbopt.Optimizer)
        and not issubclass(kind, (nbopt.MultiOptimizer, MatrixOptimizer))
        and kind is not nbopt.Optimizer
    }
    result = side_by_side(steps, scale.few)
    for name in steps:
        result.check(f"{name} / Adam", ratio(result.seconds[name], result.seconds["Adam"]), "x")
    return result


def torch_step(kind, shapes):
    """Return a step of a PyTorch optimizer over tensors of these shapes."""
    optimizer = kind(peers._torch_parameters(shapes))
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer.step


def beside(name, model, **options):
    """Measure a class of nbopt.torch beside its source, over a model's tensors."""

    def measured(scale):
        requires_torch()
        import nbopt.torch

        shapes = [(200, 100)] * 20 if scale.quick else MODELS[model](**options)
        steps = {"nbopt": lambda: torch_step(getattr(nbopt.torch, name), shapes)}
        for place in SOURCES[name]:
            package, kind = place.rsplit(".", 1)
            steps[package] = lambda package=package, kind=kind: torch_step(
                getattr(requires(package), kind), shapes
            )
        result = side_by_side(steps, scale.few, elements=int(sum(map(np.prod, shapes))))
        for package, bar in zip([*steps][1:], (">= 5", None)):
            result.faster(package, bar)
        return result

    return measured


for _name in SOURCES:
    row(f"source-{_name.lower()}", f"{_name}, 28 tensors of GPT-2's, 54 M, beside others")(
        beside(_name, "gpt2", layers=2)
    )
    row(f"source-{_name.lower()}-resnet50", f"{_name}, ResNet-50's 161 tensors, beside others")(
        beside(_name, "resnet50")
    )
