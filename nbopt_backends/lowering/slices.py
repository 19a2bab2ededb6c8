"""Lowering of passes that know slices.

Their kernels walk a parameter row by row, see `nbopt_backends.meaning.slices`.
"""

from nbopt.language.lines import is_slice
from nbopt_backends.lowering.comment import rule_comment
from nbopt_backends.lowering.text import (
    COMMON_OPS,
    ITEM_SIZES,
    body_lines,
    by_reciprocals,
    in_arithmetic,
    indented,
    rounded_stores,
    scalar_divisors,
)
from nbopt_backends.meaning.slices import COLUMNS
from nbopt_backends.meaning.tree import OPS
from nbopt_backends.meaning.xoroshiro import LANES

NOTHING = {"sum": "0.0", "max": "-np.inf", "min": "np.inf"}
ALIAS = 13  # of the results of bands, among the slots of alias metadata

_KERNEL = """{header}{comment}
def update(slots, chunk, walk, numbers, random, _5, _6):
    columns, results = load_int64(walk, 0, -1), load_int64(walk, 2, -1)
    tiles = (columns + {last}) // {tile}
    first, last = load_int64(chunk, 4, -1), load_int64(chunk, 5, -1)
{setup}
    for r in range(load_int64(chunk, 2, -1), load_int64(chunk, 3, -1)):
{row}
        for tile in range(first, last, {tile}):
            m = min({tile}, last - tile)
{loop}
{folds}
"""
_PLAIN = """for j in range(m):
    i = tile + j
{body}"""
_ROUNDING = """done = 0
while done < m:
    place = load_int64(chunk, 7, -1) + r * columns + tile + done
    k0 = place % 256
{draws}
    many = min(m - done, 256 - k0)
    for j in range(many):
        i = tile + done + j
        k = k0 + j
{body}
    done += many"""


def sliced_text(stage, dialect, dtypes, arithmetic, kept, extents, flags):
    """Return the text of the module that holds the kernel of a pass that knows slices, for wide rows.

    Its ``update(slots, chunk, walk, numbers, random, 0, 0)`` takes the addresses of a parameter's slots, of a
    chunk and of a walk, both as `nbopt_backends.cpu.slices` makes them, of the parameter's numbers, and of
    the seed and the update count.

    Parameters
    ----------
    stage, dialect, dtypes, arithmetic, kept
        As for `nbopt_backends.lowering.text.kernel_text`.
    extents : tuple of int
        The slots'.
    flags : tuple of int
        For each slot, how many of its elements lie between two columns: 0 or 1.

    Returns
    -------
    str
    """
    setup = setup_lines(stage, arithmetic, dtypes, kept)
    row, fixed = [], set()
    for slot in stage.moved():
        base, size = f"load_int64(slots, {slot}, -1)", ITEM_SIZES[dtypes[slot]]
        if extents[slot] == stage.extent:
            row.append(f"p{slot} = {base} + r * columns * {size}  # {stage.names[slot]}: {dtypes[slot]}")
            continue
        row.append(
            f"p{slot} = {base} + row_offset(walk, {slot}, r) * {size}  # {stage.names[slot]}: {dtypes[slot]},"
            " a slice"
        )
        if not flags[slot]:
            fixed.add(slot)
            loaded = f"load_{dtypes[slot]}(p{slot}, 0, -1)"
            wide = dtypes[slot] != arithmetic and arithmetic != "float32"
            row.append(f"x{slot} = {arithmetic}({loaded})" if wide else f"x{slot} = {loaded}")
    keeping = tuple(bool(flags[slot]) for slot in fold_slots(stage, extents))
    rows = [(number, *reduction) for number, reduction in enumerate(stage.reductions)]
    bands, results = [], len(stage.reductions) + len(stage.folds)
    for number, ((op, value, _), keeps) in enumerate(zip(stage.folds, keeping)):
        if not keeps:
            rows.append((len(stage.reductions) + number, op, value))
            continue
        size = ITEM_SIZES[arithmetic]
        row += [
            f"a{number} = band_address(walk, {number}, r, columns * {size})",
            f"if band_begins(walk, {number}, r):",
            "    for c in range(first, last):",
            f"        store_{arithmetic}(a{number}, c, {ALIAS}, {arithmetic}({NOTHING[op]}))",
        ]
        bands.append((number, op, value))
    for number, *_ in rows:
        setup += [
            f"buffer{number} = empty({COLUMNS}, np.{arithmetic})",
            f"b{number} = buffer{number}.ctypes.data",
        ]

    def body_of(stage):
        body, names = body_lines(stage._replace(reductions=()), dialect, dtypes, arithmetic, kept, fixed)
        for number, _, value in rows:
            new = f"s{~value}" if value < 0 else names[value]
            body.append(dialect.partial.format(F=arithmetic, number=number, value=new))
        for number, op, value in bands:
            old, new = (
                f"load_{arithmetic}(a{number}, i, {ALIAS})",
                f"s{~value}" if value < 0 else names[value],
            )
            join = join_of(dialect, op, old, new, arithmetic)
            body.append(f"store_{arithmetic}(a{number}, i, {ALIAS}, {join})")
        return body

    folds = []
    for number, op, _ in rows:
        place = f"(r * tiles + tile // {COLUMNS}) * {results} + {number}"
        # By its array, which Numba would free after its last use.
        folds.append(
            f"store_float64(results, {place}, -1, "
            f"float64(fold_row_{op}_{arithmetic}(buffer{number}.ctypes.data, m)))"
        )
    return _KERNEL.format(
        header=dialect.header,
        comment="\n".join(f"# {line}" for line in rule_comment(stage)),
        tile=COLUMNS,
        last=COLUMNS - 1,
        setup=indented(setup, 1),
        row=indented(row, 2),
        loop=indented(loop_lines(stage, dtypes, kept, _PLAIN, body_of), 3),
        folds=indented(folds, 3),
    )


