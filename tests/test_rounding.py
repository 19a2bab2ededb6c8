"""Sixteen-bit storage, rounding to nearest, and stochastic rounding.

They are exact, unbiased, and give the same bits everywhere.
"""

import copy
import functools
import math
import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from typing import NamedTuple

import helpers
import ml_dtypes
import numba
import numpy as np
import pytest
from helpers import OPTIMIZERS, ROUNDED, special_values, thorough_but, values_of

import nbopt
from nbopt.errors import ArgumentError

BF16, F16, F32, F64 = (np.dtype(d) for d in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64))
CANONICAL_NAN = {F16: 0x7E00, BF16: 0x7FC0}
# NumPy warns where it widens signalling NaN, which are among the values here.
same_bits = np.errstate(all="ignore")(helpers.same_bits)
each_16 = pytest.mark.parametrize("dtype", [F16, BF16], ids=["float16", "bfloat16"])


def patterns(dtype):
    """All numbers of a 16-bit dtype, by their bits."""
    return np.arange(65536, dtype=np.uint16).view(dtype)


def assigned(be, values, dtype, rounding=False):
    """What an assignment of `values`, an array, stores in a tensor of this dtype and rounding."""
    target = be.zeros(values.shape, dtype)
    target.rounding = rounding
    target[:] = be.wrap(values)
    return target.get()


@np.errstate(all="ignore")
def as_numpy_converts(values, dtype):
    """What NumPy and ml_dtypes, which adds bfloat16 to it, make of values."""
    return values.astype(dtype)


def assert_canonical(stored):
    """Check that every NaN of a 16-bit array has the same bits."""
    assert set(stored.view(np.uint16)[np.isnan(stored)].tolist()) <= {CANONICAL_NAN[stored.dtype]}


# --- conversions ---


@each_16
@pytest.mark.parametrize("wide", [F32, F64], ids=["float32", "float64"])
@pytest.mark.thorough("gpu")
def test_every_number_of_16_bits_widens_exactly(backend, dtype, wide):
    wanted = as_numpy_converts(patterns(dtype), wide)
    # All but NaN, infinities, and one of the zeros.
    assert len(np.unique(wanted[np.isfinite(wanted)])) == (63487 if dtype == F16 else 65279)
    assert same_bits(assigned(backend, patterns(dtype), wide), wanted)


@each_16
@pytest.mark.parametrize("to", [F16, BF16], ids=["to float16", "to bfloat16"])
@pytest.mark.thorough("gpu")
def test_every_number_of_16_bits_is_stored_as_numpy_stores_it_and_nan_is_canonical(backend, dtype, to):
    stored = assigned(backend, patterns(dtype), to)
    assert same_bits(stored, as_numpy_converts(patterns(dtype).astype(F32), to))
    assert np.isnan(stored).any()
    assert_canonical(stored)
    assert_canonical(backend.array(patterns(dtype), to).get())


def boundaries(dtype, wide):
    """All numbers of a 16-bit dtype, the midpoints between neighbours, and what lies next to either.

    There are both signs, and a midpoint beyond the largest number.
    """
    below = patterns(dtype)[: 0x7C00 if dtype == F16 else 0x7F80].astype(wide)
    above = np.append(below[1:], np.array(np.inf, wide))
    last = below[-1] + (below[-1] - below[-2]) / 2  # from here on nearest is infinite
    edges = np.concatenate([below, below[:-1] + (above[:-1] - below[:-1]) / 2, [last]])
    with np.errstate(all="ignore"):
        around = np.concatenate(
            [edges, np.nextafter(edges, wide.type(np.inf)), np.nextafter(edges, wide.type(-np.inf))]
        )
    return np.concatenate([around, -around, np.array([np.inf, -np.inf, np.nan, -np.nan], wide)])


@each_16
@pytest.mark.thorough("gpu")
def test_boundaries_round_to_nearest_as_numpy_rounds_them(backend, dtype):
    values = boundaries(dtype, F32)
    wanted = as_numpy_converts(values, dtype)
    stored = assigned(backend, values, dtype)
    assert same_bits(stored, wanted)
    assert_canonical(stored)
    assert same_bits(backend.array(values, dtype).get(), wanted)


@each_16
@pytest.mark.thorough("gpu")
def test_ten_million_random_patterns_round_to_nearest_as_numpy_rounds_them(backend, rng, dtype):
    target = backend.zeros(1_000_000, dtype)
    for _ in range(1 if backend.name == "reference" else 10):  # the reference is NumPy
        values = rng.integers(0, 2**32, 1_000_000, np.uint32).view(F32)
        target[:] = backend.wrap(values)
        assert same_bits(target.get(), as_numpy_converts(values, dtype))


def exactly_nearest(x, dtype):
    """The bits of a non-negative float64 rounded to nearest even, once.

    Exact arithmetic over the neighbouring numbers of the dtype finds them.
    """

    def exact(bits):
        infinity = {F16: 0x7C00, BF16: 0x7F80}[dtype]
        value = np.array([min(bits, infinity)], np.uint16).view(dtype).astype(F64)[0]
        return Fraction(2) ** {F16: 16, BF16: 128}[dtype] if bits == infinity else Fraction(float(value))

    infinity = {F16: 0x7C00, BF16: 0x7F80}[dtype]
    guess = int(as_numpy_converts(np.array([x]), dtype).view(np.uint16)[0])
    near = [bits for bits in (guess - 1, guess, guess + 1) if 0 <= bits <= infinity]
    return min(near, key=lambda bits: (abs(Fraction(x) - exact(bits)), bits % 2))


