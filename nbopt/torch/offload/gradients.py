"""Gradients on their way to the host: during the backward pass where there is room, else during the step."""

import weakref
from operator import attrgetter
from typing import Any

import torch

from nbopt.errors import ArgumentError, SparseError
from nbopt.torch.offload.pairs import check_grad

_grad, _arrived = attrgetter("grad"), attrgetter("arrived")


class Gradients:
    """Gradients that are added up on the device, by PyTorch, and copied to the host.

    Attributes
    ----------
    early : bool
        Whether gradients are copied as soon as a backward pass has left them. They are not if something has
        changed some after their backward pass in the last step, such as a clip of the user's, since then they
        are copied again.
    """

    #: Whether there is room for all of them, in sums.
    adds_up = False

    def __init__(self, copies):
        self.copies, self.early = copies, True
        self.memory: Any = None
        self._in_block = [None, None]  # the bucket whose gradients lie in each of two shared blocks
        self._watched: dict = {}

    def watch(self, pair):
        """Have a parameter's gradient copied as soon as backward passes leave it."""
        param = pair.param
        if pair in self._watched or not param.requires_grad:
            return
        own, known = weakref.ref(self), weakref.ref(pair)

        def arrive(_):
            gradients, its = own(), known()
            if gradients is not None and its is not None:
                gradients.arrive(its)

        self._watched[pair] = param.register_post_accumulate_grad_hook(arrive)

    def close(self):
        """Remove all hooks."""
        for handle in self._watched.values():
            handle.remove()
        self._watched.clear()

    def drop(self, pair):
        """Forget a parameter that has left the optimizer."""
        handle = self._watched.pop(pair, None)
        if handle is not None:
            handle.remove()

    def arrive(self, pair):
        """Take note of a gradient that a backward pass has left, and copy it if there is room."""
        grad = pair.param.grad
        if grad is None or grad.layout is not torch.strided or grad.dtype != pair.param.dtype:
            return  # the step says what is wrong with it
        pair.passes += 1
        pair.saw(grad)
        if (
            self.early
            and pair.passes >= pair.expected
            and not _are_averaged()
            and self._has_room(pair.bucket)
        ):
            pair.bucket.event = self.copies.down([pair.gradient], [grad], self.copies.now())
            pair.arrived = True

    def _has_room(self, bucket):
        if self.memory is None:
            return False
        if self.memory.whole:
            return True
        if self._in_block[bucket.turn] is None:
            self._in_block[bucket.turn] = bucket
        return self._in_block[bucket.turn] is bucket

    def is_there(self, pair):
        """Return whether a parameter has a gradient; raise if it can't be copied."""
        grad = pair.param.grad
        if grad is None:
            return False
        if grad.layout is not torch.strided:
            raise SparseError(
                f"the gradient of {pair.name} is sparse ({grad.layout}), and a step needs all of its "
                "elements: make it dense (param.grad = param.grad.to_dense()), or have the layer make it so "
                "(torch.nn.Embedding(..., sparse=False))"
            )
        check_grad(pair)
        return True

    def on_host(self, pair):
        """Return the tensor in which a gradient arrives."""
        return pair.gradient

    def in_turn(self, buckets):
        """Return buckets in an order in which none waits for memory that another one's gradients lie in."""
        if self.memory.whole:
            return buckets
        order: list = []
        turns = [[bucket for bucket in buckets if bucket.turn == turn] for turn in range(2)]
        for own, first in zip(turns, self._in_block):
            own.sort(key=lambda bucket: bucket is not first)
        for place in range(max(map(len, turns))):
            order += [own[place] for own in turns if place < len(own)]
        return order

    def bring(self, bucket, start):
        """Queue the copies of those gradients of a bucket that are not on the host, or have changed there."""
        self._in_block[bucket.turn] = bucket
        targets, grads = bucket.gradients, [*map(_grad, bucket.params)]
        if any(grad is None for grad in grads) or any(map(_arrived, bucket.pairs)):
            missing = [
                (pair.gradient, grad)
                for pair, grad in zip(bucket.pairs, grads)
                if grad is not None and not (pair.arrived and pair.is_seen(grad))
            ]
            targets, grads = [target for target, _ in missing], [grad for _, grad in missing]
        bucket.event = self.copies.down(targets, grads, start)

    def begin_again(self, pairs):
        """Get ready for the next backward pass."""
        self.early = all(pair.is_seen(pair.param.grad) for pair in pairs if pair.seen is not None)
        for pair in pairs:
            pair.expected = pair.passes or 1
        self.forget(pairs)

    def forget(self, pairs):
        """Take gradients that have come early for missing."""
        self._in_block = [None, None]
        for pair in pairs:
            pair.forget()


class Sums(Gradients):
    """Gradients that are added up on the host, in float32. The device keeps none."""

    adds_up = True

    def __init__(self, copies):
        super().__init__(copies)
        self._waiting: list[dict] = [{}, {}]  # the parameters whose gradients lie in each of two blocks

    def arrive(self, pair):
        """Take a gradient from the device, to add it up as soon as its memory is needed again."""
        grad = pair.param.grad
        if grad is None or grad.layout is not torch.strided:
            return
        if _are_averaged():
            raise ArgumentError(
                'accumulate="host" would add up the gradients of this process alone, before '
                "torch.distributed has averaged them: leave it out"
            )
        self._take(pair, grad)

    def _take(self, pair, grad):
        bucket = pair.bucket
        if self._in_block[bucket.turn] is not bucket or pair in self._waiting[bucket.turn]:
            self._add_up(bucket.turn)
        self._in_block[bucket.turn] = bucket
        bucket.event = self.copies.down([pair.gradient], [grad], self.copies.now())
        self._waiting[bucket.turn][pair] = None
        pair.param.grad = None

    @torch.no_grad()
    def _add_up(self, turn):
        if self._waiting[turn]:
            self.copies.wait(self._in_block[turn].event)
        for pair in self._waiting[turn]:
            if pair.arrived:
                pair.total.add_(pair.gradient)
            else:
                pair.total.copy_(pair.gradient)
            pair.arrived = True
        self._waiting[turn] = {}

    def is_there(self, pair):
        """Return whether a parameter has had a gradient; raise if it can't be copied."""
        if super().is_there(pair):  # somebody has set it
            self._take(pair, pair.param.grad)
        return pair.arrived or any(pair in own for own in self._waiting)

    def on_host(self, pair):
        """Return the tensor in which a gradient arrives."""
        return pair.total

    def in_turn(self, buckets):
        """Return the buckets."""
        return buckets

    def bring(self, bucket, start):
        """Add up what is still to be added up."""
        for turn in range(2):
            self._add_up(turn)

    def begin_again(self, pairs):
        """Have sums begin again."""
        self.forget(pairs)

    def forget(self, pairs):
        """Have sums begin again."""
        self._waiting = [{}, {}]
        super().forget(pairs)


def _are_averaged():
    """Return whether gradients may be changed after their backward pass without a trace, as DDP does."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
