"""Seeds of stochastic rounding for optimizers that are given none.

Each optimizer gets another one. Every process that makes as many has the same.
"""

import itertools

import numpy as np

from nbopt.errors import ArgumentError

_MASK = 2**64 - 1
_LIBRARY = 0x6E626F7074  # "nbopt" in ASCII
_numbers = itertools.count()


def seed_for(given):
    """Return the seed of a new optimizer.

    Each call counts one optimizer. Neither the system nor another library's seed plays a part, so the
    replicas of a parallel run agree.

    Parameters
    ----------
    given : int or None
        What the user gave.

    Returns
    -------
    int
        `given`, or without it a constant mixed with the optimizer's number.

    Raises
    ------
    ArgumentError
        If `given` is no int of 64 bits.
    """
    number = next(_numbers)
    if given is None:
        return _absorb(_absorb(0, _LIBRARY), number)
    if (
        isinstance(given, (bool, np.bool_))
        or not isinstance(given, (int, np.integer))
        or not 0 <= given <= _MASK
    ):
        raise ArgumentError(f"seed must be an int from 0 to 2**64 - 1, or None, not {given!r}")
    return int(given)


def _absorb(h, x):
    """Return what `nbopt_backends.meaning.xoroshiro.absorb` does, of Python's ints: a hash of both."""
    z = ((h ^ x) + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
