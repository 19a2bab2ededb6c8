"""NumbaCUDA: not built yet. The name is known, so that asking for it says why it can't be had."""

from nbopt.backend import Backend


class NumbaCUDA(Backend):
    """The backend ``"cuda"``, which this version of nbopt does not have yet."""

    name = "cuda"
    memory = "cuda"

    @classmethod
    def problem(cls):
        """Return why the backend can't be used."""
        try:
            from numba import cuda

            present = cuda.is_available()
        except ImportError:
            present = None
        if present is None:
            return 'numba-cuda is not installed; type: pip install "numba-cuda[cu13]" (or "numba-cuda[cu12]", by the driver)'
        if not present:
            return "no NVIDIA GPU with a working driver was found. With one, numba-cuda is needed too: pip install \"numba-cuda[cu13]\""
        return "this version of nbopt has no CUDA kernels yet; use \"cpu\""
