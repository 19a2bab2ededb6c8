"""Colours, on a terminal only."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

_ENDS = "\x1b[0m"
_COLOURS = {"grey": "\x1b[90m", "green": "\x1b[32m", "red": "\x1b[31m", "blue": "\x1b[34m", "bold": "\x1b[1m"}
_KEYWORDS = re.compile(r"\b(def|for|in|if|elif|else|while|return|from|import|range|and|or|not)\b")


def is_terminal(stream: Any = None) -> bool:
    """Return whether a stream shows colours: it is a terminal, and NO_COLOR is not set.

    Parameters
    ----------
    stream : file, optional
        Standard output without it.
    """
    stream = sys.stdout if stream is None else stream
    try:
        return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # no stream at all, or a closed one
        return False


def coloured(text: str, colour: str) -> str:
    """Return a text in ``"grey"``, ``"green"``, ``"red"``, ``"blue"`` or ``"bold"``."""
    return f"{_COLOURS[colour]}{text}{_ENDS}"


class Code(str):
    """A text of Python code that has colours where it is printed on a terminal, and nowhere else.

    It is a `str` without them. `print` and the prompt of an interpreter show lines, with colours on a
    terminal.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(_line, self.split("\n"))) if is_terminal() else str.__str__(self)

    def __repr__(self) -> str:
        return str(self)

    def __format__(self, spec: str) -> str:
        return format("".join(self), spec)

    def __reduce__(self) -> Any:
        return Code, ("".join(self),)


def _line(line: str) -> str:
    code, mark, comment = line.partition("#")
    code = _KEYWORDS.sub(lambda found: coloured(found[0], "blue"), code)
    return code + (coloured(mark + comment, "grey") if mark else "")
