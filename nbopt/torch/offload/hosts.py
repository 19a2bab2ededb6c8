"""Hosts: all that the host has of an optimizer's parameters, and the memory for it."""

from contextlib import contextmanager
from itertools import chain
from operator import attrgetter, is_

import torch

from nbopt.errors import ArgumentError
from nbopt.torch.kinds import likeness, never
from nbopt.torch.masters import MASTER, has_master, refresh
from nbopt.torch.offload.buckets import Memory, dealt
from nbopt.torch.offload.copies import Copies
from nbopt.torch.offload.gradients import Gradients, Sums
from nbopt.torch.offload.memory import bytes_of_states, check_room
from nbopt.torch.offload.pairs import Pair, claim, release
from nbopt.torch.offload.turns import Turns

_grad = attrgetter("grad")


class Hosts:
    """The pairs of an optimizer, in the order of its groups.

    Attributes
    ----------
    pairs : dict of torch.Tensor to Pair
        By the parameters.
    by_host : dict of torch.Tensor to Pair
        By the tensors on the host.
    copies : Copies
    gradients : Gradients
    turns : Turns
        What the optimizer on the host runs its steps by.
    memory : Memory
    """

    def __init__(self, device, bucket_bytes, sums):
        self.pairs: dict = {}
        self.by_host: dict = {}
        self._bucket_bytes, self._sums = bucket_bytes, sums
        self.copies = Copies(device)
        self.gradients = (Sums if sums else Gradients)(self.copies)
        self.turns = Turns(self.copies, self.gradients, self.by_host)
        self.memory = Memory([], False, False)
        self._alike = never
        self._stamp = 0  # of the states, when all masters were there last

    def paired(self, groups):
        """Return pairs for those parameters of some groups that have none, which get no memory yet."""
        params = [*chain.from_iterable(group["params"] for group in groups)]
        names = [*chain.from_iterable(group.get("param_names", group["params"]) for group in groups)]
        found: dict = {}
        for param, name in zip(params, names):
            if param not in self.pairs:
                number = len(self.pairs) + len(found)
                found[param] = Pair(param, f"parameter {repr(name) if isinstance(name, str) else number}")
                if param.device != self.copies.device:
                    raise ArgumentError(
                        f"parameters are on {self.copies.device} and on {param.device}: make an Offload for "
                        "each device, after the model was moved"
                    )
        return found

    def group_of(self, group, new):
        """Return a group with the tensors on the host in place of the parameters."""
        known = {**self.pairs, **new}
        hosts = [known[param].host for param in group["params"]]
        named = group.get("param_names")
        rest = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        return {**rest, "params": list(zip(named, hosts)) if named else hosts}

    def take_in(self, new, inner, owner):
        """Take new pairs in, and give them memory, if there is enough.

        Parameters
        ----------
        new : dict of torch.Tensor to Pair
        inner : Stepper
            The optimizer on the host, which has their tensors already.
        owner : Offload
        """
        if not new:
            return
        claim([*new], owner, [pair.name for pair in new.values()])
        try:
            for pair in new.values():
                pair.has_master = inner.master_weights and has_master(pair.param)
            self._deal({**self.pairs, **new}, new, inner)
        except BaseException:
            release([*new])
            raise
        self.pairs.update(new)
        self.by_host.update({pair.host: pair for pair in new.values()})
        self._alike = never

    def keep(self, params):
        """Forget all parameters but these, and have the others in this order."""
        for param in self.pairs.keys() - {*params}:
            pair = self.pairs.pop(param)
            self.gradients.drop(pair)
            pair.bucket.drop(pair)
            del self.by_host[pair.host]
            release([param])
        ordered = {param: self.pairs[param] for param in params}
        self.pairs.clear()
        self.pairs.update(ordered)
        self._alike = never

    def _deal(self, pairs, new, inner):
        memory = Memory(
            dealt([*pairs.values()], self._bucket_bytes),
            self._needs_all(inner),
            self.copies.pinned,
        )
        sums = sum(pair.size_of_sum() for pair in new.values() if self._sums)
        masters = 4 * sum(pair.param.numel() for pair in new.values() if pair.has_master)
        held = self.memory.held()
        parts = {
            "masters": masters + memory.needed("parameters") - held["parameters"],
            "states": bytes_of_states(inner, {pair.host for pair in new.values()}),
            "gradients": sums + memory.needed("gradients") - held["gradients"],
            "copies": memory.needed("copies") - held["copies"],
        }
        check_room({name: max(0, size) for name, size in parts.items()})
        for pair in new.values() if self._sums else ():
            pair.make_sum()
        self.gradients.forget(pairs.values())
        self.turns.use(memory)
        self.memory.give_back()
        memory.take()
        self.memory = memory

    def _needs_all(self, inner):
        """Return whether all gradients have to be on the host before the first update, as far as is known."""
        return not self._sums and (
            inner.skip_nonfinite or any(own.optimizer.gradient_clip_norm for own in inner._owned())
        )

    def see_gradients(self):
        """Check all parameters and gradients, and have the host's tensors say which of these there are.

        Returns
        -------
        list of Pair
            Those with gradients.
        """
        pairs, gradients = [*self.pairs.values()], self.gradients
        params = [*self.pairs]
        found = [*map(_grad, params)]
        # One call sees whether all is as in the last step, which is what mostly is.
        if not self._alike(*params, *found):
            for pair in pairs:
                pair.check()
            there = [gradients.is_there(pair) for pair in pairs]
            if not all(there) or gradients.adds_up:
                for pair, is_there in zip(pairs, there):
                    pair.host.grad = gradients.on_host(pair) if is_there else None
                return [pair for pair, is_there in zip(pairs, there) if is_there]
            self._alike = likeness(params, found)
        for bucket in self.memory.buckets:
            if not all(map(is_, map(_grad, bucket.hosts), bucket.gradients)):
                for host, gradient in zip(bucket.hosts, bucket.gradients):
                    host.grad = gradient
        return pairs

    def make_room(self, inner, needs_all=False):
        """Have room for all gradients, if they have to be on the host before the first update."""
        memory = self.memory
        if memory.whole or not (needs_all or self._needs_all(inner)):
            return
        check_room({"gradients": Memory(memory.buckets, True, self.copies.pinned).needed("gradients")})
        self.gradients.forget(self.pairs.values())
        self.turns.use(memory)
        memory.whole = True
        memory.take(["gradients"])

    @torch.no_grad()
    def refresh(self, inner, pairs):
        """Take over what others have written into some parameters, before these are updated.

        Parameters
        ----------
        inner : Stepper
        pairs : list of Pair
        """
        written = {pair for bucket in self.memory.buckets for pair in bucket.new_ones()}
        stamp = inner.state.stamp[0]
        if stamp != self._stamp:  # masters that somebody has removed are made of the parameters anew
            states = inner.state
            written |= {
                pair for pair in pairs if pair.has_master and MASTER.name not in states.get(pair.host, ())
            }
            if len(pairs) == len(self.pairs):
                self._stamp = stamp
        if not written:
            return
        new = [pair for pair in pairs if pair in written]
        rounds = {
            self.by_host[host]: bool(own.optimizer.stochastic_round)
            for own in inner._owned()
            for host in own.group["params"]
        }
        hosts, params = [], []
        for pair in new:
            if pair.has_master:
                value, states = pair.param.detach().to("cpu", copy=True), inner.state[pair.host]
                if MASTER.name in states:
                    refresh(value, states[MASTER.name], rounds[pair])
                else:
                    states[MASTER.name] = value.to(torch.float32)
            else:
                hosts.append(pair.host)
                params.append(pair.param)
            pair.bucket.take([pair])
        self.copies.wait(self.copies.down(hosts, params, self.copies.now()))

    @contextmanager
    def values(self, inner):
        """Have all parameters that have states on the host, as the device has them, for a while.

        Yields
        ------
        callable
            It copies them to the device, which waits for them.
        """
        pairs = [pair for pair in self.pairs.values() if pair.host in inner.state]
        self.refresh(inner, pairs)
        copied = [pair for pair in pairs if pair.has_master]

        def send():
            params, hosts = [pair.param for pair in pairs], [pair.host for pair in pairs]
            event = self.copies.up(params, hosts, self.copies.now())
            self.copies.hold(event)
            self.copies.wait(event)
            for pair in pairs:
                pair.bucket.take([pair])

        self.memory.apart = True
        self.memory.take(["copies"])
        try:
            hosts, params = [pair.host for pair in copied], [pair.param for pair in copied]
            self.copies.wait(self.copies.down(hosts, params, self.copies.now()))
            yield send
        finally:
            self.memory.apart = False
            self.memory.take(["copies"])

    def close(self):
        """Remove all hooks, and give up the parameters."""
        self.gradients.close()
        release([*self.pairs])
