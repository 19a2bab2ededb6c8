"""Lowering of passes that know slices, for narrow rows: many of them go through the loop together.

The results are those of `nbopt_backends.lowering.slices.sliced_text`. What a row has one value of is spread
over its elements first.
"""

from nbopt_backends.lowering.comment import rule_comment
from nbopt_backends.lowering.slices import (
    ALIAS,
    NOTHING,
    fold_slots,
    join_of,
    loop_lines,
    setup_lines,
)
from nbopt_backends.lowering.text import ITEM_SIZES, body_lines, indented
from nbopt_backends.meaning.slices import COLUMNS

_VECTOR = 8
_KERNEL = """{header}{comment}
def update(slots, chunk, walk, numbers, random, _5, _6):
    columns, results = {columns}, load_int64(walk, 2, -1)
    first, last = load_int64(chunk, 2, -1), load_int64(chunk, 3, -1)
    tile, together = 0, {tile} // columns
{setup}
    for r in range(first, last, together):
        rows = min(together, last - r)
        m = rows * columns
{slots}
{rows}
{loop}
{folds}
"""
_ROWS = """for row in range(rows):
    here = row * columns
{body}"""
_PLAIN = """for i in range(m):
{body}"""


def narrow_text(stage, dialect, dtypes, arithmetic, kept, extents, flags, width=1):
    """Return the text of the module that holds the kernel of a pass that knows slices, for narrow rows.

    Parameters, and what its ``update`` takes, are those of `sliced_text`. `width` is how many columns there
    are, or 1 if that is not known.

    Returns
    -------
    str
    """
    size = ITEM_SIZES[arithmetic]
    setup = setup_lines(stage, arithmetic, dtypes, kept)
    slots, row, step, spread = [], [], [], list(dtypes)
    for slot in stage.moved():
        base = f"load_int64(slots, {slot}, -1)"
        if extents[slot] == stage.extent:
            place = f"{base} + r * columns * {ITEM_SIZES[dtypes[slot]]}"
            slots.append(f"p{slot} = {place}  # {stage.names[slot]}: {dtypes[slot]}")
            continue
        spread[slot] = arithmetic
        setup += [
            f"# {stage.names[slot]}: {dtypes[slot]}, a slice",
            f"o{slot} = row_offset(walk, {slot}, first)",
            f"q{slot} = {base}",
            f"d{slot} = row_step(walk, {slot}, inner) if groups > 0 else 0",
            f"e{slot} = row_step(walk, {slot}, 0) if groups > 1 else 0",
            f"spread{slot} = empty({COLUMNS + _VECTOR}, np.{arithmetic})",
        ]
        slots.append(f"p{slot} = spread{slot}.ctypes.data")
        value = f"{arithmetic}(load_{dtypes[slot]}(q{slot}, o{slot}{' + c' if flags[slot] else ''}, -1))"
        if flags[slot]:
            row += ["for c in range(columns):", f"    store_{arithmetic}(p{slot}, here + c, {slot}, {value})"]
        else:  # whole vectors, the end of which the next row overwrites
            row += [
                f"x = {value}",
                f"for c in range(0, columns, {_VECTOR}):",
                f"    for k in range({_VECTOR}):",
                f"        store_{arithmetic}(p{slot}, here + c + k, {slot}, x)",
            ]
        step.append(slot)
    keeping = [bool(flags[slot]) for slot in fold_slots(stage, extents)]
    reduced = [(number, op, value, False) for number, (op, value) in enumerate(stage.reductions)]
    reduced += [
        (len(stage.reductions) + number, op, value, keeps)
        for number, ((op, value, _), keeps) in enumerate(zip(stage.folds, keeping))
    ]

    def body_of(stage):
        body, names = body_lines(stage._replace(reductions=()), dialect, spread, arithmetic, kept)
        for number, _, value, _ in reduced:
            named = f"s{~value}" if value < 0 else names[value]
            body.append(dialect.partial.format(F=arithmetic, number=number, value=named))
        return body

    folds, each, before = [], [], []
    for number, op, _, keeps in reduced:
        buffer, band = f"buffer{number}", number - len(stage.reductions)
        setup += [f"{buffer} = empty({COLUMNS}, np.{arithmetic})", f"b{number} = {buffer}.ctypes.data"]
        # By its array, which Numba would free after its last use.
        if not keeps:
            place = f"(r + row) * {len(reduced)} + {number}"
            value = f"load_{arithmetic}({buffer}.ctypes.data, here, -1)"
            if width == 3:  # in the order of the tree
                for k in (2, 1):
                    other = f"load_{arithmetic}({buffer}.ctypes.data, here + {k}, -1)"
                    value = join_of(dialect, op, value, other, arithmetic)
            else:
                folds.append(f"fold_rows_{op}_{arithmetic}({buffer}.ctypes.data, rows, columns)")
            each.append(f"store_float64(results, {place}, -1, float64({value}))")
            continue
        bands, old = f"bands{band}", f"load_{arithmetic}(a, c, {ALIAS})"
        setup += [
            f"{bands} = empty({COLUMNS}, np.int64)",
            f"a{band} = band_address(walk, {band}, first, columns * {size})",
            f"mask{band} = rows_of_band(walk, {band}) - 1",  # a band is a power of two
        ]
        before += [
            f"if digit & mask{band} == 0:",
            "    for c in range(columns):",
            f"        store_{arithmetic}(a{band}, c, {ALIAS}, {arithmetic}({NOTHING[op]}))",
            f"    a{band} += columns * {size}",
            f"{bands}[row] = a{band} - columns * {size}",
        ]
        join = join_of(dialect, op, old, f"load_{arithmetic}({buffer}.ctypes.data, here + c, -1)", arithmetic)
        each += [
            f"a = {bands}[row]",
            "for c in range(columns):",
            f"    store_{arithmetic}(a, c, {ALIAS}, {join})",
        ]
    rows = [*before, *row]
    if rows:
        rows += [
            "digit += 1",
            "if digit < length:",
            *(f"    o{slot} += d{slot}" for slot in step),
            *["    pass"] * (not step),
            "elif groups == 2:",
            "    digit = 0",
            *(f"    o{slot} += e{slot}" for slot in step),
            "elif groups > 2:",
            "    digit = 0",
            "    put_int64(digits.ctypes.data, inner, length - 1)",
            "    there = next_row(walk, digits.ctypes.data)",
            *(f"    o{slot} += row_step(walk, {slot}, there)" for slot in step),
        ]
        setup = [
            "groups, length = load_int64(walk, 1, -1), last_group(walk)",
            "inner = max(groups - 1, 0)",
            "digits = empty(inner + 1, np.int64)",
            "count_rows(walk, digits.ctypes.data, first)",
            "digit = int64_at(digits.ctypes.data, inner)  # of the last group; kept up to date here",
            *setup,
        ]
    if each:
        folds += _ROWS.format(body=indented(each, 1)).split("\n")
    return _KERNEL.format(
        header=dialect.header,
        comment="\n".join(f"# {line}" for line in rule_comment(stage)),
        tile=COLUMNS,
        columns=width if width > 1 else "load_int64(walk, 0, -1)",
        setup=indented(setup, 1),
        slots=indented(slots, 2),
        rows=indented(_ROWS.format(body=indented(rows, 1)).split("\n"), 2) if rows else "",
        loop=indented(loop_lines(stage, dtypes, kept, _PLAIN, body_of), 2),
        folds=indented(folds, 2),
    )
