"""What a newcomer meets first: the README's code, the example, ``python -m nbopt``, the public names."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest

import nbopt
from nbopt import __main__ as report

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_readme(for_torch):
    """Run the README's blocks, those for PyTorch or the others, one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    chosen = [block for block in blocks if ("import torch" in block) == for_torch]
    assert len(chosen) >= (1 if for_torch else 3)
    names = {}
    for block in chosen:
        exec(compile(block, "README.md", "exec"), names)


def example(name):
    """Import an example as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_readmes_code_runs_as_it_stands(capsys):
    run_readme(for_torch=False)
    printed = capsys.readouterr().out
    assert "[0. 1. 2. 3. 4. 5. 6. 7.]" in printed
    assert "def update(" in printed


def test_the_readmes_code_for_pytorch_runs_as_it_stands(capsys):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install nbopt[torch]")
    torch.manual_seed(0)
    run_readme(for_torch=True)
    assert "tensor([[1., 1., 1., 1., 1., 1., 1., 1.]])" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["RMSProp", "GradientDescentMomentum", "Adagrad", "Adadelta", "Adam"])
def test_the_regression_example_fits_down_to_the_noise(tmp_path, optimizer):
    pytest.importorskip("matplotlib", reason="the example needs matplotlib and tqdm")
    pytest.importorskip("tqdm", reason="the example needs matplotlib and tqdm")
    losses = example("regression").main(["--optimizer", optimizer, "--plot", str(tmp_path / "found.png")])
    assert losses[0] > 1 and losses[-1] < 0.012  # the noise has variance 0.01
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [[], ["--bf16"], ["--optimizer", "Adam", "--learning-rate", "0.01"], ["--optimizer", "Adadelta"]])
def test_the_language_model_learns(tmp_path, capsys, options):
    torch = pytest.importorskip("torch", reason="the example needs PyTorch, matplotlib and tqdm")
    pytest.importorskip("matplotlib", reason="the example needs PyTorch, matplotlib and tqdm")
    pytest.importorskip("tqdm", reason="the example needs PyTorch, matplotlib and tqdm")
    threads = torch.get_num_threads()
    try:
        losses = example("charlm").main(["--steps", "60", "--plot", str(tmp_path / "found.png"), *options])
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


def test_the_report_says_what_was_found_and_that_all_is_well(capsys):
    assert report.main() == 0
    printed = capsys.readouterr().out
    for word in ("nbopt " + nbopt.__version__, "threading layer", "flush to zero", "cache folder", "same bits", "not usable"):
        assert word in printed
    assert "DIFFERS" not in printed


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


def test_every_public_name_exists_and_has_a_docstring():
    for name in nbopt.__all__:
        value = getattr(nbopt, name)
        assert name == "__version__" or value.__doc__, name
        if isinstance(value, type):
            undocumented = [key for key, member in vars(value).items() if not key.startswith("_") and callable(member) and not member.__doc__]
            assert not undocumented, (name, undocumented)
