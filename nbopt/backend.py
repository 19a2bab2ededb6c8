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
        Where given, the program's factor is ``clip_norm / max(||grads|| / divisor, clip_norm)``, the grads being slot 1.
    divisor : float
        What the program divides the gradients by: its first scalar, not counting the factor.
    loss_scale : Tensor or None
        One element: the divisor is to be multiplied by it, in float64, wherever it is.
    skipped : Tensor or None
        One float64. Where given and the norm of the gradients is not finite, the backend adds 1 to it in place of the update.
    addresses : numpy.ndarray or None
        int64, by row: where the gradients are now, if only that may have changed since a step of the same key. For callers that look at
        their arrays' memory themselves, since it is exchanged under the same objects or with them at every step.
    listing : (list of int, list of int) or None
        Where the rows are some of a longer list of parameters: the number of elements of each of these, and which of them each row is. The
        random bits of a row belong to its place in the whole list.
    """

    __slots__ = (
        "_tensors", "addresses", "arrays", "clip_norm", "columns", "commit", "divisor", "key", "listing", "loss_scale", "plans", "program",
        "scalars", "skipped", "stochastic_round",
    )  # fmt: skip

    def __init__(
        self,
        program,
        scalars,
        tensors,
        columns,
        commit=lambda: None,
        plans=None,
        clip_norm=None,
        stochastic_round=False,
        divisor=1.0,
        loss_scale=None,
        skipped=None,
    ):
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
        self.stochastic_round = stochastic_round
        self.divisor, self.loss_scale, self.skipped = divisor, loss_scale, skipped

    @property
    def norm_is_needed(self):
        """Bool : whether the squares of the gradients have to be summed first."""
        return self.clip_norm is not None or self.skipped is not None

    def scaled_divisor(self):
        """Read the divisor with the loss scale as it is now. On a device this makes the host wait.

        Returns
        -------
        float
        """
        return self.divisor if self.loss_scale is None else self.divisor * float(self.loss_scale.get().reshape(()))

    @property
    def divisor_index(self):
        """Int : which scalar of the program the divisor is."""
        return 0 if self.program.factor is None else 1

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
        """Return a new tensor with the values of an array.

        Parameters
        ----------
        ary : Tensor, or anything that NumPy can convert to an array
            Copied.
        dtype : dtype, optional
            float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`); the backend's `datatype` without one, whatever that of `ary`.
        name : str, optional

        Returns
        -------
        Tensor
            Of the same shape, in C order.
        """
        values = ary.get() if isinstance(ary, Tensor) else np.asanyarray(ary)
        tensor = self.empty(values.shape, dtype, name)
        self.set_values(tensor, values)
        return tensor

    def wrap(self, obj):
        """Return a tensor that shares the memory of `obj`, without a copy.

        Parameters
        ----------
        obj : Tensor, numpy.ndarray, or any array that exports DLPack or ``__cuda_array_interface__`` for this backend's device

        Returns
        -------
        Tensor
            `obj` itself, where it is a tensor of this backend.

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
        """Return a new tensor with arbitrary values.

        Parameters
        ----------
        shape : int or tuple of int
            Any number of dimensions, in C order.
        dtype : dtype, optional
            float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`); the backend's `datatype` without one.
        name : str, optional

        Returns
        -------
        Tensor

        Raises
        ------
        ShapeError
            If `shape` is no tuple of ints from 0 on.
        DtypeError
            If the backend doesn't store this dtype.
        """
        storage = self.allocate(_as_shape(shape), self.datatype if dtype is None else self.storage_dtype(dtype))
        return Tensor(self, storage, name, self.stochastic_round)

    def zeros(self, shape, dtype=None, name=None):
        """Return a new tensor, all 0.

        Parameters
        ----------
        shape : int or tuple of int
            Any number of dimensions, in C order.
        dtype : dtype, optional
            float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`); the backend's `datatype` without one.
        name : str, optional

        Returns
        -------
        Tensor
        """
        return self.empty(shape, dtype, name).fill(0.0)

    def ones(self, shape, dtype=None, name=None):
        """Return a new tensor, all 1.

        Parameters
        ----------
        shape : int or tuple of int
            Any number of dimensions, in C order.
        dtype : dtype, optional
            float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`); the backend's `datatype` without one.
        name : str, optional

        Returns
        -------
        Tensor
        """
        return self.empty(shape, dtype, name).fill(1.0)

    def empty_like(self, ary, name=None):
        """Return a new tensor of the shape and dtype of `ary`, with arbitrary values.

        Parameters
        ----------
        ary : Tensor or array
        name : str, optional

        Returns
        -------
        Tensor
        """
        return self.empty(ary.shape, ary.dtype, name)

    def zeros_like(self, ary, name=None):
        """Return a new tensor of the shape and dtype of `ary`, all 0.

        Parameters
        ----------
        ary : Tensor or array
        name : str, optional

        Returns
        -------
        Tensor
        """
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

        Raises
        ------
        NboptError
            One of its subclasses. Nothing has changed then.
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

        Raises
        ------
        ShapeError
            If the shapes don't fit.
        LayoutError
            If the target is read-only.
        TraceError
            Inside a rule, which can assign its own slots only.
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

    # --- random numbers ---

    def rng_reset(self):
        """Go back to the state after construction: the same seed, no updates so far."""
        self.rng_seed, self._updates = self._first_seed, 0

    def rng_get_state(self):
        """Return the state of stochastic rounding: all that its random bits depend on.

        Returns
        -------
        dict
            ``{"seed": int, "updates": int}``; `updates` is the number of steps and assignments so far.
        """
        return {"seed": self.rng_seed, "updates": self._updates}

    def rng_set_state(self, state):
        """Restore a state.

        Parameters
        ----------
        state : dict
            As `rng_get_state` returns it.

        Raises
        ------
        ArgumentError
            If it is no such state.
        """
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
        """Return why this backend can't be used on this machine.

        Returns
        -------
        str or None
            The reason and what to do about it; None where it can be used.
        """
        return None

    @classmethod
    def storage_dtype(cls, dtype):
        """Return a dtype in which the backend can store arrays.

        Parameters
        ----------
        dtype : dtype
            Or its name.

        Returns
        -------
        numpy.dtype

        Raises
        ------
        DtypeError
            If the backend doesn't store it.
        """
        raise NotImplementedError(f"{cls.__name__} does not say which dtypes it stores")

    def adopt(self, obj):
        """Return the storage that shares the memory of a foreign array.

        Parameters
        ----------
        obj : object
            Whatever the user passed to `wrap`.

        Returns
        -------
        object
            With the attributes `shape` (a tuple) and `dtype` (a numpy.dtype). Raises what `wrap` documents.
        """
        raise NotImplementedError(f"{type(self).__name__} can't wrap arrays")

    def allocate(self, shape, dtype):
        """Return new storage in C order, with arbitrary values.

        Parameters
        ----------
        shape : tuple of int
        dtype : numpy.dtype
            One that `storage_dtype` returned.

        Returns
        -------
        object
            As `adopt` returns.
        """
        raise NotImplementedError(f"{type(self).__name__} can't make arrays")

    def view(self, storage, key):
        """Return a part of a tensor's storage, sharing its memory.

        Parameters
        ----------
        storage : object
            As `adopt` returns.
        key : tuple of slice, int and Ellipsis

        Returns
        -------
        object
            As `adopt` returns. Raises IndexError where there is no such part.
        """
        return storage[key if any(part is Ellipsis for part in key) else (*key, ...)]

    def picklable(self, storage):
        """Return a tensor's storage in a form that pickle can write and `wrap` can take.

        Parameters
        ----------
        storage : object
            As `adopt` returns.

        Returns
        -------
        object
        """
        return storage

    def to_numpy(self, tensor):
        """Return a tensor's values: what ``tensor.get()`` does.

        Parameters
        ----------
        tensor : Tensor

        Returns
        -------
        numpy.ndarray
            A copy, of the same shape and dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} can't copy arrays to the host")

    def set_values(self, tensor, values):
        """Copy values into a tensor, rounded to nearest: what ``tensor.set(values)`` does.

        Parameters
        ----------
        tensor : Tensor
            Modified in place.
        values : array, Tensor or number
            Broadcasts to the tensor's shape, as in NumPy. Raises ShapeError where it can't.
        """
        raise NotImplementedError(f"{type(self).__name__} can't copy arrays from the host")

    def check_writable(self, tensor):
        """Check that a tensor can be written.

        Parameters
        ----------
        tensor : Tensor

        Raises
        ------
        LayoutError
            If its memory is known to be read-only.
        """

    def prepare(self, update):
        """Do everything for a step that can fail, without changing any value: check, make states, compile.

        Parameters
        ----------
        update : Update

        Returns
        -------
        callable
            ``launch(count)`` runs the step; `count` is the number of updates before it, which random bits depend on.
        """
        raise NotImplementedError(f"{type(self).__name__} can't run programs")

    def explain(self, update):
        """Return the texts of a step's kernels, without running them: what `nbopt.explain` shows.

        Parameters
        ----------
        update : Update

        Returns
        -------
        list of str
            One text for each kernel.
        """
        raise NotImplementedError(f"{type(self).__name__} has no texts of kernels to show")

    def check_together(self, updates):
        """Check what only shows when the updates of one step are looked at together: memory that one writes and another one uses.

        Parameters
        ----------
        updates : sequence of Update
            Two or more, all prepared. Raises LayoutError.
        """

    def reduce(self, op, tensor, axis, shape):
        """Reduce a tensor over an axis.

        Parameters
        ----------
        op : str
            A name from `nbopt.ops.REDUCTIONS`.
        tensor : Tensor
        axis : int or None
            None: over all elements.
        shape : tuple of int
            The result's, with or without the reduced axis.

        Returns
        -------
        Tensor
            A new one, float32 for 16-bit tensors, else of the tensor's dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reductions")

    def norm_factor(self, grads, clip_norm):
        """Return the factor that clips the norm of gradients: ``clip_norm / max(||grads|| / bsz, clip_norm)``.

        Parameters
        ----------
        grads : list of Tensor
        clip_norm : float
            Above 0.

        Returns
        -------
        float
            At most 1; NaN where the norm is NaN.
        """
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


# --- the element-wise ops and reductions: one method for each row of the op table ---


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


_OPERANDS = """Return {doc}.

        Parameters
        ----------
        {operands} : Tensor, expression or number
            They broadcast as in NumPy.{also}
        out : Tensor, optional
            Modified in place: where the result is stored, rounded to its dtype.

        Returns
        -------
        expression, float or Tensor
            An expression, which is computed when it is assigned (in float64 if any tensor of it is float64, else in float32); a float where all
            operands are numbers; `out`, where it is given.

        Raises
        ------
        OperandError
            If an operand is no tensor, expression or real number: arrays become tensors by `wrap` or `array`.
        ShapeError
            If shapes do not fit together, when the expression is assigned.
        """

_SHIFT_VALUE = """
        value : bool
            True: `b` is the value to shift by, of which the nearest power of two counts. False: `b` is the power's exponent, an integer."""

