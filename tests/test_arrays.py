"""Arrays of NumPy, PyTorch and JAX as parameters and gradients, without a copy.

They go through the libraries themselves.
"""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import same_bits, thorough_but

import nbopt
from nbopt.errors import DtypeError, LayoutError, OperandError

DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture
def backend(host_backend):
    return host_backend


class NumPy:
    name, immutable = "numpy", False

    def make(self, values, name):
        return np.array(values, DTYPES[name])

    def address(self, array):
        return array.__array_interface__["data"][0]

    def values(self, array):
        return np.array(array)


class PyTorch:
    name, immutable = "torch", False

    def __init__(self):
        self.torch = pytest.importorskip("torch", reason="needs PyTorch: pip install nbopt[torch]")

    def make(self, values, name):
        tensor = self.torch.tensor(np.asarray(values, np.float64)).to(getattr(self.torch, name))
        return self.torch.nn.Parameter(tensor)  # which requires gradients, and refuses to be exported

    def address(self, array):
        return array.data_ptr()

    def values(self, array):
        return array.detach().to(self.torch.float64).numpy()


class JAX:
    name, immutable = "jax", True

    def __init__(self):
        self.jax = pytest.importorskip("jax", reason="needs JAX: pip install jax")

    def make(self, values, name):
        with self.jax.enable_x64(True):
            return self.jax.numpy.array(np.asarray(values, DTYPES[name]))

    def address(self, array):
        return array.unsafe_buffer_pointer()

    def values(self, array):
        return np.array(array)


# What a library's array is taken for is the same on all backends.
some_dtypes = pytest.mark.parametrize("name", thorough_but(DTYPES, "float32", "bfloat16", where=["compiled"]))
LIBRARIES = [NumPy, PyTorch, JAX]


@pytest.fixture(params=LIBRARIES, ids=lambda cls: cls.name)
def library(request):
    return request.param()


@pytest.fixture(params=[cls for cls in LIBRARIES if not cls.immutable], ids=lambda cls: cls.name)
def mutable(request):
    return request.param()


@pytest.mark.parametrize("name", DTYPES)
def test_a_wrapped_array_is_the_memory_of_the_librarys_own(backend, library, name):
    array = library.make([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], name)
    tensor = backend.wrap(array)
    assert tensor.storage.__array_interface__["data"][0] == library.address(array)
    assert tensor.shape == (2, 3) and tensor.dtype == DTYPES[name]
    assert (tensor.get() == library.values(array)).all()


@some_dtypes
def test_parameters_change_in_the_librarys_own_memory_as_numpys_do(backend, mutable, name, rng):
    p, g = rng.standard_normal((2, 5, 7))
    own, same = [(lib.make(p, name), lib.make(g, name)) for lib in (mutable, NumPy())]
    address = mutable.address(own[0])
    for pair in (own, same):
        optimizer, layer = (
            nbopt.GradientDescentMomentum(0.1, 0.9, stochastic_round=True),
            nbopt.Parameters(pair),
        )
        backend.rng_reset()
        for _ in range(3):
            optimizer.optimize([layer], 0)
    assert mutable.address(own[0]) == address
    assert (mutable.values(own[0]) == NumPy().values(same[0])).all()
    assert not np.array_equal(mutable.values(own[0]), NumPy().make(p, name))


@some_dtypes
def test_gradients_of_any_library_go_with_numpys_parameters(backend, library, name, rng):
    results = []
    for lib in (library, NumPy()):
        w = np.ones((4, 3), np.float32)
        layer = nbopt.Parameters((w, lib.make(np.zeros((4, 3)), name)))
        optimizer = nbopt.Adam()
        for k in range(3):
            layer.grads = [lib.make(np.random.default_rng(k).standard_normal((4, 3)), name)]
            optimizer.optimize([layer], 0)
        results.append(w)
    assert same_bits(*results) and (results[0] != 1).all()


def test_strided_arrays_of_any_library_are_used_as_they_are(backend, mutable):
    whole = mutable.make(np.arange(24.0).reshape(4, 6), "float32")
    part = (whole.detach() if mutable.name == "torch" else whole).T[::2]
    nbopt.GradientDescentMomentum(1.0, 0.0).optimize(
        [nbopt.Parameters((part, np.ones((3, 4), np.float32)))], 0
    )
    expected = np.arange(24.0).reshape(4, 6)
    expected.T[::2] -= 1
    assert (mutable.values(whole) == expected).all()


