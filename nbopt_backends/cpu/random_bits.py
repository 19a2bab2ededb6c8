"""Random bits as CPU kernels draw them, see `nbopt_backends.meaning.xoroshiro`."""

from types import FunctionType

import numpy as np

from nbopt_backends.cpu.instructions import load_int64, part
from nbopt_backends.meaning import xoroshiro

_mix = part(forceinline=True)(xoroshiro.mix)
_absorb = part(forceinline=True)(
    FunctionType(xoroshiro.absorb.__code__, {**vars(xoroshiro), "mix": _mix}, "absorb")
)
_keys = part(FunctionType(xoroshiro.keys.__code__, {**vars(xoroshiro), "absorb": _absorb}, "keys"))
_seeded = part(forceinline=True)(
    FunctionType(xoroshiro.seeded.__code__, {**vars(xoroshiro), "mix": _mix}, "seeded")
)
_advanced = part(forceinline=True)(xoroshiro.advanced)
_LANES, _BLOCK, _U64 = xoroshiro.LANES, xoroshiro.BLOCK, np.uint64


@part
def draw(lanes, random, assignment, place, fresh, draws):
    """Fill `lanes` with the random words of the 256 elements from `place` on.

    Parameters
    ----------
    lanes : numpy.ndarray
        uint64[2 + draws, LANES]: the state, modified, and the words, written.
    random : int64
        Address of int64[2]: seed and update count.
    assignment : int64
        The number of the assignment in its program.
    place : int64
        The number of the first element: blocks before it times BLOCK, plus its position in its block; a
        multiple of 256.
    fresh : bool
        Whether the state is of another place than the one before.
    draws : int64
        How many words each lane gives: 1, 2 or 4 for slices of 16, 32 or 64 bits.
    """
    if fresh or place % _BLOCK == 0:
        seed, update = _U64(load_int64(random, 0, -1)), _U64(load_int64(random, 1, -1))
        key_0, key_1 = _keys(seed, update, _U64(assignment))
        first = _U64((place // _BLOCK) * _LANES)
        for lane in range(_LANES):
            lanes[0, lane], lanes[1, lane] = _seeded(key_0, key_1, first + _U64(lane))
        for _ in range((place % _BLOCK) // 256 * draws):
            for lane in range(_LANES):
                _, lanes[0, lane], lanes[1, lane] = _advanced(lanes[0, lane], lanes[1, lane])
    for number in range(2, 2 + draws):
        for lane in range(_LANES):
            lanes[number, lane], lanes[0, lane], lanes[1, lane] = _advanced(lanes[0, lane], lanes[1, lane])


__all__ = [name for name in globals() if not name.startswith("_")]
