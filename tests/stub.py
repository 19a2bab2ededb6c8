"""The text of ``nbopt/optimizers/__init__.pyi``: the constructors, for editors and type checkers.

Likewise that of ``nbopt/arrays/methods.pyi``: the ops.
"""

import inspect

from nbopt import optimizers
from nbopt.interface.backend import Backend
from nbopt.language import ops

HEAD = """\
# Written from the declarations of hyper-parameters (see hyper.py):
# NBOPT_UPDATE_GOLDEN=1 pytest tests/test_signatures.py

from typing import Any, Protocol, SupportsFloat

{imports}

__all__ = [
{names}
]

def every() -> list[Any]: ...

class _Schedule(Protocol):
    def get_learning_rate(self, learning_rate: Any, epoch: Any, /) -> Any: ...
"""
#: The first word of what an argument takes -> its type. Arrays without dimensions are numbers.
TYPES = {
    "float": "SupportsFloat", "int": "SupportsFloat", "bool": "bool", "str": "str", "Schedule": "_Schedule",
    "dtype": "Any", "tuple": "tuple[Any, ...]",
}  # fmt: skip


def type_of(takes):
    """Return the type of an argument: ``"float from 0 on, optional"`` -> ``"SupportsFloat | None"``."""
    words, _, optional = takes.partition(", ")
    found = "bool | int" if words == "bool or int" else TYPES[words.split()[0]]
    return f"{found} | None" if optional and found != "Any" else found


def class_text(cls):
    """Return the text of a class: its first sentence, its own attributes, its constructor."""
    parameters = list(inspect.signature(cls).parameters.values())
    own = [parameter.name for parameter in parameters if parameter.name not in optimizers.Optimizer.hypers]
    arguments = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in arguments:
            arguments.append("*")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        arguments.append(f"{parameter.name}: {type_of(cls.hypers[parameter.name].type)}{default}")
    return "\n".join([
        f"class {cls.__name__}({cls.__bases__[0].__name__}):",
        f'    """{inspect.cleandoc(cls.__doc__).splitlines()[0]}"""',
        "",
        *(f"    {name}: Any" for name in own),
        *([""] if own else []),
        "    def __init__(",
        *(f"        {argument}," for argument in ["self", *arguments]),
        "    ) -> None: ...",
        "",
    ])  # fmt: skip


def text():
    """Return the text of the whole file."""
    public = {name: getattr(optimizers, name) for name in optimizers.__all__}
    made = {
        name: kind
        for name, kind in public.items()
        if inspect.isclass(kind) and getattr(kind.__init__, "is_made", False)
    }
    shown = {**public, **{kind.__bases__[0].__name__: kind.__bases__[0] for kind in made.values()}}
    imports = sorted(
        f"from {value.__module__} import {name} as {name}"
        for name, value in shown.items()
        if name not in made
    )
    head = HEAD.format(
        imports="\n".join(imports), names="\n".join(f'    "{name}",' for name in optimizers.__all__)
    )
    return "\n".join([head, *map(class_text, made.values())])


#: The head of ``nbopt/arrays/methods.pyi``.
OPS_HEAD = """\
# Written from the op table: NBOPT_UPDATE_GOLDEN=1 pytest tests/test_signatures.py

from nbopt.arrays.tensor import Tensor
from nbopt.language.expressions import Node, Operand

def add_methods(cls: type) -> None: ...

class Ops:
"""
#: The types of an op's arguments. Others are operands.
OPS_TYPES = {
    "axis": "int | tuple[int, ...] | None",
    "out": "Tensor | None",
    "keepdims": "bool",
    "value": "bool",
}


def ops_text():
    """Return the text of ``nbopt/arrays/methods.pyi``: the ops as methods, for editors and type checkers."""
    lines = []
    names = [*ops.PRIMITIVES, *ops.COMPOSED, *ops.REDUCTIONS, "mean", "var", "std", "norm"]
    for name in dict.fromkeys(names):
        arguments = ["self"]
        for parameter in list(inspect.signature(getattr(Backend, name)).parameters.values())[1:]:
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            arguments.append(f"{parameter.name}: {OPS_TYPES.get(parameter.name, 'Operand')}{default}")
        lines += [
            f"    def {name}(",
            *(f"        {argument}," for argument in arguments),
            "    ) -> Node: ...",
        ]
    return OPS_HEAD + "\n".join(lines) + "\n"
