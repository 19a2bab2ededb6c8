"""One step over the memory of several backends."""

from __future__ import annotations

from collections.abc import Sequence

from nbopt.interface.backend import Backend
from nbopt.interface.update import Update


def update_together(main: Backend, updates: Sequence[Update]) -> None:
    """Run one step on several backends, whole or not at all, see `nbopt.Backend.update`.

    No number is over the parameters of several backends: the caller has seen to that.

    Parameters
    ----------
    main : Backend
        The one that counts the step. Random bits depend on its seed, and on how many updates it has made.
    updates : sequence of Update
        Their `backend` says where each belongs.
    """
    parts: dict[Backend, list[Update]] = {}
    for update in updates:
        parts.setdefault(update.backend, []).append(update)
    runs = []
    for be in sorted(parts, key=lambda be: be.memory == "host"):  # the host works while the others do
        be.rng_seed = main.rng_seed
        runs.append(be.prepare_all(parts[be]))

    def run(count: int) -> None:
        for one in runs:
            one(count)

    main.run_prepared(run, updates)
