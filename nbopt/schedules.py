"""Learning-rate schedules: pure functions of the learning rate and the epoch."""

import bisect
import math
from collections.abc import Sequence
from typing import Any

from nbopt import checks
from nbopt.errors import ArgumentError
from nbopt.naming import Described


class Schedule(Described):
    """A constant rate, or one that changes in steps.

    Parameters
    ----------
    step_config : int or list of int, optional
        None: the rate stays as it is. An int k: every k epochs the rate is multiplied by `change`. A list of
        epochs, ascending: at each, the rate is multiplied by `change` (a number), or becomes the entry of
        `change` (a list) at the same position.
    change : float or list of float

    Notes
    -----
    After neon's class of the same name. As everywhere in nbopt, the rate depends on the epoch alone, never on
    earlier calls.
    """

    def __init__(
        self, step_config: int | Sequence[float] | None = None, change: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__()
        self.step_config, self.change = _step_config(step_config), _change(change)
        if isinstance(self.change, list):
            if not isinstance(self.step_config, list):
                raise ArgumentError(
                    "a list of changes goes with a list of epochs: Schedule([10, 20], [0.01, 0.001])"
                )
            _same_length(self.step_config, self.change)

    def get_learning_rate(self, learning_rate: float, epoch: float) -> float:
        """Return the learning rate of an epoch.

        Parameters
        ----------
        learning_rate : float
            The initial one.
        epoch : int
            From 0.

        Returns
        -------
        float
        """
        if self.step_config is None:
            return learning_rate
        if isinstance(self.change, list):
            return _latest(self.step_config, self.change, learning_rate, epoch)
        if isinstance(self.step_config, list):
            return learning_rate * _power(
                self, self.change, bisect.bisect_right(self.step_config, epoch), epoch
            )
        return learning_rate * _power(self, self.change, math.floor(epoch / self.step_config), epoch)


class StepSchedule(Described):
    """A rate that takes given values from given epochs on.

    Parameters
    ----------
    step_config : list of int
        Epochs, ascending. Before the first the rate is the initial one.
    change : list of float
        The rate from the epoch at the same position on.
    """

    def __init__(self, step_config: Sequence[float], change: Sequence[float]) -> None:
        super().__init__()
        self.step_config, self.change = _step_config(step_config), _change(change)
        if not (isinstance(self.step_config, list) and isinstance(self.change, list)):
            raise ArgumentError(
                f"StepSchedule takes a list of epochs and a list of rates, not {step_config!r} and {change!r}"
            )
        _same_length(self.step_config, self.change)

    def get_learning_rate(self, learning_rate: float, epoch: float) -> float:
        """Return the learning rate of an epoch; see `Schedule.get_learning_rate`."""
        return _latest(self.step_config, self.change, learning_rate, epoch)


class PowerSchedule(Described):
    """``lr * change ** floor(epoch / step_config)``.

    Parameters
    ----------
    step_config : int
        The number of epochs between two changes.
    change : float
        The factor of each change.
    """

    def __init__(self, step_config: int, change: float) -> None:
        super().__init__()
        self.step_config = checks.positive_int("step_config", step_config)
        self.change = checks.non_negative("change", change)

    def get_learning_rate(self, learning_rate: float, epoch: float) -> float:
        """Return the learning rate of an epoch; see `Schedule.get_learning_rate`."""
        return learning_rate * _power(self, self.change, math.floor(epoch / self.step_config), epoch)


class ExpSchedule(Described):
    """``lr / (1 + decay * epoch)``.

    Parameters
    ----------
    decay : float
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = checks.non_negative("decay", decay)

    def get_learning_rate(self, learning_rate: float, epoch: float) -> float:
        """Return the learning rate of an epoch; see `Schedule.get_learning_rate`."""
        return learning_rate / (1.0 + self.decay * epoch)


class PolySchedule(Described):
    """``lr * max(0, 1 - epoch / total_epochs) ** power``.

    Parameters
    ----------
    total_epochs : int
        The epoch from which the rate is 0.
    power : float
    """

    def __init__(self, total_epochs: float, power: float) -> None:
        super().__init__()
        self.total_epochs = checks.positive("total_epochs", total_epochs)
        self.power = checks.non_negative("power", power)

    def get_learning_rate(self, learning_rate: float, epoch: float) -> float:
        """Return the learning rate of an epoch; see `Schedule.get_learning_rate`."""
        return learning_rate * max(0.0, 1.0 - epoch / self.total_epochs) ** self.power


class ShiftSchedule(Described):
    """``lr * 2 ** (-shift_size * floor(epoch / interval))``: a rate that is shifted right by bits.

    Parameters
    ----------
    interval : int
        The number of epochs between two shifts.
    shift_size : int
        By how many bits.
    """

    def __init__(self, interval: int, shift_size: float = 1) -> None:
        super().__init__()
        self.interval = checks.positive_int("interval", interval)
        self.shift_size = checks.finite("shift_size", shift_size)

    def get_learning_rate(self, learning_rate: float, epoch: float) -> float:
        """Return the learning rate of an epoch; see `Schedule.get_learning_rate`."""
        return learning_rate * _power(self, 2.0, -self.shift_size * math.floor(epoch / self.interval), epoch)


def _power(schedule: Described, factor: float, exponent: float, epoch: float) -> float:
    try:
        return factor**exponent
    except OverflowError:
        raise ArgumentError(
            f"the rate of {schedule!r} at epoch {epoch} is infinite: it holds {factor} to the power of "
            f"{exponent}. Let it grow more slowly, or give a list of rates: Schedule([10, 20], [0.01, 0.1])"
        ) from None


def _step_config(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        steps = [checks.non_negative("an entry of step_config", step) for step in value]
        if steps != sorted(steps):
            raise ArgumentError(f"the epochs of step_config must ascend, not {value!r}")
        return steps
    return checks.positive_int("step_config", value)


def _change(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [checks.non_negative("an entry of change", rate) for rate in value]
    return checks.non_negative("change", value)


def _same_length(steps: Sequence[float], changes: Sequence[float]) -> None:
    if len(steps) != len(changes):
        raise ArgumentError(
            f"step_config has {len(steps)} epochs and change {len(changes)} rates: there must be one rate "
            "for each epoch"
        )


def _latest(steps: Sequence[float], rates: Sequence[float], learning_rate: float, epoch: float) -> float:
    passed = bisect.bisect_right(steps, epoch)
    return rates[passed - 1] if passed else learning_rate
