"""The rules of the family are short, and so are their files."""

import ast
import inspect
import textwrap
from pathlib import Path

import pytest

from tests.helpers import OTHERS

KINDS = {kind.__name__: kind for kind in OTHERS.values()}


def mathematics(rule):
    """Return how many statements of a rule compute something: one a line, whatever its length.

    What gives hyper-parameters and states shorter names is none, nor are the heads of loops and branches.
    """
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(rule))).body
    body = function.body[ast.get_docstring(function) is not None :]
    found = [one for line in body for one in ast.walk(line) if isinstance(one, (ast.Assign, ast.Expr))]
    return sum(any(isinstance(part, (ast.Call, ast.BinOp)) for part in ast.walk(one)) for one in found)


@pytest.mark.parametrize("name", KINDS)
def test_lengths(name):
    """A rule has at most 12 lines of mathematics, Adafactor's 20; its file has at most 80 lines."""
    assert 2 <= mathematics(KINDS[name].rule) <= (20 if name == "Adafactor" else 12)
    assert len(Path(inspect.getsourcefile(KINDS[name])).read_text().splitlines()) <= 80
