"""Turns: the stages of a step by its rounds, see `nbopt_backends.matrices.rounds`."""

LAST = 1 << 30  # after all rounds


class Turns:
    """In which rounds the stages of a plan are launched.

    Parameters
    ----------
    plan : DevicePlan

    Attributes
    ----------
    many : bool
        Whether there are rounds.
    """

    def __init__(self, plan):
        self._rounds = [frozenset(rows) for rows in plan.rounds]
        self._first, self.many = plan.first_of_round, bool(plan.rounds)

    def of(self, place):
        """Return the rounds of the stages at a place in the order of a step, see `Program.order`.

        Returns
        -------
        list of (int, frozenset of int or None)
            What `at` takes, and the rows; None: all.
        """
        if not self.many or place[0] or place < self._first:
            return [(0, None)]
        return [*enumerate(self._rounds, 1)]

    def at(self, place, number=0):
        """Return the place in the order of a step whose rounds follow each other."""
        return place[0], number, *place[1:]

    def of_step(self, place, shares):
        """Return the place of a stage for all rows together; one that `shares` comes after all rounds."""
        return self.at(place, LAST if shares and len(self.of(place)) > 1 else 0)


def is_in(row, rows):
    """Return whether a row is one of those of a round."""
    return rows is None or row in rows
