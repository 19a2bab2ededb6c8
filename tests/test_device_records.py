"""What stands for an array in device memory.

It is a record of its address, shape, dtype and strides, and never a NumPy array.

Most tests here make records of memory that isn't there, so they run without a GPU, and any look at the values
ends the process."""

import contextlib
import os
import sys
import weakref
from types import SimpleNamespace

import ml_dtypes  # noqa: F401  (makes NumPy know bfloat16)
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import nbopt
from nbopt.errors import LayoutError
from nbopt_backends.arrays.device import DeviceArray
from nbopt_backends.arrays.memory import (
    array_at,
    check_disjoint,
    dlpack_structure,
    dlpack_tensor,
    overlaps_itself,
)

NOWHERE = 0x7ABC_0000_0000_0000  # no process has memory there
FLOAT32 = np.dtype("float32")


class Owner:
    """What keeps memory alive."""


def home(ordered=()):
    """What a record asks of its backend."""
    return SimpleNamespace(
        device_id=3, streams=SimpleNamespace(order_before=list(ordered).append), storage_dtype=np.dtype
    )


def record_of(array, whole, **options):
    """A record that lies to the address NOWHERE as `array` lies to the array `whole`."""
    offset = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return DeviceArray(home(), NOWHERE + offset, array.shape, array.dtype, array.strides, **options)


def attributes(record):
    """All that is known of a record. Where nothing is in it, the address means nothing."""
    address = record.address if record.size else None
    return (
        address,
        record.shape,
        record.dtype,
        record.strides,
        record.c_contiguous,
        record.nbytes,
        record.readonly,
    )


# --- views ---

indices = st.one_of(st.integers(-3, 2), st.slices(3), st.just(slice(None)), st.just(slice(None, None, -1)))


@given(
    key=st.lists(indices, max_size=3),
    dots=st.one_of(st.none(), st.integers(0, 3)),
    step=st.sampled_from([1, 2]),
)
def test_views(key, dots, step):
    """A part of a record is where NumPy's part of an array is, and what NumPy refuses is an IndexError."""
    if dots is not None:
        key.insert(dots, ...)
    whole = np.zeros((3, 5, 2), np.float32)
    array = whole[:, ::step]
    try:
        expected = array[(*key, ...) if dots is None else tuple(key)]
    except IndexError:
        with pytest.raises(IndexError):
            record_of(array, whole)[tuple(key)]
        return
    assert attributes(record_of(array, whole, readonly=True)[tuple(key)]) == attributes(
        record_of(expected, whole, readonly=True)
    )


def test_views_in_vain():
    """More indices than dimensions, or two Ellipsis, are an IndexError; a single index needs no tuple."""
    record = DeviceArray(home(), NOWHERE, (3, 4), FLOAT32)
    for key in ((0, 0, 0), (..., ...), 3, (0, -5)):
        with pytest.raises(IndexError):
            record[key]
    assert (
        record[1].address == NOWHERE + 16
        and record[...].shape == (3, 4)
        and record[-1, -1].address == NOWHERE + 44
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis_last(axis):
    """A record with an axis moved to the end is NumPy's."""
    whole = np.zeros((3, 5, 2), np.float32)
    assert attributes(record_of(whole, whole).with_axis_last(axis)) == attributes(
        record_of(np.moveaxis(whole, axis, -1), whole)
    )


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 1), (1, 5), (3, 5)])
def test_broadcast(shape):
    """A broadcast record is NumPy's."""
    whole = np.zeros(shape, np.float32)
    found, expected = (
        record_of(whole, whole).broadcast((3, 5)),
        record_of(np.broadcast_to(whole, (3, 5)), whole),
    )
    assert (found.address, found.shape, found.c_contiguous) == (
        expected.address,
        expected.shape,
        expected.c_contiguous,
    )
    steps = zip((0,) * (2 - len(shape)) + found.shape, found.strides, expected.strides)
    assert all(a == b for n, a, b in steps if n > 1)


