"""Buckets: the parameters that are copied and updated together, and the host's memory for their copies."""

from operator import attrgetter

import torch

_grad, _version, _pointer = attrgetter("grad"), attrgetter("_version"), torch.Tensor.data_ptr
_ALIGNED = 64


class Bucket:
    """Some parameters, updated in one piece of a step.

    Attributes
    ----------
    number : int
    pairs : list of Pair
    params, hosts, gradients : list of torch.Tensor
        The pairs' own.
    turn : int
        0 or 1: which of two blocks of memory its copies go to.
    event : object
        Of the last copy of its gradients to the host.
    """

    def __init__(self, number, pairs):
        self.number, self.turn, self.event = number, number % 2, None
        self.pairs = pairs
        self.params = [pair.param for pair in pairs]
        self.hosts = [pair.host for pair in pairs]
        self.gradients = [pair.gradient for pair in pairs]
        # Of which value of each parameter the host has a copy: what changes whenever somebody writes it.
        self._versions: list = [None] * len(pairs)
        self._pointers: list = [None] * len(pairs)
        self._number_pairs()

    def _number_pairs(self):
        for place, pair in enumerate(self.pairs):
            pair.bucket, pair.place = self, place

    def drop(self, pair):
        """Forget a pair."""
        for own in (self.pairs, self.params, self.hosts, self.gradients, self._versions, self._pointers):
            del own[pair.place]
        self._number_pairs()

    def updated(self):
        """Return the pairs that a step updates: those whose gradients are there."""
        return [pair for pair, grad in zip(self.pairs, map(_grad, self.hosts)) if grad is not None]

    def new_ones(self):
        """Return the pairs whose parameters somebody else has written since `take` was called."""
        versions, pointers = [*map(_version, self.params)], [*map(_pointer, self.params)]
        if versions == self._versions and pointers == self._pointers:
            return []
        found = zip(self.pairs, versions, self._versions, pointers, self._pointers)
        return [pair for pair, version, taken, now, then in found if version != taken or now != then]

    def take(self, pairs):
        """Note that the host has the values that the parameters of some pairs have now."""
        if len(pairs) == len(self.pairs):
            self._versions, self._pointers = [*map(_version, self.params)], [*map(_pointer, self.params)]
            return
        for pair in pairs:
            self._versions[pair.place] = pair.param._version
            self._pointers[pair.place] = pair.param.data_ptr()

    def room(self, which):
        """Return how many bytes its parameters take in one of the kinds of memory, see `Memory`."""
        return sum(_rounded(_bytes(pair, which)) for pair in self.pairs)


def dealt(pairs, bucket_bytes):
    """Return the buckets of some parameters, in the order in which their gradients usually arrive.

    Parameters
    ----------
    pairs : list of Pair
        In the order of the model. The last one's gradient is ready first.
    bucket_bytes : int
        How much memory the copies of a bucket take at most, unless a single parameter takes more.

    Returns
    -------
    list of Bucket
    """
    found: list = [[]]
    room = 0
    for pair in reversed(pairs):
        size = _rounded(_bytes(pair, "gradients")) + _rounded(_bytes(pair, "copies"))
        if found[-1] and room + size > bucket_bytes:
            found.append([])
            room = 0
        found[-1].append(pair)
        room += size
    return [Bucket(number, own) for number, own in enumerate(found) if own]


class Memory:
    """The memory on the host in which gradients arrive, and from which parameters leave.

    There are three kinds:

    ``"gradients"``
        Two blocks, which buckets use in turn; or one for each bucket, if all gradients have to be there
        before the first update.
    ``"copies"``
        What parameters with masters are copied to the device from: two blocks.
    ``"parameters"``
        Those that have no masters: one block for each bucket.

    Attributes
    ----------
    buckets : list of Bucket
    whole : bool
        Whether there is room for all gradients.
    apart : bool
        Whether each bucket has a block for its copies.
    """

    def __init__(self, buckets, whole, pinned):
        self.buckets, self.whole, self._pinned = buckets, whole, pinned
        self.apart = False
        self._blocks: dict = {}

    def sizes(self):
        """Return how many bytes each block has, by its kind: dict of str to list of int."""
        rooms = {which: [bucket.room(which) for bucket in self.buckets] for which in _TENSORS}
        for which in self._shared():
            rooms[which] = [max(rooms[which][turn::2], default=0) for turn in range(2)]
        return rooms

    def needed(self, which):
        """Return how many bytes a kind takes. PyTorch rounds pinned blocks up to powers of two."""
        return sum(
            1 << (size - 1).bit_length() if self._pinned and size else size for size in self.sizes()[which]
        )

    def take(self, kinds=None):
        """Allocate the blocks of some kinds, and have the tensors of all parameters lie in them.

        Values of before are lost.
        """
        for which, sizes in self.sizes().items():
            if kinds is None or which in kinds:
                self._blocks[which] = blocks = [self._block(size) for size in sizes]
                for bucket in self.buckets:
                    _lay(bucket, which, blocks[bucket.turn if which in self._shared() else bucket.number])

    def _shared(self):
        """Return the kinds that buckets use in turn."""
        return ("copies",) * (not self.apart) + ("gradients",) * (not self.whole)

    def _block(self, size):
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned and size > 0)

    def give_back(self):
        """Free all blocks. The tensors of the parameters have no elements until others are taken."""
        for bucket in self.buckets:
            for pair in bucket.pairs:
                for tensor in (pair.host, pair.gradient):
                    tensor.set_(torch.empty(0, dtype=tensor.dtype))
        self._blocks.clear()

    def held(self):
        """Return how many bytes of each kind are allocated."""
        return {which: sum(block.nbytes for block in self._blocks.get(which, ())) for which in _TENSORS}


def _lay(bucket, which, block):
    """Have the tensors of a bucket lie in a block, one after the other."""
    storage, start = block.untyped_storage(), 0
    for pair in bucket.pairs:
        size = _bytes(pair, which)
        if size or not pair.param.numel():
            tensor = pair.gradient if which == "gradients" else pair.host
            shape = pair.param.shape
            strides = torch.empty(shape, device="meta").stride()
            # Each has a count of versions of its own then, which a view has not.
            tensor.set_(storage, start // tensor.element_size(), shape, strides)
            start += _rounded(size)


#: What a parameter takes of each kind of memory, in its own dtype.
_TENSORS = {
    "gradients": lambda pair: True,
    "copies": lambda pair: pair.has_master,
    "parameters": lambda pair: not pair.has_master,
}


def _bytes(pair, which):
    return pair.param.numel() * pair.param.element_size() * bool(_TENSORS[which](pair))


def _rounded(size):
    return -(-size // _ALIGNED) * _ALIGNED
