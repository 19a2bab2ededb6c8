"""Programs: what a trace becomes before a backend runs it.

A trace is straight-line code. Each line gives a value, which later lines know by its position:

    ("number", k)            the trace's number k: a Python number that stood in the rule
    ("source", name)         a number that belongs to the step: "lr", "t", "self.decay", ...
    ("load", slot)           read a slot; emitted at its first use only
    ("store", slot, value)   write a slot; the line's value is what was stored, after rounding
    (op, operand, ...)       a primitive of `nbopt.language.ops`

`cut` takes apart what the host can compute once, the scalar code, and what is done for each element, the program. In a program operands
below 0 are run-time scalars (``~j`` is scalar j), which are the outputs of the scalar code.
"""

from typing import NamedTuple

from nbopt.language.scalars import ScalarCode

#: The source that only the device knows: the norm-clip factor.
SCALE = ("source", "scale")
#: The source that gradients are divided by.
DIVISOR = ("source", "divisor")


class Program(NamedTuple):
    """Straight-line code over slots. Hashable: two rules with the same structure share one.

    Attributes
    ----------
    names : tuple of str
        The slots' names, which the kernel's text uses.
    code : tuple of tuples
    n_scalars : int
    factor : int or None
        The index of the scalar that a backend fills with the norm-clip factor.
    divisor : int or None
        The index of the scalar that gradients are divided by.
    """

    names: tuple
    code: tuple
    n_scalars: int
    factor: int | None = None
    divisor: int | None = None

    def written(self):
        """Return which slots are stored to.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] == "store"})

    def used(self):
        """Return which slots are loaded or stored.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] in ("load", "store")})


def operands_of(line):
    """Return the positions of the values that a line of a trace is computed from."""
    op, *operands = line
    return [] if op in ("number", "source", "load") else operands[1:] if op == "store" else operands


def loses(code, slot):
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


def cut(names, code, tests=()):
    """Cut a trace into the program that runs over all elements, and the scalar code that gives its numbers.

    Lines that no assignment needs are left out.

    Parameters
    ----------
    names : tuple of str
        The slots'.
    code : sequence of tuples
        The trace.
    tests : sequence of (int, bool)
        Values that the scalar code is to give as well, see `ScalarCode`.

    Returns
    -------
    program : Program
    scalars : ScalarCode
        Its outputs are the program's scalars.
    """
    by_host: list[bool] = []
    for line in code:
        operands = operands_of(line)
        by_host.append(line[0] not in ("load", "store") and line != SCALE and all(by_host[operand] for operand in operands))
    needed = _needed(code)
    places: dict[int, int] = {}  # line of the trace -> operand code in the program
    outputs: list[int] = []
    factor = divisor = None
    lines: list[tuple] = []

    def place(operand):
        nonlocal factor, divisor
        if operand not in places:  # a scalar, at its first use
            places[operand] = ~len(outputs)
            outputs.append(operand)
            factor = len(outputs) - 1 if code[operand] == SCALE else factor
            divisor = len(outputs) - 1 if code[operand] == DIVISOR else divisor
        return places[operand]

    for index, line in enumerate(code):
        if by_host[index] or index not in needed or line == SCALE:
            continue
        if line[0] == "load":
            new = line
        elif line[0] == "store":
            new = ("store", line[1], place(line[2]))
        else:
            new = (line[0], *map(place, line[1:]))
        places[index] = len(lines)
        lines.append(new)
    program = Program(tuple(names), tuple(lines), len(outputs), factor, divisor)
    return program, ScalarCode.of(code, outputs, tests)


def _needed(code):
    """Return the set of the lines that stores are computed from, and of the stores."""
    needed = {index for index, line in enumerate(code) if line[0] == "store"}
    for index in range(len(code) - 1, -1, -1):
        if index in needed:
            needed.update(operands_of(code[index]))
    return needed
