"""Functions of one number and of one row, as loops that LLVM vectorises.

In float32 they are polynomials without branches, good to about one unit in the last place over the whole range; in
float64, which is for checking, they are the C library's.  ``fastmath`` lets sums be taken in several parts, and never
assumes that numbers are finite: what NumPy's definitions make NaN or infinite is so here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from d2v_ref.ops import ACTIVATIONS

from .compiling import routine
from .pointers import cast
from .tiles import lanes, maximum

SUM = {"reassoc", "contract", "nsz"}  # a sum may be taken in parts
FUSE = {"contract"}  # a product and a sum may be one instruction; a range reduction stays in its order

IDENTITY, GELU, GELU_10, GELU_TANH, GELU_FAST, QUICK_GELU, HARDSWISH, LAPLACE, LEAKY_RELU = range(9)
MISH, RELU, RELU2, RELU6, SIGMOID, SILU, SQRTSOFTPLUS, TANH = range(9, 17)
# The activations by the names of their definitions in ``Ops``, which are those of the constants above.
CODES: dict[str, int] = {name: globals()[name.upper()] for name in dict.fromkeys(ACTIVATIONS.values())}


@intrinsic
def _scaled(typing: Any, x: Any, n: Any) -> Any:
    """x 2^n for a whole number n in -252 ... 254, in two steps, so that what is below the normal numbers is rounded."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        x, n = args
        whole = builder.fptosi(n, word)
        half = builder.ashr(whole, word(1))
        for exponent in (half, builder.sub(whole, half)):
            power = builder.bitcast(builder.shl(builder.add(exponent, word(127)), word(23)), ir.FloatType())
            x = builder.fmul(x, power)
        return x

    return types.float32(types.float32, types.float32), codegen


@intrinsic
def choose(typing: Any, condition: Any, one: Any, other: Any) -> Any:
    """``one if condition else other``, of which both are computed: LLVM makes branches of the other form."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(args[0], args[1], args[2])

    return one(types.boolean, one, one), codegen


@intrinsic
def same(typing: Any, one: Any, other: Any) -> Any:
    """Whether two pointers point to the same place."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.icmp_unsigned("==", args[0], args[1])

    return types.boolean(one, one), codegen


def _stand_in(x: Any) -> Any:
    raise NotImplementedError("is compiled into kernels")


def exp(x):
    """e^x."""
    return _stand_in(x)


def erf(x):
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return _stand_in(x)


def tanh(x):
    """(e^x - e^-x) / (e^x + e^-x)."""
    return _stand_in(x)


@routine(fastmath=FUSE)
def _exp(x):
    """2^n times a polynomial of the rest, |rest| <= log(2) / 2 (coefficients of Cephes' expf)."""
    f = np.float32
    x = choose(x < f(-104.0), f(-104.0), x)  # 0 beyond, and NaN stays
    x = choose(x > f(89.0), f(89.0), x)  # infinite beyond
    n = np.floor(x * f(1.44269504088896341) + f(0.5))
    r = x - n * f(0.693359375)
    r = r + n * f(2.12194440e-4)
    p = f(1.9875691500e-4)
    p = p * r + f(1.3981999507e-3)
    p = p * r + f(8.3334519073e-3)
    p = p * r + f(4.1665795894e-2)
    p = p * r + f(1.6666665459e-1)
    p = p * r + f(5.0000001201e-1)
    return _scaled(p * (r * r) + r + f(1.0), n)


@routine(fastmath=FUSE)
def _erf(x):
    """Near 0 an odd polynomial, further off 1 - exp(polynomial) (the fits of N. Juffa's erff, below 1 ulp each)."""
    f = np.float32
    t, s = abs(x), x * x
    r = f(-1.72853470e-5) * t + f(3.83197126e-4)
    u = f(-3.88396438e-3) * t + f(2.42546219e-2)
    r = r * s + u
    r = r * t + f(-1.06777877e-1)
    r = r * t + f(-6.34846687e-1)
    r = r * t + f(-1.28717512e-1)
    far = f(1.0) - _exp(r * t - t)
    far = choose(t > f(4.0), f(1.0), far)
    p = f(-5.96761703e-4)
    p = p * s + f(4.99119423e-3)
    p = p * s + f(-2.67681349e-2)
    p = p * s + f(1.12819925e-1)
    p = p * s + f(-3.76125336e-1)
    p = p * s + f(1.28379166e-1)
    near = p * x + x
    beyond = math.copysign(far, x)
    return choose(t <= f(0.927734375), near, beyond)


@routine(fastmath=FUSE)
def _tanh(x):
    """Near 0 an odd polynomial (Cephes' tanhf), further off 1 - 2 / (e^2|x| + 1)."""
    f = np.float32
    t, s = abs(x), x * x
    p = f(-5.70498872745e-3)
    p = p * s + f(2.06390887954e-2)
    p = p * s + f(-5.37397155531e-2)
    p = p * s + f(1.33314422036e-1)
    p = p * s + f(-3.33332819422e-1)
    near = p * s * t + t
    far = f(1.0) - f(2.0) / (_exp(t + t) + f(1.0))
    return math.copysign(choose(t < f(0.625), near, far), x)


