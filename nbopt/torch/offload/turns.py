"""Turns: what runs beside the pieces of a step on the host, bucket by bucket."""


class NeedsAllError(Exception):
    """A step reduces over all gradients, and there is no room for them. Nothing has changed."""


class Turns:
    """The copies of a step, see `nbopt.torch.stepper.Stepper`.

    While a bucket is updated, the gradients of the next one come, and the parameters of the last one leave.

    Attributes
    ----------
    pairs : dict of torch.Tensor to Pair
        By the tensors on the host.
    buckets : list of Bucket
    """

    def __init__(self, copies, gradients, pairs):
        self.copies, self.gradients, self.pairs = copies, gradients, pairs
        self.buckets: list = []
        self._left: list = [None, None]  # the last copies to the device from each block
        self._memory = None

    @property
    def dealt(self):
        """List : another one whenever parameters are dealt out to buckets anew."""
        return self.buckets

    def use(self, memory):
        """Go on with other memory, whose buckets may be others."""
        for event in self._left:
            self.copies.wait(event)
        for bucket in self.buckets:
            self.copies.wait(bucket.event)
        self._left, self.buckets, self.gradients.memory = [None, None], memory.buckets, memory

    def of(self, host):
        """Return which bucket a parameter is in."""
        return self.pairs[host].bucket.number

    def begin(self, updates):
        """Return what runs beside a step of some updates; raise NeedsAllError if it can't run like this."""
        gradients = self.gradients
        if not (gradients.memory.whole or gradients.adds_up) and any(
            update.program.over_the_step() for update in updates
        ):
            raise NeedsAllError
        return self._turns

    def _turns(self, together):
        """Yield the numbers of the buckets, each when its gradients are on the host.

        Parameters
        ----------
        together : bool
            Whether all gradients have to be there first. None is yielded then.
        """
        copies, gradients = self.copies, self.gradients
        start = copies.now()  # the device may read parameters, and write gradients, until then
        buckets = gradients.in_turn(
            [bucket for bucket in self.buckets if any(host.grad is not None for host in bucket.hosts)]
        )
        waiting = [[bucket for bucket in buckets if bucket.turn == turn] for turn in range(2)]
        for own in waiting:
            for bucket in own if gradients.memory.whole else own[:1]:
                gradients.bring(bucket, start)
        if together:
            for bucket in buckets:
                copies.wait(bucket.event)
            yield None
        for bucket in buckets:
            copies.wait(bucket.event)
            copies.wait(self._left[bucket.turn])
            if (yield bucket.number):
                self._send(bucket, start)
            own = waiting[bucket.turn]
            own.remove(bucket)
            if own and not gradients.memory.whole:
                gradients.bring(own[0], start)
        copies.hold(*self._left)

    def _send(self, bucket, start):
        """Queue the copies of a bucket's new parameters to the device."""
        updated = bucket.updated()
        params, hosts = bucket.params, bucket.hosts
        if len(updated) < len(params):
            params, hosts = [pair.param for pair in updated], [pair.host for pair in updated]
        event = self.copies.up(params, hosts, start)
        self._left[bucket.turn] = event
        bucket.take(updated)
