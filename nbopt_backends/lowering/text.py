"""Lowering: from a program to the text of a kernel.

Pure functions; the same program always gives the same text.
"""

from typing import NamedTuple

from nbopt_backends.lowering.comment import rule_comment
from nbopt_backends.meaning.rounding import FORMATS, largest
from nbopt_backends.meaning.tree import TILE
from nbopt_backends.meaning.xoroshiro import LANES


class Dialect(NamedTuple):
    """How a target spells programs.

    Attributes
    ----------
    name : str
    ops : dict
        Primitive -> format string over operands {0}, {1}, ... and {F}, the arithmetic's type. Ops that are
        missing are calls of their name.
    header : str
        What the module starts with: imports.
    kernel : str
        The kernel, with placeholders for its parts; see `kernel_text`.
    loop : str
        The loop over the elements, likewise: blocks of {block} elements, {before} each of them, and the
        {body}.
    load, store : str
        How the body takes and leaves an element of {slot}, whose storage is {dtype}; {value} is what is left.
    random : str
        How the body takes the {word} random bits of the store that is instruction {index}.
    narrowed : str
        The conversion of a float64 {value} to float32 that keeps the canonical NaN of 16 bits.
    partial : str
        How the body leaves the {value} that reduction {number} takes of an element.
    tile_loop : str
        As `loop`, over the elements of one tile: from `tile` on, `m` of them.
    """

    name: str
    ops: dict
    header: str
    kernel: str
    loop: str
    load: str = "load_{dtype}(p{slot}, i, {slot})"
    store: str = "store_{dtype}(p{slot}, i, {slot}, {value})"
    random: str = "load_word{word}(w{index}, k, 15)"
    narrowed: str = "float32({value})"
    partial: str = "store_{F}(b{number}, i - tile, 14, {value})"
    tile_loop: str = ""


def scalar_divisors(program):
    """Return the index of the first scalar by which elements are divided, in a list.

    The list is empty if there is none. If the scalar is a power of two, multiplying by its reciprocal gives
    the same bits and takes a fraction of the time. The batch size, by which every gradient is divided before
    anything else, usually is one.
    """
    return [~line[2] for line in program.code if line[0] == "divide" and line[2] < 0][:1]


def by_reciprocals(program, divisors):
    """Return the program with divisions by scalars turned into multiplications."""
    code = tuple(
        ("multiply", *line[1:]) if line[0] == "divide" and ~line[2] in divisors else line
        for line in program.code
    )
    return program._replace(code=code)


# Spellings that hold for every target whose kernels are Python source.
COMMON_OPS = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "negative": "-{0}",
    "sgn": "{F}(1) if {0} > {F}(0) else ({F}(-1) if {0} < {F}(0) else ({F}(0) if {0} == {F}(0) else {0}))",
    "finite": "{F}(1) if {0} - {0} == {F}(0) else {F}(0)",
    "equal": "{F}(1) if {0} == {1} else {F}(0)",
    "not_equal": "{F}(1) if {0} != {1} else {F}(0)",
    "less": "{F}(1) if {0} < {1} else {F}(0)",
    "less_equal": "{F}(1) if {0} <= {1} else {F}(0)",
    "greater": "{F}(1) if {0} > {1} else {F}(0)",
    "greater_equal": "{F}(1) if {0} >= {1} else {F}(0)",
    "where": "{1} if {0} != {F}(0) else {2}",
    "shift": "shift_{F}({0}, {1})",
    "ldexp": "ldexp_{F}({0}, {1})",
}


