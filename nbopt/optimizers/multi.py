"""MultiOptimizer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from operator import attrgetter
from typing import Any

from nbopt.arrays.tensor import Tensor
from nbopt.backends import get_backend
from nbopt.errors import ArgumentError
from nbopt.interface.backend import Backend
from nbopt.interface.update import Update
from nbopt.layers import Layer, as_layers, check_distinct, entries_of, get_param_list
from nbopt.optimizers.base import Optimizer

_serial = attrgetter("serial")


class _Asked:
    """A layer that has been asked for its parameters, so that a step asks once."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.name = layer, getattr(layer, "name", None)
        self.entries: Any = get_param_list([layer])

    def get_params(self) -> Any:
        """Hand over what the layer gave; from the second call on, ask it again."""
        entries, self.entries = self.entries, None
        return self.layer.get_params() if entries is None else entries

    def __repr__(self) -> str:
        return repr(self.layer)


def _class_name(layer: Any) -> str:
    return getattr(layer, "classnm", type(layer).__name__)


def _not_here(name: str, value: Any) -> None:
    raise ArgumentError(
        f"MultiOptimizer has no {name} of its own, so setting it would do nothing: set it on each of its "
        "optimizers"
    )


class MultiOptimizer(Optimizer):
    """Different optimizers for different layers, in one step.

    Parameters
    ----------
    optimizer_mapping : dict
        Layer name or layer class name -> Optimizer; ``"default"`` is required. A layer's name wins over its
        class's, and that over the default. One optimizer may stand under several keys.
    name : str, optional

    Notes
    -----
    All layers of one optimizer are updated in one call, in list order, so a norm clip is over them together.
    An optimizer without layers is not called. The step is whole: if any of the optimizers fails, none has
    changed anything.

    `t` counts the calls with parameters to update, whichever of the optimizers had some; one inside another
    MultiOptimizer isn't called. `skipped` is the largest of the optimizers' counts.

    Hyper-parameters are those of the optimizers: to set one here is an error. Those with `skip_nonfinite` are
    skipped together, where the gradients of any of them are not finite; others go on.
    """

    checks = {**dict.fromkeys(Optimizer.checks, _not_here), "t": Optimizer.checks["t"]}

    _keys_are_known = False

    def __init__(self, optimizer_mapping: Mapping[str, Optimizer], name: str | None = None) -> None:
        super().__init__(name=name)
        if not isinstance(optimizer_mapping, dict) or "default" not in optimizer_mapping:
            raise ArgumentError(
                'MultiOptimizer takes a dict with the key "default": MultiOptimizer({"default": RMSProp(), '
                '"Bias": Adam()})'
            )
        for key, optimizer in optimizer_mapping.items():
            if isinstance(optimizer, type) or not callable(getattr(optimizer, "optimize", None)):
                given = f"{optimizer!r}"
                if isinstance(optimizer, type):
                    given = f"the class {optimizer.__name__}: write {optimizer.__name__}()"
                raise ArgumentError(
                    f"the entry {key!r} of MultiOptimizer's dict must be an optimizer, not {given}"
                )
        self.optimizer_mapping = dict(optimizer_mapping)

    def members(self) -> dict[str, Optimizer]:
        """Return the optimizers inside of this one, by their keys."""
        return self.optimizer_mapping

    def optimizer_of(self, layer: Any) -> Optimizer | None:
        """Return the optimizer that updates a layer.

        Parameters
        ----------
        layer : object

        Returns
        -------
        Optimizer
            One inside another MultiOptimizer, where that is what the mapping names.
        """
        mapping = self.optimizer_mapping
        for key in (getattr(layer, "name", None), _class_name(layer)):
            if key in mapping:
                found = mapping[key]
                break
        else:
            found = mapping["default"]
        return found.optimizer_of(layer) if isinstance(found, MultiOptimizer) else found

    @property
    def skipped(self) -> int:
        """The largest count of its optimizers.

        Those that have `skip_nonfinite` are skipped together. It is set on each of them.
        """
        return max(getattr(optimizer, "skipped", 0) for optimizer in self.optimizer_mapping.values())

    @skipped.setter
    def skipped(self, count: int) -> None:
        _not_here("skipped", count)

    @property
    def skipped_tensor(self) -> Tensor:
        """It has none."""
        raise ArgumentError(
            "MultiOptimizer has no skipped_tensor of its own: read that of one of its optimizers"
        )

    @property
    def grad_norm(self) -> float | None:
        """The norm of the gradients of all its optimizers that have one, together; None if none has."""
        once = {id(optimizer): optimizer for optimizer in self.optimizer_mapping.values()}
        norms = [getattr(optimizer, "grad_norm", None) for optimizer in once.values()]
        found = [norm for norm in norms if norm is not None]
        return math.hypot(*found) if found else None

    @property
    def grad_norm_tensor(self) -> Tensor:
        """It has none."""
        raise ArgumentError(
            "MultiOptimizer has no grad_norm_tensor of its own: read that of one of its optimizers"
        )

    def updates(self, be: Backend, layer_list: Iterable[Layer], epoch: int) -> list[Update]:
        """Return the updates of all optimizers that have layers."""
        layers = as_layers(layer_list)
        return self._joined(be, layers, self._groups(layers), epoch)

    def _counted(self, updates: list[Update]) -> list[Update]:
        """Return the updates, the first of which counts the call in `t`."""
        if updates:
            commit = updates[0].commit

            def counted() -> None:
                commit()
                object.__setattr__(self, "t", self.t + 1)

            updates[0].commit = counted
        return updates

    def _joined(
        self, be: Backend, layers: list[Any], groups: list[tuple[Optimizer, list[Any]]], epoch: int
    ) -> list[Update]:
        """Return the updates of the optimizers in `groups`.

        Random bits go by a parameter's place among the parameters of all `layers`.
        """
        asked = [_Asked(layer) for layer in layers]
        ends = [*accumulate(len(one.entries) for one in asked)]
        places = {
            id(layer): (one, range(end - len(one.entries), end))
            for layer, one, end in zip(layers, asked, ends)
        }
        sizes = self._sizes([entry for one in asked for entry in one.entries])
        updates = []
        for optimizer, own in groups:
            if type(optimizer).updates is not Optimizer.updates:  # it may list what it likes
                updates += optimizer.updates(be, own, epoch)
                continue
            rows = [row for layer in own for row in places[id(layer)][1]]
            found = optimizer.updates(be, [places[id(layer)][0] for layer in own], epoch)
            for update in found:
                update.listing = (
                    sizes,
                    rows if update.listing is None else [rows[row] for row in update.listing[1]],
                )
            updates += found
        return self._counted(updates)

    def _sizes(self, entries: list[Any]) -> list[int]:
        """Return the sizes of all parameters: the same list if they are the tensors of the last step."""
        try:
            params = [param for (param, _), _ in entries]
        except (TypeError, ValueError):
            list(entries_of(entries))  # explains what is wrong
            raise
        kept = self._cache()
        try:
            serials = [*map(_serial, params)]
        except AttributeError:  # arrays that are wrapped later
            return [math.prod(getattr(param, "shape", ())) for param in params]
        if kept.listed is None or kept.listed[0] != serials:
            kept.listed = serials, [param.size for param in params]
        return kept.listed[1]

    def optimize(self, layer_list: Iterable[Layer], epoch: int) -> Any:
        """Update the parameters of all layers, in place, by one step of their optimizers.

        See `Optimizer.optimize`.
        """
        layer_list = as_layers(layer_list)
        groups = self._groups(layer_list)
        if layer_list and not self._keys_are_known:
            self._keys_are_known = True
            self._warn_of_keys(layer_list)
        own = [optimizer for optimizer, _ in groups if type(optimizer).optimize is not Optimizer.optimize]
        if not own:
            return super().optimize(layer_list, epoch)
        # An optimizer that overrides optimize, neon's way, can't be joined to the others' step: it runs on
        # its own, after them.
        joined = self._joined(
            get_backend(),
            layer_list,
            [(optimizer, layers) for optimizer, layers in groups if optimizer not in own],
            epoch,
        )
        if joined:
            get_backend().update(*joined)
        for optimizer, layers in groups:
            if optimizer in own:
                optimizer.optimize(layers, epoch)
        if not joined and get_param_list(layer_list):
            self.t += 1

    @contextmanager
    def ema(self, layers: Iterable[Layer]) -> Iterator[None]:
        """Have running means in place of the parameters for a while, see `Optimizer.ema`.

        Parameters
        ----------
        layers : list
            Those that it trains. Each optimizer with an `ema_decay` has means of its own layers.
        """
        with ExitStack() as stack:
            for optimizer, own in self._groups(as_layers(layers)):
                stack.enter_context(optimizer.ema(own))
            yield

    def eval(self, layers: Iterable[Layer]) -> None:
        """Put averages in place of the parameters of Schedule-Free optimizers; see their `eval`.

        Parameters
        ----------
        layers : list
            Those that it trains. Those of other optimizers stay as they are.

        Raises
        ------
        ArgumentError
            If none of its optimizers averages.
        """
        self._turn("eval", layers)

    def train(self, layers: Iterable[Layer]) -> None:
        """Put the parameters of Schedule-Free optimizers back; see their `train`.

        Parameters
        ----------
        layers : list
            As for `eval`.

        Raises
        ------
        ArgumentError
            If none of its optimizers averages.
        """
        self._turn("train", layers)

    def _turn(self, name: str, layers: Iterable[Layer]) -> None:
        """Call a method of all optimizers that have it, of these layers."""
        groups = self._groups(as_layers(layers))
        found = [(optimizer, own) for optimizer, own in groups if hasattr(optimizer, name)]
        if groups and not found:
            kinds = ", ".join(sorted({optimizer.classnm for optimizer, _ in groups}))
            raise ArgumentError(
                f"none of these layers has an optimizer with {name}: it is for nbopt.ScheduleFreeAdamW and "
                f"the like, and these have {kinds}"
            )
        for optimizer, own in found:
            getattr(optimizer, name)(own)

    def _warn_of_keys(self, layer_list: list[Any]) -> None:
        """Warn of keys that are the name or class of none of the layers."""
        found = {
            str(name) for layer in layer_list for name in (getattr(layer, "name", None), _class_name(layer))
        }
        unknown = [key for key in self.optimizer_mapping if key != "default" and key not in found]
        if unknown:
            keys, names = ", ".join(map(repr, unknown)), ", ".join(map(repr, sorted(found)[:20]))
            warnings.warn(
                f"no layer has the name or class {keys}, keys of MultiOptimizer; the layers' names and "
                f"classes: {names}",
                stacklevel=3,
            )
        for optimizer in self.optimizer_mapping.values():
            if isinstance(optimizer, MultiOptimizer):
                optimizer._warn_of_keys(layer_list)

    def _groups(self, layer_list: list[Any]) -> list[tuple[Optimizer, list[Any]]]:
        """Return (optimizer, its layers) for each that has any, in the order of their first layers."""
        check_distinct(layer_list)
        groups: dict[int, tuple[Any, list[Any]]] = {}
        for layer in layer_list:
            optimizer = self.optimizer_of(layer)
            groups.setdefault(id(optimizer), (optimizer, []))[1].append(layer)
        return list(groups.values())
