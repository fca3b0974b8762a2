"""Functions of one number, for the kernels to call: the activations of ``d2v_ref.ops.Ops``.

Literals are float64, so that on a card an activation is computed in float64 and rounded once, in float32 too.  Nothing
here overflows where the result does not: ``exp`` is taken of what is not positive.
"""

from __future__ import annotations

import math

from numba import cuda

from d2v_ref.ops import ACTIVATIONS

IDENTITY, GELU, GELU_10, GELU_TANH, GELU_FAST, QUICK_GELU, HARDSWISH, LAPLACE, LEAKY_RELU = range(9)
MISH, RELU, RELU2, RELU6, SIGMOID, SILU, SOFTPLUS, SQRTSOFTPLUS, TANH = range(9, 18)
# The activations by the names of their definitions in ``Ops``, which are those of the constants above.
CODES: dict[str, int] = {name: globals()[name.upper()] for name in (*dict.fromkeys(ACTIVATIONS.values()), "softplus")}

SQRT_HALF, SQRT_2_PI = math.sqrt(0.5), math.sqrt(2.0 / math.pi)


@cuda.jit(device=True)
def greater(a, b):
    """The greater of two numbers; NaN if one is."""
    return a if a > b or a != a else b


@cuda.jit(device=True)
def clipped(x, low, high):
    """x within low ... high, and NaN as it is."""
    return low if x < low else high if x > high else x


@cuda.jit(device=True)
def gelu(x):
    return 0.5 * x * (1.0 + math.erf(x * SQRT_HALF))


@cuda.jit(device=True)
def gelu_tanh(x):
    return 0.5 * x * (1.0 + math.tanh(SQRT_2_PI * (x + 0.044715 * x * x * x)))


@cuda.jit(device=True)
def gelu_fast(x):
    return 0.5 * x * (1.0 + math.tanh(0.7978845608 * x * (1.0 + 0.044715 * x * x)))


@cuda.jit(device=True)
def sigmoid(x):
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


@cuda.jit(device=True)
def softplus(x):
    return x if x > 20.0 else math.log1p(math.exp(x))


@cuda.jit(device=True)
def relu(x):
    return 0.0 if x < 0.0 else x


@cuda.jit(device=True)
def laplace(x):
    return 0.5 * (1.0 + math.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


@cuda.jit(device=True)
def activate(code, x):
    """The activation of a code in ``CODES``."""
    if code == GELU:
        return gelu(x)
    if code == GELU_10:
        return clipped(gelu(x), -10.0, 10.0)
    if code == GELU_TANH:
        return gelu_tanh(x)
    if code == GELU_FAST:
        return gelu_fast(x)
    if code == QUICK_GELU:
        return x * sigmoid(1.702 * x)
    if code == HARDSWISH:
        return x * clipped(x + 3.0, 0.0, 6.0) / 6.0
    if code == LAPLACE:
        return laplace(x)
    if code == LEAKY_RELU:
        return x if x > 0.0 else 0.01 * x
    if code == MISH:
        return x * math.tanh(softplus(x))
    if code == RELU:
        return relu(x)
    if code == RELU2:
        return relu(x) * relu(x)
    if code == RELU6:
        return clipped(x, 0.0, 6.0)
    if code == SIGMOID:
        return sigmoid(x)
    if code == SILU:
        return x * sigmoid(x)
    if code == SOFTPLUS:
        return softplus(x)
    if code == SQRTSOFTPLUS:
        return math.sqrt(softplus(x))
    if code == TANH:
        return math.tanh(x)
    return x
