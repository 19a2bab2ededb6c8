"""Hold back Ctrl-C while a step is under way."""

import os
import threading

# The public functions of the same names convert to enums and back, which costs 6 us in every step; these are
# what they call.
from _signal import getsignal, signal
from signal import SIGINT
from types import FrameType
from typing import Any

_SIGINT = int(SIGINT)


_main = threading.main_thread().ident


def _after_fork() -> None:
    global _main
    _main = threading.get_ident()  # the thread that forks is the child's main thread


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Uninterrupted:
    """Context manager: a SIGINT inside takes effect at the end.

    Python runs signal handlers in the main thread only, so elsewhere there is nothing to hold back, and one
    instance serves all.
    """

    def __init__(self) -> None:
        self._handler = None
        self._pending: Any = None

    def __enter__(self) -> None:
        if threading.get_ident() == _main and self._handler is None:
            handler = getsignal(_SIGINT)
            if callable(handler):
                self._pending = None
                self._handler = handler
                signal(_SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending = number, frame

    def __exit__(self, *exception: object) -> None:
        if self._handler is not None and threading.get_ident() == _main:
            handler, self._handler = self._handler, None
            signal(_SIGINT, handler)
            if self._pending is not None:
                handler(*self._pending)


uninterrupted = _Uninterrupted()
