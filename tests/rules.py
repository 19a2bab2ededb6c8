"""Rules of users that reduce: over each parameter, and over the whole step."""

import nbopt


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
