"""Parts of a step: some parameters are updated before others, as their gradients arrive."""

from typing import Any, NamedTuple


class Part(NamedTuple):
    """Some of a group's parameters, which a step updates before or after others.

    Attributes
    ----------
    number : int
        Which part of the step it is.
    rows : list of int
    last : bool
        Whether it is the group's last one with gradients.
    """

    number: int
    rows: list
    last: bool


class Parts:
    """What a group knows of the parts of steps.

    Attributes
    ----------
    shares : dict of int to dict
        Number of a part -> its shares, see `nbopt.torch.group.Group`.
    """

    def __init__(self):
        self.shares: dict[int, dict] = {}
        self._given: Any = None
        self._params: list[int] = []
        self._rows: list[list[int]] = []

    def of(self, parts, params):
        """Return a group's share of each part of a step, a list of `Part`.

        Parameters
        ----------
        parts : list of list of torch.Tensor
            The parameters of each part. If it is another list than before, nothing of before is found again.
        params : list of torch.Tensor
            The group's.
        """
        ids = [*map(id, params)]
        if self._given is not parts or self._params != ids:
            places = {id(param): number for number, part in enumerate(parts) for param in part}
            self._given, self._params, self._rows = parts, ids, [[] for _ in parts]
            for row, own in enumerate(ids):
                self._rows[places[own]].append(row)
            self.shares.clear()
        last = max(
            (
                number
                for number, rows in enumerate(self._rows)
                if any(params[row].grad is not None for row in rows)
            ),
            default=0,
        )
        return [Part(number, rows, number == last) for number, rows in enumerate(self._rows)]
