"""Masters: float32 copies of 16-bit parameters, which steps update in the parameters' place.

A rule sees the master, and the parameter is its mirror. Whatever else writes the parameter changes its
``_version``, so that the next step takes it over.
"""

from operator import attrgetter

import torch

from nbopt.optimizers.states import Mirror, mirror
from nbopt.torch.states import SIXTEEN, Kept

_version = attrgetter("_version")

#: The state that is the master, named as in NVIDIA's Apex and Transformer Engine.
MASTER = Kept("master_param", "param", when="-", dtype="float32")
#: What a rule sees of the parameter beside a master.
MIRROR = mirror()


def has_master(param):
    """Return whether a parameter has a master where an optimizer keeps masters."""
    return param.dtype in SIXTEEN


def mirrored(states):
    """Return the states of a rule whose parameter has a master.

    Parameters
    ----------
    states : tuple of (str, State)

    Returns
    -------
    tuple of (str, State)
    """
    return (*(one for one in states if type(one[1]) is not Mirror), MIRROR)


def versions_of(owners, params, sharded):
    """Return what changes whenever some parameters are written; writes through ``.data`` are not seen.

    Parameters
    ----------
    owners : list of torch.Tensor
    params : list of torch.Tensor
        Their memory here: other tensors, if they are DTensors.
    sharded : bool
        Whether some are.
    """
    return [*zip(map(_version, owners), map(_version, params))] if sharded else [*map(_version, owners)]


@torch.no_grad()
def refresh(param, master, stochastic):
    """Take over into a master what was written into its parameter.

    An element that the master is rounded to stays: nobody has changed it, or it is what it was again.

    Parameters
    ----------
    param : torch.Tensor
        Stays as it is.
    master : torch.Tensor
        float32; modified in place.
    stochastic : bool
        Whether steps round the parameter stochastically. Then both neighbours are what the master is rounded
        to.
    """
    near = master.to(param.dtype)
    kept = near == param
    if stochastic:
        beside = (near.view(torch.int16).int() - param.view(torch.int16).int()).abs() == 1
        kept |= beside & ((near > master) == (param < master)) & (near != master)
    torch.where(kept, master, param.to(master.dtype), out=master)
