"""How a step's stages become launches: small stages run at the end of a pass, or at its beginning."""

import numpy as np

from nbopt_backends.cuda.closing import Closing, Parts
from nbopt_backends.cuda.launches import Kernel, PassLaunch
from nbopt_backends.cuda.small import Small
from nbopt_backends.cuda.walks import on_device


def planned(backend, entries):
    """Return the launches of a step in their order, and what memory they take besides.

    Launches run one after the other. So small stages that follow the last launch of a pass run at its end.
    Those before the first pass are its beginning if its blocks can repeat them.

    Parameters
    ----------
    backend : DeviceBackend
    entries : list of (tuple, PassLaunch or Small or Kernel or Queued)
        As `Stages.entries` returns them.

    Returns
    -------
    list of Kernel or Queued
    list of DeviceArray
    """
    found: list = []  # (launch, the small stages at its beginning, those at its end)
    waiting: list = []
    for _, one in sorted(entries, key=lambda entry: (entry[0], getattr(entry[1], "reduces", False))):
        if not isinstance(one, Small):
            alone, first = _split(waiting) if getattr(one, "begins", False) else (waiting, [])
            found += [*((stage, [], []) for stage in alone), (one, first, [])]
            waiting = []
        elif found and isinstance(found[-1][0], PassLaunch):
            found[-1][2].append(one)
        else:
            waiting.append(one)
    found += [(stage, [], []) for stage in waiting]
    memory: list = []
    return [_launch(backend, memory, *one) for one in found], memory


def _split(stages):
    """Return small stages that have to be launched by themselves, and those after them that need not."""
    last = max((number for number, stage in enumerate(stages, 1) if not stage.repeatable), default=0)
    return stages[:last], stages[last:]


def _launch(backend, memory, launch, first, last):
    """Return a launch with small stages at its beginning and its end; their memory is added to `memory`."""
    if isinstance(launch, Small):
        return launch.alone(backend)
    if not isinstance(launch, PassLaunch):
        return launch
    after = 0
    if first or last:
        arguments = [value for stage in (*last, *first) for value in stage.arguments]
        memory.append(on_device(backend, np.array([0, launch.arrivals, *arguments], np.int64)))
        after = memory[-1].address
    closing = Closing(launch.outputs, parts_of(last), parts_of(first, len(last)))
    text = backend.marked(launch.text(closing))
    return Kernel(text, backend.stem, launch.name, launch.blocks, (*launch.arguments, after))


def parts_of(stages, number=0):
    """Return small stages as parts of a pass; `number` is the first one's."""
    parts = [stage.inside(number + k) for k, stage in enumerate(stages)]
    calls = tuple((name, len(stage.arguments)) for (_, name), stage in zip(parts, stages))
    return Parts(tuple(text for text, _ in parts), calls)
