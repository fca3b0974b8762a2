// Rows of numbers, along which the threads of a block go in groups of N numbers: N = LANES where every row begins at a
// multiple of 16 bytes, else 1.  A row's last group may have fewer.
#pragma once

#include "common.cuh"

template <int N>
__device__ __forceinline__ void load(const T* from, long long left, float (&v)[N]) {
    if (left >= N) {
        const Pack<N> pack = *reinterpret_cast<const Pack<N>*>(from);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = to_float(pack.v[j]);
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = j < left ? to_float(from[j]) : 0.0f;
    }
}

template <int N>
__device__ __forceinline__ void store(T* to, long long left, const float (&v)[N]) {
    if (left >= N) {
        Pack<N> pack;
#pragma unroll
        for (int j = 0; j < N; j++) pack.v[j] = to_storage(v[j]);
        *reinterpret_cast<Pack<N>*>(to) = pack;
    } else {
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < left) to[j] = to_storage(v[j]);
    }
}

// The sum of up to three rows; those that are null are left out.
struct Sum {
    const T *first, *second, *third;

    template <int N>
    __device__ __forceinline__ void load_sum(int i, int left, float (&v)[N]) const {
        load(first + i, left, v);
        add(second, i, left, v);
        add(third, i, left, v);
    }

    template <int N>
    __device__ __forceinline__ static void add(const T* row, int i, int left, float (&v)[N]) {
        if (!row) return;
        float more[N];
        load(row + i, left, more);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] += more[j];
    }
};

// out = activation((x - mean) / sqrt(var + eps) weight + bias), for the sum x of some rows: its mean first, then the
// mean of the squared distances from it.  weight null: 1, and bias 0.  ``out`` may be one of the rows.
//
// A thread that has one group keeps it, and has weight and bias brought while it waits for the sums.
template <int N>
__device__ __forceinline__ void layer_norm_row(const Sum& row, const T* weight, const T* bias, T* out, int width,
                                               float eps, int code, float* shared32) {
    const int first = threadIdx.x * N, step = blockDim.x * N;
    const bool once = width <= step;
    float v[N], scale[N], shift[N], sum = 0.0f;
    for (int i = first; i < width; i += step) {
        row.load_sum(i, width - i, v);
#pragma unroll
        for (int j = 0; j < N; j++) sum += v[j];
    }
    if (once && weight) {
        load(weight + first, width - first, scale);
        load(bias + first, width - first, shift);
    }
    const float mean = block_sum(sum, shared32) / width;
    sum = 0.0f;
    for (int i = first; i < width; i += step) {
        if (!once) row.load_sum(i, width - i, v);
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < width - i) sum += (v[j] - mean) * (v[j] - mean);
    }
    const float deviation = sqrtf(block_sum(sum, shared32) / width + eps);
    for (int i = first; i < width; i += step) {
        if (!once) row.load_sum(i, width - i, v);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = (v[j] - mean) / deviation;
        if (weight) {
            if (!once) {
                load(weight + i, width - i, scale);
                load(bias + i, width - i, shift);
            }
#pragma unroll
            for (int j = 0; j < N; j++) v[j] = v[j] * scale[j] + shift[j];
        }
        activate_all(code, v);
        store(out + i, width - i, v);
    }
}
