"""How CPU kernels go through the rows of a walk, which `nbopt_backends.cpu.slices` makes.

See `nbopt_backends.meaning.slices`.
"""

from nbopt_backends.cpu.instructions import int64_at, load_int64, part, put_int64


@part
def row_offset(walk, slot, row):
    """Return where the first column of a row is in a slot that varies with some of the axes."""
    n = load_int64(walk, 1, -1)
    first = load_int64(walk, 3, -1) + slot * n
    if n == 0 or load_int64(walk, first, -1) < 0:
        return row  # each row has a value of its own
    found = 0
    for group in range(n - 1, -1, -1):
        length = load_int64(walk, 6 + group, -1)
        found += row % length * load_int64(walk, first + group, -1)
        row //= length
    return found


@part
def last_group(walk):
    """Return how many rows lie next to each other along the last of the groups of axes."""
    n = load_int64(walk, 1, -1)
    return load_int64(walk, 5 + n, -1) if n > 0 else 1


@part
def band_address(walk, fold, row, size):
    """Return the address of the results of the band of a row, given the bytes of one band's results."""
    last, field = last_group(walk), load_int64(walk, 4, -1) + 2 * fold
    band = load_int64(walk, field + 1, -1)
    return load_int64(walk, field, -1) + (row // last * -(-last // band) + row % last // band) * size


@part
def band_begins(walk, fold, row):
    """Return whether a row is the first one of its band."""
    return row % last_group(walk) % load_int64(walk, load_int64(walk, 4, -1) + 2 * fold + 1, -1) == 0


@part
def count_rows(walk, digits, row):
    """Write a row's place along each group of rows into int64[groups], at least one, for `next_row`."""
    put_int64(digits, 0, 0)
    for group in range(load_int64(walk, 1, -1) - 1, -1, -1):
        length = load_int64(walk, 6 + group, -1)
        put_int64(digits, group, row % length)
        row //= length


@part
def next_row(walk, digits):
    """Go on to the next row: return the group along which it lies. Those after it begin again."""
    group = load_int64(walk, 1, -1) - 1
    while group > 0:
        digit = int64_at(digits, group) + 1
        if digit < load_int64(walk, 6 + group, -1):
            put_int64(digits, group, digit)
            return group
        put_int64(digits, group, 0)
        group -= 1
    put_int64(digits, 0, int64_at(digits, 0) + 1)
    return 0


@part
def row_step(walk, slot, group):
    """Return how far a slot's first column moves if the next row lies along a group."""
    return load_int64(walk, load_int64(walk, 5, -1) + slot * load_int64(walk, 1, -1) + group, -1)


@part
def rows_of_band(walk, fold):
    """Return how many rows a band has, a power of two."""
    return load_int64(walk, load_int64(walk, 4, -1) + 2 * fold + 1, -1)


@part
def band_begins_at(walk, fold, digits):
    """Return whether the row that was counted is the first one of its band."""
    n, band = load_int64(walk, 1, -1), load_int64(walk, load_int64(walk, 4, -1) + 2 * fold + 1, -1)
    return n == 0 or int64_at(digits, n - 1) & (band - 1) == 0  # a band is a power of two


__all__ = [name for name in globals() if not name.startswith("_")]
