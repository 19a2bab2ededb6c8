"""Optimizer: everything that the optimizers have in common, and what users subclass."""

import inspect
import math
import sys
from itertools import chain
from typing import Any

import numpy as np

from nbopt import checks
from nbopt.arrays.tensor import Tensor
from nbopt.backends import get_backend
from nbopt.errors import ArgumentError, DtypeError, NboptError, ShapeError, StateError, TraceError
from nbopt.interface.update import Update
from nbopt.language.cutter import loses
from nbopt.language.stages import ELEMENT, STEP
from nbopt.language.trace import Tracer
from nbopt.language.words import ELSEWHERE
from nbopt.layers import as_gradient, as_layers, check_distinct, entries_of, get_param_list, rows_with_gradients, warn_of_lost_states
from nbopt.naming import Described, constructor_arguments
from nbopt.optimizers.constructor import checked, like
from nbopt.optimizers.tracing import Traces


class _Kept:
    """What an optimizer keeps from step to step, and leaves out of copies.

    Attributes
    ----------
    plans : list
        The backend's, see `nbopt.interface.update.Update`.
    traces : Traces
    trace : Trace or None
        That of the last step.
    told_of_lost_states : bool
        Whether there was a warning, see `warn_of_lost_states`.
    listed : tuple or None
        A `MultiOptimizer`'s last parameters: their serial numbers and sizes.
    """

    def __init__(self):
        self.plans: list = []
        self.traces = Traces()
        self.trace: Any = None
        self.listed: Any = None
        self.told_of_lost_states = False


