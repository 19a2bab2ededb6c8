"""Offload: parameters train on a device, while masters, states and the step are the host's."""

from nbopt.torch.offload.optimizer import Offload

__all__ = ["Offload"]
