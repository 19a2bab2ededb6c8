"""DTensors, as FSDP2 makes them: each process updates its own share, whose memory is a plain tensor's."""

import torch

from nbopt.errors import ArgumentError, LayoutError
from nbopt.language.stages import Combine


def local(tensors):
    """Return the shares of this process; a plain tensor, or None, stays what it is.

    Parameters
    ----------
    tensors : list

    Returns
    -------
    list
    """
    try:
        return [tensor._local_tensor for tensor in tensors]
    except AttributeError:
        return [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]


def local_grads(params):
    """Return the shares of the parameters' gradients; None where there is no gradient.

    Parameters
    ----------
    params : list of torch.Tensor

    Returns
    -------
    list
    """
    # DTensors have a __torch_function__ that does nothing, and a look for it costs 300 ns.
    with torch._C.DisableTorchFunctionSubclass():
        try:
            return [param.grad._local_tensor for param in params]
        except AttributeError:
            return local([param.grad for param in params])


def is_sharded(tensor):
    """Return whether it is a DTensor."""
    return hasattr(tensor, "_local_tensor")


def check_shards(params, rows):
    """Raise where a gradient is not distributed as its parameter is.

    Parameters
    ----------
    params : list of torch.Tensor
        Those with gradients.
    rows : sequence of int
        Their numbers in the group, for messages.

    Raises
    ------
    LayoutError
    """
    for row, param in zip(rows, params):
        grad = param.grad
        if is_sharded(param) != is_sharded(grad) or (
            is_sharded(param) and param.placements != grad.placements
        ):
            placed = [getattr(tensor, "placements", "no DTensor") for tensor in (param, grad)]
            raise LayoutError(
                f"parameter {row} of the group is distributed as {placed[0]}, and its gradient as "
                f"{placed[1]}: redistribute it (param.grad = "
                "param.grad.redistribute(placements=param.placements))"
            )


def check_rule(optimizer, program, params):
    """Raise where a rule needs more than this process's share of a parameter.

    Parameters
    ----------
    optimizer : nbopt.Optimizer
    program : Program
    params : list of torch.Tensor

    Raises
    ------
    ArgumentError
        With the way out.
    """
    if program.matrices() and any(map(_is_split, params)):
        raise ArgumentError(
            f"{optimizer.classnm} takes whole matrices, and these are split over processes (DTensors): "
            "a shard's own singular values are others. Replicate the matrices, or take AdamW for them"
        )
    reduces = program.size is not None or any(isinstance(stage, Combine) for _, stage in program.stages())
    if reduces and any(map(_is_split, params)):
        raise ArgumentError(
            f"{optimizer.classnm} reduces over whole parameters or steps here, which are split over "
            "processes (DTensors), and nbopt does not add up over processes yet. Turn off "
            "gradient_clip_norm and skip_nonfinite (torch.nn.utils.clip_grad_norm_ clips DTensors), "
            "or take a rule without reductions"
        )


def _is_split(param):
    if not is_sharded(param):
        return False
    return any(
        param.device_mesh.size(axis) > 1 and not place.is_replicate()
        for axis, place in enumerate(param.placements)
    )
