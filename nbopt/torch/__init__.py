"""A PyTorch optimizer around any optimizer of nbopt's. ``nbopt`` itself never imports PyTorch: only this package does."""

from nbopt.torch.optimizer import Optimizer

__all__ = ["Optimizer"]
