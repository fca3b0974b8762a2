// CUDA C++ on one CPU thread, so that a kernel's own source runs where there is no GPU.  g++ includes this file before
// the kernel's (-include).
//
// Blocks run one after the other, and the threads of a block in turns: each until it waits for others (fibers.cpp).
// Which one comes next is the schedule: every order is a right one, and a kernel that lacks a barrier gives other
// numbers in some of them.  Shared memory is poisoned before each block: all bits are ones, NaN in every format.
//
// A kernel that waits for ever, leaves threads out of a barrier, or misaligns an operand of an instruction fails with a
// message that names kernel, block and thread.
#pragma once

#include <cmath>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>

#include "fibers.h"

#define EMULATED 1

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __align__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
// In a section of its own, which the linker tells the ends of, so that all of it can be poisoned.  (A variable of a
// template or of an inline function can't be placed: declare shared arrays in kernels.)
#define __shared__ static __attribute__((section("cuda_shared")))
#define __constant__ static const
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::dynamic_shared)


#define threadIdx (emulator::thread_index[emulator::current])
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

// ---- threads of a block, and lanes of a warp

namespace emulator {

// Each lane of the mask gives a value and gets that of another one.
template <class Value>
Value shuffle(const char* operation, unsigned mask, Value value, int source, Place place) {
    struct Request {
        Value value, result;
        int source;
    } mine{value, value, source};
    together(operation, mask, mine, place, [=](Request** lanes) {
        for (int i = 0; i < WARP; i++) {
            if (!lanes[i]) continue;
            const Request* from = lanes[lanes[i]->source];
            if (!from) fail("%s at %s:%d asks a lane that the mask leaves out", operation, place.file, place.line);
            lanes[i]->result = from->value;
        }
    });
    return mine.result;
}

inline unsigned ballot(const char* operation, unsigned mask, bool predicate, Place place) {
    struct Request {
        bool predicate;
        unsigned result;
    } mine{predicate, 0};
    together(operation, mask, mine, place, [](Request** lanes) {
        unsigned all = 0;
        for (int i = 0; i < WARP; i++) all |= unsigned(lanes[i] && lanes[i]->predicate) << i;
        for (int i = 0; i < WARP; i++)
            if (lanes[i]) lanes[i]->result = all;
    });
    return mine.result;
}

}  // namespace emulator

inline void __syncthreads(CALLED_AT) { emulator::block_barrier(false, HERE); }
inline int __syncthreads_count(int predicate, CALLED_AT) {
    return emulator::block_barrier(predicate, HERE);
}
inline int __syncthreads_or(int predicate, CALLED_AT) {
    return emulator::block_barrier(predicate, HERE) > 0;
}
inline int __syncthreads_and(int predicate, CALLED_AT) {
    return emulator::block_barrier(predicate, HERE) == emulator::threads;
}
inline void __syncwarp(unsigned mask = ~0u, CALLED_AT) { emulator::warp_barrier(mask, HERE); }

// In each group of ``width`` lanes; a lane whose source is outside of its group gets its own value.
template <class Value>
Value __shfl_sync(unsigned mask, Value value, int lane, int width = 32, CALLED_AT) {
    const int mine = emulator::current % 32, group = mine & -width;
    return emulator::shuffle("__shfl_sync", mask, value, group + (lane & (width - 1)), HERE);
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int bits, int width = 32, CALLED_AT) {
    const int mine = emulator::current % 32, from = mine ^ bits;
    return emulator::shuffle("__shfl_xor_sync", mask, value, from < (mine & -width) + width ? from : mine, HERE);
}
template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, int distance, int width = 32, CALLED_AT) {
    const int mine = emulator::current % 32, from = mine + distance;
    return emulator::shuffle("__shfl_down_sync", mask, value, from < (mine & -width) + width ? from : mine, HERE);
}
template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, int distance, int width = 32, CALLED_AT) {
    const int mine = emulator::current % 32, from = mine - distance;
    return emulator::shuffle("__shfl_up_sync", mask, value, from >= (mine & -width) ? from : mine, HERE);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CALLED_AT) {
    return emulator::ballot("__ballot_sync", mask, predicate, HERE);
}
inline int __any_sync(unsigned mask, int predicate, CALLED_AT) {
    return emulator::ballot("__any_sync", mask, predicate, HERE) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CALLED_AT) {
    return (emulator::ballot("__all_sync", mask, predicate, HERE) & mask) == mask;
}

// ---- numbers

template <class Number>
constexpr Number min(Number x, Number y) {
    return y < x ? y : x;
}
template <class Number>
constexpr Number max(Number x, Number y) {
    return x < y ? y : x;
}
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }

template <class To, class From>
inline To reinterpreted(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline unsigned __float_as_uint(float x) { return reinterpreted<unsigned>(x); }
inline float __int_as_float(int x) { return reinterpreted<float>(x); }
inline float __uint_as_float(unsigned x) { return reinterpreted<float>(x); }
