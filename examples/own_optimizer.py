"""An optimizer of one's own: quasi-hyperbolic momentum.

``python examples/own_optimizer.py`` fits the points of `regression.py` with it, and draws the curve.
"""

import nbopt
from nbopt import checks


class QuasiHyperbolicMomentum(nbopt.Optimizer):
    """Steps along a weighted mean of the gradient and its running mean.

    ::

        m = beta * m + (1 - beta) * g
        p = p - s * lr * ((1 - nu) * g + nu * m)

    J. Ma, D. Yarats, "Quasi-hyperbolic momentum and Adam for deep learning", arXiv:1810.06801, 2018.
    """

    state_names = ("mean",)
    checks = {**nbopt.Optimizer.checks, "beta": checks.below_one, "nu": checks.fraction}

    def __init__(
        self,
        learning_rate=1.0,
        beta=0.999,
        nu=0.7,
        schedule=None,
        gradient_clip_norm=None,
        stochastic_round=False,
        name=None,
    ):
        super().__init__(name=name)
        self.learning_rate, self.beta, self.nu = learning_rate, beta, nu
        self.schedule = schedule or nbopt.Schedule()
        self.gradient_clip_norm = gradient_clip_norm
        self.stochastic_round = stochastic_round

    def rule(self, step, param, grad, mean):
        """One step; see the class."""
        mean[:] = self.beta * mean + (1 - self.beta) * grad
        param[:] = param - step.scale * step.lr * ((1 - self.nu) * grad + self.nu * mean)


def main():
    """Fit the points of `regression.py`; return the mean squared errors of all steps."""
    from pathlib import Path

    import regression  # beside this file

    return regression.fit(QuasiHyperbolicMomentum(0.05, beta=0.9), Path("own_optimizer.png"))


if __name__ == "__main__":
    main()