def body_lines(program, dialect, dtypes, arithmetic, kept, fixed=()):
    """Return the lines of the loop's body, for one element, and the names of the values.

    Each slot is loaded once, each value computed once, stores are in order.

    Parameters
    ----------
    program : nbopt.language.stages.Pass
    dialect : Dialect
    dtypes : tuple of str
        The slots' storage.
    arithmetic : str
        ``"float32"`` or ``"float64"``.
    kept : tuple of int
        For each slot, how many mantissa bits a stochastic rounding keeps, or 0.
    fixed : collection of int
        Slots whose value was loaded before the loop, as ``x{slot}``.
    """
    ops = {**COMMON_OPS, **dialect.ops}
    names = []
    lines = []
    for index, (op, *operands) in enumerate(program.code):
        name = f"v{index}"
        if op == "load":
            slot = operands[0]
            if slot in fixed:
                names.append(f"x{slot}")
                continue
            loaded = dialect.load.format(dtype=dtypes[slot], slot=slot)
            lines.append(f"{name} = {widened(dtypes[slot], arithmetic, loaded)}")
        elif op in ("store", "round"):
            slot, value, _ = operands
            name = f"s{~value}" if value < 0 else names[value]
            dtype = dtypes[slot]
            if kept[slot]:
                random = dialect.random.format(word=FORMATS[dtype].word, index=index)
                arguments = f"{name}, {kept[slot]}, {arithmetic}({largest(dtype, kept[slot])!r}), {random}"
                lines.append(f"r{index} = stochastic_{dtype}_{arithmetic}({arguments})")
                name = f"r{index}"
            elif dtype != arithmetic:
                rounded = (
                    f"float64(float32({name}))"
                    if dtype == "float32"
                    else f"nearest_{dtype}_{arithmetic}({name})"
                )
                lines.append(f"r{index} = {rounded}")
                name = f"r{index}"
            if op == "store":
                stored = (
                    name
                    if dtype == arithmetic or arithmetic == "float32"
                    else dialect.narrowed.format(value=name)
                )
                lines.append(dialect.store.format(dtype=dtype, slot=slot, value=stored))
        else:
            spelled = [f"s{~operand}" if operand < 0 else names[operand] for operand in operands]
            call = ops.get(op, f"{op}({', '.join(f'{{{k}}}' for k in range(len(spelled)))})")
            lines.append(f"{name} = {call.format(*spelled, F=arithmetic)}")
        names.append(name)
    for number, (_, value) in enumerate(program.reductions):
        lines.append(
            dialect.partial.format(
                F=arithmetic, number=number, value=f"s{~value}" if value < 0 else names[value]
            )
        )
    return lines, names


def widened(dtype, arithmetic, text):
    """Return `text`, a load of `dtype`, converted to the arithmetic's type.

    A load of 16 bits gives a float32.
    """
    return text if dtype == arithmetic or arithmetic == "float32" else f"{arithmetic}({text})"


def rounded_stores(program, dtypes, kept):
    """Return the values that are rounded stochastically.

    For each it is the number among the trace's stores, the line, and how many random bits it takes.
    """
    stores = [
        (index, line[1], line[3]) for index, line in enumerate(program.code) if line[0] in ("store", "round")
    ]
    return [(number, index, FORMATS[dtypes[slot]].word) for index, slot, number in stores if kept[slot]]


def kernel_text(program, dialect, dtypes, arithmetic, kept=None):
    """Return the text of the module that holds the kernel of `program`.

    For RMSProp on float32 the CPU's begins

        # mean_square = s1 * mean_square + s2 * v4
        # ...
        @kernel
        def update(row, offset, n, place, scalars, random, sums):
            p0 = address(row, 0, offset, 4)  # param: float32, read and written
            s0 = float32(load_float64(scalars, 0, -1))
            ...
            for start in range(0, n, 64):
                prefetch(p0 + start * 4 + 512, 256)
                for k in range(min(64, n - start)):
                    i = start + k
                    v0 = load_float32(p2, i, 2)
                    v1 = s1 * v0

    A pass with reductions goes tile by tile. What is reduced is kept for a tile, and folded:

            for tile in range(0, n, 4096):
                m = min(4096, n - tile)
                ...
                        store_float32(b0, i - tile, 14, v3)
                store_float64(sums, 0, -1, float64(fold_sum_float32(buffer0.ctypes.data, m)))
                sums += 8

    Parameters
    ----------
    program, dialect, dtypes, arithmetic, kept
        As for `body_lines`; no stochastic rounding without `kept`.

    Returns
    -------
    str
    """
    kept = kept or (0,) * len(dtypes)
    written, read = program.written(), program.read()
    pointers = []
    for slot in program.moved():
        what = " and ".join(["read"] * (slot in read) + ["written"] * (slot in written))
        pointers.append(
            f"p{slot} = address(row, {slot}, offset, {ITEM_SIZES[dtypes[slot]]})  # {program.names[slot]}: "
            f"{dtypes[slot]}, {what}"
        )
    # The hardware's own prefetching falls behind loops with as much arithmetic as these: see
    # docs/benchmarks.md.
    sizes = {slot: ITEM_SIZES[dtypes[slot]] for slot in program.moved()}
    rounded = rounded_stores(program, dtypes, kept)
    block = 256 if rounded else 64  # random words come for 256 elements at a time
    before = [
        f"prefetch(p{slot} + start * {size} + {_AHEAD}, {block * size})" for slot, size in sizes.items()
    ]
    buffers = []
    for number, index, word in rounded:
        draws = word // 16
        buffers.append(f"lanes{index} = empty(({2 + draws}, {LANES}), np.uint64)")
        buffers.append(
            f"w{index} = lanes{index}.ctypes.data + {2 * LANES * 8}  # the words behind the generators' "
            "states"
        )
        before.append(f"draw(lanes{index}, random, {number}, place + start, start == 0, {draws})")
    folds = []
    for number, (op, _) in enumerate(program.reductions):
        buffers.append(f"buffer{number} = empty({TILE}, np.{arithmetic})")
        buffers.append(f"b{number} = buffer{number}.ctypes.data")
        # By its array, which Numba would free after its last use.
        folds.append(
            f"store_float64(sums, {number}, -1, float64(fold_{op}_{arithmetic}(buffer{number}.ctypes.data, "
            "m)))"
        )
    scalars = [
        f"s{j} = {in_arithmetic(arithmetic, f'load_float64(scalars, {j}, -1)')}" for j in program.scalars()
    ]

    def loop(program):
        body, _ = body_lines(program, dialect, dtypes, arithmetic, kept)
        if not program.reductions:
            return dialect.loop.format(block=block, before=indented(before, 1), body=indented(body, 2)).split(
                "\n"
            )
        inner = dialect.tile_loop.format(
            block=block, before=indented(before, 1), body=indented(body, 2)
        ).split("\n")
        tile = [f"m = min({TILE}, n - tile)", *inner, *folds, f"sums += {8 * len(folds)}"]
        return [f"for tile in range(0, n, {TILE}):", *_indented_lines(tile)]

    loops = loop(program)
    divisors = scalar_divisors(program)
    if divisors:
        reciprocals = [f"r{j} = reciprocal_{arithmetic}(s{j})" for j in divisors]
        exact = " and ".join(f"r{j} != {arithmetic}(0)" for j in divisors)
        faster = [f"s{j} = r{j}" for j in divisors] + loop(by_reciprocals(program, divisors))
        loops = [
            *reciprocals,
            f"if {exact}:  # multiplying by it gives the same bits",
            *_indented_lines(faster),
            "else:",
            *_indented_lines(loops),
        ]
    parts = {
        "comment": "\n".join(f"# {line}" for line in rule_comment(program)),
        "setup": indented(pointers + scalars + buffers, 1),
        "loops": indented(loops, 1),
    }
    return dialect.header + dialect.kernel.format(**parts)


