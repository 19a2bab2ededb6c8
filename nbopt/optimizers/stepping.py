"""From layers to a step: what `Optimizer.optimize` hands to the backend."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from nbopt import checks
from nbopt.arrays.tensor import Tensor
from nbopt.backends import get_backend
from nbopt.errors import NboptError, StateError, TraceError
from nbopt.interface.backend import Backend
from nbopt.interface.update import Update
from nbopt.language.trace import NeedsAxesError
from nbopt.layers import (
    Layer,
    as_layers,
    check_distinct,
    get_param_list,
    read,
    rows_with_gradients,
    warn_of_lost_states,
)
from nbopt.naming import Described
from nbopt.optimizers.kept import KeepsStates
from nbopt.optimizers.norm import GradNorm
from nbopt.optimizers.states import check_effect, checked_columns, place_in
from nbopt.optimizers.steady import Steady
from nbopt.optimizers.tracing import Options


class Steps(GradNorm, KeepsStates, Described):
    """The part of `Optimizer` that makes updates of layers and of its rule."""

    loss_scale: Any
    settle_count: Any
    rate_tensor: Any
    check_frozen: Any
    counts_on_device: Any
    skip_nonfinite: Any
    learning_rate: Any
    schedule: Any
    gradient_clip_norm: Any
    stochastic_round: Any
    counts_each: Any

    def optimize(self, layer_list: Iterable[Layer], epoch: int) -> None:
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
        layers, kept = layer_list if type(layer_list) is list else as_layers(layer_list), self._cache()
        if kept.steady is not None and kept.steady.step(self, layers, epoch):
            # A step in a `MultiOptimizer` may have been the last one.
            kept.trace, kept.sums_norm = kept.steady.trace, kept.steady.trace.sums_norm
            return
        be, kept.steady = get_backend(), None
        updates = self.updates(be, layers, epoch)
        if updates:
            run = be.update(*updates)
            if type(self).updates is Steps.updates and type(self).update_of is Steps.update_of:
                kept.steady = Steady.after(be, layers, updates, run, kept.trace)

    def updates(self, be: Backend, layer_list: Iterable[Layer], epoch: int) -> list[Update]:
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
        try:
            return self._updates(be, layers, params, epoch)
        except NeedsAxesError:
            self.trace_by_axes()
            return self._updates(be, layers, params, epoch)

    def _updates(self, be: Backend, layers: list[Any], params: list[Any], epoch: int) -> list[Update]:
        """Return the step over some entries.

        It is one update, or one for each kind of parameter that the rule is traced for.
        """
        if not self.by_axes():
            update = self._update(be, layers, params, epoch, None, True)
            if update.key is None:  # some are plain arrays, or have no gradient
                sizes, rows = rows_with_gradients(params)
                if len(rows) < len(params):
                    if not rows:
                        return []
                    update = self._update(be, layers, [params[row] for row in rows], epoch, None, True)
                    update.listing = sizes, rows
            return [update]
        sizes, kinds = self._kinds(be, params)
        found: list[Update] = []
        for kind, own in kinds:
            try:
                update = self._update(be, layers, [params[row] for row in own], epoch, kind, not found)
            except (StateError, TraceError) as error:
                called = place_in(layers, params[own[0]][1]) or f"parameter {own[0]}"
                raise type(error)(
                    f"the rule of {self.classnm}, for {called} with {kind[0]} axes: {error}"
                ) from None
            update.listing, update.set = (sizes, own), id(self)
            found.append(update)
        return found

    def by_axes(self) -> bool:
        """Return whether the rule is traced for each number of axes and each dtype that parameters have.

        Returns
        -------
        bool
        """
        return type(self).states is not KeepsStates.states or self._cache().by_axes

    def trace_by_axes(self) -> None:
        """Note that the rule depends on the parameters' number of axes or dtype."""
        self._cache().by_axes = True

    def _kinds(self, be: Backend, params: list[Any]) -> tuple[list[int], Any]:
        """Return the sizes of all parameters, and the kinds of those that have gradients.

        A kind is what the trace depends on.

        Returns
        -------
        list of int
        list of ((int, tuple of (str, State), numpy.dtype), list of int)
            The number of axes, the declared states and the dtype; the places of the parameters.
        """
        cache = self._cache()
        try:
            serials = [None if grad is None else param.serial for (param, grad), _ in params]
        except (AttributeError, TypeError, ValueError):  # plain arrays, or malformed
            serials = None
        if serials is None or cache.shapes is None or cache.shapes[0] != serials:
            sizes, rows = rows_with_gradients(params)
            shapes: dict[tuple[Any, ...], list[int]] = {}
            for row in rows:
                param = params[row][0][0]
                shape = tuple(getattr(param, "shape", ()))
                shapes.setdefault((shape, _dtype(be, param)), []).append(row)
            cache.shapes = serials, sizes, shapes, None, None
        _, sizes, shapes, known, kinds = cache.shapes
        declared = [self.declared_states(shape) for shape, _ in shapes]  # hyper-parameters may matter
        if declared != known:
            found: dict[tuple[Any, ...], list[int]] = {}
            for ((shape, dtype), rows), states in zip(shapes.items(), declared):
                found.setdefault((len(shape), states, dtype), []).extend(rows)
            kinds = [(kind, sorted(rows)) for kind, rows in found.items()]
            cache.shapes = (*cache.shapes[:3], declared, kinds)
        return sizes, kinds

    def _update(
        self, be: Backend, layers: list[Any], params: list[Any], epoch: int, kind: Any, counts: bool
    ) -> Update:
        """Return the update over some entries.

        Parameters
        ----------
        kind : tuple or None
            As `_kind` returns it, if the rule depends on it.
        counts : bool
            Whether it is what counts the step.
        """
        made: list[tuple[list[Tensor], list[Tensor]]] = []

        def columns(update: Update) -> list[list[Any]]:
            check_distinct(layers)
            place = lambda number, states: place_in(layers, states) or f"parameter {number}"  # noqa: E731
            found = checked_columns(self, trace, be, params, made, place)  # type: ignore[arg-type]
            check_effect(self, trace, bool(made))  # type: ignore[arg-type]
            if made:
                new = {id(states): tensors for states, tensors in made}
                update.list_tensors(_flat([(pair, new.get(id(states), states)) for pair, states in params]))
                cache = self._cache()
                cache.told_of_lost_states = cache.told_of_lost_states or warn_of_lost_states(layers)
            return found

        def commit() -> None:
            for states, new in made:
                states.extend(new)

        update = self.update_of(_flat(params), columns, commit, epoch, be.bsz, kind, counts)
        trace = self.trace_in_use()
        return update

    def _backend(self) -> Backend:
        """Return the current backend, or the own one that an adapter has given this optimizer."""
        return get_backend() if self.be is None else self.be

    def _divisor(self, bsz: int) -> tuple[float, Any]:
        """Return what the host knows that gradients are divided by, and the loss scale if it is a tensor."""
        scale = self.loss_scale
        if type(scale) is float:
            return bsz * scale, None
        # Wrapped anew at each step: PyTorch can exchange the memory under the same object.
        return float(bsz), read(self._backend(), scale, "the loss scale")

    def options(
        self, kind: Any = None, loss_scale: bool = False, on_device: bool = False, rate: bool = False
    ) -> Any:
        """Return what the base class puts around the rule now.

        Parameters
        ----------
        kind : (int, tuple of (str, State), numpy.dtype), optional
            As for `update_of`.
        loss_scale : bool
            Whether the loss scale is in memory.
        on_device : bool
            Whether the count of steps is in memory.
        rate : bool
            Whether the learning rate is.

        Returns
        -------
        Options
        """
        ndim, states, dtype = kind or (None, self.declared_states(), None)
        clips, skips = bool(self.gradient_clip_norm), self.skip_nonfinite
        return Options(states, clips, skips, loss_scale, self.counts_each, ndim, on_device, rate, dtype)

    def shared_numbers(self, be: Backend, options: Any, rate: Any) -> list[Tensor]:
        """Return the optimizer's own numbers that a step reads and stores in memory.

        Parameters
        ----------
        be : Backend
        options : Options
        rate : float or None
            The learning rate, with which a state may begin.

        Returns
        -------
        list of Tensor
            Each of one element: of the last ones of `Options.shared`.
        """
        found = [self.__dict__["_t"]] if options.on_device else []
        found += [self.skipped_tensor] if options.skips else []
        if options.clips or options.skips:
            found.append(self._norm_slot())
        states = [(name, state) for name, state in options.states if state.axes == "step"]
        return found + [self._step_state(be, name, state, rate) for name, state in states]

    def update_of(
        self,
        tensors: Any,
        columns: Callable[[Update], list[list[Any]]],
        commit: Callable[[], object],
        epoch: int,
        bsz: int,
        kind: Any = None,
        counts: bool = True,
        stores: bool | None = None,
    ) -> Update:
        """Return one step as an `Update`, without running it or changing anything.

        Adapters to other libraries are made of this.

        Parameters
        ----------
        tensors, columns, commit
            See `Update`.
        epoch : int
        bsz : int
            The batch size by which gradients are divided.
        kind : (int, tuple of (str, State), numpy.dtype), optional
            The parameters' number of axes, the states beside them and the parameters' dtype, if the rule
            depends on these.
        counts : bool
            Whether it is the update that counts the step, of several for one.
        stores : bool, optional
            Whether it is the one that stores what is one number for all of them. Without it, as `counts`.

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
        stores = counts if stores is None else stores
        divisor, loss_scale = self._divisor(bsz)
        kept, be = self._cache(), self._backend()
        on_device, in_memory = self.settle_count(be), self.rate_tensor(be)
        rate = self._rate(epoch) if in_memory is None else self.learning_rate
        options = self.options(kind, loss_scale is not None, on_device, in_memory is not None)
        kept.trace, numbers = kept.traces.of(self, options, rate, divisor, epoch)
        if on_device:
            self.check_frozen(kept.trace)
        shared = [tensor for tensor in (loss_scale, in_memory) if tensor is not None]
        shared += self.shared_numbers(be, options, rate)

        def committed() -> Any:
            if not counts:
                return commit()
            if not on_device:  # without the checks of what users assign, which take longer
                self.__dict__["_t"] = self.__dict__.get("_t", 0) + 1
            kept.sums_norm = trace.sums_norm and stores
            commit()

        trace = kept.trace
        program, recut = trace.program, trace.recut
        if not stores:
            program, recut = trace.recut(counts=False), functools.partial(trace.recut, counts=False)
        update = Update(
            program, numbers, tensors, columns, committed, kept.plans, self.stochastic_round, shared, recut
        )
        update.captures = kept.captures if on_device else None
        return update

    def trace_in_use(self) -> Any:
        """Return the trace of the last step that was prepared, see `nbopt.optimizers.tracing`.

        Returns
        -------
        Trace or None
        """
        return self._cache().trace

    def _rate(self, epoch: int) -> float | None:
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


def _dtype(be: Backend, param: Any) -> Any:
    """Return a parameter's dtype; None if the backend can't take it, which another error says later."""
    try:
        return param.dtype if isinstance(param, Tensor) else be.wrap(param).dtype
    except NboptError:
        return None


def _flat(params: list[Any]) -> Any:
    """Return a function that iterates over all tensors: param, grad of each entry, then the states of each.

    None where the entries are malformed.
    """
    try:
        pairs, states = zip(*params)
    except (TypeError, ValueError):
        return None
    return lambda: chain(chain.from_iterable(pairs), chain.from_iterable(states))
