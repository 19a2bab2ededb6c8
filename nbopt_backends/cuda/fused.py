"""How a step's stages become launches: small stages run at the end of the pass before them."""

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import numpy as np

from nbopt_backends.cuda.closing import Closing, Tail
from nbopt_backends.cuda.ends import Kernel
from nbopt_backends.cuda.small import Small
from nbopt_backends.cuda.walks import on_device


class PassLaunch(NamedTuple):
    """One launch of a pass, or of what ends its reductions.

    Attributes
    ----------
    text : callable
        Returns its kernel's text, given a `Closing`.
    name : str
        The kernel's.
    blocks : int
    arguments : tuple of int
        But for `after`.
    parameters : int
        How many it goes over.
    reduces : bool
        Whether it can have small stages at its end.
    outputs : tuple of (int, int)
        See `Closing`.
    """

    text: Callable
    name: str
    blocks: int
    arguments: tuple
    parameters: int
    reduces: bool
    outputs: tuple


class Queued(NamedTuple):
    """What queues work on a stream by itself, given its handle."""

    queue: Callable


def launches_of(backend, entries):
    """Return what queues a step on a stream, given its handle, launch by launch, and their memory.

    Launches run one after the other, so what follows the last launch of a pass can run at its end.

    Parameters
    ----------
    backend : DeviceBackend
    entries : list of (tuple, PassLaunch or Small or Kernel or Queued)
        As `Stages.entries` returns them.
    """
    found, memory, waiting = [], [], None  # a launch that small stages may follow
    ordered = sorted(entries, key=lambda entry: (entry[0], getattr(entry[1], "reduces", False)))
    for kind, group in groupby((entry for _, entry in ordered), key=type):
        launches = list(group)
        if waiting and kind is Small:
            launch, after = _with_tail(backend, waiting, launches)
            found.append(launch)
            memory.append(after)
            waiting = None
            continue
        if waiting:
            found.append(_alone(backend, waiting))
        waiting = launches.pop() if kind is PassLaunch and launches[-1].reduces else None
        found += [one.queue if kind is Queued else _alone(backend, one) for one in launches]
    return [*found, *([_alone(backend, waiting)] if waiting else [])], memory


def _alone(backend, launch):
    """Return what queues one launch."""
    if isinstance(launch, PassLaunch):
        return _prepared(backend, launch, Tail(), 0)
    kernel = launch.kernel if isinstance(launch, Kernel) else launch.compiled(backend)
    return backend.device.prepared(kernel, launch.blocks, launch.arguments)


def _with_tail(backend, launch, stages):
    """Return what queues a launch that has small stages at its end, and its memory."""
    arguments = [value for stage in stages for value in stage.arguments]
    after = on_device(backend, np.array([0, launch.parameters, *arguments], np.int64))
    return _prepared(backend, launch, tail_of(stages), after.address), after


def tail_of(stages):
    """Return small stages as the end of a pass."""
    parts = [stage.inside(number) for number, stage in enumerate(stages)]
    calls = tuple((name, len(stage.arguments)) for (_, name), stage in zip(parts, stages))
    return Tail(tuple(text for text, _ in parts), calls)


def _prepared(backend, launch, tail, after):
    text = backend.marked(launch.text(Closing(launch.outputs, tail)))
    kernel = backend.kernel(text, backend.stem, launch.name)
    return backend.device.prepared(kernel, launch.blocks, (*launch.arguments, after))
