"""Kernels of maps, channels last, and of frames: a thread makes a number, as the formulas say."""

from __future__ import annotations

import math

from numba import cuda

from .scalars import greater


@cuda.jit
def batch_norm(x, mean, var, weight, bias, eps, y):
    """y[n, c] = (x[n, c] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c].  x and y (N, C), the others (C,)."""
    real = y.dtype.type
    channels = x.shape[1]
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        n, c = i // channels, i % channels
        y[n, c] = (x[n, c] - mean[c]) / real(math.sqrt(var[c] + real(eps))) * weight[c] + bias[c]


@cuda.jit
def max_pool2d(x, size, y):
    """y[b, i, j, c] = max_u,v x[b, size i + u, size j + v, c], NaN if there is one.

    x (B, H, W, C), y (B, H // size, W // size, C).
    """
    height, width, channels = y.shape[1], y.shape[2], y.shape[3]
    for number in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        c, j, i = number % channels, number // channels % width, number // (channels * width) % height
        b = number // (channels * width * height)
        top = x[b, size * i, size * j, c]
        for u in range(size):
            for v in range(size):
                top = greater(top, x[b, size * i + u, size * j + v, c])
        y[b, i, j, c] = top


@cuda.jit
def adaptive_avg_pool2d(x, y):
    """y[b, i, j, c] = the mean of cell (i, j), rows floor(i H / size) ... ceil((i + 1) H / size) and columns alike.

    x (B, H, W, C), y (B, size, size, C).
    """
    real = y.dtype.type
    height, width, size, channels = x.shape[1], x.shape[2], y.shape[1], y.shape[3]
    for number in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        c, j, i = number % channels, number // channels % size, number // (channels * size) % size
        b = number // (channels * size * size)
        top, bottom = i * height // size, ((i + 1) * height + size - 1) // size
        left, right = j * width // size, ((j + 1) * width + size - 1) // size
        total = real(0)
        for row in range(top, bottom):
            for column in range(left, right):
                total += x[b, row, column, c]
        y[b, i, j, c] = total / real((bottom - top) * (right - left))


@cuda.jit
def resize(x, rows, columns, y):
    """y[b, i, j, c] = sum_u rows[i, u] sum_v columns[j, v] x[b, u, v, c].

    x (B, H, W, C), rows (H', H) and columns (W', W), which weigh few pixels each, y (B, H', W', C).
    """
    real = y.dtype.type
    height, width, channels = y.shape[1], y.shape[2], y.shape[3]
    for number in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        c, j, i = number % channels, number // channels % width, number // (channels * width) % height
        b = number // (channels * width * height)
        total = real(0)
        for u in range(x.shape[1]):
            if rows[i, u] != 0:
                row = real(0)
                for v in range(x.shape[2]):
                    if columns[j, v] != 0:
                        row += columns[j, v] * x[b, u, v, c]
                total += rows[i, u] * row
        y[b, i, j, c] = total


@cuda.jit
def statistics(x, counts, y):
    """Mean and unbiased standard deviation of each row's first frames; NaN for those of too few.

    x (B, T, C), counts (B,), y (B, 2 C), the means first.
    """
    real = y.dtype.type
    channels = x.shape[2]
    for i in range(cuda.grid(1), x.shape[0] * channels, cuda.gridsize(1)):
        b, c = i // channels, i % channels
        count = counts[b]
        total = real(0)
        for t in range(count):
            total += x[b, t, c]
        mean = total / real(count) if count > 0 else real(math.nan)
        total = real(0)
        for t in range(count):
            total += (x[b, t, c] - mean) * (x[b, t, c] - mean)
        y[b, c] = mean
        y[b, channels + c] = math.sqrt(total / real(count - 1)) if count > 1 else real(math.nan)
