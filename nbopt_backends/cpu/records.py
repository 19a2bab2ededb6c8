"""What a plan keeps of each stage of a step."""

from typing import Any, NamedTuple

import numpy as np


class Record(NamedTuple):
    """One stage, as `nbopt_backends.cpu.drivers.run_stages` takes it.

    Attributes
    ----------
    function : str
        What is done with each entry: one of `nbopt_backends.cpu.chunks` or `nbopt_backends.cpu.ends`.
    guarded : bool
        Whether it is left out once the step's condition is false.
    argument : int
        The same for all entries.
    entries : numpy.ndarray or int
        int64[entries, fields]; or the address of the only one.
    passes : bool
        Whether it is a pass. Those of several plans that are alike become one.
    rank : int or None
        Of a reduction over the step: which one it is, see `Combine`. Its entry goes on with the results.
    shares : bool
        Whether it stores numbers of the whole step, which all plans have read then.
    rows : sequence of int or None
        Whose each entry is, if each is one parameter's.
    """

    function: str
    guarded: bool
    argument: int
    entries: Any
    passes: bool = False
    rank: int | None = None
    shares: bool = False
    rows: Any = None

    def of(self, rows):
        """Return the record of some parameters alone."""
        return self._replace(entries=self.entries[np.isin(self.rows, rows)])


class Matrices(NamedTuple):
    """Functions of matrices, which run between two calls of `run_stages`.

    Attributes
    ----------
    guarded : bool
    run : callable
    round : int
        Of which round of the plan.
    """

    guarded: bool
    run: Any
    round: int
