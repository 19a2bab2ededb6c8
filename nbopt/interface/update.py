"""Update: what an optimizer hands to a backend, its share of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

from nbopt.arrays.tensor import Tensor
from nbopt.errors import TraceError
from nbopt.language.program import Program

_serials = attrgetter("serial")


def _key(tensors: Callable[[], Iterable[Any]]) -> list[int] | None:
    try:
        return list(map(_serials, tensors()))
    except (AttributeError, TypeError):
        return None


class Update:
    """One optimizer's share of a step, as `Backend.update` takes it.

    Attributes
    ----------
    program : Program
    numbers : list of float
        The first numbers of every parameter: those that the host gives.
    tensors : list
        What the caller's lists hold now: param, grad of each row, then the states of each row. (The
        constructor takes a function that returns an iterator over them, or None: most steps need their serial
        numbers only.)
    key : list of int or None
        Their serial numbers. Equal keys mean the same tensors. None where some are plain arrays, not wrapped
        yet. Whoever sets `addresses` sets the key as well, to any list of numbers that stays the same as long
        as everything but these addresses does.
    columns : callable
        ``columns(update)`` returns one list of tensors for each slot of the program that varies with
        elements, validated; called only where `key` is new.
    commit : callable
        Called with no arguments when nothing can fail any more, before the first launch of the call.
    plans : list
        Belongs to the optimizer: the backend keeps there what it wants to find again at the next step. None
        for an assignment outside a rule.
    arrays : list of list, or None
        Set by `prepare`: the storage by slot, where the tensors were looked at afresh. It lives until the
        step is over.
    stochastic_round : bool or int
        The optimizer's setting: where it is not False it rules the parameters (slot 0) and the 16-bit states;
        else each tensor's does.
    shared : list of Tensor
        Of the slots of extent STEP, the last ones of the program, each one element. Their memory may be other
        at each step.
    addresses : numpy.ndarray or None
        int64, by row: where the gradients are now, if only that may have changed since a step of the same
        key. For callers that look at their arrays' memory themselves, since it is exchanged under the same
        objects or with them at every step.
    listing : (list of int, list of int) or None
        Where the rows are some of a longer list of parameters: the number of elements of each of these, and
        which of them each row is. The random bits of a row belong to its place in the whole list.
    recut : callable or None
        ``recut(guard, waits)`` returns the program whose guarded stores, and whose reductions over the step,
        wait until some levels, see `nbopt.language.cutter.cut`.
    captures : list or None
        Belongs to the optimizer: the backend keeps there what graphs that a step was captured into use. None
        for a step that can't be captured.
    set : int or None
        Updates of a step with the same one are parts of one call: their reductions over the step are over the
        parameters of all of them, see `parts_of`.
    norm_set : int or None
        If not None, the program's first reduction over the step is the norm of the gradients, and is over
        the parameters of all updates with the same one, whatever calls these are parts of.
    piece : int or None
        Which piece of a step that is run piece by piece it belongs to, see `nbopt.Backend.update`.
    backend : Backend or None
        Where its tensors are, for `nbopt.interface.together.update_together`.
    """

    __slots__ = (
        "_tensors", "addresses", "arrays", "backend", "captures", "columns", "commit", "key", "listing",
        "norm_set", "numbers", "piece", "plans", "program", "recut", "set", "shared", "stochastic_round",
    )  # fmt: skip

    def __init__(
        self,
        program: Program,
        numbers: list[float],
        tensors: Callable[[], Iterator[Tensor]] | None,
        columns: Callable[[Update], list[list[Tensor]]],
        commit: Callable[[], object] = lambda: None,
        plans: list[Any] | None = None,
        stochastic_round: bool | int = False,
        shared: Sequence[Tensor] = (),
        recut: Any = None,
    ) -> None:
        self.program, self.numbers = program, numbers
        self.arrays: Any = None
        self.addresses: Any = None
        self.listing: Any = None
        self.set: Any = None
        self.norm_set: Any = None
        self.captures: Any = None
        self.piece: Any = None
        self.backend: Any = None
        self.list_tensors(tensors)
        self.columns, self.commit, self.plans = columns, commit, plans
        self.stochastic_round, self.shared, self.recut = stochastic_round, shared, recut

    def list_tensors(self, tensors: Callable[[], Iterator[Tensor]] | None) -> None:
        """Set the tensors, and the key by them.

        `columns` does so if it has made states, so that the plan knows the next step.

        Parameters
        ----------
        tensors : callable or None
            As the constructor takes it.
        """
        self._tensors: Any = tensors
        self.key: Any = None if tensors is None else _key(tensors)

    @property
    def tensors(self) -> list[Any]:
        """Return a new list."""
        return list(self._tensors())


def parts_of(one: Any, rank: int, every: Iterable[Any]) -> list[tuple[Any, int]]:
    """Return the parts of a step that have one of a part's reductions over the step in common with it.

    Parameters
    ----------
    one : Update
        Or anything else with its `set` and `norm_set`, as a plan.
    rank : int
        Which of its reductions over the step.
    every : iterable of Update
        All parts of the step, or what is made of them.

    Returns
    -------
    list of (Update, int)
        The parts, itself among them, and which of its reductions it is for each.
    """
    if one.norm_set is not None and rank == 0:
        return [(part, 0) for part in every if part.norm_set == one.norm_set]
    own = rank - (one.norm_set is not None)
    parts = [part for part in every if part is one or (one.set is not None and part.set == one.set)]
    return [(part, own + (part.norm_set is not None)) for part in parts]


def decide_together(updates: Sequence[Update]) -> None:
    """Cut the programs of a step again, as far as they must wait for each other.

    Guarded stores wait for all conditions. What is one reduction over the step for several updates is known
    at one level, see `parts_of`.

    Raises
    ------
    TraceError
        If the parts of a call have other reductions over the step.
    """
    _check_alike(updates)
    changed = True
    while changed:
        changed = False
        levels = [update.program.verdict for update in updates if update.program.verdict is not None]
        known = [[level for _, level in update.program.over_the_step()] for update in updates]
        keys = [_keys(update, len(own)) for update, own in zip(updates, known)]
        latest: dict[Any, int] = {}
        for key, level in zip(chain.from_iterable(keys), chain.from_iterable(known)):
            latest[key] = max(level, latest.get(key, level))
        for update, own, shared in zip(updates, known, keys):
            program, waits = update.program, [latest[key] for key in shared]
            guard = None if program.verdict is None else max(levels)
            if (program.verdict, own) != (guard, waits):
                update.program, changed = update.recut(guard, waits), True


def _keys(update: Update, count: int) -> list[Any]:
    """Return a key for each of an update's reductions over the step: equal ones are one, see `parts_of`."""
    norm = [] if update.norm_set is None else [update.norm_set]
    call = id(update) if update.set is None else update.set
    return [*norm, *((call, rank) for rank in range(count - len(norm)))]


def _check_alike(updates: Sequence[Update]) -> None:
    found: dict[Any, list[str]] = {}
    for update in updates:
        if update.set is None:
            continue
        ops = [op for op, _ in update.program.over_the_step()][update.norm_set is not None :]
        others = found.setdefault(update.set, ops)
        if ops != others:
            raise TraceError(
                f"a rule has the reductions over the step {', '.join(others) or '(none)'} for some "
                f"parameters, and {', '.join(ops) or '(none)'} for others: each must stand in all branches, "
                "in the same order, since it is over all parameters"
            )
