"""Blocks of a GPU's kernel that finish in any order, and what the last of them fold."""

import numpy as np
import pytest

from nbopt_backends.cuda import nodes
from nbopt_backends.cuda.closing import COUNT, EXPECTED, FIRST, LEFT, MOST, NEXT, PLACES, ROW
from nbopt_backends.cuda.nodes import Nodes
from nbopt_backends.meaning.tree import fold

COUNTS = np.array([1, 0, 7, 64, 65, 256, 300, 1500, 5000])


def closed(table, place, values, results):
    """Arrive at a node as `nbopt_backends.cuda.closing` does; `results` gets what rows have come to."""
    while place >= 0:
        node = table[place]
        node[0] += 1
        if node[0] < node[EXPECTED]:
            return
        node[0] = 0
        own = values[node[FIRST] : node[FIRST] + node[COUNT]]
        for k in range(node[PLACES]):
            apart = own[k :: node[MOST]]
            assert len(apart) <= 4
            own[k] = fold("sum", apart)
        if node[LEFT]:
            assert node[ROW] not in results
            results[node[ROW]] = fold("sum", own[: node[LEFT]])
        place = node[NEXT]


@pytest.mark.parametrize("most", [256, 1024])
def test_any_order_has_the_bits_of_one_fold(rng, monkeypatch, most):
    """Tiles that arrive in any order, or one block for all of a leaf; counters are 0 in the end."""
    monkeypatch.setattr(nodes, "MOST_RESULTS", most)
    given = rng.standard_normal(COUNTS.sum())
    starts = np.cumsum(COUNTS) - COUNTS
    expected = {
        row: fold("sum", given[start : start + count])
        for row, (start, count) in enumerate(zip(starts, COUNTS))
        if count
    }
    rows = np.repeat(np.arange(len(COUNTS)), COUNTS)
    for each in range(3):
        own = Nodes(COUNTS)
        arriving = own.of_results(rows, np.arange(len(rows)) - starts[rows])
        if each == 2:
            assert set(arriving.tolist()) == set(own.leaves().tolist())
            arriving = own.leaves()
        values, found = given.copy(), {}
        for place in rng.permutation(arriving):
            closed(own.table, place, values, found)
        assert found == expected
        assert not own.table[:, 0].any()


def test_addresses():
    """In memory a node knows the address of the next one, or 0."""
    table = Nodes(COUNTS).at(1 << 40)
    following = table[:, NEXT]
    assert (following[: len(COUNTS)] == 0).all()
    assert (following[len(COUNTS) :] >= 1 << 40).all()
    assert ((following[len(COUNTS) :] - (1 << 40)) % table[0].nbytes == 0).all()
