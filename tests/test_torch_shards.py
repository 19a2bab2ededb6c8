"""DTensors: sharded parameters, as FSDP2 makes them, are updated share by share."""

import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo, by which processes talk", allow_module_level=True)

WORKER = pathlib.Path(__file__).with_name("sharded.py")


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("steps", [300, pytest.param(10_000, marks=pytest.mark.thorough)])
@pytest.mark.rest("300-1")
def test_sharded(steps, world, tmp_path):
    """One process, or two, train what one does with plain tensors.

    What can't be run is refused, and nothing grows in so many steps.
    """
    command = [sys.executable, str(WORKER)]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(tmp_path / "store"), str(steps)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        for process in started:
            out, err = process.communicate(timeout=300 + steps // 10)
            assert out.strip().endswith("done"), err[-3000:]
    finally:
        for process in started:
            process.kill()
            process.wait()