@pytest.mark.parametrize("name", DTYPES)
def test_jaxs_arrays_are_refused_as_parameters_with_what_to_do(backend, name):
    library = JAX()
    w = library.make([1.0, 2.0], name)
    with pytest.raises(
        LayoutError, match=r"read-only.*JAX's arrays always are: train a NumPy copy.*jax\.numpy\.array"
    ):
        nbopt.RMSProp().optimize([nbopt.Parameters((w, np.ones(2, np.float32)))], 0)
    assert (library.values(w) == [1, 2]).all()


def test_jax_computes_gradients_and_nbopt_trains(backend):
    jax = pytest.importorskip("jax", reason="needs JAX: pip install jax")
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    y = x @ np.arange(4, dtype=np.float32)
    gradient = jax.jit(jax.grad(lambda w: ((x @ w - y) ** 2).mean()))
    w = np.zeros(4, np.float32)
    layer, optimizer = nbopt.Parameters((w, np.zeros(4, np.float32))), nbopt.RMSProp(learning_rate=0.05)
    for epoch in range(150):
        layer.grads = [gradient(jax.numpy.array(w))]
        optimizer.optimize([layer], epoch)
    assert np.allclose(w, np.arange(4), atol=0.1)


def test_a_wrapped_array_outlives_the_object_it_was_made_of(backend, library):
    tensor = backend.wrap(library.make(np.arange(1000.0), "float32"))
    others = [library.make(np.zeros(1000), "float32") for _ in range(10)]
    assert len(others) == 10 and (tensor.get() == np.arange(1000)).all()


def test_dtypes_that_cannot_be_trained_are_refused(backend, library):
    integers = {
        "numpy": lambda: np.ones(2, np.int32),
        "torch": lambda: library.torch.ones(2).int(),
        "jax": lambda: library.jax.numpy.ones(2, int),
    }
    with pytest.raises(
        DtypeError, match=r"can't be trained; allowed are bfloat16, float16, float32, float64"
    ):
        backend.wrap(integers[library.name]())


def test_tensors_of_pytorch_that_have_no_plain_memory_here_are_refused(backend):
    torch = PyTorch().torch
    with pytest.raises(LayoutError, match=r"sparse.*to_dense"):
        backend.wrap(torch.eye(3).to_sparse())
    with pytest.raises(LayoutError, match="the tensor is on meta"):
        backend.wrap(torch.ones(3, device="meta"))


def test_a_tracer_of_jax_is_no_array(backend):
    jax = JAX().jax
    with pytest.raises(OperandError, match="is no array whose memory could be shared"):
        jax.jit(lambda x: backend.wrap(x) and x)(1.0)


@pytest.mark.parametrize("library_name", thorough_but(["numpy", "torch", "jax gradients"], "jax gradients"))
def test_a_step_over_100_mb_takes_no_further_100_mb(library_name):
    if library_name != "numpy":
        pytest.importorskip(library_name.split()[0], reason="needs the library")
    pytest.importorskip("resource", reason="peak memory is read from Unix's getrusage")
    make = {
        "numpy": "p, g = np.ones(n, np.float32), np.ones(n, np.float32)",
        "torch": (
            "import torch; p, g = torch.nn.Parameter(torch.ones(n)), torch.ones(n, dtype=torch.bfloat16); "
            "p.data.add_(0); g.add_(0)"
        ),
        "jax gradients": (
            "import jax.numpy as jnp; p, g = np.ones(n, np.float32), jnp.ones(n, "
            "jnp.bfloat16).block_until_ready()"
        ),
    }[library_name]
    code = f"""
import resource, numpy as np, nbopt
def step(n):
    {make}
    layer, optimizer = nbopt.Parameters((p, g)), nbopt.GradientDescentMomentum(0.5, 0.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimizer.optimize([layer], 0)
    assert float(p[-1]) == 0.5
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
nbopt.set_backend("cpu")
step(300_000)  # compiles
print(step(25_000_000))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 20
