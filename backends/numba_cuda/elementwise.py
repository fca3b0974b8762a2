"""Kernels that make each number of an array on its own, of operands that lie in memory in any way.

An operand is a flat array, where its first number lies, and the distance of its numbers along each of ``RANK`` axes: 0
where it is broadcast, negative where it is reversed.  Threads go on in steps of the grid until no number is left.
"""

from __future__ import annotations

from numba import cuda

from .scalars import activate, sigmoid

RANK = 6  # the most axes that an array has here: fewer are led by axes of one

ADD, SUBTRACT, MULTIPLY, DIVIDE = range(4)


@cuda.jit(device=True)
def place(i, shape, start, strides):
    """Where number i lies, in the order of rows: the last axis runs fastest."""
    for axis in range(RANK - 1, -1, -1):
        start += i % shape[axis] * strides[axis]
        i //= shape[axis]
    return start


@cuda.jit
def copy(shape, count, x, x_start, x_strides, y, y_start, y_strides):
    """y[...] = x[...], converted to the dtype of y."""
    for i in range(cuda.grid(1), count, cuda.gridsize(1)):
        y[place(i, shape, y_start, y_strides)] = x[place(i, shape, x_start, x_strides)]


@cuda.jit
def combine(code, shape, x, x_start, x_strides, y, y_start, y_strides, out):
    """out[...] = x[...] and y[...], combined as the code says."""
    real = out.dtype.type
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        a, b = real(x[place(i, shape, x_start, x_strides)]), real(y[place(i, shape, y_start, y_strides)])
        if code == ADD:
            out[i] = a + b
        elif code == SUBTRACT:
            out[i] = a - b
        elif code == MULTIPLY:
            out[i] = a * b
        else:
            out[i] = a / b


@cuda.jit
def where(shape, mask, mask_start, mask_strides, x, x_start, x_strides, y, y_start, y_strides, out):
    """out[...] = x[...] where mask[...] is True, else y[...]."""
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        if mask[place(i, shape, mask_start, mask_strides)]:
            out[i] = x[place(i, shape, x_start, x_strides)]
        else:
            out[i] = y[place(i, shape, y_start, y_strides)]


@cuda.jit
def activation(code, x, out):
    """out = activation(x), the code of ``scalars.CODES``.  x and out (N,)."""
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        out[i] = activate(code, x[i])


@cuda.jit
def glu(x, out):
    """out[n, c] = x[n, c] sigmoid(x[n, C + c]).  x (N, 2 C), out (N, C)."""
    width = out.shape[1]
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        n, c = i // width, i % width
        out[n, c] = x[n, c] * sigmoid(x[n, width + c])


@cuda.jit
def take(x, rows, out):
    """out[i] = x[rows[i]].  x (V, D), rows (N,), out (N, D)."""
    width = x.shape[1]
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        out[i // width, i % width] = x[rows[i // width], i % width]
