"""Rules without a gradient that are no step.

They advance neither `t` nor the count that random bits depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from nbopt.arrays.tensor import Tensor
from nbopt.backends import get_backend
from nbopt.interface.interrupts import uninterrupted
from nbopt.interface.update import Update
from nbopt.language.trace import Tracer
from nbopt.layers import Layer, as_layers, get_param_list
from nbopt.optimizers.step import Slot

if TYPE_CHECKING:
    from nbopt.optimizers.base import Optimizer


def exchange(
    rule: Callable[..., None], entries: list[tuple[Tensor, ...]], commit: Callable[[], object]
) -> None:
    """Run a rule over some tensors beside parameters.

    Parameters
    ----------
    rule : callable
        Takes one slot for each tensor of an entry, and assigns the first.
    entries : list of tuple of Tensor
        What stands beside a parameter, which comes first.
    commit : callable
        Called with no arguments when nothing can fail any more, before anything is stored.
    """
    if not entries:
        return
    tracer = Tracer(tuple(f"x{number}" for number in range(len(entries[0]))))
    rule(*tracer.slots())
    program, scalars = tracer.program()
    given, _ = scalars.function()(tracer.numbers)
    columns = [list(column) for column in zip(*entries)]
    run = get_backend().prepare([Update(program, given, None, lambda update: columns, plans=[])])
    with uninterrupted:
        commit()
        run(0)


def put_aside(
    optimizer: Optimizer, name: str, layers: Iterable[Layer], rule: Callable[..., None], of: str
) -> None:
    """Put something in place of parameters, and keep them as their last state until `put_back`.

    Parameters
    ----------
    optimizer : Optimizer
    name : str
        That of the state that keeps a parameter, one of `Optimizer.aside`.
    layers : list
    rule : callable
        As for `exchange`: it takes the parameter and one of its states.
    of : str
        The name of that state.
    """
    be, called = get_backend(), f"{optimizer.classnm}.{name}"
    found = []
    for (param, _), states in get_param_list(as_layers(layers)):
        named = {getattr(state, "name", None): state for state in states}
        if f"{optimizer.classnm}.{of}" in named and called not in named:
            found.append((be.wrap(param), states, be.wrap(named[f"{optimizer.classnm}.{of}"])))
    kept = [be.array(param, param.dtype, called) for param, _, _ in found]

    def commit() -> None:
        for (_, states, _), tensor in zip(found, kept):
            states.append(tensor)

    exchange(rule, [(param, state) for param, _, state in found], commit)


def put_back(optimizer: Optimizer, name: str, layers: Iterable[Layer]) -> None:
    """Put parameters back that `put_aside` has put aside, to the bit.

    Parameters
    ----------
    optimizer, name, layers
        As for `put_aside`.
    """
    be, called = get_backend(), f"{optimizer.classnm}.{name}"
    entries = [(be.wrap(param), states) for (param, _), states in get_param_list(as_layers(layers)) if states]
    found = [(param, states) for param, states in entries if getattr(states[-1], "name", None) == called]

    def rule(param: Slot, kept: Slot) -> None:
        param[:] = kept

    def commit() -> None:
        for _, states in found:
            states.pop()

    exchange(rule, [(param, be.wrap(states[-1])) for param, states in found], commit)
