"""Scalar formulas that are more than one operation, written once and compiled for every target.

The functions use ``bits_float32`` (the bits of a float32 as a non-negative int64), ``from_bits_float32`` and their float64 twins, which a
target provides, and int64 and floating arithmetic only.
"""

# ruff: noqa: F821  (names that the target provides)


def shift_float32(a, b):
    """Return ``a * sign(b) * 2^k``, k the integer nearest to log2|b|; 0 for b = 0; a * b for b infinite or NaN."""
    # A subnormal b is brought into the normal range first, exactly.
    small = abs(b) < float32(1.1754943508222875e-38)
    normal = b * float32(16777216.0) if small else b
    bits = bits_float32(normal)
    # 0x3504f3 are the mantissa bits of the float32 below the square root of 2.
    k = ((bits >> 23) & 0xFF) - 127 - (24 if small else 0) + (1 if (bits & 0x7FFFFF) > 0x3504F3 else 0)
    # 2^k can be subnormal or, for k = 128, too large: then 2^127 * 2. Either way only the last product rounds.
    high = min(k, 127)
    power = from_bits_float32(((high + 127) << 23) if high >= -126 else (1 << (max(high, -149) + 149)))
    signed = -a if (bits >> 31) != 0 else a
    scaled = signed * power * (float32(2) if k > 127 else float32(1))
    special = b - b != float32(0)
    return a * b if special else (float32(0) if b == float32(0) else scaled)


def shift_float64(a, b):
    """Return what `shift_float32` does, in float64."""
    small = abs(b) < float64(2.2250738585072014e-308)
    normal = b * float64(18014398509481984.0) if small else b
    bits = bits_float64(normal)
    # 0x6a09e667f3bcd are the mantissa bits of the float64 above the square root of 2.
    k = ((bits >> 52) & 0x7FF) - 1023 - (54 if small else 0) + (1 if (bits & 0xFFFFFFFFFFFFF) >= 0x6A09E667F3BCD else 0)
    high = min(k, 1023)
    power = from_bits_float64(((high + 1023) << 52) if high >= -1022 else (1 << (max(high, -1074) + 1074)))
    signed = -a if bits < 0 else a
    scaled = signed * power * (float64(2) if k > 1023 else float64(1))
    special = b - b != float64(0)
    return a * b if special else (float64(0) if b == float64(0) else scaled)


def ldexp_float32(a, b):
    """Return ``a * 2^b`` for an integer b, rounded once; NaN for b NaN."""
    nan = b != b
    # Beyond 300 every float32 has become zero or infinity.
    k = int64(min(max(rint(float32(0) if nan else b), float32(-300)), float32(300)))
    # Up to three factors. Going down by more than one factor can, a value that ends up anything but 0 is still normal after the
    # first ones, by the margin of 24 bits, so that only one product rounds.
    first = -102 if k < -126 else min(k, 127)
    second = -102 if k - first < -126 else min(k - first, 127)
    third = k - first - second
    scaled = a * from_bits_float32((first + 127) << 23) * from_bits_float32((second + 127) << 23) * from_bits_float32((third + 127) << 23)
    return b if nan else scaled


def ldexp_float64(a, b):
    """Return what `ldexp_float32` does, in float64."""
    nan = b != b
    k = int64(min(max(rint(float64(0) if nan else b), float64(-2200)), float64(2200)))
    first = -969 if k < -1022 else min(k, 1023)
    second = -969 if k - first < -1022 else min(k - first, 1023)
    third = k - first - second
    scaled = a * from_bits_float64((first + 1023) << 52) * from_bits_float64((second + 1023) << 52) * from_bits_float64((third + 1023) << 52)
    return b if nan else scaled
