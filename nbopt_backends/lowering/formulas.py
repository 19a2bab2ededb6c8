"""Scalar formulas that are more than one operation, written once and compiled for every target.

The functions use ``bits_float32`` (the bits of a float32 as a non-negative int64), ``from_bits_float32`` and
their float64 twins, which a target provides, and int64 and floating arithmetic only.
"""

# ruff: noqa: F821  (names that the target provides)


def shift_float32(a, b):
    """Return ``a * sign(b) * 2^k``, k the integer nearest to log2|b|.

    It is 0 for b = 0, and a * b for b infinite or NaN.
    """
    # A subnormal b is brought into the normal range first, exactly.
    small = abs(b) < float32(1.1754943508222875e-38)
    normal = b * float32(16777216.0) if small else b
    bits = bits_float32(normal)
    # 0x3504f3 are the mantissa bits of the float32 below the square root of 2.
    k = ((bits >> 23) & 0xFF) - 127 - (24 if small else 0) + (1 if (bits & 0x7FFFFF) > 0x3504F3 else 0)
    # 2^k can be subnormal or, for k = 128, too large: then 2^127 * 2. Either way only the last product
    # rounds.
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
    k = (
        ((bits >> 52) & 0x7FF)
        - 1023
        - (54 if small else 0)
        + (1 if (bits & 0xFFFFFFFFFFFFF) >= 0x6A09E667F3BCD else 0)
    )
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
    # Up to three factors. Going down by more than one factor can, a value that ends up anything but 0 is
    # still normal after the first ones, by the margin of 24 bits, so that only one product rounds.
    first = -102 if k < -126 else min(k, 127)
    second = -102 if k - first < -126 else min(k - first, 127)
    third = k - first - second
    scaled = (
        a
        * from_bits_float32((first + 127) << 23)
        * from_bits_float32((second + 127) << 23)
        * from_bits_float32((third + 127) << 23)
    )
    return b if nan else scaled


def ldexp_float64(a, b):
    """Return what `ldexp_float32` does, in float64."""
    nan = b != b
    k = int64(min(max(rint(float64(0) if nan else b), float64(-2200)), float64(2200)))
    first = -969 if k < -1022 else min(k, 1023)
    second = -969 if k - first < -1022 else min(k - first, 1023)
    third = k - first - second
    scaled = (
        a
        * from_bits_float64((first + 1023) << 52)
        * from_bits_float64((second + 1023) << 52)
        * from_bits_float64((third + 1023) << 52)
    )
    return b if nan else scaled


def reciprocal_float32(x):
    """Return 1 / x where x is a power of two, or its negative, and 1 / x a normal number; else 0.

    A product with it has the quotient's bits.
    """
    bits = bits_float32(x)
    biased = (bits >> 23) & 0xFF
    exact = (bits & 0x7FFFFF) == 0 and 0 < biased and biased < 254
    return from_bits_float32((bits & 0x80000000) | ((254 - biased) << 23)) if exact else float32(0)


def reciprocal_float64(x):
    """Return what `reciprocal_float32` does, in float64."""
    bits = bits_float64(x)
    biased = (bits >> 52) & 0x7FF
    exact = (bits & 0xFFFFFFFFFFFFF) == 0 and 0 < biased and biased < 2046
    found = from_bits_float64((2046 - biased) << 52) if exact else float64(0)
    return -found if bits < 0 else found


# --- rounding: nbopt_backends.meaning.rounding says what it means ---