@each_16
@pytest.mark.thorough("gpu")
def test_float64_is_rounded_once_to_16_bits_and_not_by_way_of_float32(backend, rng, dtype):
    # Midpoints of 16-bit neighbours, and values so close to them that float32 can't tell them apart: over
    # subnormals, normals and the largest.
    last = 0x7C00 if dtype == F16 else 0x7F80
    lower = np.unique(
        np.concatenate([np.arange(8), np.arange(last - 8, last), rng.integers(0, last, 300)])
    ).astype(np.uint16)
    below, width = lower.view(dtype).astype(F64), {F16: 16, BF16: 128}[dtype]
    above = np.where(lower + 1 == last, 2.0**width, (lower + 1).astype(np.uint16).view(dtype).astype(F64))
    middle = (below + above) / 2
    values = np.concatenate(
        [middle * (1 + sign * 2.0**-power) for sign in (1, -1) for power in (52, 40, 30)]
        + [middle, np.array([1e-300, 1e300])]
    )
    wanted = np.array([exactly_nearest(x, dtype) for x in values], np.uint16)
    twice = as_numpy_converts(as_numpy_converts(values, F32), dtype).view(np.uint16)
    assert (twice != wanted).sum() > 100  # the values are those that go wrong
    assert (assigned(backend, values, dtype).view(np.uint16) == wanted).all()
    assert (assigned(backend, -values, dtype).view(np.uint16) == wanted | 0x8000).all()


@each_16
@pytest.mark.thorough("gpu")
def test_float64_boundaries_round_to_nearest(backend, dtype):
    # All of float32's values are among float64's: one more rounding, of nothing.
    values = boundaries(dtype, F32)
    assert same_bits(assigned(backend, values.astype(F64), dtype), as_numpy_converts(values, dtype))


@pytest.mark.thorough("gpu")
def test_float64_results_round_to_float32_as_numpy_rounds_them(backend, rng):
    near_ties = as_numpy_converts(rng.integers(0, 2**32, 100_000, np.uint32).view(F32), F64) * (1 + 2.0**-25)
    values = np.concatenate([special_values(F64, rng, 100_000), near_ties])
    assert same_bits(assigned(backend, values, F32), as_numpy_converts(values, F32))


# --- stochastic rounding: what it gives ---


class Kind(NamedTuple):
    """A storage with a rounding, and the arithmetic it comes from."""

    dtype: np.dtype
    rounding: bool | int
    arithmetic: np.dtype

    @property
    def kept(self):
        """The mantissa bits that are kept."""
        return {F16: 10, BF16: 7}[self.dtype] if self.rounding is True else self.rounding

    @property
    def exponents(self):
        """Of the smallest normal number and of the largest."""
        return {F16: (-14, 15), BF16: (-126, 127), F32: (-126, 127), F64: (-1022, 1023)}[self.dtype]

    @property
    def top(self):
        return math.ldexp(2 - 2.0**-self.kept, self.exponents[1])

    def __str__(self):
        return f"{self.arithmetic.name} to {self.dtype.name}, {self.rounding}"


