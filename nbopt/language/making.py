"""Making stages of the lines of a trace, once it is known where each stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from nbopt.language.keeping import Kept
from nbopt.language.lines import BETWEEN, ELEMENT, LEAVES, STEP, TENSOR, is_number, is_slice, operands_of
from nbopt.language.program import Program
from nbopt.language.stages import Combine, Matrix, Pass, Scalars, Verdict

if TYPE_CHECKING:
    from nbopt.language.lines import Line
    from nbopt.language.stages import Stage


class Made(Kept):
    """The program that one way of placing gives."""

    def cut(self) -> Program:
        """Return the program."""
        self.given = self._give_numbers()
        last = max(
            [
                self.place[index] + (self.code[index][0] in BETWEEN)
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

    def _scalars(self, lines: list[int], extent: int) -> list[Scalars]:
        if not lines:
            return []
        code, places = self._code(lines, lambda index: "round")  # where it is stored is another stage
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
        code, _ = self._code(sorted(lines), lambda index: "store")
        return Scalars(extent, tuple(code), (), guarded)

    def _pass(self, level: int, extent: int) -> Pass | None:
        """Return the loop of a level over elements or slices, or None if it has nothing to do."""
        late, left, wanted, given = self.lines_of(level, extent)
        reductions, folds = (self._reductions(level, extent, along_axes) for along_axes in (False, True))
        if not wanted and not given and not late:
            return None

        def kind_of(index: int) -> str:
            if self.extents[index] != extent:
                return "load"
            here = self.place[index]
            return "load" if here < level else "store" if here == level else "round"

        code, places = self._code(sorted(wanted | late), kind_of, given)
        code += [("store", self.slot[index], places[index], 0) for index in sorted(left)]
        partial = tuple(
            (self.code[index][1], self._operand(self.code[index][3], places)) for index in reductions
        )
        along_axes = tuple(
            (self.code[index][1], self._operand(self.code[index][3], places), self.extents[index])
            for index in folds
        )
        return Pass(self.all_names, tuple(code), partial, self._is_guarded(level), extent, along_axes)

    def _operand(self, index: int, places: dict[int, int]) -> int:
        """Return the operand code of a line in a stage whose own lines are in `places`."""
        return places[index] if index in places else ~self.number[index]

    def _code(
        self, lines: Iterable[int], kind_of: Callable[[int], str], given: Sequence[int] = ()
    ) -> tuple[list[Line], dict[int, int]]:
        """Return the code of a stage, and the places of the trace's lines in it.

        `kind_of` says whether a store is stored, only rounded, or loaded; `given` is what other stages left.
        """
        code: list[Line] = [("load", self.slot[index]) for index in given]
        places = {index: place for place, index in enumerate(given)}
        for index in lines:
            op, *rest = self.code[index]
            if op == "store" and (kind := kind_of(index)) != "load":
                code.append((kind, rest[0], self._operand(rest[1], places), self.numbered[index]))
            elif op == "store":
                code.append(("load", rest[0]))
            elif op in LEAVES:
                code.append((op, *rest))
            else:
                code.append((op, *(self._operand(operand, places) for operand in rest)))
            places[index] = len(code) - 1
        return code, places
