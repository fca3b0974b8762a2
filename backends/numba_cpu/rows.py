"""Kernels that work number by number or row by row: activations, LayerNorm, softmax, and the like."""

from __future__ import annotations

import math

from .compiling import Real, Rows, kernel
from .elementwise import activate, exp_sum, largest, layer_norm_row, sigmoid
from .pointers import at, cast, next_task, pointer

TASK = 1 << 13  # numbers of a task


@kernel
def activation(counter, code: int, x: int, count: int, like: Real):
    """x = activation(x) in place."""
    while True:
        begin = next_task(counter) * TASK
        if begin >= count:
            break
        activate(code, at(pointer(x, like), begin), min(TASK, count - begin))


@kernel
def layer_norm(
    counter, x: Rows, y: int, rows: int, width: int, weight: int, bias: int, eps: float, step: int, like: Real
):
    """y = layer_norm(x) of rows without gaps; ``weight`` 0: neither weight nor bias.  ``step``: rows of a task."""
    scale, shift = pointer(weight, like), pointer(bias, like)
    while True:
        begin = next_task(counter) * step
        if begin >= rows:
            break
        for i in range(begin, min(begin + step, rows)):
            row, out = at(pointer(x[0], like), i * x[1]), at(pointer(y, like), i * width)
            layer_norm_row(row, out, width, scale, shift, weight != 0, eps)


@kernel
def softmax(counter, x: Rows, y: int, rows: int, width: int, logarithm: int, step: int, like: Real):
    """y = softmax(x) of rows, or its logarithm."""
    one = cast(1.0, like)
    while True:
        begin = next_task(counter) * step
        if begin >= rows:
            break
        for i in range(begin, min(begin + step, rows)):
            row, out = at(pointer(x[0], like), i * x[1]), at(pointer(y, like), i * width)
            for j in range(width):
                out[j] = row[j]
            top = largest(row, width)
            total = exp_sum(out, width, one, top)
            if logarithm:
                below = cast(math.log(total), like)
                for j in range(width):
                    out[j] = row[j] - top - below
            else:
                inverse = one / total
                for j in range(width):
                    out[j] *= inverse


@kernel
def glu(counter, x: Rows, y: int, rows: int, half: int, step: int, like: Real):
    """y = a sigmoid(b), for the halves a and b of each row."""
    while True:
        begin = next_task(counter) * step
        if begin >= rows:
            break
        for i in range(begin, min(begin + step, rows)):
            a, out = at(pointer(x[0], like), i * x[1]), at(pointer(y, like), i * half)
            b = at(a, half)
            for j in range(half):
                out[j] = a[j] * sigmoid(b[j])
