"""PyTorch's optimizers, run by nbopt.

Each is a rule with PyTorch's formula, and a class with PyTorch's arguments.
"""
