"""Products of batches of matrices in a GPU's memory, by PyTorch or CuPy."""

import contextlib
import ctypes
import importlib
import math
import sys
from typing import Any

import numpy as np

from nbopt.errors import BackendError, DeviceMemoryError
from nbopt_backends.matrices.blas import Blas

_NONE = (
    "a function of matrices on a GPU needs a library for products, and neither PyTorch nor CuPy can be used"
    ' here{why}. Install one (pip install torch, or cupy-cuda13x), or use the backend "cpu"'
)


class _Memory:
    """Device memory as other libraries take it, without a copy."""

    def __init__(self, address, shape, dtype):
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (address, False),
            "stream": None,
        }


class TorchProducts:
    """The products by PyTorch, see `nbopt_backends.matrices.blas.Blas`.

    They are in bfloat16, as those of `torch.optim.Muon`; in float16 in the Gram form, whose sums of powers
    of one matrix need the digits more than the range; and in float64 for float64.

    Parameters
    ----------
    device_id : int
    """

    gathers, part = True, 1 << 62

    def __init__(self, device_id):
        self.torch: Any = importlib.import_module("torch")
        self._place = f"cuda:{device_id}"

    def batch(self, address, shape, dtype):
        """Return a tensor over memory."""
        return self.torch.as_tensor(_Memory(address, shape, dtype), device=self._place)

    def on(self, stream):
        """Return a context in which the products are queued on a stream."""
        return self.torch.cuda.stream(self.torch.cuda.ExternalStream(stream, device=self._place))

    def reserve(self, size):
        """Make sure that PyTorch has so much memory at hand; raise DeviceMemoryError."""
        try:
            self.torch.empty(size, dtype=self.torch.uint8, device=self._place)
        except self.torch.cuda.OutOfMemoryError as error:
            raise _no_memory(size) from error

    def do(self, jobs, multiplications):
        """Call some functions without arguments."""
        for job in jobs:
            job()

    def scaled(self, pieces, epsilon, method):
        """Return matrices, each divided by its norm, as one batch in the dtype of the products."""
        torch, (first, *others) = self.torch, pieces
        if first.dtype != torch.float64:
            dtype = torch.float16 if method == "gram" else torch.bfloat16
        else:
            dtype = torch.float64
        found = first
        if others or dtype != first.dtype:
            shape = sum(map(len, pieces)), *first.shape[1:]
            found = torch.empty(shape, dtype=dtype, device=first.device)
        start = 0
        for piece in pieces:
            norms = torch.linalg.vector_norm(piece, dim=(-2, -1), keepdim=True).clamp(min=epsilon)
            torch.div(piece, norms, out=found[start : start + len(piece)])
            start += len(piece)
        return found

    def halves(self, dtype):
        """Return whether products for matrices of a dtype are in one of half its size."""
        return dtype != self.torch.float64

    def empty_like(self, x):
        """Return new memory for a batch."""
        return self.torch.empty_like(x)

    def packed(self, x):
        """Return whether a batch is contiguous, in C order."""
        return x.is_contiguous()

    def gram(self, x, out=None):
        """Return ``x x^T`` of each matrix."""
        return self.torch.bmm(x, x.mT, out=out)

    def polynomial(self, gram, a, b, c, out=None):
        """Return ``b g + c g^2``; `times` and `whole` add the constant term."""
        return self.torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=out)

    def whole(self, polynomial, a):
        """Return the polynomial with its constant term, which is added in place."""
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        return polynomial

    def times(self, polynomial, a, x, out=None):
        """Return the product of a polynomial, with its constant term, and each matrix."""
        return self.torch.baddbmm(x, polynomial, x, beta=a, out=out)

    def matmul(self, x, y, out=None):
        """Return the product of two batches."""
        return self.torch.matmul(x, y, out=out)


