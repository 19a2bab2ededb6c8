"""The random bits of stochastic rounding.

There are the generator, its seeding, the slices, their independence, and the update count.
"""

import numpy as np
import pytest

import nbopt
from nbopt_backends.meaning import xoroshiro
from nbopt_backends.meaning.xoroshiro import BLOCK, LANES, random_slices

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


# --- the public-domain C code of https://prng.di.unimi.it, in Python's ints ---
# (splitmix64.c, and xoroshiro128plus.c of 2018.)


def splitmix64(state):
    """Yield the sequence of splitmix64.c from a state on."""
    while True:
        state = (state + GAMMA) & MASK
        yield finalised(state)


def finalised(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def rotated(x, k):
    return ((x << k) | (x >> (64 - k))) & MASK


def xoroshiro128plus(s0, s1):
    """Yield the sequence of xoroshiro128plus.c from a state on."""
    while True:
        yield (s0 + s1) & MASK
        s1 ^= s0
        s0, s1 = rotated(s0, 24) ^ s1 ^ ((s1 << 16) & MASK), rotated(s1, 37)


def lane_words(seed, update, assignment, block, lane, count):
    """The first words of a lane, by the formulas of DESIGN.md."""

    def absorb(h, x):
        return finalised(((h ^ x) + GAMMA) & MASK)

    h = absorb(absorb(absorb(0, seed), update), assignment)
    k0, k1 = absorb(h, 1), absorb(h, 2)
    s0 = finalised((k0 + GAMMA * (block * LANES + lane)) & MASK)
    s1 = finalised((k1 + s0) & MASK)
    generator = xoroshiro128plus(s0, s1 if s0 | s1 else 1)
    return [next(generator) for _ in range(count)]


def bits_of_block(seed, update, assignment, block, bits):
    """The random bits of all elements of a block: its words in order, each sliced from low to high."""
    words = BLOCK * bits // 64
    lanes = [lane_words(seed, update, assignment, block, lane, words // LANES) for lane in range(LANES)]
    in_order = [lanes[w % LANES][w // LANES] for w in range(words)]
    return [(word >> shift) & (2**bits - 1) for word in in_order for shift in range(0, 64, bits)]


# --- the generator ---

# Of seed 0, as the tests of many ports have it; of 1234567, from Rosetta Code's task "Pseudo-random
# numbers/Splitmix64".
SPLITMIX64 = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B],
    1234567: [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ],
}
# From the state (1, 2), by the C code; the test of Rust's rand_xoshiro has the same.
XOROSHIRO128PLUS = [
    3,
    412333834243,
    2360170716294286339,
    9295852285959843169,
    2797080929874688578,
    6019711933173041966,
    3076529664176959358,
    3521761819100106140,
    7493067640054542992,
    920801338098114767,
]


def u64(*values):
    return np.array(values, np.uint64)


def advanced_words(s0, s1, count):
    """The first `count` numbers of our generator."""
    s0, s1, words = u64(s0), u64(s1), []
    for _ in range(count):
        word, s0, s1 = xoroshiro.advanced(s0, s1)
        words.append(int(word[0]))
    return words


@pytest.mark.parametrize("seed", SPLITMIX64)
def test_the_finaliser_is_splitmix64s(seed):
    states = u64(*[(seed + GAMMA * k) & MASK for k in range(1, 6)])
    assert xoroshiro.mix(states).tolist() == SPLITMIX64[seed]
    generator = splitmix64(seed)
    assert [next(generator) for _ in range(5)] == SPLITMIX64[seed]


def test_the_generator_gives_the_published_sequence():
    assert advanced_words(1, 2, 10) == XOROSHIRO128PLUS


@pytest.mark.parametrize(
    "state", [(1, 2), (0, 1), (MASK, MASK), (2**63, 2**63), (0x0123456789ABCDEF, 0xFEDCBA9876543210)]
)
def test_the_generator_is_the_c_code(state):
    generator = xoroshiro128plus(*state)
    assert advanced_words(*state, 1000) == [next(generator) for _ in range(1000)]


def test_a_state_of_zeros_is_never_seeded():
    # The one state from which xoroshiro128+ gives nothing but 0. These keys lead to it but for the rule that
    # makes s1 1.
    s0, s1 = xoroshiro.seeded(u64(0), u64(0), u64(0))
    assert (int(s0[0]), int(s1[0])) == (0, 1)
    s0, s1 = xoroshiro.seeded(u64(0), u64(GAMMA), u64(0))
    assert (int(s0[0]), int(s1[0])) == (0, SPLITMIX64[0][0])


# --- seeding and slices ---

# (seed, update, assignment, block, bits) -> the bits of the block's first elements, and of its last one.
# Frozen: results of earlier versions can only be reproduced as long as these stay.
FROZEN = {
    (0, 0, 0, 0, 16): ([0xA791, 0xAE25, 0x6D80, 0x63A0, 0x8254, 0xB68E], 0x0130),
    (0, 0, 0, 0, 32): ([0xAE25A791, 0x63A06D80, 0xB68E8254, 0x554F94AC, 0x8F535C51, 0x20C97CE0], 0x4DDFC630),
    (0, 0, 0, 0, 64): ([0x63A06D80AE25A791, 0x554F94ACB68E8254, 0x20C97CE08F535C51], 0x243D132B9E832DDD),
    (2026, 0, 0, 0, 16): ([0x9220, 0x5FC4, 0xE7DF, 0xE8DE, 0xC3CB, 0x5B93], 0x3441),
    (0, 1, 0, 0, 16): ([0x1D6E, 0x448A, 0x4118, 0x8743, 0x7D62, 0xFB83], 0xBFB2),
    (0, 0, 1, 0, 16): ([0xC852, 0x4B1C, 0xFAE9, 0xEB22, 0xE544, 0x03C2], 0x1F17),
    (0, 0, 0, 1, 16): ([0x4FB4, 0xDE48, 0x6400, 0xFDB4, 0x923F, 0x6A30], 0x0F4A),
    (2026, 3, 2, 12345, 32): (
        [0x36C5735E, 0x7587D51D, 0x0634F025, 0xFFC4635D, 0xD3971BF0, 0xBE7AAAC3],
        0xCFFA31A5,
    ),
    (18446744073709551615, 1099511627776, 3, 8589934592, 64): (
        [0xDE3509C9A87DF9D1, 0xBAE860257E53F567, 0xABED06E50120A55F],
        0xDDAC89A6C24D6F42,
    ),
}


def test_lanes_and_blocks_are_those_of_the_format():
    assert (LANES, BLOCK) == (64, 4096)


@pytest.mark.parametrize("where", FROZEN, ids=str)
def test_frozen_bits(where):
    seed, update, assignment, block, bits = where
    first, last = FROZEN[where]
    found = random_slices(seed, update, assignment, block, BLOCK, bits)
    assert (found[: len(first)].tolist(), int(found[-1])) == (first, last)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("stream", [(0, 0, 0), (2026, 7, 2), (MASK, 2**40 + 3, 5)], ids=str)
def test_slices_are_as_the_design_writes_them(stream, bits):
    # From block 3 on, ending within the second.
    wanted = bits_of_block(*stream, 3, bits) + bits_of_block(*stream, 4, bits)
    assert random_slices(*stream, 3, BLOCK + 700, bits).tolist() == wanted[: BLOCK + 700]


class Copies(nbopt.Optimizer):
    """Stores the gradient to two states and to the parameter: assignments 0, 1 and 2."""

    state_names = ("first", "second")

    def rule(self, step, param, grad, first, second):
        first[:] = grad
        second[:] = grad
        param[:] = grad


def revealed(round_up_at, shape, bits):
    """Find random bits from outside, by bisection.

    They are how near below a number of the grid a value must be to be rounded down.

    ``round_up_at(u)`` stores values that are ``u * 2**-bits`` above a number of the grid, always by the same
    random bits r, and returns whether they were rounded up, which is where ``u + r >= 2**bits``.
    """
    low, high = np.zeros(shape, np.int64), np.full(shape, 2**bits - 1, np.int64)  # r is in [low, high]
    for _ in range(bits):
        middle = (low + high + 1) // 2
        up = round_up_at(2**bits - middle)  # r >= middle
        low, high = np.where(up, middle, low), np.where(up, high, middle - 1)
    return low.astype(np.uint64)


# Storage, rounding, mantissa bits of the grid, word, how many of its upper bits a float64 can tell apart.
DELIVERED = [
    ("bfloat16", True, 7, 16, 16),
    ("float16", True, 10, 32, 32),
    ("float32", 5, 5, 32, 32),
    ("float64", 1, 1, 64, 51),
]


@pytest.mark.parametrize(("dtype", "rounding", "mantissa", "word", "seen"), DELIVERED, ids=lambda x: str(x))
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-bfloat16-*", "cpu-float32-*")
def test_assignments_get_these_bits(backend, dtype, rounding, mantissa, word, seen):
    n = 2 * BLOCK + 300
    target = backend.zeros(n, dtype)
    target.rounding = rounding
    source = backend.zeros(n, np.float64)
    backend.rng_set_state({"seed": 77, "updates": 12})
    state = backend.rng_get_state()

    def up(u):
        source.set(1 + np.ldexp(u.astype(np.float64), -seen - mantissa))
        backend.rng_set_state(state)
        target[:] = source
        return target.get().astype(np.float64) > 1

    assert (revealed(up, n, seen) == random_slices(77, 12, 0, 0, n, word) >> np.uint64(word - seen)).all()


@pytest.mark.parametrize("assignment", [0, 1, 2])
@pytest.mark.thorough("gpu")
def test_optimizers_get_these_bits(backend, assignment):
    # The tensors begin in blocks 0, 2, 3 and 4; the one without elements takes none.
    shapes, first_blocks = [(BLOCK + 900,), (7, 3), (0, 5), (BLOCK,), (20, 30)], [0, 2, 3, 3, 4]
    layers = [nbopt.Parameters((backend.zeros(s, "bfloat16"), backend.zeros(s, np.float32))) for s in shapes]
    optimizer = Copies(state_dtype="bfloat16")
    optimizer.stochastic_round = True
    sizes = [int(np.prod(s)) for s in shapes]
    ends = np.cumsum(sizes)[:-1]

    def up(u):
        for layer, shape, part in zip(
            layers, shapes, np.split(1 + np.ldexp(u.astype(np.float32), -23), ends)
        ):
            layer.grads[0].set(part.reshape(shape))
        backend.rng_set_state({"seed": 5, "updates": 9})
        optimizer.optimize(layers, 0)
        stored = [(*layer.states[0], layer.params[0])[assignment] for layer in layers]
        return np.concatenate([t.get().ravel() for t in stored]).astype(np.float32) > 1

    for bits, size, first_block in zip(np.split(revealed(up, sum(sizes), 16), ends), sizes, first_blocks):
        assert (bits == random_slices(5, 9, assignment, first_block, size, 16)).all()


# --- independence ---

N = 400_000
STREAM = {"seed": 11, "update": 4, "assignment": 0, "first_block": 0}


def uniform(n=N, bits=16, **changed):
    """Random bits of one tensor as numbers of mean 0 and variance 1."""
    values = random_slices(**{**STREAM, **changed}, n=n, bits=bits).astype(np.float64)
    return (values + 0.5 - 2 ** (bits - 1)) * (12**0.5 / 2**bits)


def assert_uncorrelated(x, y):
    """Check that correlations of the values, and of the squares, are within 4 standard errors of 0."""
    error = len(x) ** -0.5
    assert abs(np.mean(x * y)) < 4 * error
    square = (x * x - 1) / 0.8**0.5  # of a uniform distribution of variance 1, squares have variance 0.8
    other = (y * y - 1) / 0.8**0.5
    assert abs(np.mean(square * other)) < 4 * error


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("lag", [1, 2, 3, 4, LANES, 4 * LANES, BLOCK])
def test_neighbouring_elements_are_uncorrelated(lag, bits):
    x = uniform(bits=bits)
    assert_uncorrelated(x[:-lag], x[lag:])


BLOCKS = -(-N // BLOCK)
OTHERS = {
    "the next tensor": {"first_block": BLOCKS},
    "the tensor after it": {"first_block": 2 * BLOCKS},
    "the next assignment": {"assignment": 1},
    "the assignment after it": {"assignment": 2},
    "the next step": {"update": 5},
    "the step after it": {"update": 6},
    "the next seed": {"seed": 12},
    "a seed of one other bit": {"seed": 11 + 2**63},
    "seed and step exchanged": {"seed": 4, "update": 11},
    "step and assignment exchanged": {"update": 0, "assignment": 4},
    "seed and assignment exchanged": {"seed": 0, "assignment": 11},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_bits_of_different_streams_are_uncorrelated(other):
    assert_uncorrelated(uniform(), uniform(**other))


def test_every_bit_is_fair_and_uncorrelated_with_its_neighbours():
    bits = (
        np.unpackbits(
            random_slices(**STREAM, n=N, bits=16).astype("<u2").view(np.uint8).reshape(N, 2), axis=1
        )
        * 2.0
        - 1
    )
    error = N**-0.5
    assert np.abs(bits.mean(axis=0)).max() < 4 * error
    products = bits.T @ bits / N - np.eye(16)
    assert np.abs(products).max() < 4 * error
    assert np.abs(bits[:-1].T @ bits[1:] / (N - 1)).max() < 4.5 * error  # of 256 pairs


def test_streams_that_begin_alike_are_different_from_the_first_block_on():
    firsts = [random_slices(**{**STREAM, **other}, n=4, bits=64).tolist() for other in [{}, *OTHERS.values()]]
    assert len({tuple(first) for first in firsts}) == len(firsts)


@pytest.mark.thorough("gpu")
def test_roundings_of_tensors_states_steps_and_seeds_are_uncorrelated(backend):
    # Values half-way between two numbers of the grid, so that what is seen is one bit of each rounding, as a
    # kernel delivers it.
    n = 50_000
    ups = []
    for seed in (3, 4):
        backend.rng_set_state({"seed": seed, "updates": 0})
        layers = [
            nbopt.Parameters(
                (backend.zeros(n, "bfloat16"), backend.array(np.full(n, 1 + 2.0**-8, np.float32)))
            )
            for _ in range(2)
        ]
        optimizer = Copies(state_dtype="bfloat16")
        optimizer.stochastic_round = True
        for step in range(2):
            optimizer.optimize(layers, step)
            ups += [
                t.get().astype(np.float32) > 1
                for layer in layers
                for t in (*layer.states[0], layer.params[0])
            ]
    signs = np.array(ups) * 2.0 - 1
    assert len(signs) == 24
    assert np.abs(signs.mean(axis=1)).max() < 4 * n**-0.5
    assert np.abs(signs @ signs.T / n - np.eye(24)).max() < 4 * n**-0.5
    assert np.abs(signs[:, :-1] @ signs[:, 1:].T / n).max() < 4.5 * n**-0.5  # neighbours, of 576 pairs


# --- the update count, and the state ---


def updates_of(be):
    return be.rng_get_state()["updates"]


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_an_assignment_outside_optimizers_counts_once_whether_it_rounds_or_not(backend):
    a, b = backend.ones(5), backend.zeros(5, "bfloat16")
    assert updates_of(backend) == 0
    b[:] = a
    b.rounding = True
    b[:] = a + 1
    a[:] = 2.5
    backend.add(a, a, out=a)
    assert updates_of(backend) == 4


@pytest.mark.rest(where=["gpu"])
def test_a_reduction_within_an_assignment_does_not_count(backend):
    a = backend.ones(50)
    a[:] = a / backend.sum(a * a) + backend.mean(a)
    assert updates_of(backend) == 1


@pytest.mark.thorough("gpu")
def test_expressions_and_copies_do_not_count(backend):
    a = backend.ones(5, "bfloat16")
    a.rounding = True
    expression = a + 1
    a.set(np.arange(5.0))
    a.fill(2)
    a.get()
    backend.array(a)
    assert updates_of(backend) == 0
    a[:] = expression
    assert updates_of(backend) == 1


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_a_step_counts_once_for_all_its_tensors_dtypes_and_optimizers(backend, rng):
    layers = [
        nbopt.Parameters((rng.random(9).astype(d), np.ones(9, np.float32)), name=d)
        for d in ("float32", "float64", "float16")
    ]
    step = nbopt.MultiOptimizer(
        {
            "default": nbopt.RMSProp(gradient_clip_norm=1.0),
            "float16": nbopt.GradientDescentMomentum(0.1, 0, True),
        }
    )
    step.optimize(layers, 0)
    assert updates_of(backend) == 1
    step.optimize(layers, 0)
    assert updates_of(backend) == 2


def test_a_step_that_fails_or_has_no_layers_does_not_count(backend):
    nbopt.RMSProp().optimize([], 0)
    with pytest.raises(nbopt.errors.ShapeError):
        nbopt.RMSProp().optimize([nbopt.Parameters((np.ones(3, np.float32), np.ones(4, np.float32)))], 0)
    with pytest.raises(nbopt.errors.ShapeError):
        backend.ones(3)[:] = backend.ones(4)
    assert updates_of(backend) == 0


def rounded(be, n=1000):
    target = be.zeros(n, "bfloat16")
    target.rounding = True
    target[:] = be.array(np.linspace(1, 2, n, dtype=np.float32))
    return target.get().astype(np.float32).tolist()


@pytest.mark.rest(where=["gpu"])
def test_the_state_brings_the_same_bits_back(backend):
    rounded(backend)
    state = backend.rng_get_state()
    assert state == {"seed": 0, "updates": 1}
    first, second = rounded(backend), rounded(backend)
    assert first != second
    assert backend.rng_get_state() == {"seed": 0, "updates": 3}
    assert state == {"seed": 0, "updates": 1}  # a copy
    backend.rng_set_state(state)
    assert [rounded(backend), rounded(backend)] == [first, second]


def test_the_state_moves_to_another_backend(backend):
    rounded(backend)
    other = type(backend)(rng_seed=99)
    other.rng_set_state(backend.rng_get_state())
    assert rounded(other) == rounded(backend)


def test_a_reset_goes_back_to_the_seed_of_construction(backend):
    first = rounded(backend)
    backend.rng_set_state({"seed": 8, "updates": 1000})
    assert rounded(backend) != first
    backend.rng_reset()
    assert backend.rng_get_state() == {"seed": 0, "updates": 0}
    assert rounded(backend) == first


def test_without_a_seed_one_is_drawn_and_can_be_read_back(backend):
    one, other = type(backend)(), type(backend)()
    assert one.rng_seed != other.rng_seed  # but once in 2**64 times
    assert type(one.rng_seed) is int
    assert 0 <= one.rng_seed < 2**64
    assert one.rng_get_state() == {"seed": one.rng_seed, "updates": 0}
    again = type(backend)(rng_seed=one.rng_seed)
    first = rounded(one)
    assert rounded(again) == first != rounded(other)
    one.rng_reset()
    assert rounded(one) == first


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.thorough("gpu")
def test_any_seed_of_64_bits_gives_bits_of_its_own(backend, seed):
    other = type(backend)(rng_seed=seed ^ 1)
    assert rounded(type(backend)(rng_seed=seed)) != rounded(other)
