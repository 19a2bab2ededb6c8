"""Launch: a step that is ready to run, once or again."""


class Launch:
    """Plans, and the numbers that the host gives. It keeps no tensor alive.

    A backend's own class runs the step when it is called with the number of steps before it.

    Attributes
    ----------
    backend : CompiledBackend
    plans : list of Plan
    numbers : sequence of list of float
        Those of each plan.
    joined : object
        What the backend has made of the plans together.
    serials : list of int or None
        Of the tensors that the first plan's tables were of. None: each step has to look at its tensors.
    """

    __slots__ = ("backend", "joined", "numbers", "plans", "serials")

    def __init__(self, backend, plans, updates, joined):
        self.backend, self.plans, self.joined = backend, plans, joined
        self.numbers = [update.numbers for update in updates]
        self.serials = plans[0].serials

    def again(self, numbers, addresses=None):
        """Take other numbers for a step of one plan, and perhaps other addresses of gradients.

        Return False if its tables are not the same any more.
        """
        self.numbers, (plan,) = (numbers,), self.plans
        if self.serials is None or plan.serials is not self.serials:
            return False
        return addresses is None or plan.layout.point_gradients(addresses)

    def __call__(self, count):
        """Run the step; `count` is how many there were before it."""
        raise NotImplementedError(f"{type(self).__name__} runs nothing")
