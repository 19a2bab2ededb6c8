"""Python runs this at its start where run.py has put its folder on the path.

Linking gives PTX, which the emulated driver takes, in place of SASS.

Other libraries are out: one that brings its own CUDA would call functions of the driver that the emulated one
does not have."""

import os
import sys

if "EMULATED_KERNELS" in os.environ:
    sys.modules.update(dict.fromkeys(["torch", "jax", "cupy"]))

    from importlib.util import find_spec

    if os.environ.get("NBOPT_CUDA_COMPILER") == "numba-cuda-mlir" or not find_spec("numba_cuda"):
        from numba_cuda_mlir import cuda

        def compile_cubin(function, signature, **options):
            """Return PTX in place of machine code."""
            return cuda.compile_ptx(function, signature, **options)[0].encode() + b"\0"

        cuda.compile_cubin = compile_cubin
    else:
        from numba.cuda.cudadrv import driver

        def complete(linker):
            """Return the PTX after link-time optimization, as code to load."""
            return driver.ObjectCode.from_cubin(linker.get_linked_ptx() + b"\0")

        driver._Linker.complete = complete
