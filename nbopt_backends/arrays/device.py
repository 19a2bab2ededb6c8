"""DeviceArray: an array in a GPU's memory, the backend's own or a foreign one.

The host knows everything of it but the values. No NumPy array ever stands over device memory: to print or to
compare such an array ends the process, and a debugger prints all that it finds.
"""

import ctypes
import math
from operator import index

import numpy as np

from nbopt.errors import LayoutError
from nbopt_backends.arrays.memory import (
    BFLOAT,
    array_at,
    dlpack_structure,
    dlpack_tensor,
    no_array,
    torch_structure,
)

_CUDA, _CUDA_MANAGED = 2, 13  # DLPack's codes of memory that a CUDA kernel can read


class DeviceArray:
    """An array in device memory.

    Attributes
    ----------
    home : DeviceBackend
        Whose it is: the backend that made or wrapped it.
    address : int
        Of the first element.
    shape : tuple of int
    dtype : numpy.dtype
    strides : tuple of int
        In bytes.
    nbytes : int
        Of all elements.
    owner : object
        What keeps the memory alive.
    readonly : bool
    pointer : callable or None
        Returns the address now, for foreign arrays whose memory can be exchanged under the same object
        (PyTorch's ``p.data = ...``).
    c_contiguous : bool
    """

    __slots__ = (
        "__weakref__",
        "address",
        "c_contiguous",
        "dtype",
        "home",
        "nbytes",
        "owner",
        "pointer",
        "readonly",
        "shape",
        "strides",
    )

    def __init__(self, home, address, shape, dtype, strides=None, owner=None, readonly=False, pointer=None):
        self.home, self.address, self.shape, self.dtype = home, address, shape, dtype
        self.owner, self.readonly, self.pointer = owner, readonly, pointer
        self.nbytes = math.prod(shape) * dtype.itemsize
        contiguous = _c_strides(shape, dtype.itemsize)
        # The strides of an axis of length 1 mean nothing, and libraries fill them in differently.
        self.c_contiguous = (
            strides is None
            or 0 in shape
            or all(n == 1 or a == b for n, a, b in zip(shape, strides, contiguous))
        )
        self.strides = contiguous if self.c_contiguous else tuple(strides)

    @property
    def size(self):
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self):
        """The number of dimensions."""
        return len(self.shape)

    @property
    def flags(self):
        """Itself, which has ``c_contiguous`` and ``writeable``, as NumPy's flags do."""
        return self

    @property
    def writeable(self):
        """Whether it may be written, as NumPy's flags say it."""
        return not self.readonly

    def view(self, offset, shape, strides):
        """Return an array of the same memory and dtype that begins `offset` bytes after this one."""
        return DeviceArray(
            self.home, self.address + offset, tuple(shape), self.dtype, strides, self.owner, self.readonly
        )

    def with_axis_last(self, axis):
        """Return a view with one axis moved to the end, as ``numpy.moveaxis(array, axis, -1)``."""
        order = [*range(self.ndim)]
        order.append(order.pop(axis))
        return self.view(0, [self.shape[k] for k in order], [self.strides[k] for k in order])

    def broadcast(self, shape):
        """Return a view of another shape, as ``numpy.broadcast_to``."""
        if shape == self.shape:
            return self
        new = len(shape) - self.ndim
        strides = [0 if n == 1 else step for n, step in zip(self.shape, self.strides)]
        return self.view(0, shape, [*[0] * new, *strides])

    def refresh(self):
        """Read the address again, where it can change."""
        if self.pointer is not None:
            address, dtype, strides = torch_structure(self.home, self.owner)
            same_strides = strides is None if self.c_contiguous else strides == self.strides
            if tuple(self.owner.shape) != self.shape or dtype != self.dtype or not same_strides:
                raise LayoutError(
                    f"an array of shape {self.shape} and dtype {self.dtype} has got memory of shape "
                    f"{tuple(self.owner.shape)} and dtype {dtype}, or of other strides, since it was "
                    "wrapped: wrap it again"
                )
            self.address = address

    def __getitem__(self, key):
        """Return a view. `key` has slices, ints and at most one Ellipsis, with NumPy's meaning."""
        parts = list(key) if isinstance(key, tuple) else [key]
        if len(parts) - parts.count(...) > self.ndim:
            given = len(parts) - parts.count(...)
            raise IndexError(
                f"too many indices: the array has {self.ndim} dimensions, and {given} were indexed"
            )
        if parts.count(...) > 1:
            raise IndexError("an index can have one Ellipsis (...) only")
        dots = parts.index(...) if ... in parts else len(parts)
        parts[dots : dots + 1] = [slice(None)] * (self.ndim - len(parts) + parts.count(...))
        offset, shape, strides = 0, [], []
        for axis, (part, n, step) in enumerate(zip(parts, self.shape, self.strides)):
            if isinstance(part, slice):
                chosen = range(n)[part]
                offset += chosen.start * step if chosen else 0
                shape.append(len(chosen))
                strides.append(chosen.step * step)
            else:
                number = index(part)
                if not -n <= number < n:
                    raise IndexError(f"index {number} is out of bounds for axis {axis} with size {n}")
                offset += number % n * step
        return self.view(offset, shape, strides)

    # --- for other libraries ---

    @property
    def __cuda_array_interface__(self):
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.size else 0, self.readonly),
            "strides": None if self.c_contiguous else self.strides,
            "stream": self.home.streams.current() or 1,  # 1 is the default stream
        }

    def __dlpack_device__(self):
        return _CUDA, self.home.device_id

    def __dlpack__(self, *, stream=None, **options):
        """Return a DLPack capsule.

        The consumer's stream waits for what is queued here; -1: it takes care of that by itself.
        """
        if stream != -1:
            self.home.streams.order_before(0 if stream in (None, 1) else stream)
        if any(step % self.dtype.itemsize for step in self.strides):
            raise BufferError(
                "DLPack counts strides in elements, and those of this array are no whole number of them"
            )
        # NumPy makes the structure, and frees it, for an array of as many dimensions in the host's memory.
        # That it is strided gives the structure strides. What it says of the memory is then replaced. The
        # capsule keeps this array's owner alive.
        bfloat16 = self.dtype.name == "bfloat16"  # which NumPy can't export
        dtype, shape = (
            np.dtype(np.uint16) if bfloat16 else self.dtype,
            (2, *(1,) * (self.ndim - 1)) if self.ndim else (),
        )
        memory = ctypes.create_string_buffer(4 * dtype.itemsize)
        capsule = array_at(
            ctypes.addressof(memory),
            shape,
            dtype,
            (2 * dtype.itemsize,) * self.ndim,
            (memory, self.owner),
            self.readonly,
        ).__dlpack__()
        exported = dlpack_tensor(capsule)
        exported.data = self.address
        exported.device[:] = self.__dlpack_device__()
        for axis, (n, step) in enumerate(zip(self.shape, self.strides)):
            exported.shape[axis], exported.strides[axis] = n, step // self.dtype.itemsize
        if bfloat16:
            exported.code = BFLOAT
        return capsule


