"""A PyTorch optimizer around any optimizer of nbopt's.

Import this module by its name: ``nbopt`` itself never imports PyTorch.
"""

import copy

import torch

from nbopt import optimizers
from nbopt.errors import ArgumentError, StateError
from nbopt.interface.backend import Backend
from nbopt.optimizers.states import storage_name
from nbopt.torch.group import Group, check_group, listed
from nbopt.torch.keys import COUNTERS, NOT_SET, OTHERS, GroupKeys, NotSet, warn_once
from nbopt.torch.masters import MASTER, MIRROR
from nbopt.torch.saving import brief, check_states
from nbopt.torch.seeds import seed_for
from nbopt.torch.states import STEP, Kept, kept_of
from nbopt.torch.stepper import Stepper
from nbopt.torch.words import checked

__all__ = ["Optimizer"]


class Optimizer(Stepper):
    """A `torch.optim.Optimizer` that runs one of nbopt's optimizers, or a rule of your own.

    It updates CPU and CUDA tensors in place.

    >>> optimizer = nbopt.torch.Optimizer(model.parameters(), nbopt.RMSProp(learning_rate=1e-3))
    >>> loss.backward()
    >>> optimizer.step()

    Parameters
    ----------
    params : iterable of torch.Tensor, of (name, tensor), or of dict
        What PyTorch's optimizers take: the parameters, or groups of them. A group may set any hyper-parameter
        of its optimizer, and with the key ``"optimizer"`` have another optimizer. The dictionaries that are
        given become the entries of `param_groups`. Parameters are float64, float32, float16 or bfloat16, on
        the CPU or GPUs. If they are on several devices, nothing may need one number for all of them, such
        as `gradient_clip_norm`.
    optimizer : nbopt.Optimizer
        One that states a rule. Each group works with a copy; the one that is given stays as it is.
    backend : str or Backend, optional
        What runs the steps; ``"cpu"`` or ``"cuda"``, by each parameter's device, without it. nbopt's
        current backend is neither used nor changed.
    seed : int, optional
        Seed of stochastic rounding, from 0 to 2**64 - 1. Without it each optimizer of a process has another
        one, which depends only on how many were made before it: two optimizers never round alike, and the
        processes of a parallel run do. PyTorch's own seed plays no part. A `Backend` that exists already has
        a seed of its own.
    master_weights : bool
        Whether each parameter of 16 bits has a master in float32, the state ``"master_param"``. Steps update
        the master, and round it to the parameter in the same pass. A master begins as the parameter, and
        takes over what else is written there (``model.load_state_dict``, ``param.copy_``); but not what is
        written through ``param.data``.
    capturable : bool
        Whether steps may be captured into a CUDA graph. Counts of steps, a learning rate that is a tensor on
        the GPU, and the state of random bits are read and written there. On the CPU it changes nothing.

    Attributes
    ----------
    loss_scale : float, or torch.Tensor of one element
        What the loss was multiplied by: gradients of all groups are divided by it.
    skip_nonfinite : bool
        Whether to leave everything as it is in a step where the norm of all gradients is infinite or NaN.
    capturable : bool
        As given. It can be set before a step.
    skipped : list of int
        How many steps of each group were skipped so.
    master_weights : bool
        See the argument. It may change between steps; a state dict has the masters, not the setting.
    grad_norm : torch.Tensor or None
        The norm of the last step's gradients, of all groups that needed one, without the host waiting.
    param_groups : list of dict
        Each has its hyper-parameters under the names of the optimizer's arguments, the learning rate as
        ``"lr"``: PyTorch's schedulers change it. PyTorch's words for them (``weight_decay``, ``betas``,
        ``eps``, ``momentum``) are there as well; the one that is written last holds, and after a step both
        show it. All are read at every step, and changing one compiles nothing. A number may be a tensor
        without dimensions, which may be written in place; on a GPU the host waits for its value. ``"t"``
        counts the steps; ``"epoch"``, 0 unless you set it, is what nbopt's own schedules and ShiftAdaMax
        depend on. Other keys are kept. Groups may be added, removed, merged and moved.
    state : dict
        ``state[param]`` has the states by their names. They may be written into, exchanged, and removed,
        which starts them afresh at the next step. Entries of others are kept. A state's memory is looked at
        when the dictionaries change: assign ``state[param][name] = tensor``, not ``state[param][name].data``.

    Raises
    ------
    nbopt.errors.NboptError
        One of its subclasses, from the constructor, `add_param_group`, `load_state_dict` or `step`. Nothing
        has changed then. What PyTorch itself finds wrong, such as a list of no tensors, is a ValueError or
        TypeError of PyTorch's.

    Notes
    -----
    Parameters may get other memory between steps (``p.data = ...``); what they had before is given up at the
    next step.

    Gradients are taken as they are, whatever ``be.bsz``: PyTorch's are those of mean losses. Parameters
    without a gradient are skipped; which ones they are does not change the random bits of the others'
    stochastic rounding.

    `gradient_clip_norm` bounds the norm of the gradients of all groups that have a bound together, as
    `torch.nn.utils.clip_grad_norm_` does over all parameters; each group has its own bound. Reductions over
    the step that a group's rule makes itself are over the group, whether it has a bound or not.

    Formulas are nbopt's (neon's), and differ from those of PyTorch's optimizers of similar names:

    ===========================  ============================================================================
    ``GradientDescentMomentum``  keeps ``v = momentum * v - lr * g`` where SGD keeps
                                 ``b = momentum * b + g`` and steps by ``lr * b``: the same steps as long
                                 as the learning rate stays
    ``RMSProp``                  divides by ``sqrt(r + epsilon) + epsilon`` where PyTorch does by
                                 ``sqrt(r) + eps``; other defaults
    ``Adagrad``                  divides by ``sqrt(G + epsilon)`` where PyTorch does by ``sqrt(G) + eps``
    ``Adadelta``                 has no learning rate: PyTorch's with ``lr=1``
    ``Adam``                     adds epsilon to the root before its correction: PyTorch's ``eps`` is
                                 ``epsilon / sqrt(1 - beta_2^t)``
    ===========================  ============================================================================
    """

    @checked
    def __init__(self, params, optimizer, backend=None, seed=None, master_weights=False, capturable=False):
        self._optimizer = _usable(optimizer)
        number = seed_for(seed)
        if seed is not None and isinstance(backend, Backend):
            raise ArgumentError(
                "seed= goes with a backend's name; a backend that exists already has a seed: "
                "set_backend(..., rng_seed=...)"
            )
        self._begin(optimizer, backend, number, master_weights)
        self._capturable = optimizers.Optimizer.checks["capturable"]("capturable", capturable)
        super().__init__(params, GroupKeys(optimizer).completed({}))
        self._begun()

    def __setattr__(self, name, value):
        if not name.startswith("_") and "defaults" in self.__dict__ and not hasattr(self, name):
            self._check_attribute(name, value)
        super().__setattr__(name, value)

    def _check_attribute(self, name, value):
        """Raise where a new attribute would do nothing, though it was meant to do something."""
        if name == "schedule":
            text = "give it to the rule, nbopt.torch.Optimizer(params, nbopt.RMSProp(schedule=...))"
            raise ArgumentError(f"optimizer.schedule = ... does nothing: {text}")
        if name in {"learning_rate", *COUNTERS, *self.defaults}:
            key = "lr" if name == "learning_rate" else name
            text = f'write for group in optimizer.param_groups: group["{key}"] = {brief(value)}'
            raise ArgumentError(f"optimizer.{name} = ... does nothing, since each group has its own: {text}")
        super()._check_attribute(name, value)

    def add_param_group(self, param_group):
        """Add a group of parameters.

        Parameters
        ----------
        param_group : dict
            As the constructor takes it. As in PyTorch it becomes an entry of `param_groups` itself, and gets
            what it does not say.

        Raises
        ------
        ArgumentError, LayoutError, DtypeError
            If it is no such dict, a hyper-parameter makes no sense, or a parameter can't be updated. The
            groups are what they were then.
        """
        check_group(param_group)
        self._add(param_group, self._add_bare)

    def _add_bare(self, param_group):
        defaults = self.defaults
        try:
            self.defaults = {}  # PyTorch would fill them in without a thought of the two words for one value
            super().add_param_group(param_group)
        finally:
            self.defaults = defaults

    def _group_of(self, group):
        check_group(group)
        optimizer = copy.deepcopy(_usable(group.get("optimizer", self._optimizer)))
        optimizer.counts_each = True
        keys = GroupKeys(optimizer)
        defaults = (
            {}
            if "optimizer" in group
            else {key: value for key, value in self.defaults.items() if key in keys.values}
        )
        full = {"t": optimizer.t, "epoch": NOT_SET, **keys.completed(group, defaults)}
        full["params"] = listed(group["params"])
        self._equip(optimizer, full["params"])
        own = _RuleGroup(full, optimizer, keys, self._warned)
        own.read()
        group.update(full)
        own.group = group
        return own

    def _group_again(self, group, optimizer):
        return _RuleGroup(group, optimizer, GroupKeys(optimizer), self._warned)

    def _taken_along(self):
        return {"_optimizer": self._optimizer}


