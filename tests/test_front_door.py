"""What a newcomer meets first: the README's code, the example, ``python -m nbopt``, the public names."""

import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest
from helpers import thorough_but

import nbopt
from nbopt import __main__ as report

ROOT = pathlib.Path(__file__).resolve().parent.parent

#: What the plain run lets `python -m nbopt` check: in float32, in float64, with clips, with `shift`.
CHECKED = ("Adam", "RMSProp, centered", "RMSProp, clipped", "ShiftAdaMax")

PAGES = [
    "README.md",
    *sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "docs").rglob("*.md")
        if "```python\n" in path.read_text()
    ),
]


def fences(page):
    """Return (language, text, what the page says it needs) for each fenced block of a page."""
    found = re.findall(
        r"(?:<!-- needs: (.*?) -->\n)?^```([^\n`]*)\n(.*?)^```$",
        (ROOT / page).read_text(),
        re.DOTALL | re.MULTILINE,
    )
    return [(language, text, needs.split()) for needs, language, text in found]


def run(page, capsys):
    """Run the code of a page, in one namespace, and check what it prints.

    Return that, and the modules for lack of which blocks were left out.

    A ``text`` block after one of ``python`` is what that prints. A block after ``<!-- needs: torch -->`` is
    left out where PyTorch is not installed."""
    names = {"__name__": "__main__"}
    outputs, left_out, before = [], [], ""
    for language, text, needs in fences(page):
        if language == "python":
            missing = [module for module in needs if importlib.util.find_spec(module) is None]
            left_out += missing
            if not missing:
                exec(compile(text, page, "exec"), names)
                outputs.append(capsys.readouterr().out)
        elif language == "text" and before == "python" and not missing:
            assert outputs[-1] == text
        before = language
    return "".join(outputs), left_out


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_as_it_stands_and_prints_what_the_page_says(
    page, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # empty, as a reader's folder is
    printed, left_out = run(page, capsys)
    if page == "README.md":
        assert "[0. 1. 2. 3. 4. 5. 6. 7.]" in printed
        assert "def update(" in printed
    if left_out:
        pytest.skip(
            f"all ran but the blocks that need {', '.join(sorted(set(left_out)))}, which is not installed"
        )


def example(name):
    """Import an example as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_on_rules_has_the_optimizer_of_the_example():
    """It stands there as code, so that the page can be pasted into an empty directory."""
    text = (ROOT / "examples" / "own_optimizer.py").read_text()
    assert (
        text[text.index("import nbopt") : text.index("def main")].strip()
        in (ROOT / "docs" / "own-optimizer.md").read_text()
    )


@pytest.mark.parametrize(
    "optimizer",
    thorough_but(
        ["RMSProp", "GradientDescentMomentum", "Adagrad", "Adadelta", "Adam"], "RMSProp", "Adadelta"
    ),
)
@pytest.mark.rest("RMSProp")
def test_the_regression_example_fits_down_to_the_noise(tmp_path, optimizer):
    pytest.importorskip("matplotlib", reason="the example needs matplotlib and tqdm")
    pytest.importorskip("tqdm", reason="the example needs matplotlib and tqdm")
    losses = example("regression").main(["--optimizer", optimizer, "--plot", str(tmp_path / "found.png")])
    assert losses[0] > 1 and losses[-1] < 0.012  # the noise has variance 0.01
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options",
    thorough_but(
        [[], ["--bf16"], ["--optimizer", "Adam", "--learning-rate", "0.01"], ["--optimizer", "Adadelta"]],
        ["--bf16"],
    ),
)
@pytest.mark.rest
def test_the_language_model_learns(tmp_path, capsys, options):
    torch = pytest.importorskip("torch", reason="the example needs PyTorch, matplotlib and tqdm")
    pytest.importorskip("matplotlib", reason="the example needs PyTorch, matplotlib and tqdm")
    pytest.importorskip("tqdm", reason="the example needs PyTorch, matplotlib and tqdm")
    threads = torch.get_num_threads()
    try:
        losses = example("charlm").main(["--steps", "30", "--plot", str(tmp_path / "found.png"), *options])
    finally:
        torch.set_num_threads(threads)
    assert losses[0] > 4 and sum(losses[-10:]) / 10 < 3.2
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    assert "The " in capsys.readouterr().out


def test_the_example_learns_the_digits(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="the example needs scikit-learn, matplotlib and tqdm")
    digits = example("digits")
    assert digits.main(["--out", str(tmp_path)]) >= 0.97
    assert {path.name for path in tmp_path.iterdir()} == {"loss-RMSProp.png", "weights-RMSProp.npz"}
    assert (tmp_path / "loss-RMSProp.png").read_bytes().startswith(b"\x89PNG")
    assert all(np.isfinite(array).all() for array in np.load(tmp_path / "weights-RMSProp.npz").values())


@pytest.mark.parametrize(
    "checked", [CHECKED, pytest.param(None, marks=pytest.mark.thorough)], ids=["some", "every"]
)
@pytest.mark.rest
def test_the_report_says_what_was_found_and_that_all_is_well(monkeypatch, capsys, checked):
    """It compares what it lists; the plain run lists a few, since other tests compare every optimizer."""
    made = report._optimizers
    labels = checked or tuple(made())
    monkeypatch.setattr(report, "_optimizers", lambda: {label: made()[label] for label in labels})
    assert report.main() == 0
    printed = capsys.readouterr().out
    assert all(label in printed for label in labels)
    for word in (
        "nbopt " + nbopt.__version__,
        "threading layer",
        "flush to zero",
        "cache folder",
        "same bits",
        "not usable",
    ):
        assert word in printed
    assert "DIFFERS" not in printed


def test_the_report_on_a_terminal_and_as_json(monkeypatch, capsys):
    monkeypatch.setattr(report, "_trained", lambda backend, optimizer, dtype: b"")
    monkeypatch.setattr(report, "is_terminal", lambda: True)
    assert report.main() == 0
    assert "\x1b[32m       same bits\x1b[0m" in capsys.readouterr().out
    assert report.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nbopt"] == nbopt.__version__ and found["good"] is True
    assert found["backends"]["reference"] == "usable"
    assert found["self-check"]["RMSProp"]["cpu float32"] == "same bits"
    monkeypatch.setattr(report, "_trained", lambda backend, optimizer, dtype: backend)
    assert report.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["good"] is False


def test_the_report_fails_where_no_backend_can_be_checked(monkeypatch, capsys):
    monkeypatch.setattr(report, "_columns", list)
    assert report.main() == report.main(["--json"]) == 1
    assert "nothing to compare" in capsys.readouterr().out


def test_the_report_fails_where_a_backend_gives_other_results(monkeypatch, capsys):
    monkeypatch.setattr(report, "_trained", lambda backend, optimizer, dtype: backend)
    assert report.main() == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_the_report_names_the_error_where_an_optimizer_fails(monkeypatch, capsys):
    def fail(backend, optimizer, dtype):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(report, "_trained", fail)
    assert report.main() == 1
    assert "RuntimeError: out of luck" in capsys.readouterr().out
