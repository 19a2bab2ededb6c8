"""Placing: in which pass each store and reduction stands, and how other stages get at values."""

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
        self.number: dict[int, int] = {}  # line -> which number of the parameters it is
        # A slice, or an operand or result of a function of matrices -> which slot it is left in for others.
        self.slot: dict[int, int] = {}

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

    def _give_numbers(self) -> list[int]:
        """Give a number or a slot to each value below the extent of elements that another stage uses.

        Return the host's, in the order of their numbers.
        """
        used = []
        for index in sorted(self.needed):
            line = self.code[index]
            if line[0] == "only_if" or not self.by_host[index]:
                used += [
                    operand
                    for operand in operands_of(line)
                    if self.extents[operand] != ELEMENT and not self._beside(operand, index)
                ]
        used = [index for index in used if not self.knows[index]]
        self._give_slots([index for index in sorted(set(used)) if is_slice(self.extents[index])])
        used = [index for index in used if index not in self.slot]
        outputs = list(dict.fromkeys(operand for operand in used if self.by_host[operand]))
        for index in outputs:
            self.number[index] = len(self.number)
        for index in sorted(set(used) - self.number.keys()):
            self.number[index] = len(self.number)
        self.n_numbers = len(self.number)
        return outputs

    def _give_slots(self, slices: list[int]) -> None:
        """Give a slot to each of some slices, and to the operands and results of functions of matrices."""
        self.slot = {index: len(self.names) + place for place, index in enumerate(slices)}
        names = [f"slice{place}" for place in range(len(slices))]
        extents = [self.extents[index] for index in slices]
        matrices = [index for index in sorted(self.needed) if self.code[index][0] == "matrix"]
        operands = [operand for index in matrices for operand in operands_of(self.code[index])]
        for index in matrices:
            # Passes compute an operand again where they need it, so its slot may take the result.
            own = [
                operand
                for operand in operands_of(self.code[index])
                if operands.count(operand) == 1 and self.code[operand][0] != "matrix"
            ]
            for line in (*operands_of(self.code[index]), index):
                if line in self.slot:
                    continue
                if line == index and own:
                    self.slot[line] = self.slot[own[0]]
                    continue
                self.slot[line] = len(self.names) + len(names)
                names.append(f"matrix{len(names) - len(slices)}")
                extents.append(ELEMENT)
        self.all_names, self.all_slots = (*self.names, *names), (*self.slots, *extents)

    def _beside(self, operand: int, index: int) -> bool:
        """Return whether two lines stand in the same stage.

        One then knows the other without a number or a slot.
        """
        if is_slice(self.extents[operand]):
            if self.code[operand][0] == "reduce":
                return False
            op, place = self.code[index][0], self.place.get(index, self.levels[index])
            wide = self.extents[operand] if op == "reduce" else self.extents[index]
            return wide == self.extents[operand] and self.levels[operand] == place
        alone = self.code[operand][0] in ("reduce", "size", "length", "store") or self.code[index][0] in (
            "reduce",
            "only_if",
            "store",
        )
        if alone or self.by_host[operand]:
            return False
        if (
            self.knows[index]
            and not self.knows[operand]
            and not (self.code[operand][0] == "load" and self.code[operand][1] in self.counted)
        ):
            return False  # counters come last, when another slot may hold a new value
        return (
            self.levels[operand] == self.levels[index]
            and self.extents[operand] == self.extents[index] != ELEMENT
        )
