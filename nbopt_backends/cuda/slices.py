"""The text of a pass that knows slices.

It walks a parameter, or a slice of it, as a matrix; see `nbopt_backends.meaning.slices`. A *unit* is a band
of rows, as far as a tile of columns goes. `LANES` lanes take the columns of as many units as there is room
for, so that narrow matrices leave few of them idle. A lane goes through its column row by row. What has come
of the columns of some rows is folded in shared memory.
"""

from nbopt.language.lines import ELEMENT
from nbopt_backends.cuda.pieces import CHUNK_FIELDS, Pieces
from nbopt_backends.cuda.tiles import joined, neutral
from nbopt_backends.lowering.text import ITEM_SIZES, indented
from nbopt_backends.meaning.slices import COLUMNS, ROWS
from nbopt_backends.meaning.tree import OPS
from nbopt_backends.meaning.xoroshiro import BLOCK
from nbopt_backends.meaning.xoroshiro import LANES as STREAMS

#: Lanes that take units together.
LANES = 256
#: What a walk's record begins with: columns; tiles of a row; the binary logarithm of the lanes of a unit;
#: rows of the last group; bands of these; the number of the first row's first tile; how many other groups the
#: rows have. Then come the addresses of what is left of each fold; for each coarser slot the distances
#: between columns and between rows of the last group; the lengths of the other groups; for each coarser slot
#: its distances along these. Distances are in elements.
WALK_FIELDS = 7
_SHARED = 16 * 1024  # bytes of shared memory that leave room for other blocks

_FIRST = '''@inline
def first_of(run, n, lengths, steps):
    """Return where a run of rows begins in a slot.

    `lengths` is the address of the lengths of the n groups around it, `steps` that of the slot's steps.
    """
    place = int64(0)
    group = n - 1
    while group >= 0:
        outer = run // load_int64(lengths, group, -1)
        place += (run - outer * load_int64(lengths, group, -1)) * load_int64(steps, group, -1)
        run = outer
        group -= 1
    return place

'''

_KERNEL = """{header}
{head}
def update(table, chunks, n_chunks, numbers, stride, random, views, taken, sums, after):
{before}    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
{chunk}
        start = int64(0)
        while start < min(int64({rows}), last):
            lane = int64(cuda.threadIdx.x)
            while lane < {lanes}:
{unit}
                r = start
                while r < stop:
{element}
                    r += 1
{after}                lane += cuda.blockDim.x
{fold}            start += {at_once}
        c += cuda.gridDim.x
"""

_CHUNK = f"""number = load_int64(chunks, {CHUNK_FIELDS} * c, -1)
row = table + number * {{row_bytes}}
units, n = load_int64(chunks, {CHUNK_FIELDS} * c + 1, -1), load_int64(chunks, {CHUNK_FIELDS} * c + 2, -1)
walk = load_int64(chunks, {CHUNK_FIELDS} * c + 4, -1)
columns, tiles, shift = load_int64(walk, 0, -1), load_int64(walk, 1, -1), load_int64(walk, 2, -1)
last, bands, groups = load_int64(walk, 3, -1), load_int64(walk, 4, -1), load_int64(walk, 6, -1)"""

# Of the unit that is number `member` of a chunk: its band among all, the tile, the run of rows, and the first
# row in the run.
_UNIT = f"""band = (units + member) // tiles
tile = units + member - band * tiles
run = band // bands
begin = (band - run * bands) * {ROWS}"""

_FOLD = """            cuda.syncthreads()
            half = int64(1) << shift >> 1
            while half > 0:
                i = int64(cuda.threadIdx.x)
                while i < {size}:
                    if i & ((1 << shift) - 1) < half:
{joins}
                    i += cuda.blockDim.x
                cuda.syncthreads()
                half >>= 1
            i = int64(cuda.threadIdx.x)
            while i < {size} >> shift:
                r, member = i // ({lanes} >> shift), i & (({lanes} >> shift) - 1)
{unit}
                if member < n and start + r < last - begin:
                    line = (run * last + begin + start + r) * tiles + tile
{results}
                i += cuda.blockDim.x
            cuda.syncthreads()
"""