#: A group's key in a state dict: the states that are one number for all of its parameters.
NUMBERS = "step_states"


class _RuleGroup(Group):
    """A group with the hyper-parameters of one of nbopt's optimizers.

    Attributes
    ----------
    keys : GroupKeys
    given : nbopt.Optimizer or None
        The group's ``"optimizer"``.
    """

    def __init__(self, group, optimizer, keys, warned):
        super().__init__(group, optimizer, warned)
        self.keys, self.given = keys, group.get("optimizer")
        self.keeps_dtypes = True

    def watched(self):
        """Return the keys that have to be read at every step."""
        return self.keys.watched(self.group)

    def read(self):
        super().read()
        t = self.group.get("t")
        if t is not self.shown_count():
            self.optimizer.t = t

    def take(self, found):
        if self.group.get("optimizer") is not self.given:
            raise ArgumentError(
                "a group keeps its optimizer: take the group out of param_groups, and add one with the other "
                "optimizer"
            )
        self.keys.set(self.optimizer, found, self._converted)
        if self.keys.rate_is_unused(found):
            name = self.optimizer.classnm
            warn_once(
                self.warned,
                f"{name} has no learning rate: its group's \"lr\", which is there for PyTorch's schedulers, "
                "does nothing",
            )

    def _stays(self, value):
        return super()._stays(value) or (value is self.given and value is not None)

    def _converted(self, key, value):
        return storage_name(self.optimizer.be, value) if key == "state_dtype" and value is not None else value

    def epoch(self):
        """Return the epoch for nbopt's own schedules, and warn where there is one that does nothing."""
        epoch = self.group["epoch"]
        if type(epoch) is not NotSet:
            return epoch
        schedule = self.optimizer.schedule
        if schedule is not None and getattr(schedule, "step_config", self) is not None:
            name = type(schedule).__name__
            text = (
                f'a {name} depends on the epoch, and PyTorch has none: set group["epoch"] = ... in each '
                "epoch, or use a scheduler of PyTorch's"
            )
            warn_once(self.warned, text)
        return 0

    def stepped(self):
        self.group["t"] = self.shown_count()

    def saved(self, group):
        epoch = group["epoch"]
        numbers = {name: float(value) for name, value in self.optimizer.step_numbers().items()}
        more = {NUMBERS: numbers} if numbers else {}
        return {
            **group,
            "optimizer": self.optimizer.classnm,
            "epoch": 0 if type(epoch) is NotSet else epoch,
            "t": int(group["t"]),
            **more,
        }

    def check_saved(self, saved, states):
        optimizer = self.optimizer
        missing, unknown = (
            self.keys.values.keys() - saved.keys(),
            saved.keys() - self.keys.values.keys() - OTHERS - {NUMBERS},
        )
        # Only a state dict of before has no name of a class, and no keys of others either.
        unnamed = "optimizer" not in saved
        if "t" not in saved:
            wrong = "a group of it has no t"
        elif not unnamed and saved["optimizer"] != optimizer.classnm:
            wrong = f"a group of it is of {saved['optimizer']}"
        elif unnamed and missing and unknown:
            wrong = f"a group of it has no {', '.join(sorted(missing))}"
        else:
            wrong = ""
        if wrong:
            raise StateError(
                f"the state dict is not of nbopt's {optimizer.classnm}: {wrong}. Load it into the optimizer "
                "that it was made by"
            )
        for index, param in zip(saved["params"], self.group["params"]):
            shapes = {
                name: state.shape(tuple(param.shape))
                for name, state in optimizer.every_state(tuple(param.shape)).items()
            }
            check_states(index, states.get(index, {}), {**shapes, MASTER.name: tuple(param.shape)})
        known = {one.name for one in self.known()} - {STEP.name}
        for index in saved["params"] if unnamed else ():
            found = states.get(index)
            if found and not found.keys() & known:
                raise StateError(
                    f"{optimizer.classnm} keeps the states {tuple(known)}; the state dict has {tuple(found)}"
                )

    def completed(self, saved):
        full = {
            "epoch": 0,
            **self.keys.completed({key: value for key, value in saved.items() if key != "optimizer"}),
        }
        full["epoch"] = full["epoch"] or NOT_SET
        trial = copy.deepcopy(self.optimizer)
        vars(trial)["be"] = self.optimizer.be
        _RuleGroup({**full, "params": self.group["params"]}, trial, self.keys, self.warned).read()
        return full

    def kept(self, kind=None):
        declared = self.optimizer.declared_states() if kind is None else kind[1]
        own = [one for one in declared if one[1].axes != "step" and one != MIRROR]
        return [STEP, *(kept_of(*one) for one in own)]

    def known(self):
        every: dict[str, Kept] = {STEP.name: STEP}
        for param in self.group["params"]:
            states = self.optimizer.every_state(tuple(param.shape))
            every.update({name: kept_of(name, state) for name, state in states.items() if name not in every})
        return list(every.values())

    def loaded(self, saved, params, states, masters=False):
        new = super().loaded(saved, params, states, masters)
        for param, own in zip(params, new):
            if own and STEP.name not in own:  # it is from before each parameter had its own count
                own[STEP.name] = torch.tensor(float(saved["t"]), device=param.device)
        return new

    def go_on_with(self, group):
        if self.given is not None:
            group["optimizer"] = self.given
        self.optimizer.step_states = group.pop(NUMBERS, {})
        super().go_on_with(group)