KINDS = [
    Kind(BF16, True, F32),
    Kind(F16, True, F32),
    Kind(F32, 6, F32),
    Kind(F64, 9, F64),
    Kind(BF16, 2, F32),
    Kind(F16, 3, F32),
    Kind(BF16, True, F64),
    Kind(F16, True, F64),
    Kind(F32, 6, F64),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def neighbours(x, kind):
    """(The number of the grid towards 0, the next one, the distance of x from the first), x finite.

    The distance is exact, in units of theirs.
    """
    magnitude = abs(Fraction(x))
    exponent = max(math.frexp(x)[1] - 1, kind.exponents[0]) if x else kind.exponents[0]
    step = Fraction(2) ** (exponent - kind.kept)
    steps = magnitude // step
    down, up = (math.copysign(float(k * step), x) for k in (steps, steps + 1))
    return down, up, magnitude / step - steps


def spread_values(kind):
    """Values over the whole range of a storage: normal, subnormal, near overflow; on the grid and off it."""
    emin, _ = kind.exponents
    tiny, smallest = math.ldexp(1.0, emin), math.ldexp(1.0, emin - kind.kept)
    step = 2.0**-kind.kept
    normal = [1.1, -1.1, 1 + 0.999 * step, 2 - step / 3, -0.003, 3141.59]
    subnormal = [0.3 * smallest, -0.07 * smallest, 1.5 * smallest, -2.75 * smallest, tiny - 0.4 * smallest]
    large = [kind.top * (1 - 0.3 * step), -kind.top * (1 - 0.05 * step)]
    exact = [0.0, -0.0, 1.0, -1.5, smallest, -tiny, kind.top, -kind.top]
    return [float(kind.arithmetic.type(x)) for x in (*normal, *subnormal, *large)], exact


def many_roundings(be, n, kind):
    """Return a function that gives n roundings of one value."""
    source, target = be.zeros(n, kind.arithmetic), be.zeros(n, kind.dtype)
    target.rounding = kind.rounding

    def rounded(x):
        source.fill(x)
        target[:] = source
        return target.get()

    return rounded


def how_many(backend):
    """A million, or fewer from the reference, which is slow.

    It gives the same bits as the CPU (see the tests of replay below).
    """
    return 50_000 if backend.name == "reference" else 1_000_000


@each_kind
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-* to *float16, True")
def test_it_is_unbiased_and_only_the_two_neighbours_occur(backend, kind):
    n = how_many(backend)
    rounded = many_roundings(backend, n, kind)
    off_grid, _ = spread_values(kind)
    for x in off_grid:
        down, up, distance = neighbours(x, kind)
        stored = bits_of(rounded(x))
        ups = stored == bits_of(np.array(up, kind.dtype))
        assert 0 < distance < 1, x
        assert (ups | (stored == bits_of(np.array(down, kind.dtype)))).all(), x
        assert abs(ups.mean() - float(distance)) < 4 * math.sqrt(distance * (1 - distance) / n), x


@each_kind
@pytest.mark.thorough("gpu")
def test_exact_values_stay(backend, kind):
    _, on_grid = spread_values(kind)
    values = np.repeat(np.array(on_grid, kind.arithmetic), 10_000)
    assert same_bits(assigned(backend, values, kind.dtype, kind.rounding), values.astype(kind.dtype))


def bits_of(array):
    """The bits of an array, so that -0 differs from 0."""
    return array.view(f"u{array.dtype.itemsize}")


@each_kind
@pytest.mark.thorough("gpu")
def test_frequencies_fit_the_distances(backend, kind):
    # 64 distances, each in every place of the words; and then the numbers of ups in blocks of one distance.
    n = 64 * 4096
    distances = (np.arange(n) % 61 + 0.5) / 61
    # Odd ones, since a period that divides the number of lanes would show each distance to a few lanes only.
    values = (1 + np.ldexp(distances, -kind.kept)).astype(kind.arithmetic)
    exact = np.ldexp(values.astype(F64) - 1, kind.kept)
    ups = assigned(backend, values, kind.dtype, kind.rounding).astype(F64) > 1
    variance = exact * (1 - exact)
    by_distance = [sum_of_squares(ups, exact, variance, np.arange(n) % 61, 61), 61]
    by_block = [sum_of_squares(ups, exact, variance, np.arange(n) // 1024, 256), 256]
    by_lane = [sum_of_squares(ups, exact, variance, np.arange(n) % 256, 256), 256]
    for chi_square, freedom in (by_distance, by_block, by_lane):
        assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)  # too good a fit would be as suspicious


def sum_of_squares(ups, chance, variance, group, groups):
    """Chi-square: over groups, the squared differences from what is expected, in units of their variance."""
    difference = np.bincount(group, ups - chance, groups)
    return float((difference**2 / np.bincount(group, variance, groups)).sum())


@pytest.mark.thorough("compiled")
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=lambda d: d.name)
@pytest.mark.thorough("gpu")
def test_with_one_bit_1_1_becomes_1_or_1_5(backend, dtype):
    n = how_many(backend)
    stored = many_roundings(backend, n, Kind(dtype, 1, F64 if dtype == F64 else F32))(1.1)
    values, counts = np.unique(stored.astype(F64), return_counts=True)
    assert values.tolist() == [1.0, 1.5]
    assert abs(counts[1] / n - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)


def wide_values(kind, rng, n=3000):
    """Random finite values of all magnitudes that the storage has, and smaller ones, as the arithmetic's."""
    emin, emax = kind.exponents
    with np.errstate(all="ignore"):
        values = np.ldexp(
            rng.uniform(1, 2, n) * rng.choice([-1, 1], n), rng.integers(emin - kind.kept - 8, emax, n)
        ).astype(kind.arithmetic)
    return values


@each_kind
@pytest.mark.thorough("gpu")
def test_every_value_becomes_one_of_its_neighbours_on_the_grid(backend, rng, kind):
    values = wide_values(kind, rng)
    stored = assigned(backend, values, kind.dtype, kind.rounding)
    wanted = [neighbours(float(x), kind)[:2] for x in values]
    down, up = (np.array(side, F64).astype(kind.dtype) for side in zip(*wanted))
    is_down, is_up = bits_of(stored) == bits_of(down), bits_of(stored) == bits_of(up)
    assert (is_down | is_up).all()
    assert is_down.mean() > 0.3
    assert is_up.mean() > 0.3


@each_kind
@pytest.mark.thorough("gpu")
def test_what_is_on_the_grid_stays(backend, rng, kind):
    values = wide_values(kind, rng)
    once = assigned(backend, values, kind.dtype, kind.rounding)
    assert not same_bits(once.astype(kind.arithmetic), values)
    assert same_bits(assigned(backend, once.astype(kind.arithmetic), kind.dtype, kind.rounding), once)


@each_kind
@pytest.mark.thorough("gpu")
def test_nan_and_infinities_pass_through_and_overflow_is_that_of_rounding_to_nearest(backend, kind):
    step = math.ldexp(1.0, kind.exponents[1] - kind.kept)
    # A tie, whose even side is infinite. (In Python, where a sum beyond the largest float64 is infinite.)
    half = kind.top + step / 2
    near_top = [
        np.nextafter(kind.arithmetic.type(kind.top), kind.arithmetic.type(np.inf)),
        kind.top + step / 4,
    ]
    near_top.append(np.nextafter(kind.arithmetic.type(half), kind.arithmetic.type(0)))
    beyond = [half, kind.top + 0.75 * step, np.finfo(kind.arithmetic).max, np.inf]
    for values, wanted in ((near_top, kind.top), (beyond, np.inf), ([np.nan], np.nan)):
        for sign in (1, -1):
            many = np.repeat(np.array(values, kind.arithmetic) * kind.arithmetic.type(sign), 1000)
            stored = assigned(backend, many, kind.dtype, kind.rounding)
            assert same_bits(stored, np.full(many.shape, sign * wanted, kind.dtype)), values
            if kind.dtype.itemsize == 2:
                assert_canonical(stored)


@each_16
@pytest.mark.thorough("gpu")
def test_float16_and_bfloat16_overflow_as_numpy_converts(backend, dtype):
    largest = float(patterns(dtype)[0x7BFF if dtype == F16 else 0x7F7F])
    with np.errstate(over="ignore"):
        values = np.abs(largest * (1 + np.linspace(0, 0.01, 10_001))).astype(F32)
    assert same_bits(assigned(backend, values, dtype, True), as_numpy_converts(values, dtype))


@pytest.mark.thorough("gpu")
def test_a_random_pattern_never_becomes_nan(backend, rng):
    values = rng.integers(0, 2**32, 500_000, np.uint32).view(F32)
    for dtype, rounding in ((F16, True), (BF16, True), (F32, 6)):
        assert (np.isnan(assigned(backend, values, dtype, rounding)) == np.isnan(values)).all()


# --- settings ---


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("rounding", [True, "all bits", 60], ids=str)
@pytest.mark.thorough("gpu")
def test_all_of_a_mantissa_is_rounding_to_nearest_in_float32_and_float64(backend, rng, dtype, rounding):
    rounding = {F32: 23, F64: 52}[dtype] if rounding == "all bits" else rounding
    values = special_values(dtype, rng, 5000)
    assert same_bits(assigned(backend, values, dtype, rounding), values)
    if dtype == F32:
        finer = rng.random(5000)
        assert same_bits(assigned(backend, finer, F32, rounding), finer.astype(F32))


@each_16
@pytest.mark.thorough("gpu")
def test_more_bits_than_16_bit_storage_has_means_all_of_them(backend, rng, dtype):
    values = rng.random(5000).astype(F32)
    state = backend.rng_get_state()
    found = []
    for rounding in (True, {F16: 10, BF16: 7}[dtype], 23, 1000):
        backend.rng_set_state(state)
        found.append(assigned(backend, values, dtype, rounding))
    assert all(same_bits(found[0], other) for other in found[1:])
    assert not same_bits(found[0], assigned(backend, values, dtype))


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        (False, False),
        (0, False),
        (np.int64(0), False),
        (True, True),
        (np.True_, True),
        (1, 1),
        (np.int32(8), 8),
        (200, 200),
    ],
)
def test_settings_are_normalised_and_one_bit_is_not_true(backend, given, normal):
    tensor = backend.zeros(3)
    tensor.rounding = given
    optimizer = nbopt.RMSProp(stochastic_round=given)
    other = type(backend)(stochastic_round=given)
    for found in (
        tensor.rounding,
        optimizer.stochastic_round,
        other.stochastic_round,
        other.zeros(3).rounding,
    ):
        assert (type(found), found) == (type(normal), normal)


