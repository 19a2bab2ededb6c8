"""Backend: the interface between optimizers and whatever runs their programs."""

import secrets
import threading
from operator import attrgetter
from typing import Any

import numpy as np

from nbopt.assignment import TensorTracer, broadcast, dtypes_of, mean, reduced_shape, shape_of, variance, without_reductions
from nbopt.errors import ArgumentError, OperandError, ShapeError, TraceError
from nbopt.expr import Node, Reduction, apply, apply_named, as_number
from nbopt.interrupts import uninterrupted
from nbopt.ops import COMPOSED, PRIMITIVES, REDUCTIONS
from nbopt.tensor import Tensor, normalise_rounding
from nbopt.trace import tracing

_serials = attrgetter("serial")


class Update:
    """One optimizer's share of a step, as `Backend.update` takes it.

    Attributes
    ----------
    program : Program
    scalars : list of float
        The run-time scalars' values, in float64.
    tensors : list
        What the caller's lists hold now: param, grad of each row, then the states of each row. (The constructor takes a function that
        returns an iterator over them, or None: most steps need their serial numbers only.)
    key : list of int or None
        Their serial numbers. Equal keys mean the same tensors. None where some are plain arrays, not wrapped yet. Whoever sets `addresses`
        sets the key as well, to any list of numbers that stays the same as long as everything but these addresses does.
    columns : callable
        ``columns(update)`` returns one list of tensors for each slot of the program, validated; called only where `key` is new.
    commit : callable
        Called with no arguments when nothing can fail any more, before the first launch of the call.
    plans : list
        Belongs to the optimizer: the backend keeps there what it wants to find again at the next step.
    arrays : list of list, or None
        Set by `prepare`: the storage by slot, where the tensors were looked at afresh. It lives until the step is over.
    stochastic_round : bool or int
        The optimizer's setting: where it is not False it rules the parameters (slot 0) and the 16-bit states; else each tensor's does.
    clip_norm : float or None
        Where given, the program's factor is ``clip_norm / max(||grads|| / bsz, clip_norm)``, the grads being slot 1.
    bsz : int
        What the gradients were divided by, in the program too.
    addresses : numpy.ndarray or None
        int64, by row: where the gradients are now, if only that may have changed since a step of the same key. For callers that look at
        their arrays' memory themselves, since it is exchanged under the same objects or with them at every step.
    listing : (list of int, list of int) or None
        Where the rows are some of a longer list of parameters: the number of elements of each of these, and which of them each row is. The
        random bits of a row belong to its place in the whole list.
    """

    __slots__ = (
        "_tensors", "addresses", "arrays", "bsz", "clip_norm", "columns", "commit", "key", "listing", "plans", "program", "scalars",
        "stochastic_round",
    )  # fmt: skip

    def __init__(self, program, scalars, tensors, columns, commit=lambda: None, plans=None, clip_norm=None, stochastic_round=False, bsz=1):
        self.program, self.scalars, self._tensors = program, scalars, tensors
        self.arrays: Any = None
        self.key: Any = None
        self.addresses: Any = None
        self.listing: Any = None
        if tensors is not None:
            try:
                self.key = list(map(_serials, tensors()))
            except (AttributeError, TypeError):
                pass
        self.columns, self.commit, self.plans, self.clip_norm = columns, commit, plans, clip_norm
        self.stochastic_round, self.bsz = stochastic_round, bsz

    @property
    def tensors(self):
        """Return a new list."""
        return list(self._tensors())


