"""The page of asv_bench/report.py."""

import importlib
import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "asv_bench"))
    before = set(sys.modules)
    yield importlib.import_module("report")
    for name in set(sys.modules) - before:
        if name == "report" or name.partition(".")[0] == "benchmarks":
            del sys.modules[name]


MACHINE = {
    "cpu": "A <fast> processor",
    "threads": 2,
    "system": "Linux",
    "versions": {"nbopt": "0.1.0", "torch": "2.13.0"},
    "date": "2026-11-28T00:00:00+00:00",
    "commit": "",
    "command": "python asv_bench/compare.py --report",
}


def test_page(report):
    """A row that nbopt loses is shown like one that it wins, and so is what is absent."""
    fast, slow = np.full(9, 1e-3), np.full(9, 2.5e-3)
    figures = [
        ("Won", {"nbopt": fast, "PyTorch fused": slow}, {"optax jit": "needs JAX & optax"}),
        ("Lost", {"nbopt": slow, "nbopt.torch": slow * 2, "PyTorch fused": fast}, {}),
        ("Alone", {"nbopt": fast}, {}),
        ("Nothing", {}, {"nbopt": "no"}),
    ]
    text = report.page(figures, MACHINE, quick=True)
    assert "PyTorch fused, the fastest of the others, takes 2.50 times as long as nbopt." in text
    assert "nbopt takes 2.50 times as long as PyTorch fused, the fastest of the others." in text
    assert "optax jit is absent: needs JAX &amp; optax" in text
    for words in (
        "A &lt;fast&gt; processor",
        "torch 2.13.0",
        "compare.py --report",
        "commit unknown",
        "quick run",
    ):
        assert words in text
    drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert [len(svg.findall("rect")) for svg in drawn] == [2, 3, 1]
    widths = [float(bar.get("width")) for bar in drawn[1].findall("rect")]
    assert widths == sorted(widths) and widths[2] == pytest.approx(5 * widths[0], rel=0.01)


def test_picture(report):
    """The picture has all bars, and says where they are from."""
    figures = [
        ("Won", {"nbopt": np.full(9, 1e-3), "PyTorch fused": np.full(9, 2e-3)}, {"optax jit": "no"})
    ] * 2
    drawn = ElementTree.fromstring(report.picture(figures, MACHINE, quick=False))
    assert len(drawn.findall("{*}g/{*}rect")) == 4
    assert "A <fast> processor, 2 threads, 2026-11-28; nbopt 0.1.0, torch 2.13.0" in [
        text.text for text in drawn.findall("{*}text")
    ]


def test_measured(report):
    """Contenders take turns; one that can't be made is absent, with its reason."""

    def fails():
        raise NotImplementedError("needs  a library")

    calls = []
    makes = {"nbopt": lambda: lambda: calls.append("nbopt"), "other": lambda: lambda: calls.append("other")}
    found, absent = report.measured({**makes, "third": fails}, lambda: None, seconds=0.0)
    assert absent == {"third": "needs a library"}
    assert {name: len(times) for name, times in found.items()} == {"nbopt": 4, "other": 4}
    assert calls.count("nbopt") == calls.count("other") == 6


def test_progress(report):
    """A terminal shows a bar, another stream lines."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in {Terminal(): "[###############   ", io.StringIO(): "1 of 2: half\n"}.items():
        report.progress(1, 2, "half", stream)
        assert shown.strip() in stream.getvalue()