class CupyProducts:
    """The products by CuPy: as by PyTorch, but in float32, since it multiplies no bfloat16.

    Parameters
    ----------
    device_id : int
    """

    gathers, part = True, 1 << 62

    def __init__(self, device_id):
        self.cupy: Any = importlib.import_module("cupy")
        self._device_id = device_id
        self.matmul = self.cupy.matmul

    def batch(self, address, shape, dtype):
        """Return an array over memory."""
        return self.cupy.asarray(_Memory(address, shape, dtype))

    def on(self, stream):
        """Return a context in which the products are queued on a stream."""
        return self.cupy.cuda.ExternalStream(stream, self._device_id)

    def reserve(self, size):
        """Make sure that CuPy has so much memory at hand; raise DeviceMemoryError."""
        try:
            self.cupy.empty(size, np.uint8)
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            raise _no_memory(size) from error

    def do(self, jobs, multiplications):
        """Call some functions without arguments."""
        for job in jobs:
            job()

    def scaled(self, pieces, epsilon, method):
        """Return matrices, each divided by its norm, as one batch."""
        for x in pieces:
            x /= self.cupy.maximum(self.cupy.sqrt((x * x).sum((-2, -1), keepdims=True)), epsilon)
        return pieces[0] if len(pieces) == 1 else self.cupy.concatenate(pieces)

    def halves(self, dtype):
        """Return whether products for matrices of a dtype are in one of half its size."""
        return False

    def empty_like(self, x):
        """Return new memory for a batch."""
        return self.cupy.empty_like(x)

    def packed(self, x):
        """Return whether a batch is contiguous, in C order."""
        return x.flags.c_contiguous

    def gram(self, x, out=None):
        """Return ``x x^T`` of each matrix."""
        return self.cupy.matmul(x, x.swapaxes(-1, -2), out=out)

    def polynomial(self, gram, a, b, c, out=None):
        """Return ``a + b g + c g^2``."""
        found = self.cupy.matmul(gram, gram, out=out)
        found *= c
        rows = -(-gram.shape[-1] // 8)
        for start in range(0, gram.shape[-1], rows):  # so that what is in between stays small
            found[:, start : start + rows] += b * gram[:, start : start + rows]
        self.cupy.einsum("...ii->...i", found)[...] += a  # a view of the diagonals
        return found

    def whole(self, polynomial, a):
        """Return the polynomial with its constant term."""
        return polynomial

    def times(self, polynomial, a, x, out=None):
        """Return the product of a polynomial and each matrix."""
        return self.cupy.matmul(polynomial, x, out=out)


class HostProducts(Blas):
    """The products where device memory is the host's, as in Numba's simulator: by BLAS.

    Parameters
    ----------
    wait : callable
        ``wait(stream)`` returns when all that is queued on a stream is done.
    """

    def __init__(self, wait):
        super().__init__()
        self._wait = wait

    def batch(self, address, shape, dtype):
        """Return a NumPy array over memory."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)

    def on(self, stream):
        """Wait for a stream, and return a context in which nothing is queued."""
        self._wait(stream)
        return contextlib.nullcontext()

    def reserve(self, size):
        """Do nothing."""


def _no_memory(size):
    return DeviceMemoryError(
        f"the GPU is out of memory: products of matrices take {size:,} bytes. Nothing was changed. Give"
        " workspace= a smaller number of bytes"
    )


def products_of(device_id, first):
    """Return the products on a GPU.

    Parameters
    ----------
    device_id : int
    first : str or None
        The library that the arrays come from.

    Returns
    -------
    TorchProducts or CupyProducts

    Raises
    ------
    BackendError
        If there is no library for products.
    """
    kinds = {"torch": TorchProducts, "cupy": CupyProducts}
    why = []
    for name in sorted(kinds, key=lambda name: (name != first, name not in sys.modules)):
        try:
            module = importlib.import_module(name)
            if name == "torch" and not module.cuda.is_available():
                raise ImportError("this PyTorch has no CUDA")
            return kinds[name](device_id)
        except ImportError as error:
            why.append(f"{name}: {error}")
    raise BackendError(_NONE.format(why=f" ({'; '.join(why)})"))
