"""How much memory a host has, and how much an offloaded optimizer takes of it."""

import pathlib

from nbopt.errors import DeviceMemoryError
from nbopt.torch.states import state_dtype

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available():
    """Return how many bytes the host has left, or None where it does not say."""
    found = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    for limit, used in _CGROUPS:
        values = [*_lines(limit), *_lines(used)]
        if len(values) == 2 and all(value.isdigit() for value in values):
            found.append(max(0, int(values[0]) - int(values[1])))
    return min(found, default=None)


def _lines(path):
    try:
        return pathlib.Path(path).read_text().splitlines()
    except OSError:
        return []


def bytes_of_states(inner, hosts):
    """Return how many bytes the states that some parameters will get take on the host, masters apart.

    Parameters
    ----------
    inner : Stepper
        The optimizer on the host.
    hosts : set of torch.Tensor
        The tensors there.
    """
    total = 0
    for own in inner._owned():
        wanted = own.optimizer.state_dtype
        for one in own.kept():
            for host in (host for host in own.group["params"] if host in hosts):
                elements = 1
                for length in () if one.single else one.stored(tuple(host.shape)):
                    elements *= length
                total += elements * (4 if one.single else state_dtype(host, wanted).itemsize)
    return total


def check_room(parts):
    """Raise if the host has less memory left than is about to be taken.

    Parameters
    ----------
    parts : dict of str to int
        What it is for -> bytes.

    Raises
    ------
    DeviceMemoryError
    """
    needed, there = sum(parts.values()), available()
    if there is not None and needed > there:
        text = ", ".join(f"{_size(size)} for {name}" for name, size in parts.items() if size)
        raise DeviceMemoryError(
            f"offload needs {_size(needed)} of the host's memory ({text}), and {_size(there)} are left: "
            "train fewer parameters, keep states in 16 bits (state_dtype=torch.bfloat16), or take a rule "
            "with fewer states, such as Lion"
        )


def _size(count):
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
        count /= 1024
    raise AssertionError
