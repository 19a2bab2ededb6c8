"""The comment above a kernel: its rule as mathematics."""

_INFIX = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def rule_comment(program):
    """Return the program's assignments as lines of readable mathematics, scalars being s0, s1, ...

    A value that is used more than once and is no plain load gets a line of its own.
    """
    uses = [0] * len(program.code)
    for op, *operands in program.code:
        for operand in [] if op == "load" else operands[1:2] if op in ("store", "round") else operands:
            if operand >= 0:
                uses[operand] += 1
    lines, text = [], []

    def spelled(operand):
        return f"s{~operand}" if operand < 0 else text[operand]

    for index, (op, *operands) in enumerate(program.code):
        if op == "load":
            text.append(program.names[operands[0]])
            continue
        if op in ("store", "round"):
            slot, value, _ = operands
            name = program.names[slot] if op == "store" else f"new_{program.names[slot]}"
            lines.append(f"{name} = {_bare(spelled(value))}")
            text.append(name)
            continue
        arguments = [spelled(operand) for operand in operands]
        if op in _INFIX:
            here = f"({arguments[0]} {_INFIX[op]} {arguments[1]})"
        elif op == "negative":
            here = f"(-{arguments[0]})"
        else:
            here = f"{op}({', '.join(map(_bare, arguments))})"
        if uses[index] > 1:
            lines.append(f"v{index} = {_bare(here)}")
            here = f"v{index}"
        text.append(here)
    return lines + [
        f"{op} of {_bare(spelled(value))}" for op, value, *_ in (*program.reductions, *program.folds)
    ]


def _bare(text):
    """Drop parentheses around a whole expression."""
    depth = 0
    for position, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0 and position < len(text) - 1:
            return text
    return text[1:-1] if text.startswith("(") else text
