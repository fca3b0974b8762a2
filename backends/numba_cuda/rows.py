"""Kernels in which a block makes a row: LayerNorm, softmax, attention.

Threads take the numbers of a row in turn, and sum up in shared memory what each has found.  Numba's simulator wants a
function with a barrier in the file of the kernel that calls it: so attention is here too.
"""

from __future__ import annotations

import math

from numba import cuda

from .scalars import greater


@cuda.jit(device=True)
def block_sum(value, room):
    """The sum of what the threads of the block have, in all of them: halves are added until one number is left."""
    i = cuda.threadIdx.x
    room[i] = value
    half = cuda.blockDim.x // 2
    while half:
        cuda.syncthreads()  # both halves are there
        if i < half:
            room[i] += room[i + half]
        half //= 2
    cuda.syncthreads()
    total = room[0]
    cuda.syncthreads()  # everybody has it, and the room is free
    return total


@cuda.jit(device=True)
def block_max(value, room):
    """The greatest of what the threads of the block have, NaN if there is one."""
    i = cuda.threadIdx.x
    room[i] = value
    half = cuda.blockDim.x // 2
    while half:
        cuda.syncthreads()
        if i < half:
            room[i] = greater(room[i], room[i + half])
        half //= 2
    cuda.syncthreads()
    top = room[0]
    cuda.syncthreads()
    return top


@cuda.jit
def layer_norm(x, weight, bias, eps, y):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, row by row.

    x and y (N, D), weight and bias (D,), both without numbers for 1 and 0.
    """
    real = y.dtype.type
    room = cuda.shared.array(0, y.dtype)
    row, width = cuda.blockIdx.x, x.shape[1]
    total = real(0)
    for j in range(cuda.threadIdx.x, width, cuda.blockDim.x):
        total += x[row, j]
    mean = block_sum(total, room) / real(width)
    total = real(0)
    for j in range(cuda.threadIdx.x, width, cuda.blockDim.x):
        total += (x[row, j] - mean) * (x[row, j] - mean)
    deviation = real(math.sqrt(block_sum(total, room) / real(width) + real(eps)))
    for j in range(cuda.threadIdx.x, width, cuda.blockDim.x):
        result = (x[row, j] - mean) / deviation
        if weight.size:
            result = result * weight[j] + bias[j]
        y[row, j] = result


@cuda.jit
def softmax(x, logarithm, y):
    """y = exp(x - max) / sum exp(x - max), row by row, or its logarithm.  x and y (N, D)."""
    real = y.dtype.type
    room = cuda.shared.array(0, y.dtype)
    row, width = cuda.blockIdx.x, x.shape[1]
    top = real(-math.inf)
    for j in range(cuda.threadIdx.x, width, cuda.blockDim.x):
        top = greater(top, x[row, j])
    top = block_max(top, room)
    total = real(0)
    for j in range(cuda.threadIdx.x, width, cuda.blockDim.x):
        total += real(math.exp(x[row, j] - top))
    total = block_sum(total, room)
    for j in range(cuda.threadIdx.x, width, cuda.blockDim.x):
        if logarithm:
            y[row, j] = x[row, j] - top - real(math.log(total))
        else:
            y[row, j] = real(math.exp(x[row, j] - top)) / total


@cuda.jit(device=True)
def spot(at, b, h, t, s):
    """Where number (b, h, t, s) lies, of an operand that begins at at[0] and has the distances at[1] ... at[4]."""
    return at[0] + b * at[1] + h * at[2] + t * at[3] + s * at[4]


@cuda.jit
def attention(q, k, v, scale, lowest, causal, bias, bias_at, mask, mask_at, factor, factor_at, p, context):
    """context = p v, p = softmax(scale q k^T + bias) factor, head by head; a block has one query of one head.

    q and context (B, T, D), k and v (B, S, D), p (B, H, T, S); bias, mask and factor are flat, each with where its
    numbers lie (see ``spot``), and left out if they have none.  A score that is hidden becomes ``lowest``, so that a
    query which sees nothing attends evenly to all keys.
    """
    real = p.dtype.type
    room = cuda.shared.array(0, p.dtype)
    heads, length, keys = p.shape[1], p.shape[2], p.shape[3]
    size = q.shape[2] // heads
    b, h, t = cuda.blockIdx.x // (heads * length), cuda.blockIdx.x // length % heads, cuda.blockIdx.x % length
    first = h * size  # of the head's features

    top = real(-math.inf)
    for s in range(cuda.threadIdx.x, keys, cuda.blockDim.x):
        score = real(0)
        for i in range(first, first + size):
            score += q[b, t, i] * real(scale) * k[b, s, i]
        if bias.size:
            score += bias[spot(bias_at, b, h, t, s)]
        if causal and s > t + keys - length:
            score = real(lowest)
        if mask.size and not mask[spot(mask_at, b, h, t, s)]:
            score = real(lowest)
        p[b, h, t, s] = score
        top = greater(top, score)
    top = block_max(top, room)

    total = real(0)
    for s in range(cuda.threadIdx.x, keys, cuda.blockDim.x):
        e = real(math.exp(p[b, h, t, s] - top))
        p[b, h, t, s] = e
        total += e
    total = block_sum(total, room)
    for s in range(cuda.threadIdx.x, keys, cuda.blockDim.x):
        share = p[b, h, t, s] / total
        if factor.size:
            share *= factor[spot(factor_at, b, h, t, s)]
        p[b, h, t, s] = share
    cuda.syncthreads()  # every thread needs the whole row of p

    for i in range(first + cuda.threadIdx.x, first + size, cuda.blockDim.x):
        mixed = real(0)
        for s in range(keys):
            mixed += p[b, h, t, s] * v[b, s, i]
        context[b, t, i] = mixed
