"""The definition of every result, in NumPy, and the backend that runs it."""
