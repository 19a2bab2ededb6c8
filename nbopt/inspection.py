"""Look at, and prepare, the kernels of a step."""

from collections.abc import Iterable

from nbopt.backends import get_backend
from nbopt.errors import ArgumentError
from nbopt.interface.backend import Backend
from nbopt.interface.update import Update
from nbopt.layers import Layer
from nbopt.optimizers.base import Optimizer
from nbopt.terminal import Code


def explain(optimizer: Optimizer, layers: Iterable[Layer], epoch: int = 0) -> str:
    """Return the text of the kernels that ``optimizer.optimize(layers, epoch)`` runs on the current backend.

    Parameters
    ----------
    optimizer : Optimizer
    layers : list
        Layers, as for `optimize`. Nothing is changed, and no state is made.
    epoch : int

    Returns
    -------
    str
        First what the traces depend on, and the stages of the step with the bytes that each pass moves. Then
        each kernel once: the rule in a comment, the Python source that Numba compiles, and the file it is
        kept in. Where it is printed on a terminal it has colours, unless NO_COLOR is set.

    Raises
    ------
    nbopt.errors.NboptError
        One of its subclasses, where `optimize` would raise it.
    """
    be = get_backend()
    texts = [text for update in _updates(be, optimizer, layers, epoch) for text in be.explain(update)]
    guards = [line for one in dict.fromkeys(_members(optimizer)) for line in _guard(one)]
    return Code("\n".join(dict.fromkeys([*guards, *texts])))


def _members(optimizer: Optimizer) -> list[Optimizer]:
    inside = getattr(optimizer, "optimizer_mapping", None)
    return [optimizer] if inside is None else [member for one in inside.values() for member in _members(one)]


def _guard(optimizer: Optimizer) -> list[str]:
    """Return what the trace of an optimizer's rule depends on, as comments."""
    trace = optimizer.trace_in_use() if isinstance(optimizer, Optimizer) else None
    return (
        []
        if trace is None
        else [f"# {optimizer.classnm} is traced again if one of these changes: {trace.guard()}\n"]
    )


def compile(optimizer: Optimizer, layers: Iterable[Layer], epoch: int = 0) -> None:
    """Prepare the kernels of ``optimizer.optimize(layers, epoch)``.

    No value, state or counter changes. The first step then starts without a pause. Kernels are kept on disk
    too, so a later process finds them there.

    Parameters
    ----------
    optimizer : Optimizer
    layers : list
    epoch : int

    Raises
    ------
    nbopt.errors.NboptError
        One of its subclasses, where `optimize` would raise it.
    """
    be = get_backend()
    be.prepare_all(_updates(be, optimizer, layers, epoch))


def _updates(be: Backend, optimizer: Optimizer, layers: Iterable[Layer], epoch: int) -> list[Update]:
    if not isinstance(optimizer, Optimizer):
        if hasattr(optimizer, "param_groups"):
            raise ArgumentError(
                "an optimizer of PyTorch's has no layers. A rule's kernels over a model: nbopt.explain("
                "nbopt.AdamW(), [nbopt.Parameters(*[(p, p.grad) for p in model.parameters()])])"
            )
        raise ArgumentError(
            f"the optimizer must be one of nbopt's, such as nbopt.RMSProp(), not {optimizer!r}, and comes "
            "before the layers: nbopt.explain(optimizer, layers)"
        )
    return optimizer.updates(be, layers, epoch)