class Backend:
    """Arrays, element-wise ops over them, and fused updates. Subclasses implement the methods under "for implementers".

    Parameters
    ----------
    rng_seed : int, optional
        Seed of stochastic rounding; drawn from the system without one, and readable as ``rng_seed``.
    datatype : dtype
        The dtype of new tensors that are given none.
    batch_size : int
        Gradients are divided by it. At least 1.
    stochastic_round : bool or int
        The rounding that new tensors start with.
    device_id : int
        Which device, for backends with several.
    num_threads : int, optional
        How many threads a CPU backend uses at most.
    fast_math : bool
        Let the compiler reassociate and contract arithmetic: faster in places, and no longer the same bits everywhere.

    Attributes
    ----------
    launches, compilations : int
        How many kernels this backend has started, and built (from source, not from a cache), so far.
    """

    name: Any = None
    memory = "host"

    def __init__(self, rng_seed=None, datatype=np.float32, batch_size=1, stochastic_round=False, device_id=0, num_threads=None, fast_math=False):
        if rng_seed is not None and not (isinstance(rng_seed, (int, np.integer)) and 0 <= rng_seed < 2**64):
            raise ArgumentError(f"rng_seed must be an int from 0 to 2**64 - 1, not {rng_seed!r}")
        if num_threads is not None and not (isinstance(num_threads, (int, np.integer)) and num_threads >= 1):
            raise ArgumentError(f"num_threads must be an int from 1 on, not {num_threads!r}")
        self.rng_seed = secrets.randbits(64) if rng_seed is None else rng_seed.__index__()
        self._first_seed = self.rng_seed
        self.datatype = self.storage_dtype(datatype)
        self.bsz = batch_size
        self.stochastic_round = normalise_rounding(stochastic_round)
        self.device_id = device_id
        self.num_threads = num_threads
        if not isinstance(fast_math, bool):
            raise ArgumentError(f"fast_math must be True or False, not {fast_math!r}")
        self.fast_math = fast_math
        self.launches = 0
        self.compilations = 0
        self._updates = 0
        self._lock = threading.Lock()

    @property
    def bsz(self):
        """Int : the batch size that optimizers divide gradients by."""
        return self._bsz

    @bsz.setter
    def bsz(self, value):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ArgumentError(f"the batch size must be an int from 1 on, not {value!r}: gradients are divided by it")
        self._bsz = value.__index__()

    # --- arrays ---

    def array(self, ary, dtype=None, name=None):
        """Return a new tensor with the values of `ary` (anything NumPy can convert), as `dtype` (the backend's by default)."""
        values = ary.get() if isinstance(ary, Tensor) else np.asanyarray(ary)
        tensor = self.empty(values.shape, dtype, name)
        self.set_values(tensor, values)
        return tensor

    def wrap(self, obj):
        """Return a tensor that shares the memory of `obj`, without a copy.

        Parameters
        ----------
        obj : Tensor, numpy.ndarray, or any array that exports DLPack or ``__cuda_array_interface__`` for this backend's device

        Raises
        ------
        OperandError
            If `obj` is no array.
        LayoutError
            If its memory can't be used as it is: byte-swapped, unaligned, masked, or on another device.
        DtypeError
            If its dtype is not one of `storage_dtype`'s.
        """
        if isinstance(obj, Tensor):
            if obj.be is self:
                return obj
            return Tensor(self, self.adopt(obj.storage), obj.name, obj.rounding)
        return Tensor(self, self.adopt(obj), None, self.stochastic_round)

    def empty(self, shape, dtype=None, name=None):
        """Return a new tensor of this shape with arbitrary values."""
        storage = self.allocate(_as_shape(shape), self.datatype if dtype is None else self.storage_dtype(dtype))
        return Tensor(self, storage, name, self.stochastic_round)

    def zeros(self, shape, dtype=None, name=None):
        """Return a new tensor of this shape, all 0."""
        return self.empty(shape, dtype, name).fill(0.0)

    def ones(self, shape, dtype=None, name=None):
        """Return a new tensor of this shape, all 1."""
        return self.empty(shape, dtype, name).fill(1.0)

    def empty_like(self, ary, name=None):
        """Return a new tensor of the shape and dtype of `ary`, a tensor or an array."""
        return self.empty(ary.shape, ary.dtype, name)

    def zeros_like(self, ary, name=None):
        """Return a new tensor of the shape and dtype of `ary`, a tensor or an array, all 0."""
        return self.zeros(ary.shape, ary.dtype, name)

    # --- steps and assignments ---

    def update(self, *updates):
        """Run one step, whole or not at all. The one door through which optimizers reach a backend.

        Everything that can fail (validation, allocation, compilation) happens for all updates before the first kernel is
        launched. From there on a KeyboardInterrupt waits until the last launch.

        Parameters
        ----------
        *updates : Update
            Modified in place: the tensors of the slots that the programs write.
        """
        launches = [self.prepare(update) for update in updates]
        if len(updates) > 1:
            self.check_together(updates)
        with uninterrupted:
            with self._lock:
                count = self._updates
                self._updates += 1
            for update in updates:
                update.commit()
            for launch in launches:
                launch(count)

    def assign(self, target, value):
        """Evaluate `value` and store it in the tensor `target`: what ``target[:] = value`` does.

        Parameters
        ----------
        target : Tensor
            Modified in place.
        value : Node, number or array
            Shapes broadcast to the target's, as in NumPy. Reductions in it are evaluated first, each to a small tensor.
        """
        if tracing.active:
            raise TraceError("a rule assigns its own slots and nothing else: what else it needs must be a number or one of its states")
        if hasattr(value, "__array__") and not isinstance(value, (Node, np.generic)):
            value = np.asanyarray(value)
            if target.rounding is not False:
                storable = value.dtype if value.dtype.name in ("float32", "float16", "bfloat16") else np.float64
                self.update(self._assignment(target, self.array(value, storable)))
                return
            self.set_values(target, value)
            with self._lock:
                self._updates += 1
        else:
            self.update(self._assignment(target, value if isinstance(value, Node) else as_number(value)))

    def _assignment(self, target, value):
        value = without_reductions(value, self._reduce)
        shape = shape_of(value)
        if broadcast(shape, target.shape) != target.shape:
            raise ShapeError(f"an expression of shape {shape} can't be assigned to a tensor of shape {target.shape}")
        tracer = TensorTracer(target)
        tracer.assign(value)
        return Update(tracer.program(), tracer.scalars, None, lambda update: [[tensor] for tensor in tracer.tensors])

    def _reduce(self, node):
        arg = node.arg
        if not isinstance(arg, Tensor):
            arg = self.empty(shape_of(arg), np.float64 if np.dtype(np.float64) in dtypes_of(arg) else np.float32)
            arg.rounding = False
            self.prepare(self._assignment(arg, node.arg))(0)  # of no user's making, so the update count stays
        return self.reduce(node.op, arg, node.axis, reduced_shape(arg.shape, node.axis, node.keepdims))

    def _evaluated(self, value, out):
        if out is None:
            return value
        if not isinstance(out, Tensor):
            raise OperandError(f"out must be a tensor, not {type(out).__name__}")
        self.assign(out, value)
        return out

    # --- reductions; the element-wise ops are added below ---

    def mean(self, a, axis=None, out=None, keepdims=True):
        """Return the mean of `a` over `axis` (None: over all elements)."""
        return self._evaluated(mean(_node(a), axis, keepdims), out)

    def var(self, a, axis=None, out=None, keepdims=True):
        """Return the variance of `a` over `axis`: the mean squared distance from the mean."""
        return self._evaluated(variance(_node(a), axis, keepdims), out)

    def std(self, a, axis=None, out=None, keepdims=True):
        """Return the standard deviation of `a` over `axis`, the square root of `var`."""
        return self._evaluated(apply("sqrt", variance(_node(a), axis, keepdims)), out)

    # --- random numbers ---

    def rng_reset(self):
        """Go back to the state after construction: the same seed, no updates so far."""
        self.rng_seed, self._updates = self._first_seed, 0

    def rng_get_state(self):
        """Return the state of stochastic rounding, ``{"seed": int, "updates": int}``: all that its random bits depend on."""
        return {"seed": self.rng_seed, "updates": self._updates}

    def rng_set_state(self, state):
        """Restore a state that `rng_get_state` gave."""
        try:
            seed, updates = state["seed"], state["updates"]
            valid = isinstance(seed, int) and isinstance(updates, int) and 0 <= seed < 2**64 and updates >= 0
        except (TypeError, KeyError, IndexError):
            valid = False
        if not valid:
            raise ArgumentError(f"a state is what rng_get_state returns, {{'seed': int, 'updates': int}}; not {state!r}")
        self.rng_seed, self._updates = int(seed), int(updates)

    # --- for implementers ---

    @classmethod
    def problem(cls):
        """Return why this backend can't be used on this machine and what to do about it, or None where it can."""
        return None

    @classmethod
    def storage_dtype(cls, dtype):
        """Return `dtype` as a numpy.dtype, or raise DtypeError where the backend doesn't store it."""
        raise NotImplementedError(f"{cls.__name__} does not say which dtypes it stores")

    def adopt(self, obj):
        """Return the storage that shares the memory of the foreign array `obj`, or raise as `wrap` documents."""
        raise NotImplementedError(f"{type(self).__name__} can't wrap arrays")

    def allocate(self, shape, dtype):
        """Return new storage in C order."""
        raise NotImplementedError(f"{type(self).__name__} can't make arrays")

    def view(self, storage, key):
        """Return the part of `storage` that `key`, a tuple of slices, integers and Ellipsis, selects, sharing its memory."""
        return storage[key if any(part is Ellipsis for part in key) else (*key, ...)]

    def picklable(self, storage):
        """Return `storage` in a form that pickle can write and `wrap` can take."""
        return storage

    def to_numpy(self, tensor):
        """Return a copy of the tensor's values as a NumPy array."""
        raise NotImplementedError(f"{type(self).__name__} can't copy arrays to the host")

    def set_values(self, tensor, values):
        """Copy the values of an array, a tensor or a number into `tensor`, rounding to its dtype."""
        raise NotImplementedError(f"{type(self).__name__} can't copy arrays from the host")

    def prepare(self, update):
        """Do everything for `update` that can fail, and return a function of the update count that launches it."""
        raise NotImplementedError(f"{type(self).__name__} can't run programs")

    def check_together(self, updates):
        """Check what only shows when the updates of one step, all prepared, are looked at together."""

    def reduce(self, op, tensor, axis, shape):
        """Reduce a tensor over an axis (None: over all elements) and return a new tensor of shape `shape`."""
        raise NotImplementedError(f"{type(self).__name__} has no reductions")

    def norm_factor(self, grads, clip_norm):
        """Return ``clip_norm / max(||grads|| / bsz, clip_norm)`` of a list of tensors as a float."""
        raise NotImplementedError(f"{type(self).__name__} has no norm")

    def synchronize(self):
        """Wait until everything that was launched is done. CPU backends are always done."""