class Optimizer(Described):
    """Base class of optimizers. A subclass is a rule over its slots.

    >>> class SignMomentum(Optimizer):
    ...     state_names = ("momentum",)
    ...
    ...     def __init__(self, learning_rate=1e-3, decay=0.9, name=None):
    ...         super().__init__(name=name)
    ...         self.learning_rate, self.decay = learning_rate, decay
    ...
    ...     def rule(self, step, param, grad, momentum):
    ...         momentum[:] = self.decay * momentum + (1 - self.decay) * grad
    ...         param[:] = param - step.lr * self.be.sgn(momentum)

    Parameters
    ----------
    name : str, optional
    state_dtype : dtype, optional
        The dtype of new states. Without it: float64 for float64 parameters, else float32.

    Attributes
    ----------
    state_names : tuple of str
        The states of one parameter, in the order of the rule's arguments.
    t : int
        How many times `optimize` was called, with parameters to update.
    schedule, learning_rate, gradient_clip_norm, gradient_clip_value, param_clip_value, stochastic_round
        Read at every step; None or 0 turns a clip off. Values that make no sense raise ArgumentError when they are assigned. A number may be an array
        or tensor without dimensions, of any library: what it is when it is assigned counts.
    loss_scale : float, or array or Tensor of one element
        What the loss was multiplied by: gradients are divided by it before anything else. One on a device is never read by the host. Not
        part of the description.
    skip_nonfinite : bool
        Leave all parameters and states as they are in a call where the norm of the gradients (of ``optimize``'s layers together) is infinite
        or NaN, without the host reading anything back. The norm is summed in float32, so a finite gradient beyond about 1e19 counts as
        well. `t` counts the call, the schedule goes on, and `skipped` tells how many there were. In a `MultiOptimizer` the optimizers that
        have it are skipped together. Not part of the description.
    pure : bool
        Whether the rule depends on nothing but its arguments and what it reads from ``self``. A class whose rule depends on something else
        (a global, a clock) says ``pure = False``: then the rule is run at every step, with plain numbers.
    checks : dict
        Hyper-parameter -> one of the functions in `nbopt.checks`.
    """

    state_names: tuple[str, ...] = ()
    learning_rate: Any = None
    schedule: Any = None
    gradient_clip_norm: Any = None
    gradient_clip_value: Any = None
    param_clip_value: Any = None
    stochastic_round: Any = False
    state_dtype: Any = None
    loss_scale: Any = 1.0
    skip_nonfinite: Any = False
    t = 0
    pure = True

    checks: dict[str, Any] = {
        "learning_rate": checks.non_negative,
        "schedule": checks.schedule,
        "gradient_clip_norm": checks.optional(checks.non_negative),
        "gradient_clip_value": checks.optional(checks.finite),
        "param_clip_value": checks.optional(checks.finite),
        "stochastic_round": checks.rounding,
        "loss_scale": checks.loss_scale,
        "skip_nonfinite": checks.boolean,
        "t": checks.count,
    }

    def __init__(self, name=None, state_dtype=None):
        super().__init__(name=name)
        self.state_dtype = None if state_dtype is None else storage_name(get_backend(), state_dtype)

    def __init_subclass__(cls, symbolic=False, **options):
        super().__init_subclass__(symbolic=symbolic, **options)
        if symbolic:
            return
        names = cls.state_names
        if isinstance(names, str) or not all(isinstance(name, str) and name.isidentifier() for name in names):
            raise ArgumentError(f'{cls.__name__}.state_names must be a tuple of identifiers, like ("momentum",); not {names!r}')
        if inspect.isfunction(cls.__dict__.get("__init__")):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def __setattr__(self, name, value):
        check = self.checks.get(name)
        if check is None and name not in self.__dict__ and not name.startswith("_"):
            self._check_new_name(name, value, sys._getframe(1))
        object.__setattr__(self, name, value if check is None else check(name, value))

    def _check_new_name(self, name, value, frame):
        """Refuse to make an attribute that looks like a hyper-parameter by another name. The methods of an optimizer may make any."""
        arguments = () if hasattr(type(self), name) else constructor_arguments(type(self))
        if name in arguments or hasattr(type(self), name):
            return
        known = like(name, {*self.checks, *arguments} - {"name"})
        if not known and name not in ELSEWHERE:
            return
        allowed = {**self.checks, **Optimizer.checks}  # those of a MultiOptimizer allow nothing
        if len(known) == 1 and known[0] in allowed:
            try:
                allowed[known[0]](known[0], value)
            except NboptError:
                return  # no value of that hyper-parameter: a list of learning rates, say
        while frame is not None:
            first = frame.f_code.co_varnames[: frame.f_code.co_argcount][:1]
            if first and frame.f_locals.get(first[0]) is self:
                return
            frame = frame.f_back
        write = " and ".join(f"optimizer.{word} = ..." for word in known)
        advice = f"Write {write}, or give an attribute of your own a name that is less like it" if known else ELSEWHERE[name]
        raise ArgumentError(f"{self.classnm} has no {name}, so setting it would do nothing. {advice}")

    def rule(self, step, param, grad, *states):
        """State one step as mathematics. Subclasses define it.

        Parameters
        ----------
        step : Step
        param : Slot
            The parameter: read it, and assign its new value by ``param[:] = ...``.
        grad : Expr
            The gradient, divided by ``be.bsz`` and the loss scale, and clipped by ``gradient_clip_value``. It is scaled by the norm clip, too, unless
            the rule reads ``step.scale``.
        *states : Slot
            One for each name in `state_names`, to read and to assign.

        Raises
        ------
        TraceError
            In the base class, if a subclass defines `optimize` in its place, and something asks for a rule.
        """
        if type(self).optimize is not Optimizer.optimize:
            raise TraceError(
                f"{self.classnm} has an optimize of its own and no rule, so its step is no program that could be known before it runs: each of its "
                "assignments is a kernel of its own. nbopt.explain and nbopt.compile need a rule(self, step, param, grad, ...)"
            )
        raise NotImplementedError(f"{self.classnm} defines neither rule(self, step, param, grad, ...) nor optimize(self, layer_list, epoch)")

    def states_in_use(self):
        """Return the names of the states that the rule takes now.

        Returns
        -------
        tuple of str
            `state_names`, unless a subclass needs fewer at times.
        """
        return self.state_names

    def optimize(self, layer_list, epoch):
        """Update the parameters of all layers, in place, by one step.

        Parameters
        ----------
        layer_list : list
            Layers, see `get_param_list`. An empty list, or one without any gradient, changes nothing at all.
        epoch : int
            From 0; schedules depend on it.

        Raises
        ------
        nbopt.errors.NboptError
            One of its subclasses. Nothing has changed then.
        """
        be = get_backend()
        updates = self.updates(be, layer_list, epoch)
        if updates:
            be.update(*updates)

    def updates(self, be, layer_list, epoch):
        """Return the step over these layers, without running it or changing anything.

        Parameters
        ----------
        be : Backend
        layer_list : list
        epoch : int
            As for `optimize`.

        Returns
        -------
        list of Update
        """
        layers = as_layers(layer_list)
        params = get_param_list(layers)
        if not params:
            return []
        made: list[tuple[list, list]] = []

        def columns(update):
            check_distinct(layers)
            found = self.checked_columns(be, params, made, lambda number, states: place_in(layers, states) or f"parameter {number}")
            self.check_effect(bool(made))
            if made:
                new = {id(states): tensors for states, tensors in made}
                update.list_tensors(_flat([(pair, new.get(id(states), states)) for pair, states in params]))
                cache = self._cache()
                cache.told_of_lost_states = cache.told_of_lost_states or warn_of_lost_states(layers)
            return found

        def commit():
            for states, new in made:
                states.extend(new)

        update = self.update_of(_flat(params), columns, commit, epoch, be.bsz)
        if update.key is None:  # some are plain arrays, or have no gradient
            sizes, rows = rows_with_gradients(params)
            if len(rows) < len(params):
                params = [params[row] for row in rows]  # in `columns`, too
                update.restrict(_flat(params), (sizes, rows))
        return [update] if params else []

    @property
    def skipped(self):
        """Int : how many calls `skip_nonfinite` has skipped. On a device, reading it waits for the steps so far. Can be set."""
        counter = self.__dict__.get("_skipped", 0)
        return int(counter.get()[0]) if isinstance(counter, Tensor) else counter

    @skipped.setter
    def skipped(self, count):
        self._skipped = checks.count("skipped", count)

    @property
    def skipped_tensor(self):
        """Tensor : the same count as one float64 of the current backend, for expressions that must not make the host wait."""
        be, counter = self._backend(), self.__dict__.get("_skipped")
        if not isinstance(counter, Tensor) or counter.be is not be:
            counter = self._skipped = be.array([self.skipped], "float64")
        return counter

    def _backend(self):
        """Return the current backend, or the own one that an adapter has given this optimizer."""
        return get_backend() if self.be is None else self.be

    def _divisor(self, bsz):
        """Return what the rule divides gradients by as far as the host knows it, and the loss scale where it is a tensor."""
        scale = self.loss_scale
        if type(scale) is float:
            return bsz * scale, None
        # Wrapped anew at each step: PyTorch can exchange the memory under the same object.
        return float(bsz), read(self._backend(), scale, "the loss scale")

    def update_of(self, tensors, columns, commit, epoch, bsz):
        """Return one step as an `Update`, without running it or changing anything. Adapters to other libraries are made of this.

        Parameters
        ----------
        tensors, columns, commit
            See `Update`.
        epoch : int
        bsz : int
            The batch size by which gradients are divided.

        Returns
        -------
        Update

        Raises
        ------
        nbopt.errors.NboptError
            One of its subclasses, where the rule or a hyper-parameter makes no sense.
        """
        if type(epoch) is not int or epoch < 0:
            epoch = checks.unwrapped(epoch)
            checks.epoch("epoch", epoch)
        divisor, loss_scale = self._divisor(bsz)
        kept = self._cache()
        options = self.states_in_use(), bool(self.gradient_clip_norm), self.skip_nonfinite, loss_scale is not None  # those of `Options`
        kept.trace, numbers = kept.traces.of(self, options, self._rate(epoch), divisor, epoch)
        shared = [] if loss_scale is None else [loss_scale]
        if self.skip_nonfinite:
            shared.append(self.skipped_tensor)

        def committed():
            object.__setattr__(self, "t", self.t + 1)  # without the checks of what users assign, which take longer
            commit()

        trace = kept.trace
        return Update(trace.program, numbers, tensors, columns, committed, kept.plans, self.stochastic_round, shared, trace.recut)

    def trace_in_use(self):
        """Return the trace of the last step that was prepared, see `nbopt.optimizers.tracing`.

        Returns
        -------
        Trace or None
        """
        return self._cache().trace

    def _rate(self, epoch):
        """Return the learning rate of an epoch; None if the optimizer has none."""
        rate = self.learning_rate
        if rate is not None and self.schedule is not None:
            try:
                rate = self.schedule.get_learning_rate(rate, epoch)
            except OverflowError:  # what Python's floats raise for some results that are too large
                rate = math.inf
            if type(rate) is not float or not 0.0 <= rate < math.inf:
                rate = checks.non_negative(f"the rate of {self.schedule!r} at epoch {epoch}", rate)
        return rate

    def check_effect(self, new_states):
        """Check in the first step that the rule does not lose what it computes: that it assigns the states that it reads, and the parameter.

        Parameters
        ----------
        new_states : bool
            Whether states are made in this step. Those that were there before need not be 0, so a rule may just read them.

        Raises
        ------
        TraceError
            With the line to type.
        """
        if self.t:
            return
        code, own = self._cache().trace.tracer.code, ("param", "grad", *self.states_in_use())
        lost = {line[1] for line in code if line[0] == "load"} - {line[1] for line in code if line[0] == "store"}
        if 0 in lost and loses(code, 0):
            raise TraceError(
                f"the rule of {self.classnm} computes a value of the parameter that nothing uses, and never assigns the parameter: "
                "write param[:] = ..., not param = ..., which only gives the value a name"
            )
        arguments = [*inspect.signature(self.rule).parameters][1:]  # as the user calls them
        names = arguments if len(arguments) == len(own) else own
        for name in [names[slot] for slot in sorted(lost) if 1 < slot < len(own) and new_states]:
            raise TraceError(
                f"the rule of {self.classnm} reads the state {name}, which starts at 0, and never assigns it: write {name}[:] = ... "
                f"(a plain {name} = ... only gives a value another name). If it is meant to stay as it is, write {name}[:] = {name}"
            )

    def state_dict(self, layers):
        """Return everything that the next step depends on, but for the gradients, as plain values and copies.

        Parameters
        ----------
        layers : list
            All layers that the optimizer trains, as for `optimize`. Nothing is changed.

        Returns
        -------
        dict
            - ``"version"``: int, of this format
            - ``"optimizer"``: its description, see `get_description`: the class and the hyper-parameters
            - ``"optimizers"``: for itself, and each optimizer inside of a `MultiOptimizer` once, ``{"path": the keys that lead to it, "type": its
              class, "t": its steps so far, "skipped": how many of them were skipped}``
            - ``"rng"``: the state of stochastic rounding, see `Backend.rng_get_state`
            - ``"layers"``: ``{"name": str or None, "parameters": [...]}`` for each, and for each parameter ``{"name": str or None, "values":
              numpy.ndarray, "states": [...]}``, and for each state ``{"name": str or None, "rounding": bool or int, "values": numpy.ndarray}``

            Names that were not chosen by the user are None. Not in it is what a program sets up before it trains: the batch size, the
            roundings of the parameters, attributes of the optimizer that are no arguments of its constructor.

        Raises
        ------
        CheckpointError
            If a hyper-parameter is no plain value, so that it can't be described.
        """
        from nbopt.checkpoints import state as checkpoint

        return checkpoint.state_dict(self, layers)

    def load_state_dict(self, state, layers, hyperparameters=True):
        """Put back what `state_dict` has returned: the next step, given the same gradients, gives the bits that it gave there.

        Parameters, and states that are there already, are overwritten in place, in whatever memory and layout they are; other states are made
        anew. The state of stochastic rounding is the current backend's, and so that of everything that it runs.

        Parameters
        ----------
        state : dict
            It is not changed, and shares no memory with what it is loaded into.
        layers : list
            Layers of the same number, names, shapes and dtypes, in the same order, on this or another backend.
        hyperparameters : bool
            Whether the optimizer's hyper-parameters become those of the state, too (all that its constructor takes, but for the name). Schedules
            are built anew. False keeps what the optimizer has now.

        Raises
        ------
        CheckpointError
            If the state is not one of this optimizer and these layers. The message says what differs.
        nbopt.errors.NboptError
            If the layers are malformed, or their memory can't be written. Nothing has changed, whatever is raised.

        Notes
        -----
        While it is at work it holds a copy of what it overwrites in the host's memory, to be able to put it back.
        """
        from nbopt.checkpoints import state as checkpoint

        checkpoint.load_state_dict(self, state, layers, hyperparameters)

    def clip_value(self, v, abs_bound=None):
        """Clip the elements of a value to ``[-|abs_bound|, |abs_bound|]``.

        Parameters
        ----------
        v : Tensor or expression
        abs_bound : float, optional

        Returns
        -------
        expression
            `v` itself where `abs_bound` is None or 0.
        """
        if not abs_bound:
            return v
        return self._backend().clip(v, -abs(abs_bound), abs(abs_bound))

    def clip_gradient_norm(self, param_list, clip_norm):
        """Return the factor that clips the norm of all gradients together.

        Parameters
        ----------
        param_list : list of ((W, dW), states)
            As `get_param_list` returns.
        clip_norm : float or None
            The norm to clip to; None and 0 turn clipping off.

        Returns
        -------
        float
            ``clip_norm / max(||gradients|| / be.bsz, clip_norm)``, at most 1; 1.0 where clipping is off.
        """
        clip_norm = checks.optional(checks.non_negative)("clip_norm", clip_norm)
        if not clip_norm or not param_list:
            return 1.0
        be = get_backend()
        divisor, scale = self._divisor(be.bsz)
        factor = be.zeros(1, "float64")
        tracer = Tracer(("grad", "factor", "scale"), (ELEMENT, STEP, STEP))
        grad, result, loss_scale = tracer.slots()
        by = tracer.source("divisor", divisor) * (1.0 if scale is None else loss_scale)
        norm = be.sqrt(tracer.reduce("sum", "step", grad * grad)) / by
        result[:] = clip_norm / be.maximum(norm, clip_norm)
        program, numbers = tracer.program()
        grads = [be.wrap(as_gradient(be, grad, param)) for (param, grad), _ in param_list if grad is not None]
        given, _ = numbers.function()(tracer.numbers, divisor=divisor)
        update = Update(program, given, None, lambda update: [grads], plans=[], shared=[factor, factor if scale is None else scale])
        be.prepare([update])(0)
        return float(factor.get()[0])

    def _cache(self):
        # Made here and not in __init__, so that a subclass that forgets super().__init__() still works.
        found = self.__dict__.get("_kept")
        if found is None:
            found = self.__dict__["_kept"] = _Kept()
        return found

    def __getstate__(self):
        # An adapter gives its own copies of optimizers a backend of their own.
        state = {key: value for key, value in self.__dict__.items() if key not in ("_kept", "be")}
        return {**state, "_skipped": self.skipped} if "_skipped" in state else state  # copy.copy would share the tensor

    def checked_columns(self, be, params, made, place=lambda number, states: f"parameter {number}"):
        """Return the columns of an `Update` over `params`, validated, with new states where there are none yet.

        Parameters
        ----------
        be : Backend
        params : list of ((W, dW), states)
        made : list
            Extended by (states, new tensors) for each list of states that has to be filled when the step can't fail any more.
        place : callable
            ``place(number, states)`` returns what messages call the parameter: its number in `params` and its list of states are given.

        Returns
        -------
        list of list of Tensor
            params, grads, states of the first name in use, ...

        Raises
        ------
        LayerError, ShapeError, StateError
            If the entries are malformed, a gradient or state has another shape than its parameter, or the states are another optimizer's.
        """
        names = self.states_in_use()
        rows = []
        for number, (param, grad, states) in enumerate(entries_of(params)):
            part = ""
            try:
                param = be.wrap(param)
                part = "the gradient of "
                grad = be.wrap(as_gradient(be, grad, param))
                part = ""
                if param.shape != grad.shape:
                    raise ShapeError(f"it has shape {param.shape} and its gradient {grad.shape}")
                rows.append([param, grad, *self._states_of(be, param, grad, states, names, made)])
            except NboptError as error:
                raise type(error)(f"{part}{place(number, states)}: {error}") from None
        return [list(column) for column in zip(*rows)]

    def _states_of(self, be, param, grad, states, names, made):
        # Where none is in use any more, those that were stay as they are.
        own = [f"{self.classnm}.{name}" for name in names or self.state_names]
        if not states:
            dtype = self.state_dtype or ("float64" if param.dtype == np.float64 else "float32")
            new = [be.zeros(grad.shape, dtype, f"{self.classnm}.{name}") for name in names]
            if new:
                made.append((states, new))
            return new
        for state, name in zip(states, own):
            found = getattr(state, "name", None)
            if found is not None and "." in found and found != name:
                raise StateError(f"its states were left by another optimizer ({found}), and {self.classnm} can't go on from them. {_AFRESH}")
        if len(states) != len(own) and (names or len(states) > len(own)):
            raise StateError(f"{self.classnm} keeps {len(own)} states ({', '.join(own) or 'none'}), and the parameter has {len(states)}. {_AFRESH}")
        used = [wrapped(be, state, f"the state {name}") for state, name in zip(states, names)]
        for state, name in zip(used, names):
            if state.shape != grad.shape:
                raise ShapeError(f"its state {name} has shape {state.shape}, and its gradient {grad.shape}")
        return used


