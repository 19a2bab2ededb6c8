"""PyTorch's optimizers, run by nbopt: for each, a rule with PyTorch's formula, and a class with PyTorch's
arguments.
"""
