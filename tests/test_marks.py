"""The marks of conftest.py, by which the plain run leaves tests out."""

import pathlib

CONFTEST = pathlib.Path(__file__).with_name("conftest.py").read_text()
MARKS = '[pytest]\nmarkers =\n  rest: ""\n  thorough: ""\n  covering: ""\n  gpu: ""\n'
TEST = """
import pytest

@pytest.mark.parametrize("x", ["one", "two"])
@pytest.mark.{}
def test_it(x):
    pass
"""
WRONG = {
    "rest('one', 'thre*')": "'thre*', which is like no case; there are ['one', 'two']",
    "rest(where=['gpus'])": "the mark rest names ['gpus']",
    "thorough('complied')": "the mark thorough names ['complied']",
}


def test_rest(pytester):
    """The plain run keeps the named cases, and --rest runs the others, alone.

    A mark that keeps no case, or names no place, fails where the test is collected.
    """
    pytester.makeconftest(CONFTEST)
    pytester.makeini(MARKS)
    marks = {"kept": "rest('t*')", "elsewhere": "rest(where=['gpu'])"}
    for name, mark in [*marks.items(), *((f"wrong{k}", mark) for k, mark in enumerate(WRONG))]:
        pytester.makepyfile(**{f"test_{name}": TEST.format(mark)})
    plain, rest = (
        pytester.runpytest_subprocess("--collect-only", "-q", *arguments).stdout.str()
        for arguments in ([], ["--rest"])
    )
    cases = {f"{name}::test_it[{case}]" for name in ("kept.py", "elsewhere.py") for case in ("one", "two")}
    assert {case for case in cases if case in rest} == {"kept.py::test_it[one]"}
    assert {case for case in cases if case in plain} == cases - {"kept.py::test_it[one]"}
    for word in WRONG.values():
        assert word in plain and word in rest
