"""`capturable` where there are no graphs: on backends over the host's memory it changes nothing."""

import copy
import pickle

import numpy as np
import pytest
from device_checks import assert_same, reference, trained
from helpers import OPTIMIZERS, same_bits

import nbopt
from nbopt import errors
from nbopt.interface.backend import Backend


@pytest.fixture(params=["cpu", "reference"])
def host(request):
    with nbopt.use_backend(request.param) as be:
        yield be


def layer():
    return nbopt.Parameters(*((np.full(n, 0.5, np.float32), np.full(n, 0.25, np.float32)) for n in (3, 7)))


def test_nothing_changes(host):
    """Schedules and epochs stay what they are, and the count is the host's."""
    found = []
    for capturable in (True, False):
        optimizer, own = nbopt.Adam(schedule=nbopt.ExpSchedule(0.5)), layer()
        optimizer.capturable = capturable
        for epoch in range(3):
            optimizer.optimize([own], epoch)
        found.append(own.params[1].copy())
        assert optimizer.t == 3
    assert same_bits(*found)


def test_counts_are_copied_and_pickled():
    """Copies have counts of their own."""
    optimizer = nbopt.Adam()
    optimizer.t = 5
    others = copy.copy(optimizer), copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    optimizer.t += 1
    assert optimizer.t == 6 and [other.t for other in others] == [5, 5, 5]
    with pytest.raises(errors.ArgumentError, match="t must be an int from 0 on"):
        optimizer.t = -1


def test_capturable_is_a_flag():
    with pytest.raises(errors.ArgumentError, match="capturable must be True or False"):
        nbopt.Adam().capturable = 1
    with pytest.raises(errors.ArgumentError, match="set it on each of its optimizers"):
        nbopt.MultiOptimizer({"default": nbopt.Adam()}).capturable = True


def test_a_rate_in_memory(host):
    """Under `capturable` an array of one element stays one; else its number counts."""
    rate, optimizer, own = np.array([0.5]), nbopt.GradientDescentMomentum(0.1, 0.0), layer()
    with pytest.raises(errors.ArgumentError, match="learning_rate must be"):
        optimizer.learning_rate = rate
    optimizer.capturable = True
    optimizer.learning_rate = rate
    optimizer.optimize([own], 0)
    rate[:] = 1.0
    optimizer.optimize([own], 0)
    assert (own.params[0] == 0.5 - 0.125 - 0.25).all()


FURTHER = ("ADOPT", "AdEMAMix", "Adafactor", "CAME", "DAdaptAdam", "Prodigy", "ScheduleFreeRAdam")


@pytest.mark.parametrize("name", [*OPTIMIZERS, *FURTHER])
def test_counts_in_memory_change_no_bits(name, monkeypatch):
    """Every rule can have its count in memory, unless it reads the epoch; and the host goes on from it.

    The reference stands for a device that captures.
    """
    make, found = OPTIMIZERS.get(name) or getattr(nbopt, name), []
    monkeypatch.setattr(Backend, "captures", True)
    for capturable in (True, False):
        optimizer = make()
        optimizer.capturable = capturable
        if capturable and isinstance(optimizer, nbopt.ShiftAdaMax):
            with pytest.raises(errors.StateError, match=r"reads step\.epoch"):
                trained(reference(), optimizer)
            return
        values = trained(reference(), optimizer)
        assert optimizer.t == 3
        optimizer.capturable = not capturable
        found.append(values + trained(reference(), optimizer))
        assert optimizer.t == 6
    assert_same(*found)
