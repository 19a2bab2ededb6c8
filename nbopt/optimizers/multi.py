"""MultiOptimizer."""

from nbopt.backends import get_backend
from nbopt.errors import ArgumentError
from nbopt.layers import as_layers, check_distinct
from nbopt.optimizers.base import Optimizer


def _not_here(name, value):
    raise ArgumentError(f"MultiOptimizer has no {name} of its own, so setting it would do nothing: set it on each of its optimizers")


class MultiOptimizer(Optimizer):
    """Different optimizers for different layers, in one step.

    Parameters
    ----------
    optimizer_mapping : dict
        Layer name or layer class name -> Optimizer; ``"default"`` is required. A layer's name wins over its class's, and that over the
        default. One optimizer may stand under several keys.
    name : str, optional

    Notes
    -----
    All layers of one optimizer are updated in one call, in list order, so a norm clip is over them together. An optimizer without layers is
    not called. The step is whole: if any of the optimizers fails, none has changed anything.

    Hyper-parameters are those of the optimizers: to set one here is an error. Those with `skip_nonfinite` are skipped together, where the gradients
    of any of them are not finite; others go on.
    """

    checks = {name: _not_here for name in Optimizer.checks if name != "t"}

    def __init__(self, optimizer_mapping, name=None):
        super().__init__(name=name)
        if not isinstance(optimizer_mapping, dict) or "default" not in optimizer_mapping:
            raise ArgumentError('MultiOptimizer takes a dict with the key "default": MultiOptimizer({"default": RMSProp(), "Bias": Adam()})')
        for key, optimizer in optimizer_mapping.items():
            if isinstance(optimizer, type) or not callable(getattr(optimizer, "optimize", None)):
                raise ArgumentError(f"the entry {key!r} of MultiOptimizer's dict must be an optimizer, not {optimizer!r}")
        self.optimizer_mapping = dict(optimizer_mapping)

    def optimizer_of(self, layer):
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
        for key in (getattr(layer, "name", None), getattr(layer, "classnm", type(layer).__name__)):
            if key in mapping:
                found = mapping[key]
                break
        else:
            found = mapping["default"]
        return found.optimizer_of(layer) if isinstance(found, MultiOptimizer) else found

    def updates(self, be, layer_list, epoch):
        """Return the updates of all optimizers that have layers."""
        return [update for optimizer, layers in self._groups(as_layers(layer_list)) for update in optimizer.updates(be, layers, epoch)]

    def optimize(self, layer_list, epoch):
        """Update the parameters of all layers, in place, by one step of their optimizers; see `Optimizer.optimize`."""
        layer_list = as_layers(layer_list)
        groups = self._groups(layer_list)
        own = [optimizer for optimizer, _ in groups if type(optimizer).optimize is not Optimizer.optimize]
        if not own:
            return super().optimize(layer_list, epoch)
        # An optimizer that overrides optimize, neon's way, can't be joined to the others' step: it runs on its own, after them.
        joined = [update for optimizer, layers in groups if optimizer not in own for update in optimizer.updates(get_backend(), layers, epoch)]
        if joined:
            get_backend().update(*joined)
        for optimizer, layers in groups:
            if optimizer in own:
                optimizer.optimize(layers, epoch)

    def _groups(self, layer_list):
        """Return (optimizer, its layers) for each optimizer that has any, in the order of their first layers."""
        check_distinct(layer_list)
        groups: dict[int, tuple] = {}
        for layer in layer_list:
            optimizer = self.optimizer_of(layer)
            groups.setdefault(id(optimizer), (optimizer, []))[1].append(layer)
        return list(groups.values())
