"""Rules of users that reduce: over each parameter, along axes, and over the whole step."""

import nbopt
from nbopt import State


class Lamb(nbopt.Optimizer):
    """Y. You et al., arXiv:1904.00962: Adam's step, times the ratio of the parameter's norm to its own."""

    state_names = ("mean", "mean_square")

    def __init__(
        self, learning_rate=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-6, weight_decay=0.01, name=None
    ):
        super().__init__(name=name)
        self.learning_rate, self.beta_1, self.beta_2, self.epsilon, self.decay = (
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            weight_decay,
        )

    def rule(self, step, param, grad, mean, mean_square):
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        mean[:] = b1 * mean + (1 - b1) * grad
        mean_square[:] = b2 * mean_square + (1 - b2) * be.square(grad)
        update = (
            mean / (1 - b1**step.t) / (be.sqrt(mean_square / (1 - b2**step.t)) + self.epsilon)
            + self.decay * param
        )
        ratio = be.norm(param) / be.norm(update)
        param[:] = param - step.lr * be.where(be.finite(ratio) * ratio > 0, ratio, 1.0) * update


class Centred(nbopt.Optimizer):
    """Each gradient without its mean, over the norm of all. A step that is not finite is left out."""

    state_names = ("velocity",)

    def __init__(self, learning_rate=0.1, decay=0.9, name=None):
        super().__init__(name=name)
        self.learning_rate, self.decay = learning_rate, decay

    def rule(self, step, param, grad, velocity):
        be = self.be
        norm = step.norm(grad)
        step.only_if(be.finite(norm))
        velocity[:] = self.decay * velocity + (grad - be.mean(grad)) / norm
        param[:] = param - step.lr * velocity


class Factored(nbopt.Optimizer):
    """Divides by the root of running means of squares of rows and of columns.

    It also divides by the norm of all gradients. Parameters may have any number of axes. Rows can be centred
    first.
    """

    def __init__(self, centred=False, stochastic_round=False, **options):
        super().__init__(**options)
        self.centred, self.stochastic_round, self.learning_rate = centred, stochastic_round, 0.5

    def states(self, shape):
        if len(shape) < 2:
            return {"square": State()}
        every = range(len(shape))
        return {"row": State(axes=tuple(every[:-1])), "column": State(axes=(*every[:-2], len(shape) - 1))}

    def rule(self, step, param, grad, *states):
        be, whole = self.be, step.norm(grad)
        if len(states) == 1:
            (square,) = states
            square[:] = 0.5 * square + 0.5 * be.square(grad) + 1e-3
            param[:] = param - step.lr * grad / be.sqrt(square) / whole
            return
        row, column = states
        grad = grad - be.mean(grad, axis=-1) if self.centred else grad
        squares = be.square(grad)
        row[:] = 0.5 * row + 0.5 * be.mean(squares, axis=-1) + 1e-3
        column[:] = 0.5 * column + 0.5 * be.mean(squares, axis=-2) + 1e-3
        update = grad / (be.sqrt(row / be.mean(row, axis=-2)) * be.sqrt(column))
        param[:] = param - step.lr * update / be.maximum(1.0, be.norm(update) / be.sqrt(param.size)) / whole


class Covers(nbopt.Optimizer):
    """A state along each axis, so that each axis is told apart, and the largest of what it covers.

    Steps can be divided by sums along the first axis.
    """

    def __init__(self, by_sums=False, stochastic_round=False, **options):
        super().__init__(**options)
        self.by_sums, self.stochastic_round, self.learning_rate = by_sums, stochastic_round, 0.5

    def states(self, shape):
        return {f"along{axis}": State(axes=(axis,)) for axis in range(len(shape))} or {"square": State()}

    def rule(self, step, param, grad, *states):
        be, least = self.be, states[0]
        for state in states[1:]:
            least = be.minimum(least, state)
        square = least + be.square(grad)
        others = [tuple(other for other in range(param.ndim) if other != axis) for axis in range(len(states))]
        largest = [be.max(square, axis=axes) if axes else square for axes in others]
        change = step.lr * grad / be.sqrt(square)
        if self.by_sums:
            change = change / (1 + (be.sum(square, axis=0) if param.ndim else 1.0))
        param[:] = param - change
        for state, value in zip(states, largest):
            state[:] = value
