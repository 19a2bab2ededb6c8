"""neon's names for what tensors and backends have, and its assignments between shapes.

The shapes may differ by axes of length 1.
"""

import numpy as np
import pytest
from helpers import same_bits

import nbopt
from nbopt.errors import ShapeError


def test_default_dtype(backend):
    """``be.default_dtype`` is the dtype of new tensors, and can be set."""
    assert backend.default_dtype == np.float32 == backend.zeros(3).dtype
    backend.default_dtype = "float64"
    assert backend.datatype == np.float64 == backend.zeros(3).dtype
    with pytest.raises(nbopt.errors.DtypeError):
        backend.default_dtype = np.int32
    assert backend.default_dtype == np.float64


@pytest.mark.parametrize("shape", [(24,), (6, 4), (2, 3, 4), (4, 1, 6), (1, 24, 1)])
@pytest.mark.rest(where=["gpu"])
def test_reshape(backend, shape):
    """``tensor.reshape`` gives a view, by numbers or a tuple, with at most one -1."""
    tensor = backend.array(np.arange(24.0).reshape(2, 12))
    tensor.rounding = 5
    for view in (
        tensor.reshape(*shape),
        tensor.reshape(shape),
        tensor.reshape(list(shape)),
        tensor.reshape(-1, *shape[1:]),
    ):
        assert view.shape == shape and view.rounding == 5
        np.testing.assert_array_equal(view.get(), np.arange(24.0).reshape(shape))
    view[:] = view + 1.0
    np.testing.assert_array_equal(tensor.get(), np.arange(1.0, 25).reshape(2, 12))


@pytest.mark.parametrize("part", [np.s_[:, ::2], np.s_[::-1], np.s_[1:3, 1:2], np.s_[2], np.s_[:, 3]])
@pytest.mark.parametrize("shape", [(-1,), (2, -1), (1, -1, 1), (-1, 2)])
def test_reshape_of_a_part(host_backend, part, shape):
    """A view of a view is that of NumPy's elements, or an error where NumPy would copy."""
    values = np.arange(32.0, dtype=np.float32).reshape(4, 8)
    tensor = host_backend.array(values)[part]
    try:
        expected = values[part].reshape(shape)
    except ValueError:
        with pytest.raises(ShapeError, match="don't fit the shape"):
            tensor.reshape(shape)
        return
    if not np.shares_memory(expected, values):
        with pytest.raises(ShapeError, match="would need a copy"):
            tensor.reshape(shape)
        return
    np.testing.assert_array_equal(tensor.reshape(shape).get(), expected)


@pytest.mark.parametrize("shape", [(5,), (-1, -1), (-2, -3), (0, -1), ("6",), (2.0, 3)])
def test_wrong_shape(backend, shape):
    """A shape of another number of elements is refused."""
    with pytest.raises(ShapeError, match=r"shape"):
        backend.zeros((2, 3)).reshape(*shape)


def test_reshape_without_elements(backend):
    """Tensors without elements, and of one element, are reshaped as well."""
    assert backend.zeros((0, 3)).reshape(5, 0).shape == (5, 0)
    assert backend.zeros((1, 1)).reshape(()).shape == ()
    assert backend.zeros(()).reshape(1, 1).shape == (1, 1)


def test_is_contiguous(backend):
    """``tensor.is_contiguous`` says whether the elements lie in C order without gaps."""
    tensor = backend.zeros((4, 3))
    assert tensor.is_contiguous is True and tensor[:2].is_contiguous and tensor.reshape(12).is_contiguous
    assert tensor[:, 1].is_contiguous is False


@pytest.mark.parametrize(
    "there, here",
    [
        ((6,), (6, 1)),
        ((6, 1), (6,)),
        ((6,), (1, 6, 1)),
        ((2, 3), (2, 1, 3)),
        ((1, 6), (6, 1)),
        ((1,), (1, 1)),
        ((), (1, 1)),
    ],
)
@pytest.mark.parametrize("rounding", [False, 6])
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-False-*")
def test_axes_of_length_1(backend, there, here, rounding):
    """What is assigned to a tensor may differ in shape by axes of length 1."""
    values = (1 + np.arange(np.prod(there, dtype=int)) / 8).astype(np.float32).reshape(there)
    source, target = backend.array(values), backend.zeros(here)
    target.rounding = rounding
    for value, expected in (
        (source, values),
        (values, values),
        (source + source, values + values),
        (-source, -values),
    ):
        target[:] = 0.0
        target[:] = value
        np.testing.assert_array_equal(target.get(), expected.reshape(here))
    backend.add(source, 1.0, out=target)
    np.testing.assert_array_equal(target.get(), values.reshape(here) + 1)


def test_axes_of_length_1_in_parts_and_sums(backend):
    """So are parts of tensors, and reductions without their axis."""
    values = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    source, target = backend.array(values), backend.zeros((3, 2))
    target[:, 0] = source[:1]
    np.testing.assert_array_equal(target.get(), np.stack([values[0], np.zeros(3)], axis=1))
    column = backend.zeros((2, 1))
    column[:] = backend.sum(source, axis=1, keepdims=False)
    np.testing.assert_array_equal(column.get(), [[3.0], [12.0]])


@pytest.mark.rest(where=["gpu"])
def test_axes_of_length_1_and_random_bits(backend):
    """The random bits belong to an element's place, which axes of length 1 don't move."""
    values = np.linspace(1, 2, 300, dtype=np.float32)
    found = []
    for shape in [(300,), (300, 1), (1, 300, 1)]:
        backend.rng_reset()
        target = backend.zeros(shape)
        target.rounding = 4
        target[:] = backend.array(values) * 1.0
        found.append(target.get().reshape(300))
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


@pytest.mark.parametrize("there, here", [((6, 1), (2, 3)), ((6,), (6, 2)), ((3, 2), (2, 3)), ((6, 1), (5,))])
def test_other_shapes(backend, there, here):
    """Everything else broadcasts as in NumPy, or is refused, and operands are never reshaped."""
    target = backend.zeros(here)
    with pytest.raises(ShapeError):
        target[:] = backend.ones(there)
    with pytest.raises(ShapeError):
        target[:] = np.ones(there)
    np.testing.assert_array_equal(target.get(), 0)
    wide = backend.zeros((6, 6))
    wide[:] = backend.ones(6) + backend.ones((6, 1))
    np.testing.assert_array_equal(wide.get(), 2)
