"""Keeping: how a stage gets at the values that another one has computed."""

from __future__ import annotations

from typing import Any, NamedTuple

from nbopt.language.lines import BETWEEN, ELEMENT, cone_of, is_number, is_slice, operands_of
from nbopt.language.placing import Placed


class Lines(NamedTuple):
    """What a pass computes, and from what.

    Attributes
    ----------
    late : set of int
        Stores of slices whose value was known before; they had to wait.
    left : list of int
        Values that it leaves in workspace for others.
    wanted : set of int
        All lines that it computes or loads, but for those that are given.
    given : list of int
        What another stage has left in workspace.
    """

    late: set[int]
    left: list[int]
    wanted: set[int]
    given: list[int]


class Kept(Placed):
    """One way to place stores and reductions, with a place for each value that another stage uses.

    `number` says which number of the parameters a line is. `slot` says in which slot of workspace a slice is
    left for others, or an operand or a result of a function of matrices.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.number: dict[int, int] = {}
        self.slot: dict[int, int] = {}
        # Operands of functions of matrices, with the level of the pass that leaves them: the last one before.
        self.leaves: dict[int, int] = {}
        for index, place in self.place.items():
            if self.code[index][0] == "matrix":
                for operand in operands_of(self.code[index]):
                    self.leaves[operand] = min(place, self.leaves.get(operand, place))

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
        slices = [index for index in sorted(set(used)) if is_slice(self.extents[index])]
        given = self._give_slots(slices)
        used = [index for index in used if index in given or not is_slice(self.extents[index])]
        used = [index for index in used if index not in self.slot]
        outputs = list(dict.fromkeys(operand for operand in used if self.by_host[operand]))
        for index in outputs:
            self.number[index] = len(self.number)
        for index in sorted(set(used) - self.number.keys()):
            self.number[index] = len(self.number)
        self.n_numbers = len(self.number)
        return outputs

    def _give_slots(self, slices: list[int]) -> list[int]:
        """Give a slot to each of some slices, and to the operands and results of functions of matrices.

        Return the slices that need one: others are in memory all the same, or soon computed again.
        """
        found = self._without_slots(slices)
        while True:
            given = [index for index in slices if index not in found]
            self._number_slots(given)
            wrong = self._lost(found)
            if not wrong:
                return given
            found -= wrong

    def _number_slots(self, slices: list[int]) -> None:
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

    def _without_slots(self, slices: list[int]) -> set[int]:
        """Return which slices may need no workspace: loads, stores, and what is computed from these alone."""
        found: set[int] = set()
        for index, line in enumerate(self.code):
            if line[0] in ("load", "store") or (
                line[0] not in BETWEEN
                and all(operand in found for operand in operands_of(line) if is_slice(self.extents[operand]))
            ):
                found.add(index)
        return found.intersection(slices)

    def _lost(self, found: set[int]) -> set[int]:
        """Return which of some slices need workspace after all, if the others have it."""
        extents = {extent for extent in self.extents if is_slice(extent)} | {ELEMENT}
        lost: set[int] = set()
        for level in range(max(self.place.values(), default=0) + 2):
            for extent in extents:
                lines = self.lines_of(level, extent).wanted
                wrong: set[int] = set()
                for line in filter(lambda line: self._apart(line, level, extent), lines):
                    if self.code[line][0] not in ("load", "store"):
                        wrong |= {line} if self.extents[line] != extent else set()
                    elif not self._holds(line, level, extent):
                        wrong |= {line} if line in found else self._from(line, found & lines)
                # With the last of a chain in workspace, this pass no longer asks for the others.
                lost |= {line for line in wrong if not any(line in operands_of(self.code[o]) for o in wrong)}
        return lost

    def _from(self, line: int, lines: set[int]) -> set[int]:
        """Return which of some lines are computed from a line."""
        return {index for index in lines if line in cone_of(self.code, [index])}

    def _apart(self, line: int, level: int, extent: int) -> bool:
        """Return whether a line is a slice that does not belong to the pass of a level over some extent."""
        own = self.extents[line] == extent and self.levels[line] == level and self.code[line][0] != "reduce"
        return is_slice(self.extents[line]) and not own

    def _holds(self, line: int, level: int, extent: int) -> bool:
        """Return whether a slot holds the value of a load or a store when a pass loads from it.

        The pass runs after the slot got this value, and before it gets another one.
        """
        stores = [
            index
            for index in self.place
            if self.code[index][0] == "store" and self.code[index][1] == self.code[line][1]
        ]
        # Within a level a pass over a slice comes before those over more axes.
        done = {
            index
            for index in stores
            if self.place[index] < level or (self.place[index] == level and self.extents[line] != extent)
        }
        return done == {index for index in stores if index <= line}

    def lines_of(self, level: int, extent: int) -> Lines:
        """Return what the pass of a level over some extent computes, and from what."""
        stores = [index for index in self._sinks("store", level) if self.extents[index] == extent]
        late = {index for index in stores if is_slice(extent) and self.levels[index] < level}
        reduced = (*self._reductions(level, extent, False), *self._reductions(level, extent, True))
        left = [
            index
            for index in self.slot
            if self.extents[index] == extent
            and self.leaves.get(index, self.levels[index]) == level
            and self.code[index][0] not in BETWEEN
        ]
        wanted: set[int] = set()
        given: set[int] = set()
        stack = [index for index in stores if index not in late]
        stack += [
            *left,
            *(self.code[index][3] for index in reduced),
            *(self.code[index][2] for index in late),
        ]
        while stack:
            here = stack.pop()
            if here in wanted or here in given or is_number(self.extents[here]):
                continue
            apart = self.code[here][0] == "matrix" or self._apart(here, level, extent)
            if apart and here in self.slot:
                given.add(here)
                continue
            wanted.add(here)
            if self.code[here][0] != "store" or not (apart or self.place[here] < level):
                stack.extend(operands_of(self.code[here]))
        return Lines(late, left, wanted, sorted(given))

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
