"""Compare steps in one process: taking turns, so that whatever else the machine does hits all alike."""

import time

import numpy as np


def measure(steps, rounds, turn=0.02, settle=0.03, seed=0):
    """Time several functions, in turns of random order.

    Parameters
    ----------
    steps : dict of name -> callable
        Each is called without arguments.
    rounds : int
        How many turns each one has.
    turn : float
        Seconds that a turn should take, at least one call. A turn's time is that of all its calls over their
        number.
    settle : float
        Seconds, at least one call, that go before each turn unmeasured: caches fill, and the threads that
        another library leaves spinning go to sleep.
    seed : int
        Of the order of turns.

    Returns
    -------
    dict of name -> numpy.ndarray
        float64[rounds]: seconds per call.
    """
    counts = {}
    for name, step in steps.items():
        step()
        counts[name] = max(1, round(turn / min(_timed(step, 1) for _ in range(3))))
    rng = np.random.default_rng(seed)
    names = list(steps)
    seconds = {name: np.empty(rounds) for name in names}
    for k in range(rounds):
        for name in rng.permutation(names):
            step = steps[name]
            end = time.perf_counter() + settle
            step()
            while time.perf_counter() < end:
                step()
            seconds[name][k] = _timed(step, counts[name])
    return seconds


#: Bytes that are written between two steps, more than the caches hold.
_OTHER = 64 << 20


def between_steps():
    """Return what runs between two steps in a training: name -> callable.

    It takes the caches, and a product of matrices wakes the threads of the library that computes it.

    Returns
    -------
    dict of str to callable
        ``"NumPy"``, and ``"PyTorch"`` if it is installed.
    """
    memory = np.zeros(_OTHER // 8)
    matrix = np.random.default_rng(0).random((400, 400), np.float32)
    found = {"NumPy": lambda: (memory.__iadd__(1.0), matrix @ matrix)}
    try:
        import torch
    except ImportError:
        return found
    own = torch.from_numpy(matrix)
    return {**found, "PyTorch": lambda: (memory.__iadd__(1.0), own @ own)}


def measure_cold(steps, between, rounds, seed=0):
    """Time single calls of several functions in random order, with other work before each.

    Parameters
    ----------
    steps : dict of name -> callable
    between : callable
        The other work, which is not timed.
    rounds : int
        How often each step is timed.
    seed : int
        Of the order.

    Returns
    -------
    dict of name -> numpy.ndarray
        float64[rounds]: seconds of a call.
    """
    for step in steps.values():  # nbopt tries one thread and two in its first steps
        for _ in range(12):
            between()
            step()
    rng, names = np.random.default_rng(seed), list(steps)
    seconds = {name: np.empty(rounds) for name in names}
    for k in range(rounds):
        for name in rng.permutation(names):
            between()
            seconds[name][k] = _timed(steps[name], 1)
    return seconds


def _timed(step, count):
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def ratio(numerator, denominator, resamples=2000, seed=0):
    """Return the ratio of two medians and its bootstrap 95% confidence interval.

    Parameters
    ----------
    numerator, denominator : numpy.ndarray
        One value for each round, as `measure` returns them. Whole rounds are resampled, since what disturbs
        one side of a round may disturb the other as well.
    resamples, seed : int

    Returns
    -------
    value, low, high : float
    """
    picks = np.random.default_rng(seed).integers(len(numerator), size=(resamples, len(numerator)))
    ratios = np.median(numerator[picks], axis=1) / np.median(denominator[picks], axis=1)
    return float(np.median(numerator) / np.median(denominator)), *map(
        float, np.percentile(ratios, [2.5, 97.5])
    )


def median(values, resamples=2000, seed=0):
    """Return the median of values and its bootstrap 95% confidence interval: value, low, high."""
    values = np.asarray(values, float)
    return ratio(values, np.ones_like(values), resamples, seed)