def _c_strides(shape, item_size):
    strides = []
    for n in reversed(shape):
        strides.append(item_size)
        item_size *= max(n, 1)
    return tuple(reversed(strides))


def _on_host(obj):
    return LayoutError(
        f'the array ({type(obj).__name__}) is in the host\'s memory, and the backend "cuda" works on the '
        "GPU's. nbopt.get_backend().array(x) makes a tensor with a copy; cupy.asarray(x) or "
        "torch.as_tensor(x, device='cuda') make device arrays, which are used without a copy"
    )


def from_foreign(home, obj):
    """Return a DeviceArray that shares the memory of another library's device array.

    The library is CuPy, PyTorch, Numba, or any that exports DLPack for CUDA.

    Raises
    ------
    LayoutError
        If the array is in the host's memory or on another GPU.
    OperandError
        If `obj` is no array.
    """
    if hasattr(obj, "data_ptr") and hasattr(obj, "is_cuda"):
        return _from_torch(home, obj)
    if hasattr(obj, "__cuda_array_interface__"):
        return _from_interface(home, obj, obj.__cuda_array_interface__)
    if isinstance(obj, (np.ndarray, np.generic)):
        raise _on_host(obj)
    if hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__"):
        return _from_dlpack(home, obj)
    raise no_array(obj)


def _from_torch(home, tensor):
    """Wrap a PyTorch tensor by its pointer: parameters refuse to be exported while they require gradients."""
    if not tensor.is_cuda:
        raise _on_host(tensor)
    home.check_device(tensor.get_device())
    home.streams.follow("torch")
    address, dtype, strides = torch_structure(home, tensor)
    return DeviceArray(home, address, tuple(tensor.shape), dtype, strides, tensor, pointer=tensor.data_ptr)


def _from_interface(home, obj, interface):
    if interface.get("mask") is not None:
        raise LayoutError("a masked array has no value where it is masked: fill it first")
    address, readonly = interface["data"]
    shape = tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    if not dtype.isnative:
        raise LayoutError(f"the array is byte-swapped ({dtype.str}): convert it on the host")
    device = getattr(getattr(obj, "device", None), "id", None)  # CuPy's; with others the driver knows
    home.check_device(home.device.device_of(address) if device is None and address else device)
    if type(obj).__module__.partition(".")[0] == "cupy":
        home.streams.follow("cupy")
    else:
        home.streams.wait_for(interface.get("stream"))
    return DeviceArray(
        home,
        address,
        shape,
        home.storage_dtype(dtype),
        interface.get("strides"),
        obj,
        bool(readonly) or _immutable(obj),
    )


def _from_dlpack(home, obj):
    kind, device = obj.__dlpack_device__()
    if kind not in (_CUDA, _CUDA_MANAGED):
        raise _on_host(obj)
    home.check_device(device)
    # The producer makes that stream wait for what it has queued.
    capsule = obj.__dlpack__(stream=home.streams.current() or 1)
    # An unused capsule frees the producer's memory when it goes, so holding it is all that is needed.
    return DeviceArray(home, *dlpack_structure(home, capsule), (capsule, obj), readonly=_immutable(obj))


def _immutable(obj):
    # JAX's arrays don't say so by themselves.
    return type(obj).__module__.partition(".")[0] in ("jax", "jaxlib")
