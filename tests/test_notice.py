"""The word that nbopt says while kernels are compiled."""

import logging
import os
import subprocess
import sys

import pytest

import nbopt
from nbopt_backends.lowering import notice
from nbopt_backends.lowering.notice import while_compiling


@pytest.fixture
def said(monkeypatch, caplog):
    """Return what is said of compilations of so many seconds, in a process that has said nothing yet."""
    monkeypatch.setattr(notice, "_Waiting", type("_Waiting", (), {"spent": 0.0, "said": False}))
    monkeypatch.delenv("NBOPT_QUIET", raising=False)

    class Timer:
        """A clock that the test moves."""

        daemon = False

        def __init__(self, seconds, function, arguments):
            self.seconds, self.run = seconds, lambda: function(*arguments)

        def start(self):
            if now[0] >= self.seconds:
                self.run()

        def cancel(self):
            pass

    now = [0.0]
    monkeypatch.setattr(notice.threading, "Timer", Timer)

    def said(*seconds):
        caplog.clear()
        for length in seconds:
            now[0] = length
            clock = iter([0.0, length])
            monkeypatch.setattr(notice.time, "monotonic", lambda clock=clock: next(clock))
            with while_compiling(lambda: "a folder"):
                pass
        return [record.getMessage() for record in caplog.records if record.name == "nbopt"]

    return said


def test_when(said):
    """It is said once, after a second of compiling, and never of kernels that are found on disk."""
    assert said(0.9) == []
    assert said(0.15, 0.15, 0.15) == []
    (text,) = said(0.25, 3.0)
    assert "kept in a folder" in text
    assert said(5.0) == []


@pytest.mark.parametrize("way", ["variable", "level"])
def test_silence(said, way, monkeypatch):
    """An environment variable silences it, and so does the logger's level."""
    if way == "variable":
        monkeypatch.setenv("NBOPT_QUIET", "1")
    else:
        monkeypatch.setattr(logging.getLogger("nbopt"), "level", logging.ERROR)
        logging.getLogger("nbopt").manager._clear_cache()
    try:
        assert said(5.0) == []
    finally:
        monkeypatch.undo()
        logging.getLogger("nbopt").manager._clear_cache()


STEP = """
import numpy as np
import nbopt
from nbopt_backends.lowering import notice

notice.MOMENT, notice.LEAST = 0.05, 0.05
layer = nbopt.Parameters((np.ones(3, np.float32), np.ones(3, np.float32)))
with nbopt.use_backend("cpu"):
    nbopt.GradientDescentMomentum(0.1, 0).optimize([layer], 0)
"""


def test_stderr(tmp_path):
    """A program that configures no logging shows it on stderr, once for all kernels of a step."""
    root = os.path.dirname(os.path.dirname(nbopt.__file__))
    environment = {**os.environ, "NBOPT_CACHE_DIR": str(tmp_path / "new"), "PYTHONPATH": root}
    environment.pop("NBOPT_QUIET", None)
    done = subprocess.run(
        [sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr.count("nbopt compiles the kernels") == 1
    assert str(tmp_path / "new") in done.stderr
