"""The CUDA backend on a real GPU: ``pytest -m gpu``, from a source checkout too (``PYTHONPATH=.

pytest -m gpu``).

The marker also picks, from all other files, the tests that take the fixture `backend`: where a GPU is present
they run on "cuda" as well, over NumPy arrays that are mirrored on the device (mirrored.py). This file has the
tests for the device itself, those of device_checks.py among them."""

import os
import subprocess
import sys

import numpy as np
import pytest
from device_checks import *  # noqa: F403
from device_checks import assert_same, reference, trained
from device_slices import *  # noqa: F403
from helpers import OPTIMIZERS, thorough_but

import nbopt
from nbopt import errors
from nbopt_backends.cuda import nodes

_problem = nbopt.backends.backend_problem("cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    _problem = "the simulator is no GPU: unset NUMBA_ENABLE_CUDASIM"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_problem is not None, reason=f"needs an NVIDIA GPU: {_problem}"),
]


@pytest.fixture
def cuda():
    with nbopt.use_backend("cuda", rng_seed=0, batch_size=8) as be:
        yield be
        be.synchronize()


LARGE = [(1_000_003,), (513, 1025), (16, 31, 7)]


@pytest.mark.parametrize(
    "dtypes",
    thorough_but([("float32",), ("float64",), ("float32", "float64")], ("float32", "float64")),
    ids="-".join,
)
@pytest.mark.parametrize("name", thorough_but(OPTIMIZERS, "nesterov"))
def test_large_tensors_have_the_references_bits(cuda, name, dtypes):
    assert_same(
        trained(cuda, OPTIMIZERS[name](), dtypes, 2, LARGE),
        trained(reference(), OPTIMIZERS[name](), dtypes, 2, LARGE),
    )


@pytest.mark.rest(where=["gpu"])
def test_the_norm_over_many_tiles_is_the_references(cuda):
    factors = []
    # Each row is a tile of its own, so that their sums need another pass.
    values = np.random.default_rng(1).standard_normal((8200, 3))
    for be in (cuda, reference()):
        with nbopt.use_backend(be):
            matrix = be.array(values)
            layer = nbopt.Parameters(*((matrix[k], matrix[k]) for k in range(len(values))))
            factors.append(nbopt.RMSProp().clip_gradient_norm(layer.get_params(), 0.3))
    assert factors[0] == factors[1] < 1


@pytest.mark.thorough
def test_the_norm_clip_over_many_tiles_has_the_cpus_bits(cuda):
    def optimizer():
        return nbopt.RMSProp(gradient_clip_norm=0.3)

    cpu = nbopt.backends._load("cpu")(rng_seed=0, batch_size=8)
    shapes = [(80_000_000,), *LARGE]
    assert_same(
        trained(cuda, optimizer(), ("float32",), 1, shapes),
        trained(cpu, optimizer(), ("float32",), 1, shapes),
    )


def test_a_tensor_of_more_than_2_to_the_31_elements(cuda):
    n = 2**31 + 1001
    from numba import cuda as numba_cuda

    with cuda.device.entered():
        free = numba_cuda.current_context().get_memory_info().free
    if free < 9 * n:
        pytest.skip(f"needs {9 * n / 2**30:.0f} GiB of GPU memory, and {free / 2**30:.0f} are free")
    param, grad = cuda.ones(n), cuda.ones(n)
    grad[-1000:] = 16.0
    nbopt.GradientDescentMomentum(1.0, 0.0).optimize([nbopt.Parameters((param, grad))], 0)
    assert (
        (param[-1000:].get() == -1).all()
        and (param[:1000].get() == 0.875).all()
        and (param[2**31 - 500 : 2**31].get() == 0.875).all()
    )
    assert be_sum(cuda, param[-2001:]) == 1001 * 0.875 - 1000


def be_sum(be, t):
    out = be.empty(1)
    be.sum(t, out=out)
    return float(out.get()[0])


def test_a_request_for_too_much_memory_is_an_error_of_ours_and_changes_nothing(cuda):
    t = cuda.ones(10)
    with pytest.raises(errors.DeviceMemoryError, match=r"out of memory: 70,368,744,177,664 bytes were asked"):
        cuda.empty((2**44,))
    assert (t.get() == 1).all()


def test_out_of_memory_in_a_step(cuda, monkeypatch):
    """States that do not fit: the message has the bytes, nothing has changed, and a step follows."""
    layer, optimizer = nbopt.Parameters((cuda.ones(10), cuda.ones(10))), nbopt.Adam()
    allocate = cuda.device.allocate
    with monkeypatch.context() as patched:
        patched.setattr(cuda.device, "allocate", lambda size: allocate(size + 2**44))
        with pytest.raises(errors.DeviceMemoryError, match=r"17,592,186,\d{3},\d{3} bytes were asked for"):
            optimizer.optimize([layer], 0)
    assert optimizer.t == 0 and not any(layer.states) and (layer.params[0].get() == 1).all()
    optimizer.optimize([layer], 0)
    assert optimizer.t == 1 and (layer.params[0].get() < 1).all()


