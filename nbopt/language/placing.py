"""Placing: in which pass each store and reduction stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbopt.language.lines import (
    BETWEEN,
    ELEMENT,
    extents_of,
    is_slice,
    knowing,
    levels_of,
    needed_of,
    operands_of,
    over_the_step,
)

if TYPE_CHECKING:
    from nbopt.language.lines import Line

_NOT_BY_HOST = {"load", "store", "size", "length", "taken", "reduce", "matrix", "only_if"}


class Placed:
    """One way to place stores and reductions: as early as can be, but for `floors`.

    `floors` is a dict by line: the level before which the line must not stand.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        slots: tuple[int, ...],
        code: Sequence[Line],
        guard: int | None,
        ndim: int | None,
        floors: dict[int, int],
    ) -> None:
        self.names, self.slots, self.code, self.ndim, self.floors = names, slots, code, ndim, floors
        self.extents, self.levels = extents_of(code, slots, ndim=ndim), levels_of(code, floors)
        self.by_host = self._host()
        own = max(
            (self.levels[index] for index, line in enumerate(code) if line[0] == "only_if"), default=None
        )
        self.guard = None if own is None else max(own, guard or 0)
        self.knows = knowing(code)
        # Counters are stored in any case, so the stores that know whether the step is taken come last.
        self.counters = {index for index, line in enumerate(code) if line[0] == "store" and self.knows[index]}
        self.counted = {line[1] for index, line in enumerate(code) if index in self.counters}
        self.counted -= {
            line[1] for index, line in enumerate(code) if line[0] == "store" and index not in self.counters
        }
        stores = [(index, line) for index, line in enumerate(code) if line[0] == "store"]
        self.numbered = {
            index: line[3] if len(line) > 3 else place for place, (index, line) in enumerate(stores)
        }
        self.needed = needed_of(code)
        self.rank = {index: rank for rank, index in enumerate(over_the_step(code))}
        self.place = self._places_of_sinks()

    def _host(self) -> list[bool]:
        found: list[bool] = []
        for line in self.code:
            op = line[0]
            found.append(op not in _NOT_BY_HOST and all(found[operand] for operand in operands_of(line)))
        return found

    def _cone(self, index: int) -> set[int]:
        """Return the lines that the pass of a line computes it from, itself included."""
        found, stack = set(), [index]
        while stack:
            here = stack.pop()
            if here in found or (self.extents[here] != ELEMENT and here != index):
                continue
            found.add(here)
            if here == index or self.code[here][0] not in ("store", "matrix"):
                stack.extend(operands_of(self.code[here]))
        return found

    def _places_of_sinks(self) -> dict[int, int]:
        """Return the level of each store that is needed, and of the pass before each line of `BETWEEN`."""
        place: dict[int, int] = {}
        readers: dict[int, int] = {}  # slot -> the last level in which its value of before is read
        for index, line in enumerate(self.code):
            if line[0] == "store":
                place[index] = max(self.levels[index], self.floors.get(index, 0))
                if self.guard is not None and index not in self.counters:
                    place[index] = max(place[index], self.guard)
                place[index] = max(place[index], readers.get(line[1], 0))
                readers[line[1]] = place[index]
            elif line[0] in BETWEEN and index in self.needed:
                place[index] = self.levels[index] - 1
            else:
                continue
            for used in self._cone(index) - {index}:
                if self.code[used][0] in ("load", "store"):
                    slot = self.code[used][1]
                    readers[slot] = max(readers.get(slot, 0), place[index])
        return place

    def _sinks(self, op: str, level: int) -> list[int]:
        return [index for index, place in self.place.items() if self.code[index][0] == op and place == level]

    def _reductions(self, level: int, extent: int, along_axes: bool) -> list[int]:
        """Return the reductions whose partial results the pass of a level over some extent gives."""
        found = [
            index for index in self._sinks("reduce", level) if self.extents[self.code[index][3]] == extent
        ]
        return [index for index in found if is_slice(self.extents[index]) == along_axes]
