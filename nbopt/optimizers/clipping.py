"""Clips that users call by themselves, as in neon."""

from typing import Any

from nbopt import checks
from nbopt.backends import get_backend
from nbopt.interface.update import Update
from nbopt.language.expressions import Operand
from nbopt.language.lines import ELEMENT, STEP
from nbopt.language.trace import Tracer
from nbopt.layers import as_gradient


class Clips:
    """The part of `Optimizer` that clips values and norms."""

    _backend: Any
    _divisor: Any

    def clip_value(self, v: Operand, abs_bound: Any = None) -> Any:
        """Clip the elements of a value to ``[-|abs_bound|, |abs_bound|]``.

        Parameters
        ----------
        v : Tensor or expression
        abs_bound : float, optional

        Returns
        -------
        expression
            `v` itself where `abs_bound` is None or 0.
        """
        if not abs_bound:
            return v
        return self._backend().clip(v, -abs(abs_bound), abs(abs_bound))

    def clip_gradient_norm(self, param_list: Any, clip_norm: Any) -> Any:
        """Return the factor that clips the norm of all gradients together.

        Parameters
        ----------
        param_list : list of ((W, dW), states)
            As `get_param_list` returns.
        clip_norm : float or None
            The norm to clip to; None and 0 turn clipping off.

        Returns
        -------
        float
            ``clip_norm / max(||gradients|| / be.bsz, clip_norm)``, at most 1; 1.0 where clipping is off.
        """
        clip_norm = checks.optional(checks.non_negative)("clip_norm", clip_norm)
        if not clip_norm or not param_list:
            return 1.0
        be = get_backend()
        divisor, scale = self._divisor(be.bsz)
        factor = be.zeros(1, "float64")
        tracer = Tracer(("grad", "factor", "scale"), (ELEMENT, STEP, STEP))
        grad, result, loss_scale = tracer.slots()
        by = tracer.source("divisor", divisor) * (1.0 if scale is None else loss_scale)
        norm = be.sqrt(tracer.reduce("sum", "step", grad * grad)) / by
        result[:] = clip_norm / be.maximum(norm, clip_norm)
        program, numbers = tracer.program()
        grads = [be.wrap(as_gradient(be, grad, param)) for (param, grad), _ in param_list if grad is not None]
        given, _ = numbers.function()(tracer.numbers, divisor=divisor)
        update = Update(
            program,
            given,
            None,
            lambda update: [grads],
            plans=[],
            shared=[factor, factor if scale is None else scale],
        )
        be.prepare([update])(0)
        return float(factor.get()[0])
