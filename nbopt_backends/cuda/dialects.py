"""How CUDA kernels are spelled."""

from nbopt_backends.lowering.text import Dialect

_EXACT = {
    "add": "add({0}, {1})",
    "subtract": "subtract({0}, {1})",
    "multiply": "multiply({0}, {1})",
    "divide": "divide({0}, {1})",
}
_PARTS = {
    "kernel": "",
    "loop": "",
    "load": "x{slot}",
    "store": "y{slot} = {value}",
    "random": "u{index}",
    "narrowed": "narrowed({value})",
    "partial": "z{number} = {value}",
}

#: Every operation rounds by itself: an infix ``*`` followed by ``+`` could become one fma, which rounds once.
DIALECT = Dialect(
    name="cuda",
    ops={**_EXACT, "finite": "{F}(1) if subtract({0}, {0}) == {F}(0) else {F}(0)"},
    header="from nbopt_backends.cuda.primitives import *\n\n",
    **_PARTS,
)
#: What ``fast_math`` allows: contraction and approximate division. (More by NVVM, but numba-cuda hands it on
#: to no link-time optimization.)
FAST = DIALECT._replace(ops={})
#: The simulator has neither libdevice nor addresses: `simulated` has functions of the same names in NumPy.
SIMULATED = DIALECT._replace(
    name="cuda simulator", ops={}, header="from nbopt_backends.cuda.simulated import *\n\n"
)

# A branch would keep what it gives in memory, so both values are there, and one is taken. ``!=`` is false for
# NaN in 0.6.0.
_SELECTED = {
    **{
        name: f"select({{0}} {sign} {{1}}, {{F}}(1), {{F}}(0))"
        for name, sign in {
            "equal": "==",
            "less": "<",
            "less_equal": "<=",
            "greater": ">",
            "greater_equal": ">=",
        }.items()
    },
    "not_equal": "select({0} == {1}, {F}(0), {F}(1))",
    "where": "select({0} == {F}(0), {2}, {1})",
    "sgn": "select({0} > {F}(0), {F}(1), select({0} < {F}(0), {F}(-1), select({0} == {F}(0), {F}(0), {0})))",
}
#: For numba-cuda-mlir.
MLIR_DIALECT = DIALECT._replace(
    name="cuda mlir",
    ops={**_EXACT, **_SELECTED, "finite": "select(subtract({0}, {0}) == {F}(0), {F}(1), {F}(0))"},
    header="from nbopt_backends.cuda.primitives_mlir import *\n\n",
)
MLIR_FAST = MLIR_DIALECT._replace(ops=_SELECTED)