def in_arithmetic(arithmetic, text):
    """Return `text`, a float64, rounded to the arithmetic."""
    return text if arithmetic == "float64" else f"{arithmetic}({text})"


def scalars_text(stage, dialect, dtypes):
    """Return the text of the module that holds a stage of arithmetic on numbers.

    Parameters
    ----------
    stage, dialect, dtypes
        As for `number_lines`.

    Returns
    -------
    str
        Of a function ``scalars(row, numbers, taken)``: the addresses of a parameter's slots and of its
        numbers, and 1 or 0.
    """
    return (
        f"{dialect.header}def scalars(row, numbers, "
        f"taken):\n{indented(number_lines(stage, dialect, dtypes), 1)}\n"
    )


def number_lines(stage, dialect, dtypes):
    """Return the lines that do a stage of arithmetic on numbers, for one parameter.

    They are given `row`, `numbers` and `taken`.

    Parameters
    ----------
    stage : nbopt.language.stages.Scalars
    dialect : Dialect
    dtypes : dict of int to str
        The storage of the slots that it loads or stores.

    Returns
    -------
    list of str
    """
    ops = {**COMMON_OPS, **dialect.ops, "power": "power_of_numbers({0}, {1})"}
    lines = []

    def spelled(operand):
        return f"load_float64(numbers, {~operand}, -1)" if operand < 0 else f"v{operand}"

    for index, (op, *operands) in enumerate(stage.code):
        if op == "taken":
            lines.append(f"v{index} = float64(taken)")
        elif op == "load":
            dtype = dtypes[operands[0]]
            lines.append(f"v{index} = float64(load_{dtype}(load_int64(row, {operands[0]}, -1), 0, -1))")
        elif op in ("store", "round"):
            slot, value, _ = operands
            dtype = dtypes[slot]
            rounded = {"float64": "{}", "float32": "float64(float32({}))"}.get(
                dtype, f"nearest_{dtype}_float64({{}})"
            ).format(spelled(value))
            lines.append(f"v{index} = {rounded}")
            if op == "store":
                stored = f"v{index}" if dtype == "float64" else dialect.narrowed.format(value=f"v{index}")
                lines.append(f"store_{dtype}(load_int64(row, {slot}, -1), 0, -1, {stored})")
        else:
            values = [spelled(operand) for operand in operands]
            call = ops.get(op, f"{op}({', '.join(f'{{{k}}}' for k in range(len(values)))})")
            lines.append(f"v{index} = {call.format(*values, F='float64')}")
    return lines + [f"store_float64(numbers, {output}, -1, v{line})" for line, output in stage.outputs]


_AHEAD = 512  # bytes
ITEM_SIZES = {name: storage.dtype.itemsize for name, storage in FORMATS.items()}


def indented(lines, depth):
    """Return lines as one text, each indented by `depth` levels."""
    return "\n".join(_indented_lines(lines, depth))


def _indented_lines(lines, depth=1):
    return ["    " * depth + line for line in lines]
