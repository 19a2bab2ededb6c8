"""The functions of matrices of a plan, as launches of a library's products."""

from nbopt_backends.matrices.stage import needed, run_matrix


class Matrices:
    """The functions of matrices of a plan.

    Parameters
    ----------
    backend : DeviceBackend
    plan : DevicePlan
    """

    def __init__(self, backend, plan):
        self._library = backend.device.products(backend.device_id, backend.streams.library)
        self._batches = plan.batches
        self.size = max(
            needed(
                stage.function,
                [shape[1:] for _, shape, _ in found for _ in range(shape[0])],
                8 if any(dtype == "float64" for _, _, dtype in found) else 4,
            )
            for stage in plan.program.matrices()
            for found in (own.get(stage.output, []) for own in plan.batches)
        )

    def reserve(self):
        """Make sure that there is memory for the products."""
        self._library.reserve(self.size)

    def launch(self, stage, number):
        """Return what queues a function of matrices of a round on a stream, given its handle.

        It is computed in skipped steps as well, since the host doesn't know of them; its result is stored by
        later passes alone.
        """
        library, placed = self._library, self._batches[max(0, number - 1)]
        slots = *stage.sources, stage.output
        arrays = {slot: [library.batch(*one) for one in placed.get(slot, [])] for slot in slots}
        batches = [(own[:-1], own[-1]) for own in zip(*(arrays[slot] for slot in slots))]

        def queue(stream):
            with library.on(stream):
                run_matrix(stage.function, batches, library)

        return queue
