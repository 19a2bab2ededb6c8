"""Float64 NumPy versions of every optimizer's formula: the oracle of the tests.

Written from the table "Formulas" of the design and from nothing else. This file must
never import nbopt: it is of use only as long as it can't share a mistake with it.

Conventions of the six optimizers:

- ``p`` is the parameter, ``g`` the gradient already divided by ``be.bsz``, ``states``
  a sequence of arrays in the optimizer's own order (zeros before the first step).
- Hyper-parameters carry the names and defaults of the constructors. ``learning_rate``
  is what the schedule gave, ``s`` the norm-clip factor (see `norm_scale`).
- The result is ``(new p, tuple of new states)``. Nothing is modified.
"""

import math

import numpy as np


def _float64(*arrays):
    """Return the arrays widened to float64, so that float32 inputs give a true oracle."""
    return tuple(np.asarray(array, dtype=np.float64) for array in arrays)


def clipv(x, b):
    """Clip ``x`` to ``[-|b|, |b|]``; ``b`` of None or 0 means off."""
    if b is None or b == 0:
        return x
    return np.minimum(np.maximum(x, -abs(b)), abs(b))


def norm_scale(grads, bsz, clip_norm):
    """Return the factor ``s`` of the norm clip over all gradients of one call.

    Parameters
    ----------
    grads : sequence of arrays
        Gradients as the user has them: sums over the batch, not yet value-clipped.
    bsz : int
        The batch size that they are divided by.
    clip_norm : float or None
        The largest norm allowed; None or 0 means off.

    Returns
    -------
    float
        At most 1.
    """
    if clip_norm is None or clip_norm == 0:
        return 1.0
    squares = sum(float(np.sum(np.square(_float64(g)[0]))) for g in grads)
    return clip_norm / max(math.sqrt(squares) / bsz, clip_norm)


def shift(a, b, value=True):
    """Return ``a * sign(b) * 2^k``, k the integer nearest to ``log2 |b|``; 0 for b = 0.

    With ``value=False``, ``b`` is itself the integer exponent: ``a * 2^b``. Where b is
    infinite or NaN there is no k, and the result is ``a * b``.
    """
    (a,) = _float64(a)
    if not value:
        return np.ldexp(a, np.asarray(b).astype(np.int64))
    (b,) = _float64(b)
    # |b| = m * 2^e with m in [0.5, 1): the nearest integer to log2 |b| is e where m is
    # above sqrt(1/2), else e - 1. np.sqrt(0.5) is the first float64 above that
    # irrational number, so `>=` decides exactly, where rounding log2 itself would not.
    m, e = np.frexp(np.abs(b))
    k = np.where(m >= np.sqrt(0.5), e, e - 1)
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.ldexp(a * np.sign(b), k)
        return np.where(b == 0, 0.0, np.where(np.isfinite(b), finite, a * b))


def gradient_descent_momentum(
    p,
    g,
    states,
    *,
    learning_rate,
    momentum_coef,
    wdecay=0.0,
    nesterov=False,
    gradient_clip_value=None,
    param_clip_value=None,
    s=1.0,
):
    """Gradient descent; states ``(v,)``, or none at all where ``momentum_coef`` is 0."""
    p, g, *states = _float64(p, g, *states)
    g = clipv(g, gradient_clip_value)
    if momentum_coef == 0:
        if nesterov:
            raise ValueError("nesterov needs a momentum_coef other than 0")
        () = states
        p = p - (learning_rate * s * g + learning_rate * wdecay * p)
        return clipv(p, param_clip_value), ()
    (v,) = states
    total = s * g + wdecay * p
    v = momentum_coef * v - learning_rate * total
    if nesterov:
        p = p + momentum_coef * v - learning_rate * total
    else:
        p = p + v
    return clipv(p, param_clip_value), (v,)


def rmsprop(
    p,
    g,
    states,
    *,
    learning_rate=2e-3,
    decay_rate=0.95,
    epsilon=1e-6,
    gradient_clip_value=None,
    param_clip_value=None,
    s=1.0,
):
    """RMSProp; states ``(r,)``, the running mean square of the gradient."""
    p, g, r = _float64(p, g, *states)
    g = clipv(g, gradient_clip_value)
    r = decay_rate * r + (1 - decay_rate) * g**2
    p = p - s * g * learning_rate / (np.sqrt(r + epsilon) + epsilon)
    return clipv(p, param_clip_value), (r,)


def adagrad(
    p, g, states, *, learning_rate=0.01, epsilon=1e-6, gradient_clip_value=None, param_clip_value=None, s=1.0
):
    """Adagrad; states ``(G,)``, the sum of all squared gradients."""
    p, g, total = _float64(p, g, *states)
    g = clipv(g, gradient_clip_value)
    total = total + g**2
    p = p - s * g * learning_rate / np.sqrt(total + epsilon)
    return clipv(p, param_clip_value), (total,)


def adadelta(p, g, states, *, decay=0.95, epsilon=1e-6, gradient_clip_value=None, param_clip_value=None):
    """Adadelta; states ``(a, b, u)``: mean squares of gradient and update, last update."""
    p, g, a, b, _ = _float64(p, g, *states)
    g = clipv(g, gradient_clip_value)
    a = decay * a + (1 - decay) * g**2
    u = np.sqrt((b + epsilon) / (a + epsilon)) * g
    b = decay * b + (1 - decay) * u**2
    return clipv(p - u, param_clip_value), (a, b, u)


def adam(
    p,
    g,
    states,
    *,
    t,
    learning_rate=1e-3,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-8,
    gradient_clip_value=None,
    param_clip_value=None,
    s=1.0,
):
    """Adam; states ``(m, v)``; ``t`` counts the calls from 1."""
    p, g, m, v = _float64(p, g, *states)
    g = clipv(g, gradient_clip_value)
    rate = learning_rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g**2
    p = p - s * rate * m / (np.sqrt(v) + epsilon)
    return clipv(p, param_clip_value), (m, v)


def shift_ada_max(p, g, states, *, epoch, learning_rate=2e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    """AdaMax with shifts for products; states ``(m, v, 1/v)``; ``epoch`` counts from 0.

    A shift is a step function of its second operand: where that is within a rounding
    error of a step, a float32 result can differ from this one by a factor of 2.
    """
    p, g, m, v, _ = _float64(p, g, *states)
    rate = learning_rate / (1 - beta_1 ** (epoch + 1))
    m = beta_1 * m + (1 - beta_1) * g
    v = np.maximum(beta_2 * v, np.abs(g))
    inverse = 1 / (v + epsilon)
    p = np.clip(p - shift(shift(m, inverse), rate), -1, 1)
    return p, (m, v, inverse)
