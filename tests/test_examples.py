"""Every example runs as a user runs it: in a process of its own, in its quick form."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# What each is called with here. The others are run by test_front_door.py, which looks at what they have
# learned.
QUICK = {
    "family": ["--epochs", "1", "--out", "picture.png"],
    "own_optimizer": [],
    "sixteen_bits": ["--quick", "--out", "picture.png"],
    "toy_backend": [],
    "finetune": ["--quick", "--plot", "picture.png"],
    "offload": ["--steps", "5", "--device", "cpu", "--plot", "picture.png"],
}
# What they draw there.
DRAWS = {
    **dict.fromkeys(("family", "sixteen_bits", "finetune"), "picture.png"),
    "own_optimizer": "own_optimizer.png",
}
_PICTURE = ("sklearn", "matplotlib", "threadpoolctl", "tqdm")
NEEDS = {
    "own_optimizer": ("matplotlib", "tqdm"),
    "family": _PICTURE,
    "sixteen_bits": _PICTURE,
    "offload": ("torch", "matplotlib", "tqdm"),
    "finetune": ("torch", "transformers", "accelerate", "matplotlib", "tqdm"),
}
ELSEWHERE = {"charlm", "digits", "regression"}


def test_no_example_is_forgotten():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*QUICK, *ELSEWHERE}
    text = Path(__file__).with_name("test_front_door.py").read_text()
    assert all(f'example("{name}")' in text for name in ELSEWHERE)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.rest("toy_backend", "finetune")
def test_an_example_runs_in_its_quick_form(tmp_path, name):
    for library in NEEDS.get(name, ()):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"the example needs {library}")
    path = os.pathsep.join([str(EXAMPLES.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *QUICK[name]]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert name not in DRAWS or (tmp_path / DRAWS[name]).read_bytes().startswith(b"\x89PNG")
