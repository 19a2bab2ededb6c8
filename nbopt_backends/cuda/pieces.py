"""Pieces: what the forms of a pass's kernel have in common.

`nbopt_backends.cuda.kernels` shows a whole one.
"""

import re

from nbopt_backends.lowering.comment import rule_comment
from nbopt_backends.lowering.text import (
    ITEM_SIZES,
    body_lines,
    by_reciprocals,
    rounded_stores,
    scalar_divisors,
)
from nbopt_backends.meaning.rounding import largest

#: Columns of a chunk table: the tensor's row, offset and length in elements, the number of its first block of
#: random bits, and of its first tile; the address of the node at which its tile arrives, see
#: `nbopt_backends.cuda.closing`.
CHUNK_FIELDS = 6

_CHUNK = """number = load_int64(chunks, {fields} * c, -1)
row = table + number * {row_bytes}
offset = load_int64(chunks, {fields} * c + 1, -1)
n = load_int64(chunks, {fields} * c + 2, -1)""".replace("{fields}", str(CHUNK_FIELDS))


def vector_width(stage, dtypes, strided, rounded):
    """Return how many elements a thread takes at a time."""
    if strided:
        return 4 if rounded else 1  # a word of 64 random bits is enough for four, and addresses are not
    width = 16 // min(ITEM_SIZES[dtypes[slot]] for slot in stage.used())
    # Words of random bits and their generators take registers: with more elements, half as many threads run.
    return min(width, 4) if rounded and not stage.reductions else width


def goes_swiftly(stage, dtypes, arithmetic, strided, kept):
    """Return whether a kernel has a shorter way for vectors whose values are all usual.

    Rounding to bfloat16 cares for NaN, and stochastic rounding for what is beyond the largest number. Where
    whole vectors are looked at first, and the few that have such values go the long way, a store takes five
    instructions less.
    """
    written = [slot for slot in stage.written() if dtypes[slot].endswith("16")]
    return (
        bool(written)
        and arithmetic == "float32"
        and not strided
        and not stage.reductions
        and all(dtypes[slot] == "bfloat16" and kept[slot] in (0, 7) for slot in written)
    )


