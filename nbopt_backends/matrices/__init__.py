"""Functions of whole matrices, on whichever library of linear algebra owns the memory."""
