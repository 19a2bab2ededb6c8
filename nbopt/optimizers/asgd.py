"""ASGD."""

from nbopt import checks
from nbopt.optimizers.base import Optimizer, decayed
from nbopt.schedules import Schedule


class ASGD(Optimizer):
    """Stochastic gradient descent that also keeps the average of its parameters, which is the better answer after a long run.

    In call ``t``, counted from 1, with ``g`` the gradient after its clips::

        eta = lr / (1 + lambd * lr * (t - 1))^alpha
        p = p - (eta * g + lambd * eta * p)
        a = a + (p - a) / max(1, t - 1 - t0)

    The average is the state ``average``: ``layer.states[0][0].get()`` is that of a layer's first parameter.

    Parameters
    ----------
    stochastic_round : bool or int
        How parameters and 16-bit states are rounded, see `nbopt.Tensor.rounding`.
    learning_rate : float
    lambd : float
        Weight decay, and with it how fast the learning rate falls.
    alpha : float
        The power by which it falls, from 0 to 1.
    t0 : float
        The average begins after this many calls; until then it is the parameter. An element of it that is 0 has not begun either.
    gradient_clip_norm, gradient_clip_value, param_clip_value : float, optional
        Bounds of the norm of all gradients, of each gradient, and of each new parameter. None or 0: none.
    name : str, optional
    schedule : Schedule, optional
        Of the learning rate. Constant without one.
    state_dtype : dtype, optional
        The dtype of new states.

    References
    ----------
    B. T. Polyak, A. B. Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on Control and Optimization 30, 1992;
    formula and defaults of PyTorch's ASGD.
    """

    state_names = ("average",)
    checks = {**Optimizer.checks, "lambd": checks.non_negative, "alpha": checks.fraction, "t0": checks.non_negative}

    def __init__(
        self,
        stochastic_round=False,
        learning_rate=0.01,
        lambd=1e-4,
        alpha=0.75,
        t0=1e6,
        gradient_clip_norm=None,
        gradient_clip_value=None,
        param_clip_value=None,
        name=None,
        *,
        schedule=None,
        state_dtype=None,
    ):
        super().__init__(name=name, state_dtype=state_dtype)
        self.stochastic_round = stochastic_round
        self.learning_rate, self.lambd, self.alpha, self.t0 = learning_rate, lambd, alpha, t0
        self.gradient_clip_norm, self.gradient_clip_value, self.param_clip_value = gradient_clip_norm, gradient_clip_value, param_clip_value
        self.schedule = schedule or Schedule()

    def rule(self, step, param, grad, average):
        """One step; see the class."""
        before = step.t - 1
        eta = step.lr / (1.0 + self.lambd * step.lr * before) ** self.alpha
        share = 1.0 / max(1.0, before - self.t0)
        new = decayed(param, eta * (step.scale * grad), self.lambd * eta)
        param[:] = self.clip_value(new, self.param_clip_value)
        # Not by step.t: a layer may join after t0, and zeros must not count in its average.
        start = self.be.where(average == 0.0, param, average)
        average[:] = share * param + (1.0 - share) * start
