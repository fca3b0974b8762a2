"""Kernels that work number by number or row by row: sums, activations, LayerNorm, softmax, means, and the like."""

from __future__ import annotations

import math

import numpy as np

from .compiling import Address, Real, Rows, Spread, kernel, routine
from .elementwise import activate, exp_sum, largest, layer_norm_row, sigmoid
from .pointers import at, beyond, cast, given, pointer
from .tasks import next_part

Places = tuple[Address, Address, Address]
"""Up to three addresses, 0 where there is none."""
Shape = tuple[int, int, int, int]
"""The lengths of four axes."""

TASK = 1 << 13  # numbers of a task


@routine(inline=True)
def row_of(x, index, shape, like):
    """Where the row of this number begins, of those that an operand has when it is broadcast to a shape."""
    i, j, k = index // (shape[1] * shape[2]), index // shape[2] % shape[1], index % shape[2]
    return beyond(x[0], i * x[1] + j * x[2] + k * x[3], like)


@kernel
def add(team, x: Spread, y: Spread, out: Address, shape: Shape, step: int, like: Real):
    """out = x + y, without gaps.  ``step``: rows of a task, here and below."""
    rows, width = shape[0] * shape[1] * shape[2], shape[3]
    while True:
        begin, end = next_part(team, rows, step)
        if begin == end:
            break
        for i in range(begin, end):
            a, b, row = row_of(x, i, shape, like), row_of(y, i, shape, like), at(pointer(out, like), i * width)
            if x[4] == 1 and y[4] == 1:
                for j in range(width):
                    row[j] = a[j] + b[j]
            else:
                for j in range(width):
                    row[j] = a[j * x[4]] + b[j * y[4]]


@kernel
def copy(team, x: Spread, y: Spread, shape: Shape, step: int, like: Real):
    """y = x, whose axes may lie anyhow."""
    rows, width = shape[0] * shape[1] * shape[2], shape[3]
    while True:
        begin, end = next_part(team, rows, step)
        if begin == end:
            break
        for i in range(begin, end):
            a, row = row_of(x, i, shape, like), row_of(y, i, shape, like)
            if x[4] == 1 and y[4] == 1:
                for j in range(width):
                    row[j] = a[j]
            else:
                for j in range(width):
                    row[j * y[4]] = a[j * x[4]]


@kernel
def where(
    team,
    mask: Spread,
    x: Spread,
    x_number: float,
    y: Spread,
    y_number: float,
    out: Address,
    shape: Shape,
    step: int,
    like: Real,
):
    """out = x where the mask (bytes) is not 0, else y, without gaps; a number for what has the address 0."""
    rows, width = shape[0] * shape[1] * shape[2], shape[3]
    x_number, y_number = cast(x_number, like), cast(y_number, like)
    while True:
        begin, end = next_part(team, rows, step)
        if begin == end:
            break
        for i in range(begin, end):
            taken = row_of(mask, i, shape, np.uint8(0))
            a, b, row = row_of(x, i, shape, like), row_of(y, i, shape, like), at(pointer(out, like), i * width)
            for j in range(width):
                if taken[j * mask[4]]:
                    row[j] = a[j * x[4]] if given(a) else x_number
                else:
                    row[j] = b[j * y[4]] if given(b) else y_number


@kernel
def means(team, x: Spread, y: Address, shape: Shape, size: int, step: int, like: Real):
    """y (batch, size, size, channels) = the means of the cells of x (batch, height, width, channels), ``shape``."""
    batch, height, across, channels = shape
    while True:
        begin, end = next_part(team, batch * size * size, step)
        if begin == end:
            break
        for cell in range(begin, end):
            b, i, j = cell // (size * size), cell // size % size, cell % size
            top, bottom = i * height // size, ((i + 1) * height + size - 1) // size
            left, right = j * across // size, ((j + 1) * across + size - 1) // size
            row = at(pointer(y, like), cell * channels)
            for c in range(channels):
                row[c] = 0
            for u in range(top, bottom):
                for v in range(left, right):
                    pixel = beyond(x[0], b * x[1] + u * x[2] + v * x[3], like)
                    for c in range(channels):
                        row[c] += pixel[c * x[4]]
            count = cast((bottom - top) * (right - left), like)
            for c in range(channels):
                row[c] /= count


@kernel
def activation(team, code: int, x: Address, count: int, like: Real):
    """x = activation(x) in place."""
    while True:
        begin, end = next_part(team, count, TASK)
        if begin == end:
            break
        activate(code, at(pointer(x, like), begin), TASK, 1, end - begin)


@kernel
def layer_norm(
    team,
    x: Rows,
    y: Address,
    rows: int,
    width: int,
    weight: Address,
    bias: Address,
    eps: float,
    step: int,
    like: Real,
):
    """y = layer_norm(x) of rows without gaps; ``weight`` 0: neither weight nor bias."""
    scale, shift = pointer(weight, like), pointer(bias, like)
    while True:
        begin, end = next_part(team, rows, step)
        if begin == end:
            break
        for i in range(begin, end):
            row, out = at(pointer(x[0], like), i * x[1]), at(pointer(y, like), i * width)
            layer_norm_row(row, out, width, scale, shift, weight != 0, eps)


@kernel
def embed_norm(
    team,
    ids: Places,
    tables: Places,
    y: Address,
    rows: int,
    width: int,
    weight: Address,
    bias: Address,
    eps: float,
    step: int,
    like: Real,
):
    """y = layer_norm(the sum of a row of each table), of up to three tables (.., width); ids (rows,) each, int64."""
    whole = np.int64(0)
    scale, shift = pointer(weight, like), pointer(bias, like)
    while True:
        begin, end = next_part(team, rows, step)
        if begin == end:
            break
        for i in range(begin, end):
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
def softmax(team, x: Rows, y: Address, rows: int, width: int, logarithm: int, step: int, like: Real):
    """y = softmax(x) of rows, or its logarithm."""
    one = cast(1.0, like)
    while True:
        begin, end = next_part(team, rows, step)
        if begin == end:
            break
        for i in range(begin, end):
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
def glu(team, x: Rows, y: Address, rows: int, half: int, step: int, like: Real):
    """y = a sigmoid(b), for the halves a and b of each row."""
    while True:
        begin, end = next_part(team, rows, step)
        if begin == end:
            break
        for i in range(begin, end):
            a, out = at(pointer(x[0], like), i * x[1]), at(pointer(y, like), i * half)
            b = at(a, half)
            for j in range(half):
                out[j] = a[j] * sigmoid(b[j])
