"""NumbaCPU: fused kernels over NumPy arrays, on all cores."""
