"""Rounding to the dtypes that arrays are stored in: what it means, in NumPy.

`scalar` has the kernels' formulas.

Rounding to nearest goes to even in ties, once, from the arithmetic's float32 or float64. Stochastic rounding
keeps k mantissa bits and goes to one of the two neighbours on that grid, up with the probability of the
distance, exact to 2^-w: with u = floor(distance * 2^w), up where u + r >= 2^w for w random bits r. Beyond the
largest number of the grid it rounds to nearest.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np


class Format(NamedTuple):
    """A storage format.

    Attributes
    ----------
    dtype : numpy.dtype
    mantissa : int
        Stored mantissa bits.
    emin, emax : int
        Exponents of the smallest normal and of the largest number.
    word : int
        How many random bits a stochastic rounding takes.
    """

    dtype: np.dtype
    mantissa: int
    emin: int
    emax: int
    word: int


FORMATS = {
    "float64": Format(np.dtype(np.float64), 52, -1022, 1023, 64),
    "float32": Format(np.dtype(np.float32), 23, -126, 127, 32),
    "float16": Format(np.dtype(np.float16), 10, -14, 15, 32),
    "bfloat16": Format(np.dtype(ml_dtypes.bfloat16), 7, -126, 127, 16),
}


def kept_bits(dtype, rounding):
    """Return the mantissa bits that a rounding setting keeps of a dtype, or 0 where it rounds to nearest.

    Parameters
    ----------
    dtype : str
    rounding : bool or int
        See `nbopt.arrays.tensor.normalise_rounding`. True on float32 and float64 storage has nothing to lose,
        so it is rounding to nearest; so is a number of bits that these formats have anyway.
    """
    if rounding is False:
        return 0
    mantissa = FORMATS[dtype].mantissa
    bits = mantissa if rounding is True else min(rounding, mantissa)
    return 0 if bits == mantissa and dtype in ("float32", "float64") else bits


def nearest(values, dtype):
    """Return `values` (float32 or float64) rounded to nearest even in the format `dtype`, in their own dtype.

    NaN is canonical.
    """
    arithmetic = values.dtype
    if dtype == arithmetic.name:
        return values
    if dtype == "bfloat16" and arithmetic == np.float64:
        values = _to_odd(values)
    rounded = values.astype(FORMATS[dtype].dtype).astype(arithmetic)
    return np.where(np.isnan(rounded), np.array(np.nan, arithmetic), rounded)


def _to_odd(values):
    """Round float64 to float32, inexact values to an odd mantissa.

    Rounding to fewer bits from there equals rounding once.
    """
    near = values.astype(np.float32)
    toward_zero = np.where(
        np.abs(near.astype(np.float64)) > np.abs(values), np.nextafter(near, np.float32(0)), near
    )
    inexact = np.isfinite(values) & (toward_zero.astype(np.float64) != values)
    return (toward_zero.view(np.uint32) | inexact.astype(np.uint32)).view(np.float32)


def largest(dtype, bits):
    """Return the largest number of a format with `bits` mantissa bits, a float."""
    return float(np.ldexp(2.0 - 2.0**-bits, FORMATS[dtype].emax))


def stochastic(values, dtype, bits, random):
    """Return values rounded stochastically to `bits` mantissa bits of the format `dtype`.

    They are float32 or float64, and stay so.

    Parameters
    ----------
    values : numpy.ndarray
    dtype : str
    bits : int
        See `kept_bits`.
    random : numpy.ndarray
        uint64 of the same shape: uniform below ``2**FORMATS[dtype].word``.
    """
    storage = FORMATS[dtype]
    magnitude = np.abs(values).astype(np.float64)
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, storage.emin)
    steps = np.ldexp(magnitude, bits - exponent)  # in units of the grid's distance here; exact
    down = np.floor(steps)
    chance = np.ldexp(steps - down, storage.word).astype(np.uint64)
    up = chance > np.uint64(2**storage.word - 1) - random
    rounded = np.ldexp(down + up, exponent - bits)
    top = largest(dtype, bits)
    beyond = np.where(magnitude - top < np.ldexp(0.5, storage.emax - bits), top, np.inf)
    rounded = np.where(magnitude > top, beyond, rounded)
    return np.where(np.isnan(values), np.nan, np.copysign(rounded, values)).astype(values.dtype)
