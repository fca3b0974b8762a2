// Kernels that work row by row or number by number.  A row of ``x`` is without gaps, and the next one lies ``stride``
// numbers further on; ``y`` has no gaps at all.

#include "rows.cuh"

// y (rows, width) = activation(layer_norm(x + residual)); a block has a row.
extern "C" __global__ void __launch_bounds__(256) layer_norm(const T* x, long long stride, const T* residual,
                                                             long long residual_stride, const T* weight, const T* bias,
                                                             T* y, int width, float eps, int code) {
    __shared__ float shared[32];
    const long long row = blockIdx.x;
    const Sum sum = {x + row * stride, residual ? residual + row * residual_stride : nullptr, nullptr};
    T* out = y + row * width;
    if (aligned_rows(x, stride) && aligned_rows(residual, residual_stride) && aligned_rows(weight) &&
        aligned_rows(bias) && aligned_rows(y, width))
        layer_norm_row<LANES>(sum, weight, bias, out, width, eps, code, shared);
    else
        layer_norm_row<1>(sum, weight, bias, out, width, eps, code, shared);
}

// y = exp(x - max) / sum, or its logarithm x - max - log(sum).
template <int N>
__device__ __forceinline__ void softmax_row(const T* x, T* y, int width, bool logarithm, float* shared32) {
    const int first = threadIdx.x * N, step = blockDim.x * N;
    float v[N], top = -INFINITE, sum = 0.0f;
    for (int i = first; i < width; i += step) {
        load(x + i, width - i, v);
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < width - i) top = larger(top, v[j]);
    }
    top = block_max(top, shared32);
    for (int i = first; i < width; i += step) {
        load(x + i, width - i, v);
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < width - i) sum += expf(v[j] - top);
    }
    sum = block_sum(sum, shared32);
    const float inverse = 1.0f / sum, log_sum = logf(sum);
    for (int i = first; i < width; i += step) {
        load(x + i, width - i, v);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = logarithm ? v[j] - top - log_sum : expf(v[j] - top) * inverse;
        store(y + i, width - i, v);
    }
}

// y (rows, width) = softmax(x), or its logarithm; a block has a row.
extern "C" __global__ void __launch_bounds__(256) softmax(const T* x, long long stride, T* y, int width,
                                                          int logarithm) {
    __shared__ float shared[32];
    const long long row = blockIdx.x;
    if (aligned_rows(x, stride) && aligned_rows(y, width))
        softmax_row<LANES>(x + row * stride, y + row * width, width, logarithm, shared);
    else
        softmax_row<1>(x + row * stride, y + row * width, width, logarithm, shared);
}

// ---- number by number: blocks go along a row, and those of the grid's second axis down the rows

template <int N>
__device__ __forceinline__ void glu_rows(const T* x, long long stride, T* y, long long rows, int half) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * N, step = gridDim.x * blockDim.x * N;
    float a[N], b[N];
    for (int i = first; i < half; i += step)
        for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
            load(x + row * stride + i, half - i, a);
            load(x + row * stride + half + i, half - i, b);
#pragma unroll
            for (int j = 0; j < N; j++) a[j] *= sigmoid(b[j]);
            store(y + row * half + i, half - i, a);
        }
}

// y (rows, half) = a sigmoid(b), for the halves a and b of each row of x.
extern "C" __global__ void __launch_bounds__(256) glu(const T* x, long long stride, T* y, long long rows, int half) {
    if (aligned_rows(x, stride) && half % LANES == 0 && aligned_rows(y))
        glu_rows<LANES>(x, stride, y, rows, half);
    else
        glu_rows<1>(x, stride, y, rows, half);
}

template <int N>
__device__ __forceinline__ void activation_rows(const T* x, long long stride, const T* bias, T* y, long long rows,
                                                long long width, int code) {
    const long long first = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * N,
                    step = gridDim.x * (long long)blockDim.x * N;
    float v[N], shift[N] = {};
    for (long long i = first; i < width; i += step) {
        if (bias) load(bias + i, width - i, shift);
        for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
            load(x + row * stride + i, width - i, v);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] += shift[j];
            activate_all(code, v);
            store(y + row * width + i, width - i, v);
        }
    }
}

// y (rows, width) = activation(x + bias); y may be x.
extern "C" __global__ void __launch_bounds__(256) activation(const T* x, long long stride, const T* bias, T* y,
                                                             long long rows, long long width, int code) {
    const bool one_row = rows == 1;  // of any width
    if (aligned_rows(x, one_row ? 0 : stride) && aligned_rows(bias) && aligned_rows(y, one_row ? 0 : width))
        activation_rows<LANES>(x, stride, bias, y, rows, width, code);
    else
        activation_rows<1>(x, stride, bias, y, rows, width, code);
}
