"""What other libraries call things, so that an error can say what to type here."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from nbopt.errors import UnknownArgumentError
from nbopt.language.ops import COMPOSED, PRIMITIVES, REDUCTIONS

Called = TypeVar("Called", bound=Callable[..., Any])

# Functions and methods of NumPy, PyTorch and Python -> the op of the same meaning, if its name differs.
_OPS = {
    "abs": "absolute", "sign": "sgn", "neg": "negative", "mul": "multiply", "sub": "subtract",
    "div": "divide", "pow": "power", "float_power": "power", "clamp": "clip", "sigmoid": "sig",
    "round": "rint", "around": "rint", "isfinite": "finite", "eq": "equal", "ne": "not_equal",
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "fmax": "maximum",
    "fmin": "minimum", "clamp_min": "maximum", "clamp_max": "minimum", "masked_fill": "where",
}  # fmt: skip
# Those that several ops make up.
_FORMULAS = {
    "rsqrt": "1.0 / be.sqrt(x)", "lerp": "x + weight * (y - x)",
    "addcmul": "x + value * a * b", "addcdiv": "x + value * a / b",
    "logical_and": "a * b", "logical_or": "be.maximum(a, b)", "logical_not": "1.0 - a",
    "bitwise_and": "a * b", "bitwise_or": "be.maximum(a, b)",
    "isnan": "x != x", "zeros_like": "0.0", "ones_like": "1.0",
}  # fmt: skip
_REDUCTIONS = {
    "amax": "max", "amin": "min", "linalg_norm": "norm", "vector_norm": "norm",
    **{name: name for name in (*REDUCTIONS, "mean", "var", "std", "norm")},
}  # fmt: skip
_OTHER_REDUCTIONS = {"vdot", "prod", "median", "any", "all", "count_nonzero", "average", "reduce"}
#: Products of matrices.
MATRIX = {"@", "matmul", "mm", "dot", "outer", "einsum", "tensordot"}

#: Words for arguments of optimizers -> those of the same meaning here. PyTorch's own are in
#: `nbopt.optimizers.hyper`.
ARGUMENTS = {
    "beta1": ("beta_1",), "beta2": ("beta_2",), "clip_value": ("gradient_clip_value",),
    "scheduler": ("schedule",), "lr_schedule": ("schedule",),
    **dict.fromkeys(
        ("max_norm", "max_grad_norm", "clip", "clip_norm", "grad_clip", "gradient_clip", "clip_grad_norm"),
        ("gradient_clip_norm",),
    ),
}  # fmt: skip
#: Words for the options of a backend -> those here.
OPTIONS = {
    "bsz": "batch_size", "seed": "rng_seed", "threads": "num_threads", "dtype": "datatype",
    "device": "device_id", "name": "backend",
}  # fmt: skip
#: Words for the arguments of a reduction -> those here.
AXES = {"dim": "axis", "axes": "axis", "keepdim": "keepdims"}
_DECAY = "nbopt.AdamW, nbopt.Lion and nbopt.GradientDescentMomentum have a weight decay: wdecay="
_FUSED = "Every step is one fused kernel: leave out PyTorch's switches for that"
#: Those for which there is something else.
ELSEWHERE = {
    **dict.fromkeys(("weight_decay", "wdecay"), _DECAY),
    "amsgrad": "nbopt.AMSGrad is Adam with amsgrad=True",
    "maximize": "To maximize, negate the gradients",
    "capturable": "Before the first step, write optimizer.capturable = True",
    **dict.fromkeys(("foreach", "fused", "differentiable"), _FUSED),
}

#: Classes of the same meaning, by the names that they have here and in PyTorch.
_CLASSES = {
    "sgd": "GradientDescentMomentum", "gradientdescentmomentum": "SGD", "generate_backend": "gen_backend",
}  # fmt: skip
#: What other libraries' optimizers have -> what to type with nbopt's.
_STEP = "optimizer.optimize(layers, epoch) makes a step, with layers = [nbopt.Parameters((W, dW), ...)]"
METHODS = {
    "lr": "a rule has step.lr, and elsewhere it is optimizer.learning_rate",
    **dict.fromkeys(("train", "eval"), "nbopt.ScheduleFreeAdamW and its relatives have modes, no other"),
    **dict.fromkeys(("step", "update", "apply_gradients", "minimize", "apply"), _STEP),
    "zero_grad": "nothing has to be zeroed: write each step's gradients into their arrays, dW[:] = ...",
    "param_groups": "hyper-parameters are attributes: write optimizer.learning_rate = 1e-4",
    "add_param_group": "layers are given to each step: optimizer.optimize([*layers, new], epoch)",
    "save": 'write nbopt.save("run.safetensors", optimizer, layers)',
    "load": 'write nbopt.load("run.safetensors", optimizer, layers)',
    "explain": "write nbopt.explain(optimizer, layers)",
    "compile": "write nbopt.compile(optimizer, layers)",
}


def class_for(name: str, known: Iterable[str], module: str) -> str:
    """Return a hint for a name that a module has not.

    Parameters
    ----------
    name : str
    known : collection of str
        The names that it has.
    module : str
        What users call the module.

    Returns
    -------
    str
        Such as ``": write nbopt.RMSProp"``. Empty if no name is like it.
    """
    alike = {own.lower(): own for own in known}
    typed = name.lower()
    close = alike.get(typed) or alike.get(_CLASSES.get(typed, "").lower())
    if not close:
        close = alike.get("".join(difflib.get_close_matches(typed, alike, 1, 0.85)))
    return f": write {module}.{close}" if close else ""


def advice_for_op(name: str) -> str:
    """Return what to type in place of an operation that there is not.

    Parameters
    ----------
    name : str
        What was asked of the backend.

    Returns
    -------
    str
        Such as ``". Write be.sgn(x)"``. Empty if nothing is like it.
    """
    found = op_for(name) or reduction_for(name)
    if not found:
        close = difflib.get_close_matches(name, [*PRIMITIVES, *COMPOSED, *_REDUCTIONS], 1, 0.75)
        found = (op_for(close[0]) or reduction_for(close[0])) if close else None
    return f". Write {found}" if found else ""


def advising(function: Called, words: Mapping[str, str]) -> Called:
    """Return a function that says what to type for a keyword that it does not take.

    Parameters
    ----------
    function : callable
    words : mapping of str to str
        Other libraries' words for its arguments -> its own.

    Returns
    -------
    callable
        With the signature of `function`.

    Raises
    ------
    UnknownArgumentError
        By the function that is returned.
    """
    names = [*inspect.signature(function).parameters]
    title = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        unknown = [name for name in options if name not in names]
        if unknown:
            close = words.get(unknown[0]) or "".join(difflib.get_close_matches(unknown[0], names, 1))
            write = f" Write {close}= in place of {unknown[0]}=." if close else ""
            raise UnknownArgumentError(
                f"{title} takes no {', '.join(unknown)}.{write} Its arguments are "
                f"{', '.join(name for name in names if name != 'self')}"
            )
        return function(*args, **options)

    return cast(Called, called)


def op_for(name: str) -> str | None:
    """Return the op, or the formula, for an element-wise function or method of another library.

    Parameters
    ----------
    name : str
        Such as ``"clamp"``. An underscore at its end, PyTorch's sign of a change in place, does not count.

    Returns
    -------
    str or None
        What to type, such as ``"be.clip(a, a_min, a_max)"``. None if there is no such op.
    """
    name = name.rstrip("_")
    own = _OPS.get(name, name)
    if name in _FORMULAS:
        return _FORMULAS[name]
    if own in COMPOSED:
        return f"be.{own}({', '.join(operand for operand in COMPOSED[own].operands if '=' not in operand)})"
    if own in PRIMITIVES:
        return f"be.{own}({('x', 'a, b', 'condition, a, b')[PRIMITIVES[own].arity - 1]})"
    return None


def reduction_for(name: str) -> str | None:
    """Return what to type for a reduction of another library.

    Parameters
    ----------
    name : str
        Such as ``"amax"``.

    Returns
    -------
    str or None
        Such as ``"be.max(x)"``. None if `name` is no reduction.
    """
    if name in _REDUCTIONS:
        return f"be.{_REDUCTIONS[name]}(x)"
    return "a formula of be.sum, be.mean, be.max, be.min and be.norm" if name in _OTHER_REDUCTIONS else None
