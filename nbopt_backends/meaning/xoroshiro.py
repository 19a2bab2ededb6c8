"""The random bits of stochastic rounding: xoroshiro128+, seeded by splitmix64's finaliser.

D. Blackman, S. Vigna, "Scrambled Linear Pseudorandom Number Generators", ACM Transactions on Mathematical
Software 47(4), 2021; reference code in the public domain at https://prng.di.unimi.it (xoroshiro128plus.c, of
2018, and splitmix64.c).

The bits are a pure function of (seed, update count, which assignment of the program, position of the
element), see "Random bits" in docs/design.md. Elements of the parameter list are numbered in blocks of
`BLOCK`, each tensor starting a new one. A block has `LANES` generators; word w of a block is draw ``w //
LANES`` of lane ``w % LANES``, and roundings of 16, 32 or 64 bits take slices of the words from low to high.

The functions work on NumPy's uint64 arrays and, compiled, on uint64 numbers. `LANES` and `BLOCK` are
constants of the format: with others, results of earlier versions can't be reproduced.
tests/test_random_bits.py holds frozen vectors.
"""

import numpy as np

LANES = 64
BLOCK = 4096

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment, 2^64 / the golden ratio
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ZERO, _ONE, _TWO = np.uint64(0), np.uint64(1), np.uint64(2)
_16, _24, _27, _28, _30 = np.uint64(16), np.uint64(24), np.uint64(27), np.uint64(28), np.uint64(30)
_31, _37, _40 = np.uint64(31), np.uint64(37), np.uint64(40)


def mix(z):
    """Return splitmix64's finaliser of `z`, uint64."""
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


def absorb(h, x):
    """Return a hash of `h` and `x`, uint64."""
    return mix((h ^ x) + _GAMMA)


def keys(seed, update, assignment):
    """Return the two keys of one assignment's stream, uint64."""
    h = absorb(absorb(absorb(_ZERO, seed), update), assignment)
    return absorb(h, _ONE), absorb(h, _TWO)


def seeded(key_0, key_1, counter):
    """Return the state of lane ``counter % LANES`` of block ``counter // LANES``.

    It is (s0, s1), uint64, and never both are 0.
    """
    s0 = mix(key_0 + _GAMMA * counter)
    s1 = mix(key_1 + s0)
    return s0, s1 + np.uint64((s0 | s1) == _ZERO)


def advanced(s0, s1):
    """Return (the next number, the new s0, the new s1) of xoroshiro128+, uint64."""
    result = s0 + s1
    s1 = s1 ^ s0
    return result, ((s0 << _24) | (s0 >> _40)) ^ s1 ^ (s1 << _16), (s1 << _37) | (s1 >> _27)


def random_slices(seed, update, assignment, first_block, n, bits):
    """Return the random bits of the elements of one tensor, in NumPy.

    Parameters
    ----------
    seed, update, assignment : int
        The stream: see `keys`.
    first_block : int
        The number of the tensor's first block.
    n : int
        The number of elements.
    bits : int
        16, 32 or 64: how many each element gets.

    Returns
    -------
    numpy.ndarray
        uint64[n], below ``2**bits``.
    """
    blocks = -(-n // BLOCK)
    # Arrays, since NumPy warns where scalars wrap around.
    one = [np.array([x], np.uint64) for x in (seed, update, assignment)]
    key_0, key_1 = keys(*one)
    counters = np.arange(first_block * LANES, (first_block + blocks) * LANES, dtype=np.uint64).reshape(
        blocks, LANES
    )
    s0, s1 = seeded(key_0, key_1, counters)
    draws = []
    for _ in range(BLOCK * bits // 64 // LANES):
        word, s0, s1 = advanced(s0, s1)
        draws.append(word)
    # The draws of all lanes, one draw after the other.
    words = np.stack(draws, axis=1).reshape(blocks, BLOCK * bits // 64)
    slices = [(words >> np.uint64(shift)) & np.uint64(2**bits - 1) for shift in range(0, 64, bits)]
    return np.stack(slices, axis=-1).reshape(-1)[:n]


def first_blocks(sizes, listing=None):
    """Return the number of the first block of each tensor, int64.

    Parameters
    ----------
    sizes : list of int
        The tensors' numbers of elements.
    listing : (list of int, list of int), optional
        The sizes of the whole parameter list and which of them each tensor is; without it, the tensors are
        the list.
    """
    whole, rows = listing or (sizes, range(len(sizes)))
    blocks = -(-np.array(whole, np.int64) // BLOCK)
    return (np.cumsum(blocks) - blocks)[list(rows)]
