"""States: what an offloaded optimizer shows of the states on the host."""

from collections.abc import MutableMapping


class States(MutableMapping):
    """The states of parameters on the device, which are those of the tensors on the host.

    Changes are the optimizer's own: what is removed starts afresh at the next step.

    Parameters
    ----------
    pairs : dict of torch.Tensor to Pair
        By the parameters on the device.
    states : dict of torch.Tensor to dict
        By the tensors on the host.
    """

    def __init__(self, pairs, states):
        self._pairs, self._states = pairs, states

    def __getitem__(self, param):
        host = self._pairs[param].host
        if host not in self._states:
            raise KeyError(param)
        return self._states[host]

    def __setitem__(self, param, value):
        self._states[self._pairs[param].host] = value

    def __delitem__(self, param):
        del self._states[self._pairs[param].host]

    def __iter__(self):
        return iter([param for param, pair in self._pairs.items() if pair.host in self._states])

    def __len__(self):
        return sum(1 for _ in self)

    def __repr__(self):
        return repr(dict(self))
