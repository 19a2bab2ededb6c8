"""TorchRule: what the rules with PyTorch's formulas have in common."""

from typing import Any

from nbopt.errors import ArgumentError
from nbopt.layers import read
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.modifiers import decayed
from nbopt.optimizers.states import EMA, State
from nbopt.torch.states import MEAN, STEP, Kept

#: PyTorch's word -> the attributes of a rule that it stands for. Any other word is an attribute itself.
PARTS = {
    "lr": ("learning_rate",),
    "betas": ("beta_1", "beta_2"),
    "etas": ("eta_minus", "eta_plus"),
    "step_sizes": ("size_min", "size_max"),
}


class TorchRule(Optimizer):
    """Base of rules with PyTorch's formulas. Their attributes are what a group's keys say.

    PyTorch checks the arguments of a constructor and nothing later. So a schedule may set what it likes.

    Attributes
    ----------
    kept : tuple of Kept
        The states, in the order in which the rule takes them.
    by_name : dict of str to Kept
        The same by their names.
    words : tuple of str
        The keys of a group that the rule reads.
    """

    kept: tuple[Kept, ...] = ()
    words: tuple[str, ...] = ()

    #: The number of gradients that are not finite, on the device, if someone has counted them; and whether
    #: there is one.
    found_inf: Any = None
    guarded: Any = False

    #: Whether steps see a float32 master in place of a 16-bit parameter.
    masters: Any = False

    #: The group's key that counts its steps, if there is one.
    counter = ""

    weight_decay: Any = 0.0
    maximize: Any = False
    decoupled_weight_decay: Any = False

    learning_rate: Any = 0.0
    checks = {name: check for name, check in Optimizer.checks.items() if name != "learning_rate"}
    by_name: dict[str, Kept] = {}

    def __init_subclass__(cls, symbolic: bool = False, **options: Any) -> None:
        if not symbolic:
            cls.by_name = {one.name: one for one in cls.kept}
            cls.state_names = tuple(name for name in cls.by_name if name != STEP.name)
            if "counts_each" not in vars(cls):
                cls.counts_each = STEP in cls.kept
        super().__init_subclass__(symbolic=symbolic, **options)

    @property
    def classnm(self):
        """Str : the name of the class that users know."""
        return type(self).__name__.removesuffix("Rule")

    @classmethod
    def parameters(cls):
        """Return the arguments of the class for PyTorch, a list of `inspect.Parameter`.

        It is empty if they are PyTorch's own.
        """
        return []

    @classmethod
    def documentation(cls):
        """Return the documentation of these arguments."""
        return ""

    def parts_of(self, word):
        """Return the attributes that a group's key stands for."""
        return PARTS.get(word, (word,))

    def converted(self, word, value):
        """Return what the attribute gets of a group's value."""
        if value is None:
            raise ArgumentError(f"a group's {word!r} must be a number, not None")
        return value

    def settle(self, found):
        """Set what follows from a group's entries, after they were read.

        Parameters
        ----------
        found : dict
        """

    def adapted(self, name, value, param):
        """Return a state of a state dict as it is kept here.

        Parameters
        ----------
        name : str
        value : object
        param : torch.Tensor
            Whose it is.
        """
        return value

    def step_names(self):
        """Return the names of the states that are one number for the group, which are keys of it."""
        return ()

    @property
    def shown(self):
        """Dict of str to torch.Tensor : these states, as the group shows them."""
        return {}

    def take_step_state(self, name, value):
        """Go on from a number that a group has for one of these states."""

    def kept_now(self, kind=None):
        """Return the states that there are now.

        Parameters
        ----------
        kind : tuple, optional
            See `nbopt.torch.group.Group`.

        Returns
        -------
        list of Kept
        """
        found = [one for one in self.kept if not one.when or getattr(self, one.when)]
        return [*found, *([MEAN] if self.ema_decay else [])]

    def every_kept(self, shape):
        """Return the states that a parameter of some shape may have.

        Returns
        -------
        list of Kept
        """
        return [*self.kept, MEAN]

    def states_in_use(self):
        """Return the names of the states that the rule takes now.

        The parameter's count of steps comes as ``step.t``.
        """
        return tuple(
            one.name for one in self.kept if one is not STEP and (not one.when or getattr(self, one.when))
        )

    def declared_states(self, shape=()):
        """Return the states that the rule takes now.

        Returns
        -------
        tuple of (str, State)
        """
        names, known = self.states_in_use(), self._cache().declared
        found = known.get(names)
        if found is None:
            found = known[names] = tuple((name, self.by_name[name].declared()) for name in names)
        return self.with_further(found)

    def with_further(self, states):
        """Return states with those that are no rule's own."""
        guard = (("found_inf", State("step", None)),) if self.guarded else ()
        return (*states, *guard, *((EMA,) if self.ema_decay else ()))

    def _step_state(self, be, name, state, rate):
        if name != "found_inf":
            return super()._step_state(be, name, state, rate)
        return read(be, self.found_inf, "found_inf")

    def rule(self, step, param, grad, *states):
        """One step, which is left out if some gradients are not finite."""
        if self.guarded:
            states, found_inf = states[:-1], states[-1]
            step.only_if(found_inf == 0.0)
        self.formula(step, param, grad, *states)

    def formula(self, step, param, grad, *states):
        """Say what one step is; see `nbopt.Optimizer.rule`. Subclasses define it."""
        raise NotImplementedError

    def slope(self, param, grad):
        """Return the gradient that is descended.

        It is negated to ascend. The weight decay that is part of the gradient is in it.
        """
        if self.maximize:
            grad = -grad
        if self.weight_decay and not self.decoupled_weight_decay:
            grad = grad + self.weight_decay * param
        return grad

    def moved(self, step, param, change):
        """Return the parameter after a change, and after the weight decay that is no part of the gradient."""
        if self.weight_decay and self.decoupled_weight_decay:
            return decayed(param, change, step.lr * self.weight_decay)
        return param - change
