// Rows of tables (V, width), by their numbers.  A number outside of its table is taken for the nearest one within, so
// that nothing else is read: what is wrong is said before a launch.

#include "rows.cuh"

__device__ __forceinline__ const T* row_of(const T* table, long long count, int width, long long id) {
    return table + min(max(id, 0LL), count - 1) * width;
}

template <int N>
__device__ __forceinline__ void copy_rows(const long long* ids, const T* table, long long count, T* y, long long rows,
                                          int width) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * N, step = gridDim.x * blockDim.x * N;
    float v[N];
    for (int i = first; i < width; i += step)
        for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
            load(row_of(table, count, width, ids[row]) + i, width - i, v);
            store(y + row * width + i, width - i, v);
        }
}

// y (rows, width) = table[ids].
extern "C" __global__ void __launch_bounds__(256) embedding(const long long* ids, const T* table, long long count, T* y,
                                                            long long rows, int width) {
    if (aligned_rows(table, width) && aligned_rows(y))
        copy_rows<LANES>(ids, table, count, y, rows, width);
    else
        copy_rows<1>(ids, table, count, y, rows, width);
}

// y (rows, width) = layer_norm(sum_k table_k[ids_k]), k = 0, 1, 2, without tables that are null; a block has a row.
extern "C" __global__ void __launch_bounds__(256) embed_norm(const long long* ids0, const T* table0, long long count0,
                                                             const long long* ids1, const T* table1, long long count1,
                                                             const long long* ids2, const T* table2, long long count2,
                                                             const T* weight, const T* bias, T* y, int width,
                                                             float eps) {
    __shared__ float shared[32];
    const long long row = blockIdx.x;
    const Sum sum = {row_of(table0, count0, width, ids0[row]),
                     table1 ? row_of(table1, count1, width, ids1[row]) : nullptr,
                     table2 ? row_of(table2, count2, width, ids2[row]) : nullptr};
    T* out = y + row * width;
    if (aligned_rows(table0, width) && aligned_rows(table1) && aligned_rows(table2) && aligned_rows(weight) &&
        aligned_rows(bias) && aligned_rows(y))
        layer_norm_row<LANES>(sum, weight, bias, out, width, eps, IDENTITY, shared);
    else
        layer_norm_row<1>(sum, weight, bias, out, width, eps, IDENTITY, shared);
}
