"""The usual two groups of a model's parameters: those with weight decay, and those without."""

import torch

from nbopt.errors import ArgumentError


def decay_groups(model, weight_decay):
    """Return two groups of a model's parameters: matrices and the like decay, gains and biases do not.

    >>> optimizer = nbopt.torch.AdamW(nbopt.torch.decay_groups(model, 0.1), lr=3e-4)

    Parameters
    ----------
    model : torch.nn.Module
        Of its parameters, those with ``requires_grad`` are taken.
    weight_decay : float
        That of parameters with two axes or more. Others have 0.

    Returns
    -------
    list of dict
        One or two groups, of named parameters, none of which is empty.

    Raises
    ------
    ArgumentError
        If `model` is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise ArgumentError(f"decay_groups takes a torch.nn.Module, not an object of {type(model)}")
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    matrices = [(name, param) for name, param in trained if param.ndim > 1]
    others = [(name, param) for name, param in trained if param.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
