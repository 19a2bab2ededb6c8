"""Python runs this at its start where run.py has put its folder on the path: linking gives PTX, which the emulated driver takes, in place of SASS."""

import os

if "EMULATED_KERNELS" in os.environ:
    from numba.cuda.cudadrv import driver

    def complete(linker):
        """Return what was added, as it is."""
        linker.linker, linker._complete, linker._info_log, linker._error_log = object(), True, "", ""
        (code,) = linker._object_codes
        return driver.ObjectCode.from_cubin(code.code + b"\0")

    driver._Linker.complete = complete
