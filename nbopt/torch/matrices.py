"""The usual groups of a model's parameters for Muon: hidden matrices, and all else."""

import torch

from nbopt.errors import ArgumentError

_EMBEDDINGS = (torch.nn.Embedding, torch.nn.EmbeddingBag)
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_HEADS = {"head", "lm_head", "classifier", "output", "unembed"}


def muon_groups(model, heads=None, verbose=True):
    """Return the groups of a model's parameters for `nbopt.torch.Muon`, and print which parameter went where.

    >>> optimizer = nbopt.torch.Muon(nbopt.torch.muon_groups(model), lr=1e-3, adjust_lr_fn="match_rms_adamw")

    Parameters
    ----------
    model : torch.nn.Module
        Of its parameters, those with ``requires_grad`` are taken.
    heads : sequence of str, optional
        The names of output layers, whose matrices are no hidden ones. Without it they are the layers that are
        called head, lm_head, classifier, output or unembed; or else the last `torch.nn.Linear`.
    verbose : bool
        Whether to print.

    Returns
    -------
    list of dict
        Groups of named parameters, none of which is empty: hidden matrices, and batches of them; kernels of
        convolutions, if there are any, with ``flatten=True``; and embeddings, output layers, gains and
        biases, with ``use_muon=False``.

    Raises
    ------
    ArgumentError
        If `model` is no module, or has no layer that `heads` names.
    """
    if not isinstance(model, torch.nn.Module):
        raise ArgumentError(f"muon_groups takes a torch.nn.Module, not an object of {type(model)}")
    modules = dict(model.named_modules())
    outputs = _outputs(modules) if heads is None else [*heads]
    unknown = [name for name in outputs if name not in modules]
    if unknown:
        raise ArgumentError(
            f"the model has no layer {', '.join(map(repr, unknown))}: heads= takes the names of layers"
        )
    kinds = [("hidden matrices", {}), ("convolutions", {"flatten": True}), ("AdamW", {"use_muon": False})]
    found: list[list] = [[], [], []]
    kernels = {
        id(p)
        for module in modules.values()
        if isinstance(module, _CONVOLUTIONS)
        for p in module.parameters(False)
    }
    apart = [module for module in modules.values() if isinstance(module, _EMBEDDINGS)]
    others = {id(p) for module in (*apart, *map(modules.get, outputs)) for p in module.parameters()}
    for name, param in model.named_parameters():
        if param.requires_grad:
            is_vector = param.ndim < 2 or id(param) in others
            found[2 if is_vector else int(id(param) in kernels)].append((name, param))
    groups = [{"params": params, **options} for params, (_, options) in zip(found, kinds) if params]
    if verbose:
        for params, (label, _) in zip(found, kinds):
            for name, param in params:
                print(f"{label}: {name} {tuple(param.shape)}")
    return groups


def _outputs(modules):
    """Return the names of what are output layers, by their names; or of the last linear layer."""
    found = [name for name in modules if name.rpartition(".")[2] in _HEADS]
    linear = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear)]
    return found or linear[-1:]
