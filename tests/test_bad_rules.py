"""Rules that reduce where it makes no sense: each mistake has an error of its own, and changes nothing."""

import numpy as np
import pytest
from helpers import same_bits, values_of

import nbopt
from nbopt.errors import NboptError, OperandError, TraceError
from nbopt.language.lines import ELEMENT, STEP, TENSOR
from nbopt.language.trace import Tracer
from nbopt.optimizers.tracing import Step


def used_after(be, step, param, grad, state):
    doubled = 2.0 * state
    state[:] = grad
    param[:] = param - doubled


def other_reductions(be, step, param, grad, state):
    if param.ndim > 1:
        step.only_if(be.finite(step.max(grad)))


MISTAKES = {
    "if norm": (
        TraceError,
        "an if needs to know a number that is computed on the device",
        lambda be, step, p, g, s: 1 if be.norm(g) else 2,
    ),
    "if step": (
        TraceError,
        r"Write be\.where\(condition, a, b\)",
        lambda be, step, p, g, s: 1 if step.norm(g) > 3 else 2,
    ),
    "if element": (
        TraceError,
        "an expression has no truth value: it stands for many elements",
        lambda be, step, p, g, s: 1 if g > 3 else 2,
    ),
    "float": (
        TraceError,
        "is not a number: a rule says once what is done",
        lambda be, step, p, g, s: float(step.norm(g)),
    ),
    "only_if norm": (
        TraceError,
        r"step\.only_if takes one number for the whole step.*Reduce it",
        lambda be, step, p, g, s: step.only_if(be.norm(g)),
    ),
    "only_if element": (
        TraceError,
        "this value varies with the parameter",
        lambda be, step, p, g, s: step.only_if(be.finite(g)),
    ),
    "only_if text": (
        OperandError,
        "a real number, not str",
        lambda be, step, p, g, s: step.only_if("finite"),
    ),
    "used after": (TraceError, "an expression built from state is used after state was assigned", used_after),
    "other reductions": (
        TraceError,
        r"has the reductions over the step max, sum for some parameters, and sum for others",
        other_reductions,
    ),
    "argmax": (
        TraceError,
        r"a rule has be\.sum, .* not be\.argmax",
        lambda be, step, p, g, s: be.argmax(g, axis=None),
    ),
    "argmin": (TraceError, r"not be\.argmin", lambda be, step, p, g, s: be.argmin(g)),
    "axis": (
        TraceError,
        (
            "the rule of Mistaken, for parameter 0 of layer .* with 2 axes: axis=2 asks for an axis that a "
            "parameter with 2 axes does not have"
        ),
        lambda be, step, p, g, s: be.sum(g, axis=2),
    ),
    "axis of mean": (
        TraceError,
        "for parameter 1 of layer .* with 1 axes: axis=-2 asks",
        lambda be, step, p, g, s: be.mean(g, axis=-2),
    ),
    "axis text": (
        TraceError,
        "axis= takes an int or a tuple of ints, not 'rows'",
        lambda be, step, p, g, s: be.max(g, axis="rows"),
    ),
    "of a number": (
        OperandError,
        "a reduction takes a tensor or an expression, not float",
        lambda be, step, p, g, s: be.sum(2.0),
    ),
    "of an array": (
        OperandError,
        "a real number, not ndarray.*can be a state",
        lambda be, step, p, g, s: step.sum(np.ones(3)),
    ),
    "out": (
        TraceError,
        "a rule assigns its own slots and nothing else",
        lambda be, step, p, g, s: be.sum(g, out=be.ones(1)),
    ),
    "no such reduction": (
        NboptError,
        "step has no attribute 'median'",
        lambda be, step, p, g, s: step.median(g),
    ),
    "part of a slot": (
        TraceError,
        "a rule assigns whole slots",
        lambda be, step, p, g, s: p.__setitem__(0, be.sum(g)),
    ),
}


