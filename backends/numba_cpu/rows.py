"""Kernels that work number by number or row by row: activations, LayerNorm, softmax, and the like."""

from __future__ import annotations

import math

import numpy as np

from .compiling import Real, Rows, kernel
from .elementwise import activate, exp_sum, largest, layer_norm_row, sigmoid
from .pointers import at, cast, next_task, pointer

Places = tuple[int, int, int]
"""Up to three addresses, 0 where there is none."""

TASK = 1 << 13  # numbers of a task


@kernel
def activation(counter, code: int, x: int, count: int, like: Real):
    """x = activation(x) in place."""
    while True:
        begin = next_task(counter) * TASK
        if begin >= count:
            break
        activate(code, at(pointer(x, like), begin), TASK, 1, min(TASK, count - begin))


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
def embed_norm(
    counter,
    ids: Places,
    tables: Places,
    y: int,
    rows: int,
    width: int,
    weight: int,
    bias: int,
    eps: float,
    step: int,
    like: Real,
):
    """y = layer_norm(the sum of a row of each table), of up to three tables (.., width); ids (rows,) each, int64."""
    whole = np.int64(0)
    scale, shift = pointer(weight, like), pointer(bias, like)
    while True:
        begin = next_task(counter) * step
        if begin >= rows:
            break
        for i in range(begin, min(begin + step, rows)):
            out = at(pointer(y, like), i * width)
            first = at(pointer(tables[0], like), pointer(ids[0], whole)[i] * width)
            for j in range(width):
                out[j] = first[j]
            for table in range(1, 3):
                if tables[table]:
                    added = at(pointer(tables[table], like), pointer(ids[table], whole)[i] * width)
                    for j in range(width):
                        out[j] += added[j]
            layer_norm_row(out, out, width, scale, shift, weight != 0, eps)


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