def nearest_bfloat16_float32(x):
    """Return a float32 rounded to nearest even in bfloat16. NaN is canonical."""
    bits = bits_float32(x)
    rounded = from_bits_float32((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000)
    return rounded if x == x else from_bits_float32(0x7FC00000)


def nearest_narrow_float64(x, mantissa, emin, top, limit):
    """Return a float64 rounded to nearest even in a narrower format.

    Parameters
    ----------
    x : float64
    mantissa, emin : int
        The format's mantissa bits and smallest exponent.
    top, limit : float64
        Its largest number, and the magnitude from which on nearest is infinite.
    """
    bits = bits_float64(x)
    biased = max((bits >> 52) & 0x7FF, 1)
    significand = (bits & 0xFFFFFFFFFFFFF) | (0x10000000000000 if ((bits >> 52) & 0x7FF) > 0 else 0)
    lowest = emin + 1023
    dropped = min(52 - mantissa + max(0, lowest - biased), 62)
    kept = significand >> dropped
    rest = significand - (kept << dropped)
    half = 1 << (dropped - 1)
    kept += 1 if (rest > half) or (rest == half and (kept & 1) == 1) else 0
    rounded = float64(kept) * from_bits_float64((max(biased, lowest) - mantissa) << 52)
    rounded = rounded if abs(x) <= top else (top if abs(x) < limit else from_bits_float64(0x7FF0000000000000))
    return (-rounded if bits < 0 else rounded) if x == x else from_bits_float64(0x7FF8000000000000)


def nearest_bfloat16_float64(x):
    """Return a float64 rounded to nearest even in bfloat16."""
    return nearest_narrow_float64(x, 7, -126, float64(3.3895313892515355e38), float64(3.3961775292304601e38))


def nearest_float16_float64(x):
    """Return a float64 rounded to nearest even in float16."""
    return nearest_narrow_float64(x, 10, -14, float64(65504), float64(65520))


def stochastic_same_range(x, dropped, top, addend):
    """Return a float32 on the grid that leaves out its lowest `dropped` bits.

    It is rounded up if adding `addend` carries into the rest. For formats with float32's range of exponents,
    subnormals included. Beyond `top` the addend is one half.
    """
    chosen = (1 << (dropped - 1)) if abs(x) > top else addend
    rounded = from_bits_float32((bits_float32(x) + chosen) & (0xFFFFFFFF - ((1 << dropped) - 1)))
    return rounded if x == x else from_bits_float32(0x7FC00000)


def stochastic_bfloat16_float32(x, kept, top, random):
    """Return a float32 rounded stochastically to `kept` mantissa bits of bfloat16, by 16 random bits."""
    return stochastic_same_range(x, 23 - kept, top, random << (7 - kept))


def stochastic_float32_float32(x, kept, top, random):
    """Return a float32 rounded stochastically to `kept` mantissa bits, by 32 random bits."""
    return stochastic_same_range(x, 23 - kept, top, random >> (9 + kept))


def stochastic_float16_float32(x, kept, top, random):
    """Return a float32 rounded stochastically to `kept` mantissa bits of float16, by 32 random bits."""
    magnitude = abs(x)
    # Of what is no larger, not even one in 2^32 parts of a step remains; so it is as good as 0, and has an
    # implicit bit.
    nothing = from_bits_float32((80 - kept) << 23)
    bits = bits_float32(magnitude if magnitude > nothing else nothing)
    # Numbers below the normal ones have the steps of the smallest of those.
    normal = float32(6.103515625e-05)
    exponent = bits_float32(magnitude if magnitude > normal else normal) >> 23
    fixed = (((bits & 0x7FFFFF) | 0x800000) << 32) >> (23 - kept + exponent - (bits >> 23))
    steps = (fixed + (0x80000000 if magnitude > top else random)) >> 32
    # At most 2^11 steps, behind the mantissa of 2^23, which has steps of 1: a conversion of 64 bits would
    # take longer.
    rounded = (from_bits_float32(0x4B000000 + steps) - float32(8388608)) * from_bits_float32(
        (exponent - kept) << 23
    )
    finite = rounded if rounded < float32(65536) else from_bits_float32(0x7F800000)
    signed = from_bits_float32(bits_float32(finite) | (bits_float32(x) & 0x80000000))
    return signed if x == x else from_bits_float32(0x7FC00000)


def stochastic_float64_float64(x, kept, top, random):
    """Return a float64 rounded stochastically to `kept` mantissa bits, by 64 random bits."""
    dropped = 52 - kept
    addend = (random >> (12 + kept)) & ((1 << dropped) - 1)
    chosen = (1 << (dropped - 1)) if abs(x) > top else addend
    rounded = from_bits_float64((bits_float64(x) + chosen) & -(1 << dropped))
    return rounded if x == x else from_bits_float64(0x7FF8000000000000)


def stochastic_narrow_float64(x, kept, emin, emax, top, word, random):
    """Return a float64 rounded stochastically to `kept` mantissa bits of a narrower format.

    `random` has `word` random bits.
    """
    bits = bits_float64(x)
    biased = max((bits >> 52) & 0x7FF, 1)
    significand = (bits & 0xFFFFFFFFFFFFF) | (0x10000000000000 if ((bits >> 52) & 0x7FF) > 0 else 0)
    lowest = emin + 1023
    dropped = 52 - kept + max(0, lowest - biased)
    steps = significand >> min(dropped, 63)
    rest = significand - (steps << min(dropped, 63))
    chance = rest << max(word - dropped, 0) >> min(max(dropped - word, 0), 63)
    steps += (chance + random) >> word
    rounded = float64(steps) * from_bits_float64((max(biased, lowest) - kept) << 52)
    half = from_bits_float64((1023 + emax - kept - 1) << 52)
    beyond = top if abs(x) - top < half else from_bits_float64(0x7FF0000000000000)
    rounded = beyond if abs(x) > top else rounded
    return (-rounded if bits < 0 else rounded) if x == x else from_bits_float64(0x7FF8000000000000)


def stochastic_bfloat16_float64(x, kept, top, random):
    """Return a float64 rounded stochastically to `kept` mantissa bits of bfloat16, by 16 random bits."""
    return stochastic_narrow_float64(x, kept, -126, 127, top, 16, random)


def stochastic_float16_float64(x, kept, top, random):
    """Return a float64 rounded stochastically to `kept` mantissa bits of float16, by 32 random bits."""
    return stochastic_narrow_float64(x, kept, -14, 15, top, 32, random)


def stochastic_float32_float64(x, kept, top, random):
    """Return a float64 rounded stochastically to `kept` mantissa bits of float32, by 32 random bits."""
    return stochastic_narrow_float64(x, kept, -126, 127, top, 32, random)


# --- float16 by integer arithmetic, for processors without instructions for it ---


def nearest_float16_float32_by_integers(x):
    """Return a float32 rounded to nearest even in float16. NaN is canonical."""
    bits = bits_float32(x)
    biased = max((bits >> 23) & 0xFF, 1)
    significand = (bits & 0x7FFFFF) | (0x800000 if ((bits >> 23) & 0xFF) > 0 else 0)
    dropped = min(13 + max(0, 113 - biased), 62)
    kept = significand >> dropped
    rest = significand - (kept << dropped)
    half = 1 << (dropped - 1)
    kept += 1 if (rest > half) or (rest == half and (kept & 1) == 1) else 0
    rounded = float32(kept) * from_bits_float32((max(biased, 113) - 10) << 23)
    rounded = rounded if abs(x) < float32(65520) else from_bits_float32(0x7F800000)
    return (-rounded if (bits >> 31) != 0 else rounded) if x == x else from_bits_float32(0x7FC00000)


def half_bits_by_integers(x):
    """Return the 16 bits of a float32 that float16 can hold."""
    magnitude = abs(x)
    # 2^-112 moves float16's exponents to where float32's bits, shifted, are the same; exact, subnormals
    # included.
    bits = bits_float32(magnitude * float32(1.925929944387236e-34)) >> 13
    bits = bits if magnitude < float32(65536) else (0x7C00 if x == x else 0x7E00)
    return bits | ((bits_float32(x) >> 16) & 0x8000 if x == x else 0)


def from_half_bits_by_integers(bits):
    """Return the float32 of 16 bits of float16."""
    magnitude = from_bits_float32((bits & 0x7FFF) << 13) * float32(5.192296858534828e33)
    special = from_bits_float32(0x7F800000 | ((bits & 0x3FF) << 13))
    found = special if (bits & 0x7C00) == 0x7C00 else magnitude
    return -found if (bits & 0x8000) != 0 else found


def power_of_numbers(a, b):
    """Return a power of numbers of a step.

    A whole power is squarings and multiplications in a fixed order, see `nbopt.language.scalars`.
    """
    if not (abs(b) < float64(2147483648.0) and b == rint(b)):
        return power(a, b)
    rest = int64(abs(b))
    result = float64(1)
    while rest > 0:
        if (rest & 1) != 0:
            result = result * a
        a = a * a
        rest = rest >> 1
    return float64(1) / result if b < float64(0) else result