_REDUCED = """Reduce `a` over an axis to {doc}.

        Parameters
        ----------
        a : Tensor or expression
        axis : int or None
            Which axis of `a`, from 0 on; None: over all elements.
        out : Tensor, optional
            Modified in place: where the result is stored, rounded to its dtype.
        keepdims : bool
            Whether the axis stays, with length 1.

        Returns
        -------
        expression or Tensor
            An expression, which is computed when it is assigned (in float64 if `a` is or holds float64, else in float32); `out`, where it is given.

        Raises
        ------
        OperandError
            If `a` is no tensor or expression.
        ShapeError
            If `a` has no such axis.
        """


def _composed_reduction(build):
    def method(self, a, axis=None, out=None, keepdims=True):
        return self._evaluated(build(_node(a), axis, keepdims), out)

    return method


def _deviation(arg, axis, keepdims):
    return apply("sqrt", variance(arg, axis, keepdims))


_COMPOSED_REDUCTIONS = {
    "mean": (mean, "the mean"),
    "var": (variance, "the variance, the mean squared distance from the mean"),
    "std": (_deviation, "the standard deviation, the square root of the variance"),
}


def _add_methods():
    special = {"where": _where, "clip": _clip, "shift": _shift}
    operands = {row.name: ("c, a, b" if row.name == "where" else ", ".join("ab"[: row.arity]), row.doc) for row in PRIMITIVES.values()}
    operands |= {row.name: (", ".join(name for name in row.operands if "=" not in name), row.doc) for row in COMPOSED.values()}
    for name, (names, doc) in operands.items():
        method = special.get(name) or (_unary, _binary)[names.count(",")](name)
        _add_method(name, method, _OPERANDS.format(doc=doc, operands=names, also=_SHIFT_VALUE if name == "shift" else ""))
    for name, doc in REDUCTIONS.items():
        _add_method(name, _reduction(name, 1 if name.startswith("arg") else None), _REDUCED.format(doc=doc))
    for name, (build, doc) in _COMPOSED_REDUCTIONS.items():
        _add_method(name, _composed_reduction(build), _REDUCED.format(doc=doc))


def _add_method(name, method, doc):
    method.__name__, method.__qualname__, method.__doc__ = name, f"Backend.{name}", doc
    setattr(Backend, name, method)


_add_methods()
