"""The count of an optimizer's steps, which lives on the device if steps may be captured into a graph."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nbopt.arrays.tensor import Tensor
from nbopt.errors import StateError
from nbopt.interface.backend import Backend
from nbopt.layers import read
from nbopt.schedules import Schedule

if TYPE_CHECKING:
    from nbopt.optimizers.tracing import Trace

#: Numbers of the host that change from step to step.
_OF_THE_HOST = {
    ("source", "epoch"): "step.epoch",
    ("source", "self.t"): "self.t, where step.t would do",
}


class RateInMemory:
    """The learning rate of an optimizer that keeps it in an array, as checkpoints see it."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def value(self) -> float:
        """The number, for which the host waits. Can be set: it is written in place."""
        rate = self._optimizer.learning_rate
        return float(rate.get().item() if isinstance(rate, Tensor) else rate)

    @value.setter
    def value(self, number: float) -> None:
        optimizer = self._optimizer
        optimizer.rate_tensor(optimizer._backend()).fill(number)


def _in_memory(rate: Any) -> bool:
    """Return whether a learning rate is an array of one element."""
    if type(rate) is float or rate is None or isinstance(rate, numbers.Real):
        return False
    return math.prod(getattr(rate, "shape", (0,))) == 1


class Counts:
    """The part of `nbopt.Optimizer` that counts its steps.

    If `capturable` is set, and the backend can capture steps, the count is a float64 in the device's memory.
    Each step adds 1 to it there, and so does each replay of a graph.
    """

    _t: Any = 0
    capturable: Any
    learning_rate: Any
    schedule: Any
    classnm: Any
    _backend: Any

    @property
    def t(self) -> int:
        """The number of steps so far. If it is on a device, reading it waits for them. Can be set."""
        count = self.__dict__.get("_t", 0)
        return int(count.get()[0]) if isinstance(count, Tensor) else count

    @t.setter
    def t(self, count: int) -> None:
        known = self.__dict__.get("_t")
        if isinstance(known, Tensor) and self.capturable:
            known.set([count])  # a graph knows this memory
        else:
            self.__dict__["_t"] = count

    def counts_on_device(self, be: Backend) -> bool:
        """Return whether the count lives in the memory of a backend, so that a graph can advance it.

        Parameters
        ----------
        be : Backend

        Returns
        -------
        bool
        """
        return self.capturable and be.captures

    def settle_count(self, be: Backend) -> bool:
        """Have the count where a step on a backend wants it, or raise if the step can't be captured.

        Parameters
        ----------
        be : Backend

        Returns
        -------
        bool
            Whether it is on the device.

        Raises
        ------
        StateError
            If the current stream is being captured into a graph, and the step can't be a part of it.
        """
        on_device = self.counts_on_device(be)
        known = self.__dict__.get("_t", 0)
        if be.captures and be.capturing():
            if not on_device:
                raise StateError(
                    f"{self.classnm} takes a step while its stream is captured into a graph, which would "
                    "repeat the numbers of this step in every replay: write optimizer.capturable = True, and "
                    "take a step, before the capture"
                )
            if not isinstance(known, Tensor) or known.be is not be:
                raise StateError(
                    f"{self.classnm} takes its first step while its stream is captured into a graph, and has "
                    "no states yet: call optimizer.optimize(layers, epoch) once before the capture"
                )
        if not on_device:
            if isinstance(known, Tensor):
                self.__dict__["_t"] = self.t
        elif not isinstance(known, Tensor) or known.be is not be:
            self.__dict__["_t"] = be.array([self.t], "float64", "t")
        return on_device

    def stays_in_memory(self, name: str, value: Any) -> bool:
        """Return whether a learning rate is an array of one element that each step reads."""
        return name == "learning_rate" and self.capturable and _in_memory(value)

    def rate_tensor(self, be: Backend) -> Tensor | None:
        """Return the learning rate if it is in memory, where each step reads it; else None.

        Parameters
        ----------
        be : Backend

        Returns
        -------
        Tensor or None
        """
        rate = self.learning_rate
        if type(rate) is float or not _in_memory(rate):
            return None
        return read(be, rate, "the learning rate")

    def get_description(self, skip: Iterable[str] = ()) -> dict[str, Any]:
        """Describe the optimizer, see `nbopt.NervanaObject`. A learning rate in memory is read."""
        found = super().get_description(skip)  # type: ignore[misc]
        if _in_memory(found["config"].get("learning_rate")):
            found["config"]["learning_rate"] = RateInMemory(self).value
        return found

    def place_of(self, name: str) -> tuple[Any, str]:
        """Return the object and its attribute that a checkpoint sets to load a hyper-parameter.

        Parameters
        ----------
        name : str

        Returns
        -------
        object
            The optimizer, unless graphs read the value in memory.
        str
        """
        in_memory = name == "learning_rate" and _in_memory(self.learning_rate)
        return (RateInMemory(self), "value") if in_memory else (self, name)

    def check_frozen(self, trace: Trace) -> None:
        """Raise where a graph would freeze a number that is meant to change from step to step.

        Parameters
        ----------
        trace : Trace

        Raises
        ------
        StateError
        """
        schedule = self.schedule
        if schedule is not None and not (type(schedule) is Schedule and schedule.step_config is None):
            raise StateError(
                f"a graph would repeat the learning rate of one epoch, and {self.classnm} has the schedule "
                f"{schedule!r}: write optimizer.schedule = None, make optimizer.learning_rate a tensor of "
                "one element on the GPU, and write the rate of each epoch into that tensor"
            )
        for line, called in _OF_THE_HOST.items():
            if trace.reads(line):
                raise StateError(
                    f"the rule of {self.classnm} reads {called}: a graph would repeat what it was at the "
                    "capture. Write optimizer.capturable = False, and leave the step out of graphs"
                )