def _usable(optimizer):
    """Return `optimizer`, or raise where it can't be run for PyTorch."""
    if isinstance(optimizer, optimizers.MultiOptimizer):
        raise ArgumentError(
            "MultiOptimizer goes by the names of layers. Give groups of parameters optimizers of their own: "
            'nbopt.torch.Optimizer([{"params": weights}, {"params": biases, "optimizer": nbopt.Adam()}], '
            "nbopt.RMSProp())"
        )
    if not isinstance(optimizer, optimizers.Optimizer):
        raise ArgumentError(
            f"the optimizer must be one of nbopt's, such as nbopt.RMSProp(), not {brief(optimizer)}: "
            f"{_instead_of(optimizer)}"
        )
    own = type(optimizer)
    if own.optimize is not optimizers.Optimizer.optimize or own.updates is not optimizers.Optimizer.updates:
        raise ArgumentError(
            f"{optimizer.classnm} overrides optimize, and only what a rule says can be run for PyTorch: "
            "write its step as rule(...)"
        )
    return optimizer


def _instead_of(given):
    """Return what to type in place of something that is no optimizer of nbopt's."""
    kind = given if isinstance(given, type) else type(given)
    if isinstance(given, type) and issubclass(kind, optimizers.Optimizer):
        return f"write {kind.__name__}()"
    if issubclass(kind, torch.optim.Optimizer):
        return f"write nbopt.torch.{kind.__name__}(model.parameters(), ...), in place of PyTorch's class"
    return "it comes after the parameters"