class Pieces:
    """The pieces of one kernel's text, as lists of lines.

    The arguments are those of `kernels.update_text`, and the width if it is known.

    Attributes
    ----------
    read, written, moved : list of int
        The slots that are loaded, stored to, or either.
    numbers : list of int
        The numbers of a parameter that are used.
    rounded : list of (int, int, int)
        See `rounded_stores`.
    width : int
        How many elements a thread takes at a time.
    swift : bool
        Whether there is a shorter way for usual values: see `goes_swiftly`.
    """

    def __init__(self, stage, dialect, dtypes, arithmetic, strided, kept, shared, width=None):
        self.shared = shared
        self.stage, self.dialect, self.dtypes, self.arithmetic, self.strided, self.kept = (
            stage,
            dialect,
            dtypes,
            arithmetic,
            strided,
            kept,
        )
        self.read, self.written, self.moved, self.numbers = (
            stage.read(),
            stage.written(),
            stage.moved(),
            stage.scalars(),
        )
        self.rounded = rounded_stores(stage, dtypes, kept)
        self.width = width or vector_width(stage, dtypes, strided, self.rounded)
        one_by_one = self.width == 1
        self.divisors = [] if one_by_one else scalar_divisors(stage)
        self.swift = not one_by_one and goes_swiftly(stage, dtypes, arithmetic, strided, self.kept)

    # --- the functions of an element ---

    def head(self):
        """Return the functions of an element."""
        lines = [*(f"# {line}" for line in rule_comment(self.stage)), *self._function("element", self.stage)]
        if self.swift:
            given = f", given {self._reciprocals()}" if self.divisors else ""
            lines += [
                f"# The same for usual values{given}, and whether these were.",
                *self._function("swift", by_reciprocals(self.stage, self.divisors), swift=True),
            ]
        elif self.divisors:
            lines += [
                f"# The same, given {self._reciprocals()}.",
                *self._function("multiplied", by_reciprocals(self.stage, self.divisors)),
            ]
        return lines

    def _reciprocals(self):
        taken = ", ".join(f"s{j}" for j in self.divisors)
        return f"1 / {taken} for {taken}"

    def _function(self, name, stage, swift=False):
        parameters = [
            *(f"x{slot}" for slot in self.read),
            *(f"u{index}" for _, index, _ in self.rounded),
            *(f"s{j}" for j in self.numbers),
        ]
        results = ["float64" if self.dtypes[slot] == "float64" else "float32" for slot in self.written] + [
            self.arithmetic
        ] * len(stage.reductions)
        returned = [
            *(f"y{slot}" for slot in self.written),
            *(f"z{number}" for number in range(len(stage.reductions))),
        ]
        lines, names = body_lines(stage, self.dialect, self.dtypes, self.arithmetic, self.kept)
        if swift:
            lines = [
                re.sub(r"\b(nearest|stochastic)_bfloat16_", r"swift_\1_bfloat16_", line) for line in lines
            ]
            results.append("boolean")
            returned.append(" & ".join(self._usual(stage, names)))
        return [
            f"@once({', '.join(results)})",
            f"def {name}({', '.join(parameters)}):",
            *(f"    {line}" for line in lines),
            f"    return ({', '.join(returned)},)",
            "",
        ]

    def _usual(self, stage, names):
        """Return conditions: each value that is stored in bfloat16 is rounded as `swift` does it."""
        for op, *operands in stage.code:
            if op in ("store", "round") and self.dtypes[operands[0]] == "bfloat16":
                slot, value, _ = operands
                name = f"s{~value}" if value < 0 else names[value]
                top = f"{self.arithmetic}({largest('bfloat16', 7)!r})"
                yield f"(absolute({name}) <= {top})" if self.kept[slot] else f"({name} == {name})"

    def swiftly(self):
        """Return the lines that compute and store a vector in the short way.

        Where some value is not usual, or there is no reciprocal, `fine` is false, and nothing is stored.
        """
        factors = [f"r{j}" if j in self.divisors else f"s{j}" for j in self.numbers]
        elements = [
            f"q{k} = swift({', '.join(arguments + factors)})"
            for k, arguments in enumerate(self._arguments(self.width))
        ]
        last = len(self.written)
        stores = [
            f"store_{self.dtypes[slot]}x{self.width}(p{slot}, i, "
            f"{', '.join(f'q{k}[{j}]' for k in range(self.width))})"
            for j, slot in enumerate(self.written)
        ]
        fine = " & ".join(f"q{k}[{last}]" for k in range(self.width))
        return [*elements, f"fine = {fine}", "if fine:", *(f"    {line}" for line in stores)]

    def _arguments(self, count):
        return [
            [f"x{slot}[{k}]" for slot in self.read] + [f"u{index}[{k}]" for _, index, _ in self.rounded]
            for k in range(count)
        ]

    def elements(self, count):
        """Return the lines that compute so many elements, e0, e1, ..."""
        arguments = self._arguments(count)
        divided = [
            f"e{k} = element({', '.join([*arguments[k], *(f's{j}' for j in self.numbers)])})"
            for k in range(count)
        ]
        if not self.divisors or count == 1 or self.swift:
            return divided
        factors = [f"r{j}" if j in self.divisors else f"s{j}" for j in self.numbers]
        return either(
            "exact",
            [f"e{k} = multiplied({', '.join(arguments[k] + factors)})" for k in range(count)],
            divided,
        )

    # --- what is done once ---

    def stream_keys(self):
        """Return the lines that compute the keys of the streams of random bits."""
        if not self.rounded:
            return []
        lines = ["seed, count = load_uint64(random, 0, -1), load_uint64(random, 1, -1)"]
        return lines + [
            f"k{index}, l{index} = keys(seed, count, uint64({number}))" for number, index, _ in self.rounded
        ]

    # --- what is done for a chunk ---

    def chunk(self):
        """Return the lines that look at a chunk: its tensor's numbers and addresses."""
        lines = _CHUNK.format(row_bytes=8 * len(self.stage.names)).split("\n")
        lines += [] if self.shared else self.loaded_numbers()
        if self.strided:
            return [*lines, f"geometry = views + number * {8 * len(self.stage.names)}"]
        for slot in self.moved:
            lines.append(
                f"p{slot} = address(row, {slot}, offset, {ITEM_SIZES[self.dtypes[slot]]})  # "
                f"{self.what(slot)}"
            )
        return lines

    def loaded_numbers(self):
        """Return the lines that load the numbers of a parameter, which are rounded once."""
        own, lines = "numbers", []
        if self.numbers and not self.shared:
            own, lines = "own", ["own = numbers + number * stride"]
        for j in self.numbers:
            loaded = f"load_float64({own}, {j}, -1)"
            lines.append(
                f"s{j} = {loaded if self.arithmetic == 'float64' else f'{self.arithmetic}({loaded})'}"
            )
        if self.divisors:
            lines += [f"r{j} = reciprocal_{self.arithmetic}(s{j})" for j in self.divisors]
            lines.append(f"exact = {' and '.join(f'r{j} != {self.arithmetic}(0)' for j in self.divisors)}")
        return lines

    def what(self, slot):
        """Return what a slot is, for a comment."""
        what = " and ".join(["read"] * (slot in self.read) + ["written"] * (slot in self.written))
        return f"{self.stage.names[slot]}: {self.dtypes[slot]}, {what}"

    def misaligned(self):
        """Return an expression that is a multiple of 16 where every slot starts at one."""
        return " | ".join(f"p{slot}" for slot in self.moved)

    def _stored(self, place):
        """Return the values of the slot that is stored to as number `place`, of all elements."""
        return ", ".join(f"e{k}[{place}]" for k in range(self.width))

    def vector(self):
        """Return the lines that load and store a vector, each at a multiple of 16 bytes."""
        loads = [f"x{slot} = load_{self.dtypes[slot]}x{self.width}(p{slot}, i)" for slot in self.read]
        stores = [
            f"store_{self.dtypes[slot]}x{self.width}(p{slot}, i, {self._stored(j)})"
            for j, slot in enumerate(self.written)
        ]
        return loads, stores

    def some(self):
        """Return the lines that load, compute and store the elements from i on of which `left` are there.

        Beyond the end of a tensor, its last element is computed once more, and not stored.
        """
        if not self.strided:
            loads, stores = self.vector()
            first_loads = [
                f"x{slot} = load_first_{self.dtypes[slot]}x{self.width}(p{slot}, i, left)"
                for slot in self.read
            ]
            first_stores = [
                f"store_first_{self.dtypes[slot]}x{self.width}(p{slot}, i, left, {self._stored(j)})"
                for j, slot in enumerate(self.written)
            ]
            whole = f"whole = left >= {self.width} and ({self.misaligned()}) & 15 == 0"
            return [
                whole,
                *either("whole", loads, first_loads),
                *self.elements(self.width),
                *either("whole", stores, first_stores),
            ]
        loads = [f"i{k} = i + min({k}, left - 1)" if k else "i0 = i" for k in range(self.width)]
        for slot in self.read:
            loads += [f"p{slot}_{k} = place(geometry, row, {slot}, offset + i{k})" for k in range(self.width)]
            each = [f"load_{self.dtypes[slot]}(p{slot}_{k}, 0, {slot})" for k in range(self.width)]
            loads.append(f"x{slot} = ({', '.join(each)},)")
        stores = []
        for k in range(self.width) if self.written else ():
            stores += [f"if {k} < left:"] if k else []
            for j, slot in enumerate(self.written):
                stores.append(
                    f"{'    ' * (k > 0)}store_{self.dtypes[slot]}(place(geometry, row, {slot}, offset + "
                    f"i{k}), 0, {slot}, e{k}[{j}])"
                )
        return [*loads, *self.elements(self.width), *stores]


def either(condition, lines, otherwise):
    """Return lines that run some lines if a condition holds, and others if it doesn't.

    If there are no `lines`, there are none at all.
    """
    if not lines:
        return []
    return [
        f"if {condition}:",
        *(f"    {line}" for line in lines),
        "else:",
        *(f"    {line}" for line in otherwise),
    ]