def _as_shape(shape):
    dims = shape if isinstance(shape, (tuple, list)) else (shape,)
    if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in dims):
        raise ShapeError(f"a shape is a tuple of ints from 0 on, not {shape!r}")
    return tuple(n.__index__() for n in dims)


def _node(value):
    if not isinstance(value, Node):
        raise OperandError(f"a reduction takes a tensor or an expression, not {type(value).__name__}")
    return value


# --- the element-wise ops and simple reductions: one method for each row of the op table ---


def _unary(name):
    def method(self, a, out=None):
        return self._evaluated(apply_named(name, a), out)

    return method


def _binary(name):
    def method(self, a, b, out=None):
        return self._evaluated(apply_named(name, a, b), out)

    return method


def _where(self, c, a, b, out=None):
    return self._evaluated(apply("where", c, a, b), out)


def _clip(self, a, a_min, a_max, out=None):
    return self._evaluated(apply_named("clip", a, a_min, a_max), out)


def _shift(self, a, b, value=True, out=None):
    return self._evaluated(apply_named("shift", a, b, value), out)


def _reduction(name, default_axis):
    def method(self, a, axis=default_axis, out=None, keepdims=True):
        shape_of(Reduction(name, _node(a), axis, keepdims))  # complains about a wrong axis here, not when it is assigned
        return self._evaluated(Reduction(name, a, axis, keepdims), out)

    return method


def _add_methods():
    special = {"where": _where, "clip": _clip, "shift": _shift}
    methods = {row.name: (special.get(row.name) or (_unary, _binary)[row.arity - 1](row.name), row.doc) for row in PRIMITIVES.values()}
    for row in COMPOSED.values():
        methods[row.name] = special.get(row.name) or (_unary, _binary)[len(row.operands) - 1](row.name), row.doc
    for name, doc in REDUCTIONS.items():
        over = f"Return {doc} of `a` over `axis` (None: over all elements)"
        methods[name] = _reduction(name, 1 if name.startswith("arg") else None), over
    for name, (method, doc) in methods.items():
        method.__name__, method.__qualname__ = name, f"Backend.{name}"
        method.__doc__ = f"""{doc[0].upper()}{doc[1:]}.

        Operands are tensors, expressions and numbers, which broadcast as in NumPy. Returns an expression (a float, if all operands are
        numbers); with `out`, a tensor, stores the result there and returns `out`.
        """
        setattr(Backend, name, method)


_add_methods()