@pytest.mark.parametrize(
    "bad", [-1, -(2**70), 1.0, 0.5, float("nan"), "nearest", None, [1], (), np.float32(2), 1j], ids=repr
)
def test_other_settings_are_refused_and_change_nothing(backend, bad):
    tensor, optimizer = backend.zeros(3), nbopt.RMSProp(stochastic_round=3)
    tensor.rounding = 5
    with pytest.raises(ArgumentError, match="rounding must be False"):
        tensor.rounding = bad
    with pytest.raises(ArgumentError, match="stochastic_round: rounding must be False"):
        optimizer.stochastic_round = bad
    with pytest.raises(ArgumentError, match="stochastic_round: rounding must be False"):
        nbopt.Adam(stochastic_round=bad)
    with pytest.raises(ArgumentError, match="rounding must be False"):
        nbopt.gen_backend(backend.name, stochastic_round=bad)
    assert (tensor.rounding, optimizer.stochastic_round) == (5, 3)


class Moves(nbopt.Optimizer):
    """Keeps the gradient as a state, and moves the parameter by it."""

    state_names = ("last",)

    def rule(self, step, param, grad, last):
        last[:] = grad
        param[:] = param + grad


N = 3000
MOVE = 2.0**-5 / 3  # off every grid here


def moved(be, param="bfloat16", state=None, optimizer_setting=False, tensor_setting=None):
    """The parameter and the state, as float64, after one step from 1 by `MOVE`."""
    tensor = be.ones(N, param)
    if tensor_setting is not None:
        tensor.rounding = tensor_setting
    layer = nbopt.Parameters((tensor, be.array(np.full(N, MOVE, F32))))
    optimizer = Moves(state_dtype=state)
    optimizer.stochastic_round = optimizer_setting
    optimizer.optimize([layer], 0)
    return tensor.get().astype(F64), layer.states[0][0].get().astype(F64)


