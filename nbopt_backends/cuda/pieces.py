"""Pieces: what the forms of a pass's kernel have in common.

`nbopt_backends.cuda.kernels` shows a whole one.
"""

from nbopt_backends.lowering.comment import rule_comment
from nbopt_backends.lowering.text import (
    ITEM_SIZES,
    body_lines,
    by_reciprocals,
    rounded_stores,
    scalar_divisors,
)

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
    return 16 // min(ITEM_SIZES[dtypes[slot]] for slot in stage.used())


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

    # --- the functions of an element ---

    def head(self):
        """Return the functions of an element."""
        lines = [*(f"# {line}" for line in rule_comment(self.stage)), *self._function("element", self.stage)]
        if self.divisors:
            taken = ", ".join(f"s{j}" for j in self.divisors)
            lines += [
                f"# The same, given 1 / {taken} for {taken}.",
                *self._function("multiplied", by_reciprocals(self.stage, self.divisors)),
            ]
        return lines

    def _function(self, name, stage):
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
        return [
            f"@once({', '.join(results)})",
            f"def {name}({', '.join(parameters)}):",
            *(
                f"    {line}"
                for line in body_lines(stage, self.dialect, self.dtypes, self.arithmetic, self.kept)[0]
            ),
            f"    return ({', '.join(returned)},)",
            "",
        ]

    def elements(self, count):
        """Return the lines that compute so many elements, e0, e1, ..."""
        arguments = [
            [f"x{slot}[{k}]" for slot in self.read] + [f"u{index}[{k}]" for _, index, _ in self.rounded]
            for k in range(count)
        ]
        divided = [
            f"e{k} = element({', '.join([*arguments[k], *(f's{j}' for j in self.numbers)])})"
            for k in range(count)
        ]
        if not self.divisors or count == 1:
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
