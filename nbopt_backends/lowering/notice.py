"""A word to the user while kernels are compiled for longer than a moment.

It comes once in a process, from the logger ``nbopt``, as a warning: programs that configure no logging show
these on stderr, and nothing below. NBOPT_QUIET=1 silences it, and so does
``logging.getLogger("nbopt").setLevel("ERROR")``.
"""

import logging
import os
import threading
import time
from contextlib import contextmanager

#: The logger of all that nbopt says without being asked.
log = logging.getLogger("nbopt")

#: Seconds of compiling after which a user may wonder what goes on, and those that one kernel has taken at
#: least: to find one on disk takes less.
MOMENT, LEAST = 1.0, 0.2

_TEXT = (
    "nbopt compiles the kernels of this step, which takes a few seconds. They are kept in %s, so that later "
    "steps and processes find them. (NBOPT_QUIET=1 silences this.)"
)


class _Waiting:
    spent, said = 0.0, False


@contextmanager
def while_compiling(folder):
    """Say what goes on if a kernel, and those before it, have been compiled for longer than a moment.

    Parameters
    ----------
    folder : callable
        Returns where kernels are kept.
    """
    if _Waiting.said or os.environ.get("NBOPT_QUIET", "0") not in ("", "0"):
        yield
        return
    timer = threading.Timer(max(MOMENT - _Waiting.spent, LEAST), _say, (folder,))
    timer.daemon = True
    begun = time.monotonic()
    try:
        timer.start()
    except RuntimeError:  # no more threads, as at the end of a process
        pass
    try:
        yield
    finally:
        timer.cancel()
        _Waiting.spent += time.monotonic() - begun


def _say(folder):
    if not _Waiting.said:
        _Waiting.said = True
        log.warning(_TEXT, folder())