def grid_of(values):
    """The mantissa bits that the two values of an array are apart by.

    If all are equal it is None, as in rounding to nearest.
    """
    found = np.unique(values)
    assert len(found) <= 2
    return None if len(found) == 1 else int(math.floor(math.log2(found[0])) - math.log2(found[1] - found[0]))


@pytest.mark.thorough("compiled")  # settings are the business of code that the backends share
@pytest.mark.parametrize(
    ("optimizer_setting", "tensor_setting", "param_bits", "state_bits"),
    [
        (False, None, None, None),
        (True, None, 7, 7),
        (False, True, 7, None),  # the parameter's own setting is not its states'
        (True, 2, 7, 7),  # the optimizer's comes first
        (2, True, 2, 2),
        (2, False, 2, 2),
    ],
)
@pytest.mark.thorough("gpu")
def test_optimizers_and_tensors_settings(backend, optimizer_setting, tensor_setting, param_bits, state_bits):
    found = moved(backend, "bfloat16", "bfloat16", optimizer_setting, tensor_setting)
    assert tuple(map(grid_of, found)) == (param_bits, state_bits)


@pytest.mark.parametrize(
    ("param", "state", "setting", "param_bits", "state_bits"),
    [
        ("bfloat16", None, True, 7, None),  # states of float32 and float64 stay as they are
        ("bfloat16", None, 3, 3, None),
        ("bfloat16", "float64", 3, 3, None),
        ("float16", "bfloat16", True, 10, 7),
        ("bfloat16", "float16", 3, 3, 3),
        ("float32", None, True, None, None),
        ("float32", None, 4, 4, None),
        ("float32", "bfloat16", True, None, 7),
        ("float64", None, 4, 4, None),
        ("float64", "bfloat16", 9, 9, 7),
    ],
)
def test_optimizers_settings_in_mixes_of_storage(param, state, setting, param_bits, state_bits):
    # The settings are read by code that the backends share; here is what it makes of them, without
    # compilations.
    with nbopt.use_backend("reference", rng_seed=0) as be:
        found_param, found_state = moved(be, param, state, setting)
    assert (grid_of(found_param), grid_of(found_state)) == (param_bits, state_bits)
    if state_bits is None:
        assert (found_state == F32.type(MOVE)).all()


@pytest.mark.thorough("compiled")  # settings are the business of code that the backends share
@pytest.mark.parametrize(
    ("setting", "param_bits", "state_bits"), [(True, 7, 7), (2, 2, 2), (False, None, None)]
)
@pytest.mark.thorough("gpu")
def test_the_backends_default_is_where_tensors_start(backend, setting, param_bits, state_bits):
    with nbopt.use_backend(type(backend)(rng_seed=0, stochastic_round=setting)) as be:
        found = moved(be, state="bfloat16")
        assert tuple(map(grid_of, found)) == (param_bits, state_bits)
        array = np.ones(N, BF16)  # wrapped by Parameters
        Moves(state_dtype="bfloat16").optimize([nbopt.Parameters((array, np.full(N, MOVE, F32)))], 0)
        assert grid_of(array.astype(F64)) == param_bits
        if setting:
            found = moved(be, state="bfloat16", optimizer_setting=2, tensor_setting=False)
            assert tuple(map(grid_of, found)) == (2, 2)


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_settings_are_read_at_every_step(backend):
    # What the parameter's values are apart by tells which setting was in force; the layout and the tensors
    # are the same ones.
    param = backend.ones(N, "bfloat16")
    layer = nbopt.Parameters((param, backend.array(np.full(N, MOVE, F32))))
    optimizer = Moves(state_dtype="bfloat16")
    found = []
    for own, whole in (
        (False, False),
        (True, False),
        (1, False),
        (True, 1),
        (1, True),
        (False, 2),
        (False, True),
        (False, False),
    ):
        param.fill(1)
        param.rounding, optimizer.stochastic_round = own, whole
        optimizer.optimize([layer], 0)
        found.append(grid_of(param.get().astype(F64)))
    assert found == [None, 7, 1, 1, 7, 2, 7, None]


@pytest.mark.thorough("gpu")
def test_parameters_of_one_list_keep_their_own_settings(backend):
    params = [backend.ones(N, "bfloat16") for _ in range(4)]
    for param, setting in zip(params, (False, True, 1, True)):
        param.rounding = setting
    grad = backend.array(np.full(N, MOVE, F32))
    Moves(state_dtype="bfloat16").optimize([nbopt.Parameters(*((param, grad) for param in params))], 0)
    assert [grid_of(param.get().astype(F64)) for param in params] == [None, 7, 1, 7]
    assert not same_bits(params[1].get(), params[3].get())


# --- assignments outside optimizers ---