# --- overlap ---

starts, steps, lengths = st.integers(0, 24), st.integers(-4, 4), st.integers(1, 4)
strided = st.tuples(
    starts, st.lists(st.tuples(lengths, steps), max_size=3), st.sampled_from(["float16", "float32"])
)


@given(strided, strided)
def test_overlap(one, other):
    """Arrays in the host's memory and records of a device's share memory where NumPy says so."""
    whole = np.zeros(128, np.float16)
    arrays = []
    for start, axes, dtype in (one, other):
        shape, strides = [n for n, _ in axes], [2 * step for _, step in axes]
        arrays.append(as_strided(whole[40 + start :][:2].view(dtype), shape, strides))
    alone = [not overlaps_itself(array) for array in arrays]
    for made in (arrays, [record_of(array, whole) for array in arrays]):
        assert [not overlaps_itself(array) for array in made] == alone
        if all(alone):
            assert refused(
                [(made[0], True, lambda: "one"), (made[1], False, lambda: "other")]
            ) == np.shares_memory(*arrays)
            assert not refused([(made[0], False, lambda: "one"), (made[1], False, lambda: "other")])


def refused(values):
    """Whether a step over these arrays would be refused."""
    try:
        check_disjoint(values)
    except LayoutError as error:
        assert "one and other share memory" in str(error) or "other and one share memory" in str(error)
        return True
    return False


@pytest.mark.parametrize("shape", [(3000, 3000), (20, 30, 10, 30)])
def test_overlap_of_large_views(shape):
    """Halves of large arrays, beside each other or one element after the other, are told apart at once."""
    whole = DeviceArray(home(), NOWHERE, shape, FLOAT32)
    for axis in range(len(shape)):
        before, half = (slice(None),) * axis, shape[axis] // 2
        for one, other in (
            (slice(half), slice(half, None)),
            (slice(0, None, 2), slice(1, None, 2)),
            (slice(None, half), slice(-1, half - 1, -1)),
        ):
            views = whole[(*before, one)], whole[(*before, other)]
            assert not refused([(views[0], True, lambda: "one"), (views[1], True, lambda: "other")])
            assert refused([(views[0], True, lambda: "one"), (whole, False, lambda: "other")])


# --- export ---


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("key", [(), (0, 0), (slice(None), 1), (slice(None, None, -1),), (slice(0),)])
def test_export(dtype, key):
    """The structure that other libraries get says what the record says.

    It holds its owner as long as it lives.
    """
    owner = Owner()
    record = DeviceArray(home(), NOWHERE, (3, 4), np.dtype(dtype), owner=owner)[key]
    held = weakref.ref(owner)
    del owner
    capsule = record.__dlpack__(stream=-1)
    assert (*dlpack_tensor(capsule).device,) == (2, 3)
    address, shape, name, strides = dlpack_structure(SimpleNamespace(storage_dtype=np.dtype), capsule)
    assert (address, shape, name.name, strides or ()) == (record.address, record.shape, dtype, record.strides)
    del record
    assert held() is not None
    del capsule
    assert held() is None


def test_export_refused():
    """What can't be said in the structure is a BufferError: read-only memory, strides of half an element."""
    for record in (
        DeviceArray(home(), NOWHERE, (3,), FLOAT32, readonly=True),
        DeviceArray(home(), NOWHERE, (3,), FLOAT32, (6,)),
    ):
        with pytest.raises(BufferError):
            record.__dlpack__(stream=-1)


# --- no NumPy array stands over device memory ---