@overload(exp)
def _exp_of(x):
    return (lambda x: _exp(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(erf)
def _erf_of(x):
    return (lambda x: _erf(x)) if x == types.float32 else (lambda x: math.erf(x))


@overload(tanh)
def _tanh_of(x):
    return (lambda x: _tanh(x)) if x == types.float32 else (lambda x: math.tanh(x))


# ---- the definitions of d2v_ref.ops.Ops, number by number


@routine(fastmath=FUSE)
def gelu(x):
    return (erf(x * cast(math.sqrt(0.5), x)) + cast(1.0, x)) * cast(0.5, x) * x


@routine(fastmath=FUSE)
def gelu_tanh(x):
    inner = cast(math.sqrt(2.0 / math.pi), x) * (x + cast(0.044715, x) * (x * x * x))
    return cast(0.5, x) * x * (cast(1.0, x) + tanh(inner))


@routine(fastmath=FUSE)
def gelu_fast(x):
    one = cast(1.0, x)
    return cast(0.5, x) * x * (one + tanh(cast(0.7978845608, x) * x * (one + cast(0.044715, x) * x * x)))


@routine(fastmath=FUSE)
def sigmoid(x):
    one = cast(1.0, x)
    return one / (one + exp(-x))


@routine(fastmath=FUSE)
def softplus(x):
    return x if x > cast(20.0, x) else cast(math.log1p(math.exp(x)), x)


@routine(fastmath=FUSE)
def clipped(x, low, high):
    x = choose(x < low, low, x)
    return choose(x > high, high, x)


@routine
def activate(code, x, n):
    """x = activation(x) for n numbers at a pointer; ``code``: of ``CODES``."""
    zero, six, ten = cast(0.0, x[0]), cast(6.0, x[0]), cast(10.0, x[0])
    if code == GELU:
        for i in range(n):
            x[i] = gelu(x[i])
    elif code == GELU_TANH:
        for i in range(n):
            x[i] = gelu_tanh(x[i])
    elif code == GELU_FAST:
        for i in range(n):
            x[i] = gelu_fast(x[i])
    elif code == GELU_10:
        for i in range(n):
            x[i] = clipped(gelu(x[i]), -ten, ten)
    elif code == QUICK_GELU:
        for i in range(n):
            x[i] = x[i] * sigmoid(cast(1.702, x[i]) * x[i])
    elif code == RELU:
        for i in range(n):
            x[i] = choose(x[i] < zero, zero, x[i])
    elif code == RELU2:
        for i in range(n):
            y = choose(x[i] < zero, zero, x[i])
            x[i] = y * y
    elif code == RELU6:
        for i in range(n):
            x[i] = clipped(x[i], zero, six)
    elif code == LEAKY_RELU:
        for i in range(n):
            x[i] = choose(x[i] > zero, x[i], cast(0.01, x[i]) * x[i])
    elif code == HARDSWISH:
        for i in range(n):
            x[i] = x[i] * clipped(x[i] + cast(3.0, x[i]), zero, six) / six
    elif code == SIGMOID:
        for i in range(n):
            x[i] = sigmoid(x[i])
    elif code == SILU:
        for i in range(n):
            x[i] = x[i] * sigmoid(x[i])
    elif code == TANH:
        for i in range(n):
            x[i] = tanh(x[i])
    elif code == LAPLACE:
        for i in range(n):
            z = (x[i] - cast(0.707107, x[i])) / cast(0.282095 * math.sqrt(2.0), x[i])
            x[i] = cast(0.5, x[i]) * (cast(1.0, x[i]) + erf(z))
    elif code == MISH:
        for i in range(n):
            x[i] = x[i] * tanh(softplus(x[i]))
    elif code == SQRTSOFTPLUS:
        for i in range(n):
            x[i] = math.sqrt(softplus(x[i]))


# ---- rows


@routine(fastmath=SUM)
def layer_norm_row(x, y, n, weight, bias, affine, eps):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias; y may be x."""
    total = cast(0.0, x[0])
    for j in range(n):
        total += x[j]
    mean = total / cast(n, x[0])
    total = cast(0.0, x[0])
    for j in range(n):
        off = x[j] - mean
        total += off * off
    scale = cast(1.0, x[0]) / math.sqrt(total / cast(n, x[0]) + cast(eps, x[0]))
    if same(x, y):  # a loop of its own: LLVM would find that x and y overlap, and not vectorise
        for j in range(n):
            x[j] = (x[j] - mean) * scale
        if affine:
            for j in range(n):
                x[j] = x[j] * weight[j] + bias[j]
    elif affine:
        for j in range(n):
            y[j] = (x[j] - mean) * scale * weight[j] + bias[j]
    else:
        for j in range(n):
            y[j] = (x[j] - mean) * scale


@routine
def largest(x, n):
    """The maximum of n numbers; any of them if there is NaN, which comes through where it stands."""
    top = maximum(x, n // lanes(x))
    for j in range(n // lanes(x) * lanes(x), n):
        top = choose(x[j] > top, x[j], top)
    return top


@routine(fastmath=SUM)
def exp_sum(x, n, scale, shift):
    """x = exp(scale x - shift), and the sum of it."""
    total = cast(0.0, x[0])
    for j in range(n):
        e = exp(x[j] * scale - shift)
        x[j] = e
        total += e
    return total
