"""Plans: what one step needs besides its scalars, found again at the next step.

A plan holds no reference to any tensor.
"""

import itertools

import numpy as np

from nbopt.language.lines import STEP

_numbers = itertools.count()
MOST_SETS = 8  # sets of tensors whose addresses are remembered for one layout


class Plan:
    """A program over a layout, compiled.

    Attributes
    ----------
    backend : Backend
        Whose it is.
    program : Program
    layout : Layout
    stochastic_round : bool or int
        The optimizer's, when the layout was built.
    shared : list of numpy.dtype
        Of the slots that are one number for the whole step.
    set : int or None
        See `Update`.
    places : sequence of int
        Each row's place in the list of all parameters.
    serials : list of int or None
        The tensors that the address tables are of now: param, grad of each row, then the states of each row.
    number : int
        No other plan's.
    joined : object
        What a backend makes of this and the other plans of a step together. It knows them by their numbers:
        references would make circles.
    earlier : list of (list of int, object)
        The serials of other sets of tensors of the same structure, the latest first, each with what
        `Plan.noted` returned when the tables were theirs. Tasks that take turns find their addresses here.
    """

    def __init__(self, backend, update, layout):
        self.backend, self.program, self.stochastic_round = backend, update.program, update.stochastic_round
        self.layout, self.shared = layout, [tensor.dtype for tensor in update.shared]
        self.set, self.norm_set = update.set, update.norm_set
        self.places = update.listing[1] if update.listing else range(layout.n_rows)
        self.serials = None
        self.earlier = []
        self.number, self.joined = next(_numbers), None

    def kinds_of(self, stage):
        """Return the rows of numbers that a stage of scalar code is done for.

        Parameters
        ----------
        stage : Scalars

        Returns
        -------
        list of (dict of int to str, numpy.ndarray)
            One entry for each combination of dtypes that the stage's slots have: slot -> dtype's name; int64,
            the rows.
        """
        slots = [line[1] for line in stage.code if line[0] in ("load", "store", "round")]
        shared = dict(zip(self.program.shared(), self.shared))
        once = {slot: shared[slot].name for slot in slots if slot in shared}
        if stage.extent == STEP:
            return [
                (once, np.arange(len(self.layout.table) if stage.outputs and self.program.differs() else 1))
            ]
        structures, kinds = self.layout.key[0], {}
        own = [slot for slot in slots if slot not in once]
        for row in range(self.layout.n_rows):
            kinds.setdefault(tuple(structures[slot][row][1].name for slot in own), []).append(row)
        return [
            ({**once, **dict(zip(own, dtypes))}, np.array(rows, np.int64)) for dtypes, rows in kinds.items()
        ]

    def fits(self, backend, update):
        """Return whether this is a plan of `backend` for the structure of `update`, whatever its tensors."""
        return (
            self.program == update.program
            and self.backend is backend
            and self.stochastic_round
            is update.stochastic_round  # 1 and True differ, and small ints are unique
            and self.layout.key[2] == update.listing
            and (self.set, self.norm_set) == (update.set, update.norm_set)
            and (not self.shared or self.shared == [tensor.dtype for tensor in update.shared])
        )

    def follow(self, update):
        """Return whether the address tables are those of the update's tensors.

        Gradients that are elsewhere now are followed first. False: the step must be looked at afresh.
        """
        if update.addresses is not None:
            return self.serials == update.key and self.layout.point_gradients(update.addresses)
        return self.serials == update.key or self.replace(update)

    def recall(self, update):
        """Do what `follow` does for a set of tensors that the tables were of earlier."""
        for index, (serials, noted) in enumerate(self.earlier):
            if (
                serials == update.key
                if update.addresses is not None
                else self._same_targets(serials, update.key)
            ):
                del self.earlier[index]
                self.put_aside()
                self.restore(noted)
                self.serials = serials
                return self.follow(update)
        return False

    def put_aside(self):
        """Keep what the tables say among `earlier`; from here on they say nothing."""
        # An interrupt from here on must not leave old serials with new addresses.
        serials, self.serials = self.serials, None
        if serials is not None:
            self.earlier.insert(0, (serials, self.noted()))
            del self.earlier[MOST_SETS:]

    def noted(self):
        """Return what `restore` takes to make the tables what they are now."""
        return self.layout.noted()

    def restore(self, noted):
        """Make the tables what they were when `noted` was called."""
        self.layout.restore(noted)

    def refresh(self, update, arrays):
        """Point the address tables at the update's tensors, given as arrays that have been looked at."""
        self.put_aside()
        self.layout.refresh(arrays)
        self.serials = update.key

    def _same_targets(self, old, new):
        """Return whether two keys differ in gradients only."""
        # A key begins with param, grad, param, grad, ...; only gradients are only read, whatever the rule.
        ends = 2 * self.layout.n_rows
        return old[:ends:2] == new[:ends:2] and old[ends:] == new[ends:]

    def replace(self, update):
        """Point the address tables at new gradients, where nothing else about the step has changed.

        Parameters
        ----------
        update : Update

        Returns
        -------
        bool
            Whether that was all there is to do. False: the step must be looked at afresh.
        """
        old, new = self.serials, update.key
        if old is None or not self._same_targets(old, new):
            return False
        ends = 2 * self.layout.n_rows
        rows = [row for row, (a, b) in enumerate(zip(old[1:ends:2], new[1:ends:2])) if a != b]
        tensors = update.tensors
        if self.layout.memory == "host" and not all(tensors[2 * row].storage.flags.writeable for row in rows):
            return False
        self.serials = None  # an interrupt must not leave old serials with new addresses
        if not self.take(rows, [tensors[2 * row + 1] for row in rows]):
            self.serials = old
            return False
        self.serials = new
        return True

    def take(self, rows, gradients):
        """Point the address tables at new gradients of some rows.

        Return False, with nothing changed, if they are not like the old ones.
        """
        return self.layout.replace_gradients(rows, gradients)