def slices_text(stage, extents, kinds, dialect, dtypes, arithmetic, strided=False, kept=None, shared=True):
    """Return the text of the module that holds the kernel of a pass that knows slices.

    Its arguments are those of `nbopt_backends.cuda.kernels.update_text`'s. A chunk is some units: its fields
    are the parameter's row, the first unit, how many there are (as many as `LANES` lanes take), the number of
    the parameter's first block of random bits, the address of the walk's record, and a 0. The results of
    tiles of rows go to `sums`, float64[tiles, reductions].

    Parameters
    ----------
    stage : nbopt.language.stages.Pass
    extents : tuple of int
        Those of the program's slots.
    kinds : tuple of str
        For each of the pass's folds what it leaves: ``"rows"``, float64, for each tile of a row; ``"bands"``,
        in the arithmetic, for each column of a band; ``"each"``, for each column of a row.
    dialect, dtypes, arithmetic, strided, kept, shared
        As for `update_text`.

    Returns
    -------
    str
    """
    every = (*stage.reductions, *((op, operand) for op, operand, _ in stage.folds))
    whole = stage._replace(reductions=every, folds=())
    pieces = Pieces(whole, dialect, dtypes, arithmetic, strided, kept or (0,) * len(dtypes), shared, width=1)
    return _Text(pieces, stage, extents, kinds).text()