@pytest.mark.thorough("gpu")
def test_assignments_outside_optimizers_honour_rounding(backend):
    a, b = backend.array(np.full((40, 50), 0.6, F32)), backend.array(np.full((40, 1), 0.5, F32))
    c = backend.zeros((40, 50))
    c.rounding = 1
    ways = {
        "c[:] = a + b": lambda: c.__setitem__(slice(None), a + b),
        "out=c": lambda: backend.add(a, b, out=c),
        "rows": lambda: [c.__setitem__(row, a[row] + b[row]) for row in range(40)],
        "a number": lambda: c.__setitem__(slice(None), 1.1),
        "columns": lambda: [
            c.__setitem__((slice(None), slice(k, None, 5)), a[:, k::5] + b) for k in range(5)
        ],
    }
    for way, assign in ways.items():
        c.fill(0)
        assign()
        values, counts = np.unique(c.get(), return_counts=True)
        assert values.tolist() == [1.0, 1.5], way
        assert abs(counts[1] / 2000 - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 2000), way
    c.rounding = False
    c[:] = a + b
    assert (c.get() == F32.type(0.6) + F32.type(0.5)).all()


def test_a_view_has_the_rounding_of_its_tensor_when_it_was_made(backend):
    tensor = backend.zeros((4, 5), "bfloat16")
    tensor.rounding = 3
    assert tensor[1:].rounding == 3


# --- states ---


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_dtype_sets_the_states_apart(name):
    cases = [(BF16, None, F32), (F16, None, F32), (F32, None, F32), (F64, None, F64)]
    cases += [(BF16, "bfloat16", BF16), (F32, BF16, BF16), (BF16, np.float16, F16), (F64, "float32", F32)]
    with nbopt.use_backend("reference"):
        for param, setting, wanted in cases:
            layer = nbopt.Parameters((np.ones(4, param), np.ones(4, param)))
            optimizer = OPTIMIZERS[name](state_dtype=setting)
            optimizer.optimize([layer], 0)
            assert [state.dtype for state in layer.states[0]] == [wanted] * len(optimizer.states_in_use())
            assert nbopt.NervanaObject.gen_class(optimizer.get_description()).state_dtype == (
                None if setting is None else wanted.name
            )


def arrays_of(layers):
    return [
        *(x for layer in layers for x in (*layer.params, *layer.grads)),
        *(s.storage for layer in layers for row in layer.states for s in row),
    ]


def stepped_layers(dtype, shapes=((1000, 30), (777,)), **options):
    layers = [nbopt.Parameters((np.ones(s, dtype), np.ones(s, dtype))) for s in shapes]
    optimizer = nbopt.Adam(**options)
    optimizer.optimize(layers, 0)
    return layers, optimizer


@pytest.mark.thorough("compiled")
@pytest.mark.thorough("gpu")
def test_bfloat16_parameters_gradients_and_states_take_half(backend):
    full, _ = stepped_layers(F32)
    half, _ = stepped_layers(BF16, state_dtype="bfloat16", stochastic_round=True)
    assert len(arrays_of(full)) == len(arrays_of(half)) == 8
    assert 2 * sum(x.nbytes for x in arrays_of(half)) == sum(x.nbytes for x in arrays_of(full))


@pytest.mark.parametrize("rounding", [False, True])
def test_a_step_on_the_cpu_makes_no_temporary_of_the_parameters_size(rounding):
    with nbopt.use_backend("cpu", rng_seed=0, num_threads=1):
        layers, optimizer = stepped_layers(
            BF16, [(1_000_000,)], state_dtype="bfloat16", stochastic_round=rounding
        )
        tracemalloc.start()
        optimizer.optimize(layers, 0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 100_000


# --- the gradients' norm ---


@pytest.mark.parametrize("size", [300.0, 2.0**-14], ids=["squares overflow", "squares underflow"])
@pytest.mark.rest(where=["gpu"])
def test_the_norm_of_float16_gradients_is_accumulated_in_wider_arithmetic(backend, size):
    # In float16 even one square would be infinite, or 0.
    n, clip = 10_000, size / 2
    param, grad = np.zeros(n, F16), np.full(n, size, F16)
    layer = nbopt.Parameters((param, grad))
    optimizer = nbopt.GradientDescentMomentum(100.0, 0, gradient_clip_norm=clip)
    factor = clip / (size * math.sqrt(n))  # 1 / 200
    assert optimizer.clip_gradient_norm(nbopt.get_param_list([layer]), clip) == pytest.approx(
        factor, rel=1e-6
    )
    optimizer.optimize([layer], 0)
    assert same_bits(param, np.full(n, F32.type(-100 * size) * F32.type(factor)).astype(F16))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=["float16", "bfloat16"])
@pytest.mark.rest("cpu-*", "*-float16")
def test_sums_of_16_bits_are_accumulated_in_float32(backend, dtype):
    ones = backend.ones(100_000, dtype)  # which 16 bits can't count, even where their range would do
    total = backend.zeros((1,))
    total[:] = backend.sum(ones * 300)
    assert total.get()[0] == 30_000_000


# --- replay ---


# Parameter, gradient, states.
MIXES = {
    "float16 and bfloat16": (F16, BF16, "bfloat16"),
    "bfloat16, states of float32": (BF16, BF16, None),
    "all bfloat16": (BF16, BF16, "bfloat16"),
    "float32, the rest 16 bits": (F32, F16, "bfloat16"),
    "float64, the rest 16 bits": (F64, BF16, "float16"),
    "bfloat16 with gradients of float64": (BF16, F64, "float32"),
}
SHAPES = ((20_003,), (50, 60), (), (0, 3), (3, 5, 2), (4096,), (1,))


