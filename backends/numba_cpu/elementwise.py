"""Functions of one number and of one row, as loops that LLVM vectorises.

In float32 they are polynomials without branches, good to about one unit in the last place over the whole range, GELU
to 4 u |x| (u = 2^-24); in float64, which is for checking, they are the C library's.  ``fastmath`` lets sums be taken
in several parts, and never assumes that numbers are finite: what NumPy's definitions make NaN or infinite is so here.
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
from .pointers import at, cast
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
def _times_power(typing: Any, x: Any, n: Any) -> Any:
    """x 2^n for a whole number n, where x and that are normal numbers: n is added to the exponent."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        exponent = builder.shl(builder.fptosi(args[1], word), word(23))
        return builder.bitcast(builder.add(builder.bitcast(args[0], word), exponent), ir.FloatType())

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


def exp_below(x):
    """e^x for x <= 0; 0 in the place of what is below the normal numbers."""
    return _stand_in(x)


def erf(x):
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return _stand_in(x)


def erf_for_gelu(x):
    """erf(x), as good as gelu(x) needs it."""
    return _stand_in(x)


def tanh(x):
    """(e^x - e^-x) / (e^x + e^-x)."""
    return _stand_in(x)


@routine(fastmath=FUSE)
def _parts_of_exp(x):
    """n and e^(x - n log 2), a polynomial of the rest, |rest| <= log(2) / 2 (coefficients of Cephes' expf)."""
    f = np.float32
    n = np.floor(x * f(1.44269504088896341) + f(0.5))
    r = x - n * f(0.693359375)
    r = r + n * f(2.12194440e-4)
    p = f(1.9875691500e-4)
    p = p * r + f(1.3981999507e-3)
    p = p * r + f(8.3334519073e-3)
    p = p * r + f(4.1665795894e-2)
    p = p * r + f(1.6666665459e-1)
    p = p * r + f(5.0000001201e-1)
    return n, (p * r + f(1.0)) * r + f(1.0)


@routine(fastmath=FUSE)
def _exp(x):
    f = np.float32
    x = choose(x < f(-104.0), f(-104.0), x)  # 0 beyond, and NaN stays
    x = choose(x > f(89.0), f(89.0), x)  # infinite beyond
    n, rest = _parts_of_exp(x)
    return _scaled(rest, n)


@routine(fastmath=FUSE)
def _exp_below(x):
    f = np.float32
    n, rest = _parts_of_exp(x)
    return choose(x < f(-87.0), f(0.0), _times_power(rest, n))


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
    far = f(1.0) - _exp_below(r * t - t)
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


@routine(fastmath=FUSE)
def _erf_for_gelu(x):
    """A quotient of polynomials, off by 3e-7 at most, in half of erf's time (own fit; at 3.8 it is 1 in float32)."""
    f = np.float32
    x = choose(x < f(-3.8), f(-3.8), x)
    x = choose(x > f(3.8), f(3.8), x)
    s = x * x
    p = f(2.1468829345e-6)
    p = p * s + f(2.8682072298e-4)
    p = p * s + f(3.6318970378e-3)
    p = p * s + f(5.2361406386e-2)
    p = p * s + f(1.8665045500e-1)
    p = p * s + f(1.1283788681)
    q = f(3.9187259972e-5)
    q = q * s + f(1.1390795698e-3)
    q = q * s + f(1.4700627886e-2)
    q = q * s + f(1.1265564710e-1)
    q = q * s + f(4.9874743819e-1)
    q = q * s + f(1.0)
    return x * p / q


@overload(exp)
def _exp_of(x):
    return (lambda x: _exp(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(exp_below)
def _exp_below_of(x):
    return (lambda x: _exp_below(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(erf)
def _erf_of(x):
    return (lambda x: _erf(x)) if x == types.float32 else (lambda x: math.erf(x))


@overload(erf_for_gelu)
def _erf_for_gelu_of(x):
    return (lambda x: _erf_for_gelu(x)) if x == types.float32 else (lambda x: math.erf(x))


@overload(tanh)
def _tanh_of(x):
    return (lambda x: _tanh(x)) if x == types.float32 else (lambda x: math.tanh(x))


# ---- the definitions of d2v_ref.ops.Ops, number by number


@routine(fastmath=FUSE)
def gelu(x):
    half = cast(0.5, x) * x
    return half * erf_for_gelu(x * cast(math.sqrt(0.5), x)) + half


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


@routine(fastmath=FUSE)
def gelu_10(x):
    return clipped(gelu(x), cast(-10.0, x), cast(10.0, x))


@routine(fastmath=FUSE)
def quick_gelu(x):
    return x * sigmoid(cast(1.702, x) * x)


@routine
def relu(x):
    return choose(x < cast(0.0, x), cast(0.0, x), x)


@routine
def relu2(x):
    return relu(x) * relu(x)


@routine
def relu6(x):
    return clipped(x, cast(0.0, x), cast(6.0, x))


@routine
def leaky_relu(x):
    return choose(x > cast(0.0, x), x, cast(0.01, x) * x)


@routine
def hardswish(x):
    return x * relu6(x + cast(3.0, x)) / cast(6.0, x)


@routine(fastmath=FUSE)
def silu(x):
    return x * sigmoid(x)


@routine(fastmath=FUSE)
def laplace(x):
    z = (x - cast(0.707107, x)) / cast(0.282095 * math.sqrt(2.0), x)
    return cast(0.5, x) * (cast(1.0, x) + erf(z))


@routine
def mish(x):
    return x * tanh(softplus(x))


@routine
def sqrtsoftplus(x):
    return math.sqrt(softplus(x))


@routine(inline=True)
def each(function, x, ld, rows, n):
    """x = function(x), number by number, of rows at distances of ``ld``."""
    for i in range(rows):
        row = at(x, i * ld)
        for j in range(n):
            row[j] = function(row[j])


@routine
def activate(code, x, ld, rows, n):
    """x = activation(x) for rows of n numbers at distances of ``ld``; ``code``: of ``CODES``."""
    if code == GELU:
        each(gelu, x, ld, rows, n)
    elif code == GELU_TANH:
        each(gelu_tanh, x, ld, rows, n)
    elif code == GELU_FAST:
        each(gelu_fast, x, ld, rows, n)
    elif code == GELU_10:
        each(gelu_10, x, ld, rows, n)
    elif code == QUICK_GELU:
        each(quick_gelu, x, ld, rows, n)
    elif code == RELU:
        each(relu, x, ld, rows, n)
    elif code == RELU2:
        each(relu2, x, ld, rows, n)
    elif code == RELU6:
        each(relu6, x, ld, rows, n)
    elif code == LEAKY_RELU:
        each(leaky_relu, x, ld, rows, n)
    elif code == HARDSWISH:
        each(hardswish, x, ld, rows, n)
    elif code == SIGMOID:
        each(sigmoid, x, ld, rows, n)
    elif code == SILU:
        each(silu, x, ld, rows, n)
    elif code == TANH:
        each(tanh, x, ld, rows, n)
    elif code == LAPLACE:
        each(laplace, x, ld, rows, n)
    elif code == MISH:
        each(mish, x, ld, rows, n)
    elif code == SQRTSOFTPLUS:
        each(sqrtsoftplus, x, ld, rows, n)


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
    """x = exp(scale x - shift), where that is not above 0, and the sum of it."""
    total = cast(0.0, x[0])
    for j in range(n):
        e = exp_below(x[j] * scale - shift)
        x[j] = e
        total += e
    return total