def setup_lines(stage, arithmetic, dtypes, kept):
    """Return the first lines of a kernel: its numbers, and the memory of its random words."""
    lines = [
        f"s{j} = {in_arithmetic(arithmetic, f'load_float64(numbers, {j}, -1)')}" for j in stage.scalars()
    ]
    for _, index, word in rounded_stores(stage, dtypes, kept):
        lines.append(f"lanes{index} = empty(({2 + word // 16}, {LANES}), np.uint64)")
        lines += [f"w{index} = lanes{index}.ctypes.data + {2 * LANES * 8}", f"at{index} = int64(-1)"]
    return lines + [f"inverse{j} = reciprocal_{arithmetic}(s{j})" for j in scalar_divisors(stage)]


def loop_lines(stage, dtypes, kept, plain, body_of):
    """Return the loop over elements that lie in a row, in two forms if it divides by a number.

    Parameters
    ----------
    stage, dtypes, kept
        As for `sliced_text`.
    plain : str
        The loop without random bits, around its ``{body}``.
    body_of : callable
        Returns the lines for one element, of `stage` or of the same with other divisions.
    """
    rounded, divisors = rounded_stores(stage, dtypes, kept), scalar_divisors(stage)

    def loop(stage):
        body = body_of(stage)
        if not rounded:
            return plain.format(body=indented(body, 1)).split("\n")
        return _ROUNDING.format(draws=_draw_lines(rounded), body=indented(body, 2)).split("\n")

    if not divisors:
        return loop(stage)
    exact = " and ".join(f"inverse{j} != 0.0" for j in divisors)
    faster = [*(f"s{j} = inverse{j}" for j in divisors), *loop(by_reciprocals(stage, divisors))]
    return [
        f"if {exact}:  # multiplying by it gives the same bits",
        *indented(faster, 1).split("\n"),
        "else:",
        *indented(loop(stage), 1).split("\n"),
    ]


def _draw_lines(rounded):
    """Return the text that draws the random words of a run of elements, for `_ROUNDING`."""
    lines = []
    for number, index, word in rounded:
        draw = (
            f"draw(lanes{index}, random, {number}, place - k0, place - k0 != at{index} + 256 or at{index}"
            f" < 0, {word // 16})"
        )
        lines += [f"if place - k0 != at{index}:", f"    {draw}", f"    at{index} = place - k0"]
    return indented(lines, 1)


def join_of(dialect, op, old, new, arithmetic):
    """Return how two values become one."""
    name = OPS[op][0]
    return {**COMMON_OPS, **dialect.ops}.get(name, name + "({0}, {1})").format(old, new, F=arithmetic)


def fold_slots(stage, extents):
    """Return for each reduction along axes of a pass a slot that is laid out as its result is."""
    return [
        next(slot for slot, extent in enumerate(extents) if extent == wanted and is_slice(extent))
        for _, _, wanted in stage.folds
    ]