@functools.cache
def drawn(param, grad, special):
    """For every shape, a parameter and the gradients of three steps.

    The second is Fortran-ordered, with gradients of every second column.
    """
    rng = np.random.default_rng(5)

    @np.errstate(all="ignore")
    def values(shape, dtype, size):
        if special:
            return special_values(F32, rng, shape).astype(dtype)
        return np.array(rng.random(shape) * size).astype(dtype)

    found = [(values(s, param, 1), [values(s, grad, 0.01) for _ in range(3)]) for s in SHAPES]
    wide = [values((50, 120), grad, 0.01) for _ in range(3)]
    found[1] = np.asfortranarray(found[1][0]), [x[:, ::2] for x in wide]
    return found


def replayed(backend, mix, make, special=False, **options):
    """What three steps leave, with new gradient arrays at each."""
    param, grad, state = mix
    with nbopt.use_backend(backend, rng_seed=12345, batch_size=16, **options):
        data = drawn(param, grad, special)
        layers = [nbopt.Parameters((x.copy(order="K"), grads[0])) for x, grads in data]
        optimizer = make(state_dtype=state)
        for step in range(3):
            for layer, (_, grads) in zip(layers, data):
                layer.grads = [grads[step].copy(order="K")]
            optimizer.optimize(layers, step)
        assert layers[1].params[0].flags.f_contiguous
        return values_of(layers)


def assert_replayed(mix, make, special=False):
    """Check that the CPU on 1 and 2 threads gives what the reference gives."""
    wanted = replayed("reference", mix, make, special)
    for threads in (1, 2):
        got = replayed("cpu", mix, make, special, num_threads=threads)
        assert [same_bits(x, y) for x, y in zip(got, wanted, strict=True)] == [True] * len(wanted)
    return wanted


# Every optimizer in bfloat16; both kinds of 16 bits where the most states are rounded.
BFLOAT16 = [(name, "bfloat16, states of float32") for name in OPTIMIZERS]
BOTH = [(name, "float16 and bfloat16") for name in OPTIMIZERS]
LARGEST = [(name, mix) for name, mix in BOTH if name in ("adadelta", "shift_adamax")]


@pytest.mark.parametrize(("name", "mix"), thorough_but([*BFLOAT16, *BOTH], *BFLOAT16, *LARGEST, several=True))
@pytest.mark.rest(*[f"{name}-bfloat16, states of float32" for name in ROUNDED])
def test_the_cpu_and_the_reference_give_the_same_bits(name, mix):
    make, mix = OPTIMIZERS[name], MIXES[mix]
    stochastic = assert_replayed(mix, lambda **k: make(stochastic_round=True, **k))
    # There was something to round.
    assert not all(map(same_bits, stochastic, replayed("reference", mix, make)))
    assert_replayed(mix, lambda **k: make(stochastic_round=True, **k), special=True)


@pytest.mark.parametrize(
    ("mix", "setting"),
    # The first two, the test above has for several optimizers.
    thorough_but(
        [(name, True) for name in MIXES]
        + [
            ("bfloat16, states of float32", False),
            ("float64, the rest 16 bits", False),
            ("float32, the rest 16 bits", 3),
        ],
        ("float64, the rest 16 bits", True),
        ("bfloat16, states of float32", False),
        ("float32, the rest 16 bits", 3),
        several=True,
    ),
)
@pytest.mark.rest("float32, the rest 16 bits-3")
def test_the_cpu_and_the_reference_give_the_same_bits_in_every_mix(mix, setting):
    for special in (False, True):
        assert_replayed(MIXES[mix], lambda **k: nbopt.RMSProp(stochastic_round=setting, **k), special)


def test_the_cpu_and_the_reference_give_the_same_bits_with_clips():
    clips = {"gradient_clip_norm": 0.01, "gradient_clip_value": 0.25, "param_clip_value": 0.75}
    result = assert_replayed(
        MIXES["bfloat16, states of float32"], lambda **k: nbopt.Adam(stochastic_round=True, **clips, **k)
    )
    assert max(float(np.abs(x.astype(F32)).max()) for x in result[: len(SHAPES)] if x.size) == 0.75


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_assignments_have_the_same_bits_on_the_cpu_and_the_reference(kind, rng):
    if kind.arithmetic == F32:
        values = rng.integers(0, 2**32, 300_001, np.uint32).view(F32)
    else:
        values = rng.integers(0, 2**64, 300_001, np.uint64).view(F64)
        # Most patterns of float64 are out of the other formats' range.
        values[::2] = wide_values(kind, rng, 150_001)
    found = [
        assigned(make(), values, kind.dtype, kind.rounding) for make in (cpu_of(1), cpu_of(2), reference)
    ]
    assert same_bits(found[0], found[2])
    assert same_bits(found[1], found[2])


def cpu_of(threads):
    return lambda: nbopt.set_backend("cpu", rng_seed=21, num_threads=threads)


def reference():
    return nbopt.set_backend("reference", rng_seed=21)


def test_one_and_two_threads_give_the_same_bits_for_large_arrays():
    # One thread does what is below 262,144 elements, and 1,000,003 end in the middle of a block.
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("Numba has one thread here")
    found = []
    for threads in (1, 2):
        with nbopt.use_backend("cpu", rng_seed=1, num_threads=threads):
            rng = np.random.default_rng(1)
            shapes = [(1_000_003,), (300_000,), (5,), (600, 1000)]
            layers = [
                nbopt.Parameters((rng.random(s, F32).astype(BF16), (rng.random(s, F32) * 0.01).astype(BF16)))
                for s in shapes
            ]
            W = np.asfortranarray(rng.random((700, 800), F32).astype(BF16))
            layers.append(nbopt.Parameters((W, np.ones_like(W))))
            optimizer = nbopt.RMSProp(stochastic_round=True, state_dtype="bfloat16")
            for epoch in range(2):
                optimizer.optimize(layers, epoch)
            found.append(values_of(layers))
    assert all(map(same_bits, *found))


