"""Stepper: what all of nbopt's optimizers for PyTorch have in common.

These are the backend, the groups, and the step over all of them.
"""

from contextlib import contextmanager
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch

from nbopt import checks, optimizers
from nbopt.errors import ArgumentError, LayoutError, StateError
from nbopt.interface.together import update_together
from nbopt.layers import wrapped
from nbopt.optimizers.kept import check_agreed
from nbopt.torch.counted import CountedState
from nbopt.torch.devices import Devices
from nbopt.torch.group import Group
from nbopt.torch.hooks import hooked
from nbopt.torch.keys import one_letter_apart
from nbopt.torch.saving import Saved, brief
from nbopt.torch.shards import local
from nbopt.torch.states import MEAN
from nbopt.torch.steady import Steady
from nbopt.torch.words import in_torchs_words

_dictionary = attrgetter("group")
_RATE = 'each group has its own: optimizer.param_groups[0]["lr"]'
#: What only the constructor takes; ``be`` is what native optimizers call the backend.
_OF_THE_CONSTRUCTOR = ("backend", "be", "seed")
#: What nbopt's native optimizers have, and others -> what to type.
_METHODS = {
    **dict.fromkeys(("optimize", "update"), "write optimizer.step()"),
    **dict.fromkeys(("lr", "learning_rate"), _RATE),
    "save": "write torch.save(optimizer.state_dict(), path)",
    "load": "write optimizer.load_state_dict(torch.load(path))",
    "explain": "write nbopt.explain(rule, layers), with the rule as an optimizer of nbopt's",
}