def run_python(text, **variables):
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    return subprocess.run(
        [sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=300
    )


_STEP = """
import nbopt
be = nbopt.set_backend("cuda")
nbopt.RMSProp(gradient_clip_norm=1.0).optimize([nbopt.Parameters((be.ones(100), be.ones(100)))], 0)
print(be.compilations)
"""


def test_a_second_process_finds_its_kernels_on_disk(tmp_path):
    first, second = (run_python(_STEP, NBOPT_CACHE_DIR=str(tmp_path / "cache")) for _ in range(2))
    assert int(first.stdout) > 0, first.stderr
    assert int(second.stdout) == 0, second.stderr


def test_a_forked_child_gets_a_clear_error():
    child = (
        _STEP
        + """
import os
pid = os.fork()
if pid == 0:
    try:
        be.ones(3)
    except nbopt.errors.BackendError as error:
        os._exit(0 if "fork" in str(error) else 1)
    os._exit(2)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    )
    done = run_python(child)
    assert done.stdout.split()[-1] == "0", done.stderr


@pytest.mark.parametrize(
    "how", ["in a cycle that a thread without CUDA collects", "at exit, after a thread alone has used CUDA"]
)
def test_memory_is_given_back_wherever_it_goes(how):
    text = """
import gc, threading, nbopt
gc.disable()
kept = []
def use():
    be = nbopt.set_backend("cuda")
    tensors = [be.ones(100) for _ in range(30)]
    tensors.append(tensors)
    HERE
def collect():
    assert gc.collect() >= 30
"""
    if how.startswith("in a cycle"):
        text = text.replace("HERE", "pass") + "use()\nother = threading.Thread(target=collect)"
    else:
        text = text.replace("HERE", "kept.append(tensors)") + "other = threading.Thread(target=use)"
    done = run_python(text + "\nother.start()\nother.join()\nprint('done')")
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_pytorch_parameters_are_updated_in_place_on_the_current_stream(cuda):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch here has no CUDA")
    param = torch.nn.Parameter(torch.ones(1_000_001, device="cuda"))
    optimizer = nbopt.GradientDescentMomentum(1.0, 0.0)
    layer = None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in range(10):
            param.grad = None
            (param.sum() * 8).backward()
            if layer is None:
                layer = nbopt.Parameters((param, param.grad))
            layer.grads = [param.grad]
            optimizer.optimize([layer], step)
            param.data.mul_(2)  # must see the step, and the next step must see it
    torch.cuda.synchronize()
    expected = 1.0
    for _ in range(10):
        expected = (expected - 1) * 2
    assert (param.detach().cpu().numpy() == expected).all()


def test_pytorch_memory_that_is_exchanged_under_the_parameter_is_noticed(cuda):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch here has no CUDA")
    param = torch.nn.Parameter(torch.zeros(100, device="cuda"))
    layer = nbopt.Parameters((param, torch.ones(100, device="cuda")))
    optimizer = nbopt.GradientDescentMomentum(1.0, 0.0)
    for step in range(2):
        optimizer.optimize([layer], step)
        param.data = torch.full((100,), 5.0, device="cuda")
    optimizer.optimize([layer], 2)
    assert (param.detach().cpu().numpy() == 5 - 1 / 8).all()


def test_cupy_arrays_are_updated_in_place_on_the_current_stream(cuda):
    cupy = pytest.importorskip("cupy")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        param, grad = cupy.ones(1_000_001, cupy.float32), cupy.full(1_000_001, 8, cupy.float32)
        layer = nbopt.Parameters((param, grad))
        optimizer = nbopt.GradientDescentMomentum(1.0, 0.0)
        for step in range(10):
            optimizer.optimize([layer], step)
            param *= 2
        stream.synchronize()
    expected = 1.0
    for _ in range(10):
        expected = (expected - 1) * 2
    assert (cupy.asnumpy(param) == expected).all()
    assert float(cupy.asarray(cuda.wrap(param)).sum(dtype=cupy.float64)) == expected * 1_000_001


def test_numba_device_arrays_are_used_without_a_copy(cuda):
    from numba import cuda as numba_cuda

    array = numba_cuda.to_device(np.arange(100, dtype=np.float32))
    t = cuda.wrap(array)
    t[:] = t * 2
    cuda.synchronize()
    assert array.copy_to_host().tolist() == [2.0 * k for k in range(100)]


def test_dlpack_goes_both_ways(cuda):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch here has no CUDA")
    t = cuda.array(np.arange(12.0).reshape(3, 4))
    shared = torch.from_dlpack(t)
    shared += 1
    torch.cuda.synchronize()
    assert t.get()[2, 3] == 12


def test_a_compiler_that_cannot_be_loaded_is_a_reason_not_to_use_the_backend(monkeypatch):
    from nbopt_backends.cuda import toolchain

    def missing():
        raise RuntimeError("libnvvm.so was not found")

    monkeypatch.setattr(toolchain.nvvm, "NVVM", missing)
    with pytest.raises(
        errors.BackendError,
        match=r"NVVM\) can't be used \(libnvvm.so was not found\); type: pip install .* or set CUDA_HOME",
    ):
        nbopt.set_backend("cuda")


@pytest.mark.parametrize("most", [4096, 1024, 256])
@pytest.mark.rest("256")
def test_many_tiles(cuda, rng, monkeypatch, most):
    """The results of 2198 tiles are folded as on the CPU, by one block and by several, in one or two goes."""
    monkeypatch.setattr(nodes, "MOST_RESULTS", most)
    values, grad = rng.standard_normal((2, 9_000_001), np.float32)
    found = []
    for backend in (cuda, "cpu"):
        with nbopt.use_backend(backend) as be:
            be.bsz = 8
            layer = nbopt.Parameters((be.array(values), be.array(grad)))
            optimizer = nbopt.GradientDescentMomentum(0.1, 0.0, gradient_clip_norm=1.0)
            optimizer.optimize([layer], 0)
            found.append((layer.params[0].get(), optimizer.grad_norm))
    assert found[0][1] == found[1][1]
    assert (found[0][0] == found[1][0]).all()
