"""Look at, and prepare, the kernels of a step."""

from nbopt.backends import get_backend
from nbopt.errors import ArgumentError
from nbopt.optimizers.base import Optimizer


def explain(optimizer, layers, epoch=0):
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
        Each kernel once: the rule in a comment, the Python source that Numba compiles, and the file it is kept in.

    Raises
    ------
    nbopt.errors.NboptError
        One of its subclasses, where `optimize` would raise it.
    """
    be = get_backend()
    texts = [text for update in _updates(be, optimizer, layers, epoch) for text in be.explain(update)]
    return "\n".join(dict.fromkeys(texts))


def compile(optimizer, layers, epoch=0):
    """Prepare the kernels of ``optimizer.optimize(layers, epoch)`` without changing any value, state or counter.

    The first step then starts without a pause. Kernels are kept on disk too, so a later process finds them there.

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


def _updates(be, optimizer, layers, epoch):
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"the optimizer must be one of nbopt's, such as nbopt.RMSProp(), not {optimizer!r}")
    return optimizer.updates(be, layers, epoch)
