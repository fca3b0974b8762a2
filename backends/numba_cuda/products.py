"""Products of matrices: a layer's, of tiles in shared memory, and that of queries with a table of distances."""

from __future__ import annotations

from numba import cuda

from .scalars import activate


@cuda.jit
def linear(x, weight, bias, residual, scale, code, y):
    """y[m, n] = residual[m, n] + scale[n] activation(sum_k x[m, k] weight[n, k] + bias[n]).

    x (M, K), weight (N, K), bias and scale (N,), residual and y (M, N); one that has no numbers is left out.

    A square block makes a tile of y, a thread one number of it.  Each number of x and of the weight is needed by a row
    or a column of the tile's threads: the block reads a tile of both into shared memory, with zeros where they end,
    every thread takes from there what it needs, and on to the next tiles along k.
    """
    real = y.dtype.type
    side, i, j = cuda.blockDim.x, cuda.threadIdx.y, cuda.threadIdx.x
    room = cuda.shared.array(0, y.dtype)
    left, right = room[: side * side], room[side * side :]  # x[m, k] and weight[n, k] of the tile, row after row
    m, n = cuda.blockIdx.x * side + i, cuda.blockIdx.y * side + j
    row = cuda.blockIdx.y * side + i  # of the weight, which this thread reads for others
    depth = x.shape[1]
    total = real(0)
    for first in range(0, depth, side):
        k = first + j
        left[i * side + j] = x[m, k] if m < y.shape[0] and k < depth else real(0)
        right[i * side + j] = weight[row, k] if row < y.shape[1] and k < depth else real(0)
        cuda.syncthreads()  # the tiles are there
        for step in range(side):
            total += left[i * side + step] * right[j * side + step]
        cuda.syncthreads()  # and are no longer needed
    if m < y.shape[0] and n < y.shape[1]:
        if bias.size:
            total += bias[n]
        result = real(activate(code, total))
        if scale.size:
            result *= scale[n]
        if residual.size:
            result += residual[m, n]
        y[m, n] = result


@cuda.jit
def relative_key_bias(q, k, table, with_key, scale, out):
    """out[b, h, t, s] = scale (q_t . e + k_s . e if with_key), e the table's row for the distance of t from s.

    q (B, T, D), k (B, S, D), table (2 P - 1, D / H), the row of distance 0 in the middle, out (B, H, T, S); the T
    queries are the last of the S positions.
    """
    real = out.dtype.type
    heads, length, keys = out.shape[1], out.shape[2], out.shape[3]
    size = table.shape[1]
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        s, t, h, b = i % keys, i // keys % length, i // (keys * length) % heads, i // (keys * length * heads)
        row = keys - length + t - s + table.shape[0] // 2
        of_query, of_key = real(0), real(0)
        for j in range(size):
            of_query += q[b, t, h * size + j] * table[row, j]
            if with_key:
                of_key += k[b, s, h * size + j] * table[row, j]
        out[b, h, t, s] = (of_query + of_key) * real(scale)
