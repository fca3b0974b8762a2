// What every kernel uses: the storage type T, sums and maxima of a warp and of a block, and activations.
//
// T is the type of arrays: -DSTORAGE=float, __half or __nv_bfloat16.  All arithmetic is float.  Only what NVRTC has is
// used: no headers but these two.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef STORAGE T;

#ifndef DYNAMIC_SHARED  // elsewhere than on a card it is defined already
#define DYNAMIC_SHARED(type, name)                                           \
    extern __shared__ __align__(128) unsigned char dynamic_shared_memory[]; \
    type* const name = reinterpret_cast<type*>(dynamic_shared_memory)
#endif

constexpr float LOWEST = -3.402823466e+38f;  // the lowest finite number
#define INFINITE __int_as_float(0x7f800000)  // NVRTC has no header with INFINITY
constexpr unsigned ALL_LANES = 0xffffffffu;

// ---- storage

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class To>
__device__ __forceinline__ To float_to(float x);
template <>
__device__ __forceinline__ float float_to<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half float_to<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 float_to<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
__device__ __forceinline__ T to_storage(float x) { return float_to<T>(x); }

// N numbers that one instruction loads or stores: of 16 bytes, if the address is a multiple of 16.
template <int N>
struct __align__(N * sizeof(T)) Pack {
    T v[N];
};
constexpr int LANES = 16 / sizeof(T);  // numbers in 16 bytes

__device__ __forceinline__ void store_pack(T* to, const Pack<LANES>& pack) {
    *reinterpret_cast<Pack<LANES>*>(to) = pack;
}

// Whether rows that begin here, ``stride`` numbers apart, begin at multiples of 16 bytes.
__device__ __forceinline__ bool aligned_rows(const void* rows, long long stride = 0) {
    return reinterpret_cast<unsigned long long>(rows) % 16 == 0 && stride % LANES == 0;
}

// ---- sums and maxima; all threads get the result

__device__ __forceinline__ float warp_sum(float x) {
    for (int bits = 16; bits; bits /= 2) x += __shfl_xor_sync(ALL_LANES, x, bits);
    return x;
}

// A NaN is larger than any number, as NumPy has it.
__device__ __forceinline__ float larger(float x, float y) { return x > y || x != x ? x : y; }

__device__ __forceinline__ float warp_max(float x) {
    for (int bits = 16; bits; bits /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, bits));
    return x;
}

// Of a block of whole warps; ``shared32`` holds 32 numbers, which nobody need have waited for.
__device__ __forceinline__ float block_sum(float x, float* shared32) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads();  // the last result has been read
    if (lane == 0) shared32[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? shared32[lane] : 0.0f);
}

__device__ __forceinline__ float block_max(float x, float* shared32) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) shared32[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? shared32[lane] : -INFINITE);
}

// ---- activations: the formulas of d2v_ref.ops.Ops, each under the number that rows.CODES gives it

enum Activation {
    GELU, GELU_10, GELU_TANH, GELU_FAST, QUICK_GELU, HARDSWISH, LAPLACE, LEAKY_RELU, IDENTITY, MISH, RELU, RELU2, RELU6,
    SIGMOID, SILU, SQRTSOFTPLUS, TANH, SOFTPLUS
};

__device__ __forceinline__ float clip(float x, float low, float high) {  // a NaN stays one
    return x < low ? low : (x > high ? high : x);
}

__device__ __forceinline__ float gelu(float x) { return x * (0.5f * (1.0f + erff(x * 0.70710678118654752f))); }

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

__device__ __forceinline__ float activate(int code, float x) {
    switch (code) {
        case GELU: return gelu(x);
        case GELU_10: return clip(gelu(x), -10.0f, 10.0f);
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case GELU_FAST: return 0.5f * x * (1.0f + tanhf(0.7978845608f * x * (1.0f + 0.044715f * x * x)));
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case HARDSWISH: return x * (clip(x + 3.0f, 0.0f, 6.0f) / 6.0f);
        case LAPLACE: return 0.5f * (1.0f + erff((x - 0.707107f) / (0.282095f * 1.41421356237309505f)));
        case LEAKY_RELU: return x > 0.0f ? x : 0.01f * x;
        case MISH: return x * tanhf(softplus(x));
        case RELU: return larger(x, 0.0f);
        case RELU2: return larger(x, 0.0f) * larger(x, 0.0f);
        case RELU6: return clip(x, 0.0f, 6.0f);
        case SIGMOID: return sigmoid(x);
        case SILU: return x * sigmoid(x);
        case SQRTSOFTPLUS: return sqrtf(softplus(x));
        case TANH: return tanhf(x);
        case SOFTPLUS: return softplus(x);
        default: return x;  // IDENTITY
    }
}

// Of several numbers; the two activations of Data2Vec's layers first, as the others take a search.
template <int N>
__device__ __forceinline__ void activate_all(int code, float (&v)[N]) {
    if (code == IDENTITY) return;
    if (code == GELU) {
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = gelu(v[j]);
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = activate(code, v[j]);
    }
}
