"""Rprop."""

from nbopt import checks
from nbopt.errors import ArgumentError
from nbopt.optimizers.base import Optimizer
from nbopt.schedules import Schedule


class Rprop(Optimizer):
    """Steps along the gradient's sign, of a size that each element finds for itself. For gradients of the whole data set, not of batches.

    With ``d`` the direction of the last step, 0 at first, and ``size`` the learning rate at first::

        sign(g) * d > 0:  size = size * eta_plus;   d = sign(g)
        sign(g) * d < 0:  size = size * eta_minus;  d = 0
        else:                                       d = sign(g)
        size = min(max(size, step_min), step_max)
        p = p - d * size

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
        The first step of each element. A ``size`` of 0 has not started yet; later changes of the rate matter to none that has.
    eta_minus, eta_plus : float
        What a step's size is multiplied by where the sign has changed (from 0 to below 1) and where it has not (from 1 on).
    step_min, step_max : float
        Bounds of the steps' sizes. A 16-bit state must be able to hold them.
    gradient_clip_norm, gradient_clip_value : float, optional
        Taken as everywhere; they change no sign, and so nothing here.
    param_clip_value : float, optional
        Bound of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    M. Riedmiller, H. Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm", IEEE International
    Conference on Neural Networks, 1993; formula and defaults of PyTorch's Rprop, which leaves out the paper's way back after a change of sign.
    """

    state_names = ("direction", "size")
    checks = {
        **Optimizer.checks, "eta_minus": checks.below_one, "eta_plus": checks.one_or_more, "step_min": checks.positive, "step_max": checks.positive,
    }  # fmt: skip

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=0.01,
        eta_minus=0.5,
        eta_plus=1.2,
        step_min=1e-6,
        step_max=50.0,
        gradient_clip_norm=None,
        gradient_clip_value=None,
        param_clip_value=None,
        name=None,
        *,
        schedule=None,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.stochastic_round, self.learning_rate = stochastic_round, learning_rate
        self.eta_minus, self.eta_plus, self.step_min, self.step_max = eta_minus, eta_plus, step_min, step_max
        self.gradient_clip_norm, self.gradient_clip_value, self.param_clip_value = gradient_clip_norm, gradient_clip_value, param_clip_value
        self.schedule = schedule or Schedule()

    def rule(self, step, param, grad, direction, size):
        """One step; see the class."""
        be, sign = self.be, self.be.sgn(grad)
        if self.step_min > self.step_max:
            raise ArgumentError(f"step_min must be at most step_max, and they are {self.step_min} and {self.step_max}")
        agreement = sign * direction
        factor = be.where(agreement > 0.0, self.eta_plus, be.where(agreement < 0.0, self.eta_minus, 1.0))
        # Not by step.t: a layer may join later.
        size[:] = be.clip(be.where(size == 0.0, step.lr, size) * factor, self.step_min, self.step_max)
        direction[:] = be.where(agreement < 0.0, 0.0, sign)
        param[:] = self.clip_value(param - direction * size, self.param_clip_value)
