// scale (q_t . E[t - s] + k_s . E[t - s]), the second term if it is wanted (Shaw et al. 2018, eq. 4; Huang et al. 2020,
// method 4). The T queries are the last of the S positions.
//
// Grid (tiles of EDGE keys times tiles of EDGE queries, heads, batch); EDGE x EDGE threads, of which each has a number.
// A tile needs 2 EDGE - 1 rows of the table.
#include "common.cuh"

constexpr int EDGE = 16, DEPTH = 32, PITCH = DEPTH + 1;  // rows begin in different banks

// Rows first ... first + count of a matrix (rows, width), columns from ``column`` on, 0 beyond them: (count, DEPTH).
__device__ void fetch(float* to, int count, const T* from, long long distance, int first, int rows, int column,
                      int width) {
    for (int i = threadIdx.y * EDGE + threadIdx.x; i < count * DEPTH; i += EDGE * EDGE) {
        const int row = first + i / DEPTH, c = column + i % DEPTH;
        const bool inside = row >= 0 && row < rows && c < width;
        to[i / DEPTH * PITCH + i % DEPTH] = inside ? to_float(from[row * distance + c]) : 0.0f;
    }
}

// bias (B, H, T, S), table (rows, d), without gaps.
extern "C" __global__ void __launch_bounds__(EDGE * EDGE)
relative_keys(const T* q, long long q_batch, long long q_row, const T* k, long long k_batch, long long k_row,
              const T* table, int rows, T* bias, int queries, int keys, int size, float scale,
              int with_key) {
    __shared__ float own_q[EDGE * PITCH], own_k[EDGE * PITCH], near[(2 * EDGE - 1) * PITCH];
    const int b = blockIdx.z, h = blockIdx.y, x = threadIdx.x, y = threadIdx.y;
    const int across = (keys + EDGE - 1) / EDGE, query = blockIdx.x / across * EDGE, key = blockIdx.x % across * EDGE;
    const int nearest = query + keys - queries - (key + EDGE - 1) + rows / 2;  // of the first query and the last key
    float sum = 0.0f;
    for (int column = 0; column < size; column += DEPTH) {
        __syncthreads();
        fetch(own_q, EDGE, q + b * q_batch + h * size, q_row, query, queries, column, size);
        fetch(own_k, EDGE, k + b * k_batch + h * size, k_row, key, keys, column, size);
        fetch(near, 2 * EDGE - 1, table, size, nearest, rows, column, size);
        __syncthreads();
        for (int c = 0; c < DEPTH; c++) {
            const float e = near[(y + EDGE - 1 - x) * PITCH + c];
            sum = fmaf(own_q[y * PITCH + c], e, sum);
            if (with_key) sum = fmaf(own_k[x * PITCH + c], e, sum);
        }
    }
    const int t = query + y, s = key + x;
    if (t < queries && s < keys)
        bias[(((long long)b * gridDim.y + h) * queries + t) * keys + s] = to_storage(sum * scale);
}
