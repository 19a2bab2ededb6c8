"""The program that `mypy` checks runs, too."""

import typed_program

import nbopt


def test_typed_program(tmp_path):
    """Types change nothing of what it does. (Lint checks them.)"""
    with nbopt.use_backend("reference"):
        assert typed_program.main(tmp_path) == 18.0
