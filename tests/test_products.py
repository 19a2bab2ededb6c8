"""The libraries that multiply matrices on a GPU, over the host's memory."""

import sys
import tracemalloc

import numpy as np
import pytest

import nbopt
from nbopt.language.matrices import COEFFICIENTS, Orthogonalize
from nbopt_backends.cuda.products import CupyProducts, TorchProducts, products_of
from nbopt_backends.matrices.blas import Blas
from nbopt_backends.matrices.stage import needed, run_matrix

SHAPES = [(3, 16, 40), (2, 40, 16), (1, 24, 24), (2, 12, 64)]


def library_of(name):
    """A library's products without a GPU: PyTorch's on the CPU, and NumPy in place of CuPy."""
    found = object.__new__({"torch": TorchProducts, "cupy": CupyProducts}[name])
    if name == "torch":
        found.torch = pytest.importorskip("torch", reason="its products are tested: pip install torch")
        return found, found.torch.from_numpy
    found.cupy, found.matmul = np, np.matmul
    return found, np.asarray


def drawn(dtype):
    rng = np.random.default_rng(5)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


@pytest.mark.parametrize("name", ["torch", "cupy"])
@pytest.mark.parametrize(
    "given", [{}, {"method": "gram"}, {"workspace": 1}, {"heads": 4, "adjust": "original"}]
)
def test_results(name, given):
    """Batches that are gathered by shape, wide and tall, give what BLAS gives for each alone."""
    library, wrapped = library_of(name)
    function = Orthogonalize((COEFFICIENTS,) * 5, **given)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 0.02 if name == "torch" else 1e-4)):
        wanted, found = drawn(dtype), drawn(dtype)
        for one in wanted:
            run_matrix(function, [([one], one)], Blas(), "plain")
        batches = [*map(wrapped, found)]
        run_matrix(function, [([one], one) for one in batches], library)
        for one, other in zip(found, wanted, strict=True):
            assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


def test_memory():
    """What the products take at a time is at most two copies of the largest batch, which they are beside."""
    shapes = [shape for many, *shape in SHAPES for _ in range(many)]
    largest = 5 * 16 * 40 * 4
    assert needed(Orthogonalize((COEFFICIENTS,)), shapes, 4) == 2 * largest
    assert needed(Orthogonalize((COEFFICIENTS,), workspace=1), shapes, 4) == 2 * 12 * 64 * 4
    assert needed(Orthogonalize((COEFFICIENTS,)), [], 4) == 0


@pytest.mark.parametrize("given", [{}, {"workspace": 1}, {"method": "gram"}])
def test_peak(given):
    """What is allocated for copies as large as the matrices is what `needed` says, and a little more."""
    library, _ = library_of("cupy")
    function = Orthogonalize((COEFFICIENTS,) * 5, **given)
    alone = [[(1, 100, length)] for length in (100, 150, 200)]
    for shapes in ([(3, 64, 160), (2, 160, 64)], [(8, 100, 100), (2, 100, 100)], *alone):
        batches = [np.ones(shape, np.float32) for shape in shapes]
        tracemalloc.start()
        run_matrix(function, [([one], one) for one in batches], library)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        each = [shape[1:] for shape in shapes for _ in range(shape[0])]
        assert peak <= 1.1 * needed(function, each, 4) + (1 << 13)


def test_threads():
    """Each function is called once, and what one of them raises is raised when all threads are done."""
    called = []

    def wrong():
        raise MemoryError("no more")

    for threads in (1, 2, 3):
        blas = Blas(lambda threads=threads: threads)
        blas.do([lambda number=number: called.append(number) for number in range(20)], 1)
        assert sorted(called) == [*range(20)]
        called.clear()
        with pytest.raises(MemoryError, match="no more"):
            blas.do([wrong] * 5, 1)


def test_none(monkeypatch):
    """Without a library the error says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(nbopt.errors.BackendError, match="pip install torch, or cupy"):
        products_of(0, "torch")