@pytest.mark.thorough("gpu")
def test_c_and_fortran_order_give_the_same_bits(backend, rng):
    W, dW = rng.random((130, 90)).astype(BF16), (rng.random((130, 90)) * 0.01).astype(BF16)
    found = []
    for order_of_w in "CF":
        for order_of_dw in "CF":
            backend.rng_reset()
            layer = nbopt.Parameters((np.array(W, order=order_of_w), np.array(dW, order=order_of_dw)))
            optimizer = nbopt.RMSProp(stochastic_round=True, state_dtype="bfloat16")
            optimizer.optimize([layer], 0)
            optimizer.optimize([layer], 1)
            found.append([np.ascontiguousarray(x) for x in values_of([layer])])
    assert all(all(map(same_bits, found[0], other)) for other in found[1:])


@pytest.mark.thorough("gpu")
def test_new_gradient_arrays_give_the_same_bits_as_gradients_written_in_place(backend, rng):
    steps = (rng.random((4, 5000)) * 0.01).astype(BF16)
    found = []
    for new in (False, True):
        backend.rng_reset()
        layer = nbopt.Parameters((np.ones(5000, BF16), np.zeros(5000, BF16)))
        optimizer = nbopt.RMSProp(stochastic_round=True)
        for epoch, grad in enumerate(steps):
            if new:
                layer.set_grad(0, grad.copy())
            else:
                layer.grads[0][:] = grad
            optimizer.optimize([layer], epoch)
        found.append(values_of([layer]))
    assert all(map(same_bits, *found))


@pytest.mark.thorough("gpu")
def test_a_run_goes_on_from_a_stored_state(backend, rng):
    steps = (rng.random((4, 5000)) * 0.01).astype(BF16)

    def run(layer, optimizer, grads):
        for grad in grads:
            layer.set_grad(0, grad)
            optimizer.optimize([layer], 0)

    def fresh():
        return nbopt.Parameters((np.ones(5000, BF16), steps[0])), nbopt.Adam(
            stochastic_round=True, state_dtype="bfloat16"
        )

    whole = fresh()
    run(*whole, steps)
    backend.rng_reset()
    first = fresh()
    run(*first, steps[:2])
    stored, (layer, optimizer) = backend.rng_get_state(), copy.deepcopy(first)
    run(*first, steps[:2])  # which uses other bits
    assert not all(map(same_bits, values_of([first[0]]), values_of([whole[0]])))
    with nbopt.use_backend(type(backend)(rng_seed=999)) as other:
        other.rng_set_state(stored)
        run(layer, optimizer, steps[2:])
        assert all(map(same_bits, values_of([layer]), values_of([whole[0]])))
        other.rng_set_state(stored)
        run(*fresh(), steps[:1])
        assert other.rng_get_state()["updates"] == stored["updates"] + 1


# --- processors without instructions for half precision ---

PORTABLE = """
import hashlib
import ml_dtypes, numpy as np, nbopt
from nbopt_backends.cpu import instructions

bf16 = np.dtype(ml_dtypes.bfloat16)
be = nbopt.set_backend("cpu", rng_seed=3, num_threads=1)
half = np.arange(65536, dtype=np.uint16).view(np.float16)
rng = np.random.default_rng(3)
patterns = rng.integers(0, 2**32, 100_000, np.uint32).view(np.float32)
fine = np.concatenate([patterns, half[:0x7C00].astype(np.float32) * np.float32(1 + 2**-11)])
found = []
for target, rounding, source in (
    ("float32", False, half), ("float16", False, fine), ("float16", True, fine),
    ("float16", False, np.errstate(all="ignore")(fine.astype)(np.float64)),
):
    t = be.zeros(source.shape, target)
    t.rounding = rounding
    t[:] = be.wrap(source)
    found.append(t.get())
layer = nbopt.Parameters((rng.random(5000).astype(np.float16), rng.random(5000).astype(bf16)))
nbopt.RMSProp(stochastic_round=True, state_dtype="float16").optimize([layer], 0)
found += [layer.params[0], layer.states[0][0].get()]
with np.errstate(all="ignore"):
    assert (found[1] == fine.astype(np.float16)).sum() > 100_000
for x in found:
    x[np.isnan(x)] = np.nan
hashes = [hashlib.sha256(x.tobytes()).hexdigest() for x in found]
"""


@pytest.mark.rest
def test_a_generic_processor_gives_the_same_bits():
    show = "print(*hashes, instructions._has_half_instructions())"
    generic = {**os.environ, "NUMBA_CPU_NAME": "generic"}
    done = subprocess.run(
        [sys.executable, "-c", PORTABLE + show], env=generic, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *there, has_half = done.stdout.split()
    assert has_half == "False"
    here = {}
    exec(PORTABLE, here)
    assert len(there) == 6
    assert there == here["hashes"]
