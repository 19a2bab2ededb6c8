"""Do arrays overlap? Checked when a layout is built, so that no update depends on the order of its elements."""

import numpy as np

from nbopt.errors import LayoutError

# Overlap of interleaved views is a bounded integer problem; beyond this much work the arrays are taken to overlap.
_MAX_WORK = 100_000


def byte_range(array):
    """Return (first byte, byte after the last) of a NumPy array's elements; equal where there are none."""
    start = array.__array_interface__["data"][0]
    if array.size == 0:
        return start, start
    low = sum(min(0, (n - 1) * step) for n, step in zip(array.shape, array.strides))
    high = sum(max(0, (n - 1) * step) for n, step in zip(array.shape, array.strides))
    return start + low, start + high + array.itemsize


def overlaps_itself(array):
    """Return whether two elements of `array` share memory (as in views made by ``as_strided`` or ``broadcast_to``)."""
    if array.size <= 1:
        return False
    reach = array.itemsize
    for step, n in sorted((abs(step), n) for n, step in zip(array.shape, array.strides) if n > 1):
        if step < reach:
            break
        reach = step * (n - 1) + reach
    else:
        return False
    # The strides alone don't settle it: look at every element's address.
    addresses = np.zeros(array.shape, np.int64)
    for axis, (n, step) in enumerate(zip(array.shape, array.strides)):
        addresses += (np.arange(n) * step).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    gaps = np.diff(np.sort(addresses, axis=None))
    return bool((gaps < array.itemsize).any())


def check_disjoint(values):
    """Refuse memory that is written through one array and read or written through another.

    Parameters
    ----------
    values : list of (numpy.ndarray, written, label)
        `written` is a bool; `label` is a callable that returns the array's name for messages.

    Raises
    ------
    LayoutError
    """
    for array, _, label in values:
        if overlaps_itself(array):
            raise LayoutError(f"elements of {label()} share memory with each other: make a copy of it (numpy.array(x))")
    spans = sorted((*byte_range(array), written, index) for index, (array, written, _) in enumerate(values))
    active = []  # spans that reach beyond the current one's start
    for start, end, written, index in spans:
        if start == end:
            continue
        active = [span for span in active if span[1] > start]
        for _, _, other_written, other in active:
            if (written or other_written) and _share(values[index][0], values[other][0]):
                raise LayoutError(
                    f"{values[other][2]()} and {values[index][2]()} share memory that a step writes: "
                    "the result would depend on which is updated first. List each array once, and keep gradients in memory of their own."
                )
        active.append((start, end, written, index))


def _share(a, b):
    try:
        return np.shares_memory(a, b, max_work=_MAX_WORK)
    except np.exceptions.TooHardError:
        return True
