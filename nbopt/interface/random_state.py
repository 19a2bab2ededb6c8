"""The state of stochastic rounding."""

from __future__ import annotations

from nbopt.errors import ArgumentError


class RandomState:
    """The part of `nbopt.Backend` that random bits depend on: the seed and the number of updates."""

    rng_seed: int
    _first_seed: int
    _updates: int

    def rng_reset(self) -> None:
        """Go back to the state after construction: the same seed, no updates so far."""
        self.rng_seed, self._updates = self._first_seed, 0

    def rng_get_state(self) -> dict[str, int]:
        """Return the state of stochastic rounding: all that its random bits depend on.

        Returns
        -------
        dict
            ``{"seed": int, "updates": int}``; `updates` is the number of steps and assignments so far.
        """
        return {"seed": self.rng_seed, "updates": self._updates}

    def rng_set_state(self, state: dict[str, int]) -> None:
        """Restore a state.

        Parameters
        ----------
        state : dict
            As `rng_get_state` returns it.

        Raises
        ------
        ArgumentError
            If it is no such state.
        """
        try:
            seed, updates = state["seed"], state["updates"]
            valid = isinstance(seed, int) and isinstance(updates, int) and 0 <= seed < 2**64 and updates >= 0
        except (TypeError, KeyError, IndexError):
            valid = False
        if not valid:
            raise ArgumentError(
                f"a state is what rng_get_state returns, {{'seed': int, 'updates': int}}; not {state!r}"
            )
        self.rng_seed, self._updates = int(seed), int(updates)