def decayed(param, change, decay):
    """Return ``param - (change + decay * param)``: a parameter after its change and its weight decay.

    A factor ``1 - decay`` would be rounded to a multiple of 2^-24 in float32, and a decay of 1e-8 would be lost.

    Parameters
    ----------
    param, change : Node
    decay : float
        The learning rate times the weight decay.

    Returns
    -------
    Node
    """
    return param - (change + decay * param)


#: What to type where states have to go.
_AFRESH = "Empty the lists of states to start afresh: for states in layer.states: states.clear()"


def place_in(layers, states):
    """Return what messages call the parameter that has this list of states.

    Parameters
    ----------
    layers : list
    states : list

    Returns
    -------
    str or None
        The parameter's number and its layer. None if no layer has it.
    """
    for index, layer in enumerate(layers):
        entries = layer.get_params()
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            if isinstance(entry, tuple) and entry[1:] and entry[1] is states:
                name = getattr(layer, "name", None)
                return f"parameter {number} of layer {index if name is None else repr(name)}"
    return None


def storage_name(be, dtype):
    """Return the name of a dtype for states, which may be PyTorch's; an error says what it is."""
    try:
        return be.storage_dtype(str(dtype).rpartition(".")[2] if type(dtype).__module__ == "torch" else dtype).name
    except DtypeError:
        raise DtypeError(f'state_dtype must be a dtype that {be.name!r} stores, such as "bfloat16", "float32" or "float64", not {dtype!r}') from None


def wrapped(be, array, called):
    """Return ``be.wrap(array)``; an error says what the array is."""
    try:
        return be.wrap(array)
    except NboptError as error:
        raise type(error)(f"{called}: {error}") from None


def read(be, array, called):
    """Return what `wrapped` does for an array that is only read, such as a gradient: see `Backend.resolved`."""
    return wrapped(be, be.resolved(array), called)


def _flat(params):
    """Return a function that iterates over all tensors: param, grad of each entry, then the states of each.

    None where the entries are malformed.
    """
    try:
        pairs, states = zip(*params)
    except (TypeError, ValueError):
        return None
    return lambda: chain(chain.from_iterable(pairs), chain.from_iterable(states))
