"""Scalar code: how the numbers of a step follow from the numbers that the host looks up.

These are the learning rate, the count, and the optimizer's hyper-parameters. All of it is float64. It becomes
a Python function, which takes a microsecond where a trace of the rule takes a hundred.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nbopt.language.ops import PRIMITIVES, evaluate_numbers

if TYPE_CHECKING:
    from nbopt.language.lines import Line

_SPELLED = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "negative": "-{0}",
    "absolute": "abs({0})",
    "equal": "float({0} == {1})",
    "not_equal": "float({0} != {1})",
    "less": "float({0} < {1})",
    "less_equal": "float({0} <= {1})",
    "greater": "float({0} > {1})",
    "greater_equal": "float({0} >= {1})",
    "where": "({1} if {0} != 0 else {2})",
}
#: The numbers that belong to the step, in the order of the function's arguments. Others are attributes of the
#: optimizer.
GIVEN = ("lr", "t", "epoch", "divisor")
_MOST_SQUARINGS = 2**31


def power(base: float, exponent: float) -> float:
    """Return a power.

    By a whole number it is squarings and multiplications in a fixed order, so every machine gives the same
    bits.

    Parameters
    ----------
    base, exponent : float

    Returns
    -------
    float
    """
    if exponent != exponent or abs(exponent) >= _MOST_SQUARINGS or exponent != int(exponent):
        try:
            return base**exponent if base > 0 else evaluate_numbers("power", base, exponent)
        except OverflowError:
            return math.inf
    result, rest = 1.0, abs(int(exponent))
    while rest:
        if rest & 1:
            result *= base
        base *= base
        rest >>= 1
    return result if exponent >= 0 else evaluate_numbers("divide", 1.0, result)


def _sqrt(x: float) -> float:
    return math.sqrt(x) if x >= 0 else evaluate_numbers("sqrt", x)


def evaluate(op: str, *operands: float) -> float:
    """Apply a primitive to numbers, in float64.

    Parameters
    ----------
    op : str
    *operands : float

    Returns
    -------
    float
        Infinite or NaN where IEEE 754 says so; nothing is raised.
    """
    return power(*operands) if op == "power" else evaluate_numbers(op, *operands)


class ScalarCode(NamedTuple):
    """Lines over numbers, see `nbopt.language.stages`. Hashable.

    Attributes
    ----------
    code : tuple of tuples
    outputs : tuple of int
        The lines whose values are wanted.
    tests : tuple of (int, bool)
        Lines whose values a rule has looked at, and whether it was for their truth only.
    """

    code: tuple[Any, ...]
    outputs: tuple[Any, ...]
    tests: tuple[Any, ...]

    @classmethod
    def of(cls, code: Sequence[Line], outputs: Sequence[int], tests: Sequence[Any]) -> ScalarCode:
        """Return the scalar code for some lines of a trace.

        Parameters
        ----------
        code : sequence of tuples
            The trace.
        outputs : sequence of int
        tests : sequence of (int, bool)

        Returns
        -------
        ScalarCode
        """
        needed = {*outputs, *(index for index, _ in tests)}
        for index in range(len(code) - 1, -1, -1):
            if index in needed and code[index][0] not in ("number", "source"):
                needed.update(code[index][1:])
        places = {index: place for place, index in enumerate(sorted(needed))}
        lines = []
        for index in sorted(needed):
            op, *operands = code[index]
            lines.append(
                (op, *operands)
                if op in ("number", "source")
                else (op, *(places[operand] for operand in operands))
            )
        return cls(
            tuple(lines),
            tuple(places[index] for index in outputs),
            tuple((places[index], truth) for index, truth in tests),
        )

    @property
    def own(self) -> tuple[str, ...]:
        """The attributes of the optimizer that are read."""
        return tuple(
            sorted(
                {
                    line[1].removeprefix("self.")
                    for line in self.code
                    if line[0] == "source" and line[1] not in GIVEN
                }
            )
        )

    def function(self) -> Callable[..., tuple[list[float], tuple[Any, ...]]]:
        """Return the code as a function.

        Returns
        -------
        callable
            ``function(numbers, lr, t, epoch, divisor, *own)`` takes the trace's numbers, those of the step,
            and the attributes `own` in their order. It returns a list of the outputs and a tuple of what the
            tests find. It raises AttributeError or TypeError if something is no number, and ArithmeticError
            where IEEE 754 has an infinity: `exactly` does not.
        """
        return _compiled(self)

    def exactly(self, numbers: Sequence[float], *sources: Any) -> tuple[list[float], tuple[Any, ...]]:
        """Do what the function does by IEEE 754, which is slower."""
        known = dict(zip((*GIVEN, *(f"self.{name}" for name in self.own)), sources))
        found: list[Any] = []
        for op, *operands in self.code:
            if op == "number":
                found.append(numbers[operands[0]])
            elif op == "source":
                found.append(known[operands[0]].__float__())
            else:
                found.append(evaluate(op, *(found[operand] for operand in operands)))
        return [found[line] for line in self.outputs], tuple(
            found[line] != 0 if truth else found[line] for line, truth in self.tests
        )

    def text(self) -> str:
        """Return the text of the function.

        Returns
        -------
        str
        """
        own = {f"self.{name}": f"own[{place}]" for place, name in enumerate(self.own)}
        lines = []
        for index, (op, *operands) in enumerate(self.code):
            if op == "number":
                spelled = f"numbers[{operands[0]}]"
            elif op == "source":
                spelled = f"{own.get(operands[0], operands[0])}.__float__()"  # float() would take a text, too
            else:
                values = [f"v{operand}" for operand in operands]
                spelled = _SPELLED[op].format(*values) if op in _SPELLED else f"{op}({', '.join(values)})"
            lines.append(f"    v{index} = {spelled}\n")
        outputs = ", ".join(f"v{line}" for line in self.outputs)
        tests = "".join(f"v{line} != 0, " if truth else f"v{line}, " for line, truth in self.tests)
        arguments = ", ".join(f"{name}=None" for name in GIVEN)
        return (
            f"def scalars(numbers, {arguments}, *own):\n{''.join(lines)}    return [{outputs}], ({tests})\n"
        )


@functools.lru_cache(maxsize=1024)
def _compiled(code: ScalarCode) -> Callable[..., tuple[list[float], tuple[Any, ...]]]:
    names: dict[str, Any] = {op: functools.partial(evaluate_numbers, op) for op in PRIMITIVES}
    names |= {"power": power, "sqrt": _sqrt, "abs": abs, "float": float, "__builtins__": {}}
    exec(compile(code.text(), "<scalar code of nbopt>", "exec"), names)
    return names["scalars"]