class _Text:
    """The parts of one text, as lists of lines."""

    def __init__(self, pieces, stage, extents, kinds):
        self.pieces, self.stage, self.kinds, self.arithmetic = pieces, stage, kinds, pieces.arithmetic
        self.coarse = [slot for slot in pieces.read if extents[slot] != stage.extent]
        self.far = [
            slot for slot in pieces.moved if pieces.strided and stage.extent == extents[slot] == ELEMENT
        ]
        first = len(stage.reductions)
        #: What is folded in shared memory: the number among all reductions, where the result goes.
        self.across = [(number, None) for number in range(first)]
        self.across += [(first + fold, fold) for fold, kind in enumerate(kinds) if kind == "rows"]
        self.down = [(first + fold, fold) for fold, kind in enumerate(kinds) if kind == "bands"]
        self.each = [(first + fold, fold) for fold, kind in enumerate(kinds) if kind == "each"]
        self.at_once = ROWS
        while (
            self.across
            and self.at_once > 1
            and len(self.across) * self.at_once * LANES * ITEM_SIZES[self.arithmetic] > _SHARED
        ):
            self.at_once //= 2

    def text(self):
        pieces = self.pieces
        before = ["if load_int64(taken, 0, -1) == 0:", "    return"] if self.stage.guarded else []
        before += pieces.stream_keys()
        before += pieces.loaded_numbers() if pieces.shared else []
        before += [
            f"b{number} = cuda.shared.array({self.at_once * LANES}, {self.arithmetic})"
            for number, _ in self.across
        ]
        return _KERNEL.format(
            header=pieces.dialect.header,
            head="\n".join([*pieces.head(), *([_FIRST] if self.coarse else [])]),
            before=_block(before, 1),
            chunk=indented(self._chunk(), 2),
            unit=indented(self._unit(), 4),
            element=indented(self._element(), 5),
            after=_block(self._after(), 4),
            fold=self._fold(),
            rows=ROWS,
            lanes=LANES,
            at_once=self.at_once,
        )

    def _chunk(self):
        pieces = self.pieces
        lines = _CHUNK.format(row_bytes=8 * len(self.stage.names)).split("\n")
        lines += [] if pieces.shared else pieces.loaded_numbers()
        lines += [
            f"p{slot} = load_int64(row, {slot}, -1)  # {pieces.what(slot)}"
            for slot in pieces.moved
            if slot not in self.far
        ]
        lines += [f"geometry = views + number * {8 * len(self.stage.names)}"] * bool(self.far)
        lines += [f"block = load_int64(chunks, {CHUNK_FIELDS} * c + 3, -1)"] * bool(pieces.rounded)
        lines += [f"f{fold} = load_int64(walk, {WALK_FIELDS + fold}, -1)" for fold in range(len(self.kinds))]
        steps = WALK_FIELDS + len(self.kinds)
        for place, slot in enumerate(self.coarse):
            lines.append(
                f"c{slot}, d{slot} = load_int64(walk, {steps + 2 * place}, -1), load_int64(walk, "
                f"{steps + 2 * place + 1}, -1)"
            )
        if self.coarse:
            lines.append(f"lengths = walk + {8 * (steps + 2 * len(self.coarse))}")
        return lines

    def _unit(self):
        """Return the lines that find a lane's column and its rows.

        It goes through the rows from `start` on that are before `stop`.
        """
        lines = [
            "member = lane >> shift",
            *_UNIT.split("\n"),
            f"column = tile * {COLUMNS} + (lane & ((1 << shift) - 1))",
        ]
        lines += [
            f"stop = min(start + {self.at_once}, last - begin) if member < n and column < columns else start"
        ]
        lines += ["i = (run * last + begin + start) * columns + column"]
        for place, slot in enumerate(self.coarse):
            steps = f"lengths + 8 * groups * {place + 1}"
            lines.append(
                f"i{slot} = first_of(run, groups, lengths, {steps}) + (begin + start) * d{slot} + column * "
                f"c{slot}"
            )
        for number, fold in self.down:
            lines.append(f"a{number} = {self._nothing(number)}")
            if self.at_once < ROWS:
                lines += [
                    "if 0 < start < stop:",
                    f"    a{number} = load_{self.arithmetic}(f{fold}, band * columns + column, -1)",
                ]
        return lines

    def _element(self):
        pieces, lines = self.pieces, []
        for slot in pieces.read:
            dtype = pieces.dtypes[slot]
            if slot in self.far:
                lines.append(f"x{slot} = (load_{dtype}(place(geometry, row, {slot}, i), 0, {slot}),)")
            else:
                lines.append(
                    f"x{slot} = (load_{dtype}(p{slot}, i{slot if slot in self.coarse else ''}, {slot}),)"
                )
        for _, index, word in pieces.rounded:
            lines += _random(index, word)
        lines += pieces.elements(1)
        for place, slot in enumerate(pieces.written):
            dtype = pieces.dtypes[slot]
            target = f"place(geometry, row, {slot}, i), 0" if slot in self.far else f"p{slot}, i"
            lines.append(f"store_{dtype}({target}, {slot}, e0[{place}])")
        for number, _ in self.across:
            lines.append(f"b{number}[(r - start) * {LANES} + lane] = {self._value(number)}")
        for number, _ in self.down:
            lines.append(f"a{number} = {joined(pieces, number, f'a{number}', self._value(number))}")
        for number, fold in self.each:
            value = joined(pieces, number, self._nothing(number), self._value(number))
            lines.append(f"store_{self.arithmetic}(f{fold}, i, -1, {value})")
        return [*lines, "i += columns", *(f"i{slot} += d{slot}" for slot in self.coarse)]

    def _after(self):
        """Return the lines that leave what has come of a lane's column."""
        lines = []
        if self.across:
            lines.append(f"while r < start + {self.at_once}:")
            for number, _ in self.across:
                lines.append(f"    b{number}[(r - start) * {LANES} + lane] = {neutral(self.pieces, number)}")
            lines.append("    r += 1")
        if self.down:
            lines.append("if start < stop:")
            for number, fold in self.down:
                lines.append(f"    store_{self.arithmetic}(f{fold}, band * columns + column, -1, a{number})")
        return lines

    def _fold(self):
        if not self.across:
            return ""
        n, results = len(self.stage.reductions), []
        if n:
            results.append(f"tile_sums = sums + (load_int64(walk, 5, -1) + line) * {8 * n}")
        for number, fold in self.across:
            value = f"float64(b{number}[r * {LANES} + (member << shift)])"
            target = f"tile_sums, {number}" if fold is None else f"f{fold}, line"
            results.append(f"store_float64({target}, -1, {value})")
        joins = [
            f"b{number}[i] = {joined(self.pieces, number, f'b{number}[i]', f'b{number}[i + half]')}"
            for number, _ in self.across
        ]
        return _FOLD.format(
            size=self.at_once * LANES,
            lanes=LANES,
            joins=indented(joins, 6),
            unit=indented(_UNIT.split("\n"), 4),
            results=indented(results, 5),
        )

    def _value(self, number):
        return f"e0[{len(self.pieces.written) + number}]"

    def _nothing(self, number):
        return f"{self.arithmetic}({OPS[self.pieces.stage.reductions[number][0]][1]})"


def _block(lines, depth):
    """Return what `indented` does, with its last newline if there are lines."""
    return indented(lines, depth) + "\n" * bool(lines)


def _random(index, word):
    """Return the lines that draw the random bits of the element at a place in C order."""
    per_word, block_bits, stream_bits = 64 // word, BLOCK.bit_length() - 1, STREAMS.bit_length() - 1
    lines = [
        f"w{index} = (i & {BLOCK - 1}) // {per_word}",
        f"counter = uint64(((block + (i >> {block_bits})) << {stream_bits}) + (w{index} & {STREAMS - 1}))",
        f"drawn{index} = drawn(k{index}, l{index}, counter, w{index} >> {stream_bits})",
    ]
    if per_word == 1:
        return [*lines, f"u{index} = (int64(drawn{index}),)"]
    return [
        *lines,
        (
            f"u{index} = (int64((drawn{index} >> uint64((i & {per_word - 1}) * {word})) & "
            f"uint64({2**word - 1})),)"
        ),
    ]
