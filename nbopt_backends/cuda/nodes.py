"""The tables of nodes, where the blocks of a pass that reduces arrive: see `nbopt_backends.cuda.closing`."""

import numpy as np

from nbopt_backends.cuda.closing import COUNT, EXPECTED, FIRST, LEFT, MOST, NEXT, NODE_FIELDS, PLACES, ROW

# Results of a parameter that one block folds. A power of two; where there are more, many blocks begin.
MOST_RESULTS = 1024
_SEGMENT = 256  # places that a block folds, a thread for each
_EACH = 4  # results that a place has, at most


class Nodes:
    """A table of nodes, before it has an address.

    Results arrive at their row's node, or where there are very many at segments: a thread folds four results
    into one, as often as it takes.

    Parameters
    ----------
    results : numpy.ndarray
        int64[rows]: how many results each row has.

    Attributes
    ----------
    table : numpy.ndarray
        int64[nodes, NODE_FIELDS]: first a node for each row. `NEXT` is a place in the table, or -1.
    """

    def __init__(self, results):
        self._results = results
        self.table = np.zeros((len(results), NODE_FIELDS), np.int64)
        for field in (EXPECTED, COUNT, LEFT):
            self.table[:, field] = results
        self.table[:, NEXT], self.table[:, ROW] = -1, np.arange(len(results))
        self.table[:, FIRST] = np.cumsum(results) - results
        self._segments: dict = {}  # row -> the first of its segments, and how many the results arrive at
        for row in np.flatnonzero(results > MOST_RESULTS).tolist():
            self._segment(row, int(results[row]))

    def _segment(self, row, count):
        """Let the results of a row arrive at segments first."""
        widths = [MOST_RESULTS]
        while widths[-1] * _EACH < count:
            widths.append(widths[-1] * _EACH)
        own, first = self.table[row], len(self.table)
        self._segments[row] = first, -(-widths[-1] // _SEGMENT)
        for width in widths[::-1]:
            starts = np.arange(0, width, _SEGMENT)
            table = np.zeros((len(starts), NODE_FIELDS), np.int64)
            whole = count // width * _SEGMENT + np.clip(count % width - starts, 0, _SEGMENT)
            table[:, EXPECTED] = whole if count == self._results[row] else count // width
            table[:, NEXT] = row
            if width > MOST_RESULTS:
                following = max(1, width // _EACH // _SEGMENT)
                table[:, NEXT] = first + len(table) + np.arange(len(table)) % following
            table[:, ROW], table[:, FIRST] = row, own[FIRST] + starts
            table[:, COUNT], table[:, MOST] = count - starts, width
            table[:, PLACES] = np.minimum(width - starts, _SEGMENT)
            self.table = np.concatenate([self.table, table])
            own, first, count = self.table[row], first + len(table), width
        own[EXPECTED], own[LEFT] = len(starts), MOST_RESULTS

    def of_results(self, rows, numbers):
        """Return the places in the table of the nodes at which results arrive.

        Parameters
        ----------
        rows, numbers : numpy.ndarray
            int64[n]: the rows, and the numbers of the results in their rows.
        """
        found = rows.copy()
        for row, (first, segments) in self._segments.items():
            own = rows == row
            found[own] = first + numbers[own] // _SEGMENT % segments
        return found

    def leaves(self, rows=None):
        """Return the places in the table at which results of some rows arrive, or of all, each once.

        Let one arrive there for all.
        """
        found: list[int] = []
        for row in np.flatnonzero(self._results).tolist():
            if rows is not None and row not in rows:
                continue
            first, count = self._segments.get(row, (row, 1))
            found += range(first, first + count)
        self.table[found, EXPECTED] = 1
        return np.array(found, np.int64)

    def at(self, address):
        """Return the table as it is in memory, from an address on."""
        table = self.table.copy()
        table[:, NEXT] = np.where(table[:, NEXT] < 0, 0, address + 8 * NODE_FIELDS * table[:, NEXT])
        return table