class Stepper(Devices, Saved, torch.optim.Optimizer):
    """Base of nbopt's optimizers for PyTorch.

    Subclasses say which rule a group has, and what the group's keys mean.

    A subclass calls `_begin` before PyTorch's constructor, and `_begun` after it.
    """

    state: Any
    defaults: Any
    #: Whether masters take over what others write into their parameters. If the memory of these holds no
    #: values of theirs between steps, they must not.
    _refreshes = True
    #: Whether means stand in place of the parameters.
    _aside = False
    _master_weights: Any = False
    _capturable = False
    #: What has steps run piece by piece: ``of(param)`` is a parameter's piece, as long as ``dealt`` is the
    #: same object, and ``begin(updates)`` returns the ``turns`` of `nbopt.Backend.update`.
    _pieces: Any = None
    #: What the next step can be found again by.
    _steady: Any = None
    #: Attributes that someone may set.
    _settable: tuple[str, ...] = ("loss_scale", "skip_nonfinite", "capturable")

    def __getattr__(self, name):
        if name in _METHODS:
            kind = type(self).__name__
            raise AttributeError(f"{kind!r} object has no attribute {name!r}: {_METHODS[name]}", name=name)
        return object.__getattribute__(self, name)  # raises the error of before

    def _check_attribute(self, name, value):
        """Raise where a new attribute would do nothing, though it was meant to do something."""
        if name in _OF_THE_CONSTRUCTOR:
            word = "backend" if name == "be" else name
            raise ArgumentError(
                f"optimizer.{name} = ... does nothing after the constructor: write "
                f"{type(self).__name__}(..., {word}={brief(value)})"
            )
        for known in self._settable:
            if one_letter_apart(name, known):
                raise ArgumentError(
                    f"optimizer.{name} = ... does nothing; did you mean optimizer.{known} = {brief(value)}?"
                )

    def _begin(self, rule, backend, seed, master_weights=False):
        """Set what `add_param_group` needs.

        Parameters
        ----------
        rule : nbopt.Optimizer
            The one whose loss scale and skipping hold for the whole optimizer.
        backend : str, Backend or None
        seed : int
        master_weights : bool
        """
        self._master_weights = checks.boolean("master_weights", master_weights)
        self._backend: Any = backend
        self._chosen: Any = backend
        self._seed = seed
        self._backends: dict[Any, Any] = {}
        self._loss_scale, self._skip_nonfinite = rule.loss_scale, rule.skip_nonfinite
        self._groups: list[Group] = []
        self._sizes: list[int] = []
        self._warned: set[str] = set()
        self._norm: Any = None

    def _begun(self):
        self.state = CountedState(self.state)

    def _group_of(self, group):
        """Return a new `Group` of a dictionary, which gets what it does not say.

        It stays as it was if an error is raised.
        """
        raise NotImplementedError

    def _add(self, param_group, add):
        """Add a group by PyTorch's method, ``add(param_group)``.

        If an error is raised, the groups stay what they were.
        """
        before = dict(param_group) if isinstance(param_group, dict) else None
        count, backends = len(self.param_groups), dict(self._backends)
        try:
            add(param_group)
            self._groups.append(self._group_of(param_group))
            self._steady = None
        except BaseException as error:
            in_torchs_words(error)
            del self.param_groups[count:]
            self._backends = backends
            if before is not None:
                param_group.clear()
                param_group.update(before)
            raise

    def _owned(self):
        """Return the `Group` of each of `param_groups`.

        It is found by its dictionary, and made if the dictionary is new.
        """
        groups = self.param_groups
        if len(groups) != len(self._groups) or not all(map(is_, map(_dictionary, self._groups), groups)):
            known = {id(own.group): own for own in self._groups}
            self._groups = [known.get(id(group)) or self._group_of(group) for group in groups]
            self._forget()
        return self._groups

    def _equip(self, rule, params):
        """Give a group's rule the backend, and check that its parameters can be updated."""
        self._choose_backend(params)
        vars(rule)["be"] = self._backend
        rule.loss_scale, rule.skip_nonfinite = self._loss_scale, self._skip_nonfinite
        rule.capturable = self._capturable
        for number, param in enumerate(params):
            if torch.nn.parameter.is_lazy(param):
                raise LayoutError(
                    f"parameter {number} of the group has no shape yet: call the model with some input first "
                    "(torch.nn.Lazy...)"
                )
            wrapped(self._backend_of(param), local([param])[0], f"parameter {number} of the group")

    @property
    def loss_scale(self):
        """Float or torch.Tensor : what the loss was multiplied by: gradients of all groups are divided by it.

        A tensor of one element is read at every step, by the device, and may be written in place. A state
        dict does not have it.
        """
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, scale):
        self._set_of_all("loss_scale", scale)

    @property
    def skip_nonfinite(self):
        """Bool : whether a step stores nothing if the norm of all gradients is infinite or NaN.

        See `nbopt.Optimizer`. A state dict does not have it.
        """
        return self._skip_nonfinite

    @skip_nonfinite.setter
    def skip_nonfinite(self, skip):
        self._set_of_all("skip_nonfinite", skip)

    @property
    def master_weights(self):
        """Bool : whether each parameter of 16 bits has a master in float32, the state ``"master_param"``.

        Steps update the master. A state dict does not have the setting; it has the masters.
        """
        return self._master_weights

    @master_weights.setter
    def master_weights(self, has):
        self._master_weights = checks.boolean("master_weights", has)
        self._forget()
        for own in self._groups:
            own.read_again()

    @property
    def capturable(self):
        """Bool : whether steps may be captured into a CUDA graph, see `nbopt.Optimizer`.

        In PyTorch's own classes that have a key ``"capturable"`` in their groups, that one counts as well. A
        state dict does not have it.
        """
        return self._capturable

    @capturable.setter
    def capturable(self, capturable):
        self._set_of_all("capturable", capturable)
        for own in self._groups:
            own.read_again()

    def _set_of_all(self, name, value):
        value = optimizers.Optimizer.checks[name](name, value)
        setattr(self, f"_{name}", value)
        for own in self._groups:
            setattr(own.optimizer, name, value)

    def _settle_counts(self, owned):
        """Have the counts of steps where they belong, and refuse what can't be captured."""
        if len(self._backends) > 1 and any(own.optimizer.capturable for own in owned):
            raise ArgumentError(
                "a graph is of one device, and the parameters are on "
                f"{', '.join(map(str, self._backends))}: leave capturable out"
            )
        if self._backend.captures:
            capturing = self._backend.capturing()
            for own in owned:
                if capturing:
                    own.check_capture()
                own.place_count()

    @property
    def skipped(self):
        """List of int : how many steps of each group `skip_nonfinite` has skipped.

        On a device, reading it waits for the steps so far.

        The numbers are equal, but for groups without gradients in some step and groups that were added later.
        """
        return [own.optimizer.skipped for own in self._owned()]

    @property
    def grad_norm(self):
        """Tensor or None : the norm of all gradients of the last step together, before they were clipped.

        A new float64 tensor without dimensions on the parameters' device, for which the host does not wait.
        Gradients are those that `loss_scale` has divided. None if the step summed no norm:
        `gradient_clip_norm` and `skip_nonfinite` need one, and groups without them are left out.
        """
        return None if self._norm is None else _copied(self._norm)

    @hooked
    def step(self, closure=None):
        """Update all parameters that have gradients, in place: all of them, or none where something is wrong.

        Parameters
        ----------
        closure : callable, optional
            Computes the gradients and returns the loss.

        Returns
        -------
        The closure's loss, or None.
        """
        return self._stepped(closure)

    def _stepped(self, closure):
        """Take a step, without its hooks, and return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._run()
        return loss

    @torch._disable_dynamo  # a compiled training step breaks its graph here
    def _run(self):
        try:
            if type(self.state) is not CountedState:
                self.state = CountedState(self.state)
            owned = self._owned()
            for own in owned:
                own.read()
            self._check_mode()
            self._settle_counts(owned)
            if self._steady is None or not self._steady.step(self):
                self._step_as_a_whole(owned)
        except BaseException as error:
            in_torchs_words(error)
            self._forget()
            raise

    def _step_as_a_whole(self, owned):
        """Take a step over some groups, and look at all of it."""
        self._steady = None
        sizes = [len(group["params"]) for group in self.param_groups]
        if sizes != self._sizes:
            self._forget()  # the positions of all parameters in the list of the whole step
            for group in self.param_groups:
                for param in group["params"]:
                    self._backend_of(param)
            self._sizes = sizes
        given = [*self._updates(owned)]
        updates = [*chain.from_iterable(given)]
        if updates and len(self._backends) > 1:
            update_together(self._backend, updates)
        elif updates:
            run = self._backend.update(*updates, turns=self._pieces and self._pieces.begin(updates))
            self._steady = Steady.after(self, updates, run)
        norms = (own.optimizer.grad_norm_tensor for own, found in zip(owned, given) if found)
        self._norm = next((norm for norm in norms if norm is not None), None)  # they are equal

    def _check_mode(self):
        """Raise where something else stands in place of the parameters."""
        if self._aside:
            raise StateError(
                "`with optimizer.ema()` has put means in place of the parameters: take the step after it"
            )

    def _updates(self, owned):
        """Yield the updates of each group. Those whose rule says so share the states that are one number."""
        leaders: dict[type, Any] = {}
        for own in owned:
            rule = own.optimizer
            if rule.scope == "optimizer":
                rule.share_step_states(leaders.setdefault(type(rule), rule))
        stored = set()
        for number, own in enumerate(owned):
            kind = type(own.optimizer)
            found = own.updates(self, number, kind not in stored)
            if kind in leaders and found:
                stored.add(kind)
                check_agreed(leaders[kind], own.optimizer)
                for update in found:
                    update.set = id(self), kind
            yield found

    @contextmanager
    def ema(self):
        """Have running means in place of the parameters for a while.

        Evaluate with them, or save them for use. Parameters that no step with an `ema_decay` has updated stay
        as they are.

        Yields
        ------
        None
            Afterwards the parameters have their bits again. A step in between is an error, and so is another
            ``with optimizer.ema()``.
        """
        self._check_mode()
        params = [param for group in self.param_groups for param in group["params"]]
        found = [(param, self.state.get(param, {}).get(MEAN.name)) for param in params]
        kept = [(param, param.detach().clone()) for param, mean in found if mean is not None]
        self._aside = True
        try:
            with torch.no_grad():
                for param, mean in found:
                    if mean is not None:
                        param.copy_(mean)
            yield
        finally:
            with torch.no_grad():
                for param, value in kept:
                    param.copy_(value)
            self._aside = False

    def _forget(self, start=0):
        self._steady = None
        for own in self._groups[start:]:
            own.forget()


def _copied(number):
    """Return a copy of a `Tensor` of one element as a tensor of PyTorch's without dimensions, where it is."""
    storage = number.storage
    if isinstance(storage, np.ndarray):
        return torch.from_numpy(storage).clone().view(())
    return torch.as_tensor(storage, device=f"cuda:{number.be.device_id}").clone().view(())
