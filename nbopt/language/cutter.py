"""The cutter: from a trace to a program of stages."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nbopt.language.scalars import ScalarCode
from nbopt.language.stages import (
    ELEMENT,
    LEAVES,
    STEP,
    TENSOR,
    Combine,
    Matrix,
    Pass,
    Program,
    Scalars,
    Verdict,
    extents_of,
    is_number,
    is_slice,
    operands_of,
)

if TYPE_CHECKING:
    from nbopt.language.stages import Line, Stage

#: Lines whose values are known after a pass: each is one level above its operands.
_BETWEEN = ("reduce", "matrix")


def loses(code: Sequence[Line], slot: int) -> bool:
    """Return whether a trace computes a value from a slot that is neither stored nor part of another value.

    Parameters
    ----------
    code : sequence of tuples
        The trace.
    slot : int

    Returns
    -------
    bool
    """
    computed: set[int] = set()
    read: set[int] = set()
    for index, line in enumerate(code):
        operands = operands_of(line)
        read.update(operands)
        if line == ("load", slot) or (line[0] != "store" and computed.intersection(operands)):
            computed.add(index)
    return bool(computed - read)


def needs(code: Sequence[Line], line: int) -> bool:
    """Return whether a store or a condition of a trace is computed from a line.

    Parameters
    ----------
    code : sequence of tuples
        The trace.
    line : int

    Returns
    -------
    bool
    """
    return line in _needed(code)


def _levels(code: Sequence[Line], floors: dict[int, int]) -> list[int]:
    levels: list[int] = []
    for index, line in enumerate(code):
        level = max((levels[operand] for operand in operands_of(line)), default=0)
        levels.append(max(level, floors.get(index, 0)) + 1 if line[0] in _BETWEEN else level)
    return levels


def cut(
    names: Iterable[str],
    slots: Iterable[int],
    code: Iterable[Line],
    tests: Iterable[Any] = (),
    guard: int | None = None,
    ndim: int | None = None,
    waits: Iterable[int] = (),
) -> tuple[Program, ScalarCode]:
    """Cut a trace into the stages that a backend runs, and the scalar code that gives the host's numbers.

    Lines that nothing needs are left out.

    Parameters
    ----------
    names : tuple of str
        The slots'.
    slots : tuple of int
        The slots' extents.
    code : sequence of tuples
        The trace.
    tests : sequence of (int, bool)
        Values that the scalar code is to give as well, see `ScalarCode`.
    guard : int, optional
        The level at which all conditions of the step are known, which is that of this trace's unless another
        update of the step has a later one.
    ndim : int, optional
        How many axes the parameters have, if that matters.
    waits : sequence of int
        The levels at which the reductions over the step are known, in the order of the trace, if they must
        wait for those of other traces.

    Returns
    -------
    program : Program
    scalars : ScalarCode
        Its outputs are the numbers that the host gives.
    """
    return _cut(tuple(names), tuple(slots), tuple(code), tuple(tests), guard, ndim, tuple(waits))


@functools.lru_cache(maxsize=256)  # a rule that is traced at every step is cut once
def _cut(
    names: tuple[str, ...],
    slots: tuple[int, ...],
    code: tuple[Line, ...],
    tests: tuple[Any, ...],
    guard: int | None,
    ndim: int | None,
    waits: tuple[int, ...],
) -> tuple[Program, ScalarCode]:
    floors = {line: level - 1 for line, level in zip(_over_the_step(code), waits)}
    earliest = best = _Cutter(names, slots, code, guard, ndim, floors)
    program = earliest.cut()
    for move in _moves(earliest, len(program.levels)):
        cutter = _Cutter(names, slots, code, guard, ndim, {**best.floors, **move})
        other = cutter.cut()
        same = len(other.levels) == len(program.levels) and (other.verdict, other.over_the_step()) == (
            program.verdict,
            program.over_the_step(),
        )
        if same and _moved(other) < _moved(program):
            best, program = cutter, other
    return program, ScalarCode.of(code, best.given, tests)


def _over_the_step(code: Sequence[Line]) -> list[int]:
    """Return the lines that are reductions over the step, as far as they are needed."""
    needed = _needed(code)
    return [
        index
        for index, line in enumerate(code)
        if line[0] == "reduce" and line[2] == "step" and index in needed
    ]


def _needed(code: Sequence[Line]) -> set[int]:
    return _cone_of(code, [index for index, line in enumerate(code) if line[0] in ("store", "only_if")])


def _moved(program: Program) -> int:
    # Kernels are shared by dtypes, so all slots count alike.
    return sum(program.bytes_moved([1] * len(program.names)))


def _moves(cutter: _Cutter, levels: int) -> list[dict[int, int]]:
    """Return what may save bytes: one store or reduction over elements that waits, or all such stores.

    Dicts of line to level.
    """
    code, place = cutter.code, cutter.place
    # A counter is stored by skipped steps as well, in which a later pass may not run.
    counted = _cone_of(code, [index for index, knows in enumerate(cutter.knows) if knows])
    stores = [index for index in place if code[index][0] == "store" and cutter.extents[index] == ELEMENT]
    reductions = [
        index
        for index in place
        if code[index][0] == "reduce" and cutter.extents[code[index][3]] == ELEMENT and index not in counted
    ]
    moves = [
        dict.fromkeys(stores, level)
        for level in range(1, levels)
        if any(place[index] < level for index in stores)
    ]
    moves += [{index: level} for index in stores for level in range(place[index] + 1, levels)]
    return moves + [{index: level} for index in reductions for level in range(place[index] + 1, levels - 1)]


def _knowing(code: Sequence[Line]) -> list[bool]:
    """Return for each line whether it is computed from whether the step is taken."""
    knows: list[bool] = []
    for line in code:
        knows.append(line[0] == "taken" or any(knows[operand] for operand in operands_of(line)))
    return knows


def _cone_of(code: Sequence[Line], lines: Iterable[int]) -> set[int]:
    """Return the lines that some lines are computed from, themselves included."""
    found = set(lines)
    for index in range(len(code) - 1, -1, -1):
        if index in found:
            found.update(operands_of(code[index]))
    return found


_NOT_BY_HOST = {"load", "store", "size", "length", "taken", "reduce", "matrix", "only_if"}


class _Cutter:
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
        self.extents, self.levels = extents_of(code, slots, ndim=ndim), _levels(code, floors)
        self.by_host = self._host()
        own = max(
            (self.levels[index] for index, line in enumerate(code) if line[0] == "only_if"), default=None
        )
        self.guard = None if own is None else max(own, guard or 0)
        self.knows = _knowing(code)
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
        self.needed, over_the_step = _needed(code), _over_the_step(code)
        self.rank = {index: rank for rank, index in enumerate(over_the_step)}
        self.place = self._places_of_sinks()
        self.number: dict[int, int] = {}  # line -> which number of the parameters it is
        # A slice, or an operand or result of a function of matrices -> which slot it is left in for others.
        self.slot: dict[int, int] = {}

    # --- what happens where ---

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
        """Return the level of each store that is needed, and of the pass before each line of `_BETWEEN`."""
        place: dict[int, int] = {}
        readers: dict[int, int] = {}  # slot -> the last level in which its value of before is read
        for index, line in enumerate(self.code):
            if line[0] == "store":
                place[index] = max(self.levels[index], self.floors.get(index, 0))
                if self.guard is not None and index not in self.counters:
                    place[index] = max(place[index], self.guard)
                place[index] = max(place[index], readers.get(line[1], 0))
                readers[line[1]] = place[index]
            elif line[0] in _BETWEEN and index in self.needed:
                place[index] = self.levels[index] - 1
            else:
                continue
            for used in self._cone(index) - {index}:
                if self.code[used][0] in ("load", "store"):
                    slot = self.code[used][1]
                    readers[slot] = max(readers.get(slot, 0), place[index])
        return place

    # --- numbers of the parameters ---

    def _operand(self, index: int, places: dict[int, int]) -> int:
        """Return the operand code of a line in a stage whose own lines are in `places`."""
        return places[index] if index in places else ~self.number[index]

    def cut(self) -> Program:
        """Return the program."""
        self.given = self._give_numbers()
        last = max(
            [
                self.place[index] + (self.code[index][0] in _BETWEEN)
                for index in self.place
                if index not in self.counters
            ],
            default=0,
        )
        if self.guard is not None:
            last = max(last, self.guard)
        levels = tuple(self._level(level) for level in range(last + 1))
        counters = [index for index in self.place if index in self.counters]
        stages = [
            self._stores([index for index in counters if self.extents[index] == extent], extent, False)
            for extent in (STEP, TENSOR)
        ]
        size = next(
            (
                self.number[index]
                for index, line in enumerate(self.code)
                if line[0] == "size" and index in self.number
            ),
            None,
        )
        lengths = tuple(
            (self.number[index], line[1])
            for index, line in enumerate(self.code)
            if line[0] == "length" and index in self.number
        )
        numbers = len(self.given), self.n_numbers, size
        ends = tuple(stage for stage in stages if stage)
        return Program(
            self.all_names,
            self.all_slots,
            *numbers,
            levels,
            ends,
            self.guard,
            self.ndim,
            len(self.all_names) - len(self.names),
            lengths,
        )

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

    # --- the stages of one level ---

    def _level(self, level: int) -> tuple[Stage, ...]:
        code = self.code
        stages: list[Stage] = []
        for index in sorted(self.needed):
            if code[index][0] == "reduce" and self.levels[index] == level:
                stages.append(self._combine(index))
        given = ("reduce", "only_if", "size", "length", "taken")
        scalars = [
            index
            for index in sorted(self.needed)
            if self.levels[index] == level
            and is_number(self.extents[index])
            and not (self.by_host[index] or self.knows[index] or index in self.counters)
            and code[index][0] not in given
            and (code[index][0] != "store" or index in self.number)
        ]
        for extent in (STEP, TENSOR):
            stages += self._scalars([index for index in scalars if self.extents[index] == extent], extent)
        if self.guard == level:
            stages += [Verdict(self.number[line[1]]) for line in code if line[0] == "only_if"]
        for index in sorted(self.needed):
            if code[index][0] == "matrix" and self.levels[index] == level:
                sources = tuple(self.slot[operand] for operand in operands_of(code[index]))
                stages.append(Matrix(code[index][1], sources, self.slot[index], self._is_guarded(level)))
        for extent in (STEP, TENSOR):
            here = [
                index
                for index in self._sinks("store", level)
                if self.extents[index] == extent and index not in self.counters
            ]
            stored = self._stores(here, extent, self._is_guarded(level))
            stages += [stored] if stored else []
        slices = {extent for extent in self.extents if is_slice(extent)}
        found = [self._pass(level, extent) for extent in (*sorted(slices, key=int.bit_count), ELEMENT)]
        return (*stages, *(one for one in found if one))

    def _is_guarded(self, level: int) -> bool:
        return self.guard is not None and level >= self.guard

    def _sinks(self, op: str, level: int) -> list[int]:
        return [index for index, place in self.place.items() if self.code[index][0] == op and place == level]

    def _combine(self, index: int) -> Combine:
        _, op, over, value = self.code[index]
        level, extent = self.levels[index] - 1, self.extents[value]
        guarded = self.guard is not None and level + 1 > self.guard
        rank = self.rank.get(index)
        if is_number(extent):
            return Combine(op, over, level, ~self.number[value], self.number[index], guarded, rank=rank)
        along_axes = is_slice(self.extents[index])
        source = self._reductions(level, extent, along_axes).index(index)
        return Combine(
            op,
            over,
            level,
            source,
            self.slot[index] if along_axes else self.number[index],
            guarded,
            extent,
            rank,
        )

    def _reductions(self, level: int, extent: int, along_axes: bool) -> list[int]:
        """Return the reductions whose partial results the pass of a level over some extent gives."""
        found = [
            index for index in self._sinks("reduce", level) if self.extents[self.code[index][3]] == extent
        ]
        return [index for index in found if is_slice(self.extents[index]) == along_axes]

    def _scalars(self, lines: list[int], extent: int) -> list[Scalars]:
        if not lines:
            return []
        places: dict[int, int] = {}
        code: list[Line] = []
        for index in lines:
            op, *operands = self.code[index]
            if op == "load":
                code.append(("load", *operands))
            elif op == "store":  # where it is stored is another stage
                code.append(("round", operands[0], self._operand(operands[1], places), self.numbered[index]))
            else:
                code.append((op, *(self._operand(operand, places) for operand in operands)))
            places[index] = len(code) - 1
        outputs = [(places[index], self.number[index]) for index in lines if index in self.number]
        guarded = self.guard is not None and self.levels[lines[0]] > self.guard
        return [Scalars(extent, tuple(code), tuple(outputs), guarded)] if outputs else []

    def _stores(self, sinks: list[int], extent: int, guarded: bool) -> Scalars | None:
        """Return the stage that stores to slots below the extent of elements."""
        if not sinks:
            return None
        lines: list[int] = []
        for index in sinks:
            stack = [index]
            while stack:
                here = stack.pop()
                if here not in lines and (here == index or here not in self.number):
                    lines.append(here)
                    stack.extend(operands_of(self.code[here]))
        places: dict[int, int] = {}
        code: list[Line] = []
        for index in sorted(lines):
            op, *rest = self.code[index]
            if op == "store":
                code.append(("store", rest[0], self._operand(rest[1], places), self.numbered[index]))
            elif op in LEAVES:
                code.append((op, *rest))
            else:
                code.append((op, *(self._operand(operand, places) for operand in rest)))
            places[index] = len(code) - 1
        return Scalars(extent, tuple(code), (), guarded)

    def _pass(self, level: int, extent: int) -> Pass | None:
        """Return the loop of a level over elements or slices, or None if it has nothing to do."""
        stores = [index for index in self._sinks("store", level) if self.extents[index] == extent]
        # Slices whose value was known before, and which are stored here: they had to wait.
        late = {index for index in stores if is_slice(extent) and self.levels[index] < level}
        reductions, folds = (self._reductions(level, extent, along_axes) for along_axes in (False, True))
        left = [
            index
            for index in self.slot
            if self.extents[index] == extent
            and self.levels[index] == level
            and self.code[index][0] not in _BETWEEN
        ]
        wanted: set[int] = set()
        given: list[int] = []  # what another stage has left
        stack = [index for index in stores if index not in late]
        stack += [
            *left,
            *(self.code[index][3] for index in (*reductions, *folds)),
            *(self.code[index][2] for index in late),
        ]
        while stack:
            here = stack.pop()
            if here in wanted or here in given or is_number(self.extents[here]):
                continue
            if self.code[here][0] == "matrix":
                given.append(here)
                continue
            if is_slice(self.extents[here]) and (
                self.extents[here] != extent or self.levels[here] != level or self.code[here][0] == "reduce"
            ):
                given.append(here)
                continue
            wanted.add(here)
            stored_before = self.code[here][0] == "store" and self.place[here] < level
            stack.extend([] if stored_before else operands_of(self.code[here]))
        if not wanted and not given and not late:
            return None
        given.sort()
        code: list[Line] = [("load", self.slot[index]) for index in given]
        places: dict[int, int] = {index: place for place, index in enumerate(given)}
        for index in sorted(wanted | late):
            op, *rest = self.code[index]
            line: tuple[Any, ...]
            if op == "load":
                line = ("load", rest[0])
            elif op == "store" and self.place[index] < level:
                line = ("load", rest[0])
            elif op == "store":
                kind = "store" if self.place[index] == level else "round"
                line = (kind, rest[0], self._operand(rest[1], places), self.numbered[index])
            else:
                line = (op, *(self._operand(operand, places) for operand in rest))
            places[index] = len(code)
            code.append(line)
        code += [("store", self.slot[index], places[index], 0) for index in sorted(left)]
        partial = tuple(
            (self.code[index][1], self._operand(self.code[index][3], places)) for index in reductions
        )
        along_axes = tuple(
            (self.code[index][1], self._operand(self.code[index][3], places), self.extents[index])
            for index in folds
        )
        return Pass(self.all_names, tuple(code), partial, self._is_guarded(level), extent, along_axes)