class Mistaken(nbopt.Optimizer):
    """A rule that makes a mistake while there is one."""

    state_names = ("state",)
    mistake = None

    def rule(self, step, param, grad, state):
        state[:] = state + grad
        if self.mistake is not None:
            MISTAKES[self.mistake][2](self.be, step, param, grad, state)
        param[:] = param - state * step.norm(state)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.rest(where=["gpu"])
def test_mistake(backend, rng, mistake, steps):
    """In the first step, and after others."""
    layer = nbopt.Parameters(*[tuple(rng.normal(size=(2, *shape))) for shape in [(3, 2), (4,)]])
    optimizer = Mistaken()
    for _ in range(steps):
        optimizer.optimize([layer], 0)
    before, updates = values_of([layer]), backend.rng_get_state()
    optimizer.mistake = mistake
    error, message, _ = MISTAKES[mistake]
    for _ in range(2):
        with pytest.raises(error, match=message):
            optimizer.optimize([layer], 0)
    after = values_of([layer])
    assert len(after) == len(before) == (4 if steps else 2) and all(
        same_bits(a, b) for a, b in zip(after, before)
    )
    assert optimizer.t == steps and backend.rng_get_state() == updates
    optimizer.mistake = None
    optimizer.optimize([layer], 0)  # it goes on
    assert optimizer.t == steps + 1


def test_messages_differ():
    """No two kinds of mistakes share all that their errors say."""
    assert len({message for _, message, _ in MISTAKES.values()}) == len(MISTAKES)


FINER = {
    "element into tensor": (
        1,
        lambda be, step, slots: slots[0] * 2.0,
        "sum_of holds one number for each parameter.* is one for each element",
    ),
    "element into step": (
        2,
        lambda be, step, slots: slots[0],
        "total holds one number for the whole step.* is one for each element",
    ),
    "tensor into step": (
        2,
        lambda be, step, slots: be.norm(slots[0]),
        "total holds one number for the whole step.* is one number for each parameter",
    ),
    "tensor slot into step": (2, lambda be, step, slots: slots[1], "reduce it first"),
    "size into step": (2, lambda be, step, slots: slots[0].size, "reduce it first"),
}


@pytest.mark.parametrize("case", FINER)
def test_finer(nbopt_backend, case):
    """A value does not fit into a slot that varies with less; the trace stays as it was."""
    tracer = Tracer(("param", "sum_of", "total"), (ELEMENT, TENSOR, STEP))
    slots, (number, build, message) = tracer.slots(), FINER[case]
    value = build(nbopt_backend, Step(tracer, {}, 1.0), slots)
    with pytest.raises(TraceError, match=message):
        slots[number][:] = value
    assert tracer.stores == 0 and all(line[0] != "store" for line in tracer.code)
    assert tracer.program()[0].written() == []


def test_coarser():
    """A coarser value fits."""
    tracer = Tracer(("param", "sum_of", "total"), (ELEMENT, TENSOR, STEP))
    param, sum_of, total = tracer.slots()
    total[:] = 2.0
    sum_of[:] = total
    param[:] = sum_of
    assert tracer.program()[0].written() == [0, 1, 2]


@pytest.mark.rest
def test_stale_number_of_another_trace(backend, rng):
    """A number of the device that a rule keeps is refused in the next step."""
    kept = []

    class Keeps(nbopt.Optimizer):
        pure = False

        def rule(self, step, param, grad):
            kept.append(step.norm(grad))
            param[:] = param - grad * kept[0]

    layer, optimizer = nbopt.Parameters(tuple(rng.normal(size=(2, 3)))), Keeps()
    optimizer.optimize([layer], 0)
    before = values_of([layer])
    with pytest.raises(TraceError, match="of another step: build expressions inside the rule"):
        optimizer.optimize([layer], 0)
    assert same_bits(values_of([layer])[0], before[0]) and optimizer.t == 1
