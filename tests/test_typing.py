"""The program that type checkers look at, tests/typed_program.py, runs and passes them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import typed_program

import nbopt

ROOT = Path(__file__).parents[1]
CHECKERS = {
    "mypy": ["--strict", "tests/typed_program.py"],
    "pyright": ["--pythonpath", sys.executable],
}


def test_typed_program(tmp_path):
    """Types change nothing of what it does."""
    with nbopt.use_backend("reference"):
        assert typed_program.main(tmp_path) == 18.0


@pytest.mark.parametrize("checker", CHECKERS)
def test_checkers(checker):
    """A user's program with rules of his own passes, and its mistakes are found. (Lint runs mypy, too.)"""
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed: tox run -e types")
    command = [sys.executable, "-m", checker, *CHECKERS[checker]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