_problem = nbopt.backends.backend_problem("cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    _problem = "the simulator's device memory is the host's: unset NUMBA_ENABLE_CUDASIM"


class Looks:
    """Looks at all local variables of nbopt's functions, line by line, as a debugger does.

    Attributes
    ----------
    spans : list of (int, int)
        Where there is device memory.
    found : set of (str, str)
        Function and variable, where a NumPy array stands over it.
    seen : int
        How many records there were.
    """

    def __init__(self, device):
        self.spans, self.found, self.seen = [], set(), 0
        self.allocate, self.device = device.allocate, device

    def __enter__(self):
        def allocate(size):
            address, owner = self.allocate(size)
            self.spans.append((address, address + size))
            return address, owner

        self.device.allocate = allocate
        self.before = sys.gettrace()
        sys.settrace(self.called)
        return self

    def __exit__(self, *exception):
        sys.settrace(self.before)
        del self.device.allocate

    def called(self, frame, event, argument):
        name = frame.f_globals.get("__name__") or ""
        if name.startswith("nbopt.language") or frame.f_code.co_name == "rule":
            return None  # to compare what stands for values there would be a part of what is compiled
        return self.line if name.partition(".")[0] in ("nbopt", "nbopt_backends") else None

    def line(self, frame, event, argument):
        for name, value in list(frame.f_locals.items()):
            if self.bad(value, 3):
                self.found.add((frame.f_code.co_name, name))
            elif event == "return" and not self.found:
                # Some are half made, and a comparison of arrays has no truth value.
                with contextlib.suppress(Exception):
                    repr(value), str(value), value == value
        return self.line

    def bad(self, value, depth):
        if isinstance(value, np.ndarray):
            start = value.__array_interface__["data"][0]
            return any(low <= start < high for low, high in self.spans)
        self.seen += isinstance(value, DeviceArray)
        inside = (
            value if isinstance(value, (list, tuple)) else value.values() if isinstance(value, dict) else ()
        )
        return depth > 0 and any(self.bad(part, depth - 1) for part in list(inside)[:50])


@pytest.mark.gpu
@pytest.mark.skipif(_problem is not None, reason=f"needs an NVIDIA GPU: {_problem}")
def test_locals():
    """Whatever nbopt does with device memory, each variable on the way can be printed and compared."""

    def work(be):
        whole, grads = be.array(np.ones((4, 6))), be.array(np.ones((4, 6)))
        layers = [
            nbopt.Parameters((whole[:, ::2], grads[:, ::2])),
            nbopt.Parameters((whole[:, 1::2], grads[:, 1::2])),
        ]
        optimizer = nbopt.GradientDescentMomentum(0.1, 0.9, gradient_clip_norm=0.1)
        optimizer.skip_nonfinite, optimizer.loss_scale = True, be.array([2.0])
        for _ in range(2):
            optimizer.optimize(layers, 0)
            layers[0].grads = [be.array(np.ones((4, 3)))]
        with pytest.raises(LayoutError):
            optimizer.optimize(
                [nbopt.Parameters((whole, grads)), nbopt.Parameters((whole[1:], grads[1:]))], 0
            )
        optimizer.loss_scale = 1.0
        optimizer.clip_gradient_norm([((whole, grads[::-1]), [])], 0.1)
        whole[1:] = whole[:-1] + grads[0]
        whole[:] = be.sum(whole, axis=0)
        taken = be.wrap(SimpleNamespace(__cuda_array_interface__=whole[::2].storage.__cuda_array_interface__))
        exported = whole[:, 1].storage.__dlpack__()
        assert taken.get().shape == (2, 6) and dlpack_tensor(exported).ndim == 1

    with nbopt.use_backend("cuda", rng_seed=0) as be:
        work(be)  # compiles, which would take long under these looks
        with Looks(be.device) as looks:
            work(be)
    assert looks.found == set()
    assert looks.seen > 100 and looks.spans


def test_looks():
    """The look of the test above finds an array that stands where it must not."""
    array = np.zeros(3)
    looks = Looks(SimpleNamespace(allocate=None))
    looks.spans.append((array.ctypes.data, array.ctypes.data + 24))
    assert looks.bad([{"a": (array[1:],)}], 3) and not looks.bad([{"a": (np.zeros(3),)}], 3)
    assert looks.bad(array_at(array.ctypes.data, (3,), array.dtype, None, array), 0)
