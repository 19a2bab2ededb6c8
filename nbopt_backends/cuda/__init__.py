"""NumbaCUDA: fused kernels over arrays in a GPU's memory."""
