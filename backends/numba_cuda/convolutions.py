"""Convolutions, channels last: a thread makes a number, as the formulas say.

Sums run over what lies inside the signal or the map; outside of it are zeros.  A bias without numbers is left out.
"""

from __future__ import annotations

from numba import cuda


@cuda.jit
def conv1d(x, weight, bias, stride, padding, dilation, y):
    """y[b, t, o] = bias[o] + sum_c,j weight[o, c, j] x[b, t stride + j dilation - padding, c], c of o's group.

    x (B, T, C), weight (O, C / g, k), bias (O,), y (B, T', O).
    """
    frames, outputs = y.shape[1], y.shape[2]
    width, taps = weight.shape[1], weight.shape[2]
    group = outputs // (x.shape[2] // width)  # outputs of a group
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        b, t, o = i // (frames * outputs), i // outputs % frames, i % outputs
        first = o // group * width
        total = y.dtype.type(0)
        for j in range(taps):
            at = t * stride + j * dilation - padding
            if 0 <= at < x.shape[1]:
                for c in range(width):
                    total += weight[o, c, j] * x[b, at, first + c]
        if bias.size:
            total += bias[o]
        y[b, t, o] = total


@cuda.jit
def conv2d(x, weight, bias, down, across, padding, y):
    """y[b, i, j, o] = bias[o] + sum_c,u,v weight[o, c, u, v] x[b, i down + u - padding, j across + v - padding, c].

    x (B, H, W, C), weight (O, C, kh, kw), bias (O,), y (B, H', W', O).
    """
    height, width, outputs = y.shape[1], y.shape[2], y.shape[3]
    for number in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        o, j, i = number % outputs, number // outputs % width, number // (outputs * width) % height
        b = number // (outputs * width * height)
        total = y.dtype.type(0)
        for u in range(weight.shape[2]):
            row = i * down + u - padding
            if 0 <= row < x.shape[1]:
                for v in range(weight.shape[3]):
                    column = j * across + v - padding
                    if 0 <= column < x.shape[2]:
                        for c in range(weight.shape[1]):
                            total += weight[o, c, u, v] * x[b, row, column, c]
        if bias.size:
            total += bias[o]
        y[b, i, j, o] = total


@cuda.jit
def conv_transpose2d(x, weight, bias, y):
    """y[b, i, j, o] = bias[o] + sum_c weight[c, o, i mod k, j mod k] x[b, i / k, j / k, c]: every pixel a tile.

    x (B, H, W, C), weight (C, O, k, k), bias (O,), y (B, k H, k W, O).
    """
    height, width, outputs, side = y.shape[1], y.shape[2], y.shape[3], weight.shape[2]
    for number in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        o, j, i = number % outputs, number // outputs % width, number // (outputs * width) % height
        b = number // (outputs * width * height)
        total = y.dtype.type(0)
        for c in range(weight.shape[0]):
            total += weight[c, o, i % side, j % side] * x[b, i // side, j // side, c]
        y[b, i, j, o] = total + bias[o]
