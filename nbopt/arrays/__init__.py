"""The handles of arrays, and assignments to them outside rules."""
