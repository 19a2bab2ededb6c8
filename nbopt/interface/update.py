"""Update: what an optimizer hands to a backend, its share of a step."""

from operator import attrgetter
from typing import Any

_serials = attrgetter("serial")


def _key(tensors):
    try:
        return list(map(_serials, tensors()))
    except (AttributeError, TypeError):
        return None


class Verdict:
    """Whether those updates of a step that look for gradients that are not finite are skipped: all of them or none.

    Attributes
    ----------
    looks : list of callable
        One for each update, put there by `Backend.prepare`: called with what the launch is called with, before any of these updates runs, it
        returns whether the gradients are finite. (Where only the device knows, True.)
    """

    __slots__ = ("_finite", "looks")

    def __init__(self):
        self.looks: list = []
        self._finite: Any = None

    def finite(self, count):
        """Look once, and return whether all gradients are finite."""
        if self._finite is None:
            self._finite = all([look(count) for look in self.looks])  # a list, since all of them have to look
        return self._finite


def end_of(updates):
    """Break the circle of updates, their verdict and its looks, which know the updates: gradients must not live until a garbage collection."""
    for update in updates:
        if update.verdict is not None:
            update.verdict.looks.clear()


class Update:
    """One optimizer's share of a step, as `Backend.update` takes it.

    Attributes
    ----------
    program : Program
    scalars : list of float
        The run-time scalars' values, in float64.
    tensors : list
        What the caller's lists hold now: param, grad of each row, then the states of each row. (The constructor takes a function that
        returns an iterator over them, or None: most steps need their serial numbers only.)
    key : list of int or None
        Their serial numbers. Equal keys mean the same tensors. None where some are plain arrays, not wrapped yet. Whoever sets `addresses`
        sets the key as well, to any list of numbers that stays the same as long as everything but these addresses does.
    columns : callable
        ``columns(update)`` returns one list of tensors for each slot of the program, validated; called only where `key` is new.
    commit : callable
        Called with no arguments when nothing can fail any more, before the first launch of the call.
    plans : list
        Belongs to the optimizer: the backend keeps there what it wants to find again at the next step.
    arrays : list of list, or None
        Set by `prepare`: the storage by slot, where the tensors were looked at afresh. It lives until the step is over.
    stochastic_round : bool or int
        The optimizer's setting: where it is not False it rules the parameters (slot 0) and the 16-bit states; else each tensor's does.
    clip_norm : float or None
        Where given, the program's factor is ``clip_norm / max(||grads|| / divisor, clip_norm)``, the grads being slot 1.
    divisor : float
        What the program divides the gradients by: its scalar `Program.divisor`.
    loss_scale : Tensor or None
        One element: the divisor is to be multiplied by it, in float64, wherever it is.
    skipped : Tensor or None
        One float64. Where given and the norm of the gradients is not finite, the backend adds 1 to it in place of the update. So it does where
        that holds for another update of the same step that has one.
    verdict : Verdict or None
        Whether it is skipped, where `skipped` is given. `Backend.update` gives all updates of a step the same.
    addresses : numpy.ndarray or None
        int64, by row: where the gradients are now, if only that may have changed since a step of the same key. For callers that look at
        their arrays' memory themselves, since it is exchanged under the same objects or with them at every step.
    listing : (list of int, list of int) or None
        Where the rows are some of a longer list of parameters: the number of elements of each of these, and which of them each row is. The
        random bits of a row belong to its place in the whole list.
    """

    __slots__ = (
        "_tensors", "addresses", "arrays", "clip_norm", "columns", "commit", "divisor", "key", "listing", "loss_scale", "plans", "program",
        "scalars", "skipped", "stochastic_round", "verdict",
    )  # fmt: skip

    def __init__(
        self,
        program,
        scalars,
        tensors,
        columns,
        commit=lambda: None,
        plans=None,
        clip_norm=None,
        stochastic_round=False,
        divisor=1.0,
        loss_scale=None,
        skipped=None,
    ):
        self.program, self.scalars = program, scalars
        self.arrays: Any = None
        self.addresses: Any = None
        self.listing: Any = None
        self.list_tensors(tensors)
        self.columns, self.commit, self.plans, self.clip_norm = columns, commit, plans, clip_norm
        self.stochastic_round = stochastic_round
        self.divisor, self.loss_scale, self.skipped = divisor, loss_scale, skipped
        self.verdict = None if skipped is None else Verdict()

    def list_tensors(self, tensors):
        """Set the tensors, and the key by them. `columns` does so if it has made states, so that the plan knows the next step.

        Parameters
        ----------
        tensors : callable or None
            As the constructor takes it.
        """
        self._tensors = tensors
        self.key: Any = None if tensors is None else _key(tensors)

    def restrict(self, tensors, listing):
        """Leave rows out.

        Parameters
        ----------
        tensors : callable
            As the constructor takes it, for the rows that stay.
        listing : (list of int, list of int)
            Which rows of the whole list these are, see the attribute.
        """
        self.list_tensors(tensors)
        self.listing = listing

    @property
    def norm_is_needed(self):
        """Bool : whether the squares of the gradients have to be summed first."""
        return self.clip_norm is not None or self.skipped is not None

    def scaled_divisor(self):
        """Read the divisor with the loss scale as it is now. On a device this makes the host wait.

        Returns
        -------
        float
        """
        return self.divisor if self.loss_scale is None else self.divisor * float(self.loss_scale.get().reshape(()))

    @property
    def tensors(self):
        """Return a new list."""
        return list(self._tensors())
