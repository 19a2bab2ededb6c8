# Written from the op table: NBOPT_UPDATE_GOLDEN=1 pytest tests/test_signatures.py

from nbopt.arrays.tensor import Tensor
from nbopt.language.expressions import Node, Operand

def add_methods(cls: type) -> None: ...

class Ops:
    def add(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def subtract(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def multiply(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def divide(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def negative(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def absolute(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def sgn(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def sqrt(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def rint(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def finite(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def equal(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def not_equal(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def less(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def less_equal(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def greater(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def greater_equal(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def maximum(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def minimum(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def where(
        self,
        c: Operand,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def shift(
        self,
        a: Operand,
        b: Operand,
        value: bool = True,
        out: Tensor | None = None,
    ) -> Node: ...
    def ldexp(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def power(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def exp(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def exp2(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def log(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def log2(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def tanh(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def true_divide(
        self,
        a: Operand,
        b: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def fabs(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def square(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def reciprocal(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def clip(
        self,
        a: Operand,
        a_min: Operand,
        a_max: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def safelog(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def sig(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def sig2(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def tanh2(
        self,
        a: Operand,
        out: Tensor | None = None,
    ) -> Node: ...
    def sum(
        self,
        a: Operand,
        axis: int | tuple[int, ...] | None = None,
        out: Tensor | None = None,
        keepdims: bool = True,
    ) -> Node: ...
    def max(
        self,
        a: Operand,
        axis: int | tuple[int, ...] | None = None,
        out: Tensor | None = None,
        keepdims: bool = True,
    ) -> Node: ...
    def min(
        self,
        a: Operand,
        axis: int | tuple[int, ...] | None = None,
        out: Tensor | None = None,
        keepdims: bool = True,
    ) -> Node: ...
    def argmax(
        self,
        a: Operand,
        axis: int | tuple[int, ...] | None = 1,
        out: Tensor | None = None,
        keepdims: bool = True,
    ) -> Node: ...
    def argmin(
        self,
        a: Operand,
        axis: int | tuple[int, ...] | None = 1,
        out: Tensor | None = None,
        keepdims: bool = True,
    ) -> Node: ...
    def mean(
        self,
        a: Operand,
        axis: int | tuple[int, ...] | None = None,
        out: Tensor | None = None,
        keepdims: bool = True,
    ) -> Node: ...
    def var(
        self,
        a: Operand,
        axis: int | tuple[int, ...] | None = None,
        out: Tensor | None = None,
        keepdims: bool = True,
    ) -> Node: ...
    def std(
        self,
        a: Operand,
        axis: int | tuple[int, ...] | None = None,
        out: Tensor | None = None,
        keepdims: bool = True,
    ) -> Node: ...
    def norm(
        self,
        a: Operand,
        axis: int | tuple[int, ...] | None = None,
        out: Tensor | None = None,
        keepdims: bool = True,
    ) -> Node: ...
