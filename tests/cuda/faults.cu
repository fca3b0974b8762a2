// Kernels that are right, or, by their last argument, wrong in one way: what test_emulator.py wants to be found.

#include "common.cuh"
#include "mma.cuh"

// y = x backwards, through shared memory; a block has one row.
extern "C" __global__ void backwards(const float* x, float* y, int barrier) {
    __shared__ float row[128];
    const int i = threadIdx.x, width = blockDim.x;
    row[i] = x[blockIdx.x * width + i];
    if (barrier) __syncthreads();
    y[blockIdx.x * width + i] = row[width - 1 - i];
}

// y = the sums of x's even and of its odd rows; both pass through the same word of shared memory.
extern "C" __global__ void two_sums(const float* x, float* y, int barrier) {
    __shared__ float total;
    for (int k = 0; k < 2; k++) {
        if (threadIdx.x == 0) total = x[2 * blockIdx.x + k];
        __syncthreads();
        if (threadIdx.x % 32 == 31) y[(2 * blockIdx.x + k) * 4 + threadIdx.x / 32] = total;
        if (barrier) __syncthreads();
    }
}

// y = x turned by one lane, through shared memory that is a warp's own.
extern "C" __global__ void turned(const float* x, float* y, int barrier) {
    __shared__ float row[32];
    row[threadIdx.x] = x[threadIdx.x];
    if (barrier) __syncwarp();
    y[threadIdx.x] = row[(threadIdx.x + 1) % 32];
}

// Threads below the limit wait at a barrier.
extern "C" __global__ void some_wait(float* y, int limit) {
    if (threadIdx.x < limit) __syncthreads();
    y[threadIdx.x] = 1.0f;
}

// All threads wait at a barrier, those below the limit at another one.
extern "C" __global__ void wait_apart(float* y, int limit) {
    if (threadIdx.x < limit)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1.0f;
}

// Lanes below the limit take part in a sum of all lanes.
extern "C" __global__ void some_sum(float* y, int limit) {
    float sum = 0.0f;
    if (threadIdx.x < limit) sum = warp_sum(1.0f);
    y[threadIdx.x] = sum;
}

// y[at] = 1 in global memory, and in shared memory of 32 numbers each.
extern "C" __global__ void put(float* y, int at) { y[at] = 1.0f; }
extern "C" __global__ void put_dynamic(float* y, int at) {
    DYNAMIC_SHARED(float, row);
    row[at] = 1.0f;
    y[0] = row[0];
}
extern "C" __global__ void put_static(float* y, int at) {
    __shared__ float row[32];
    row[at] = 1.0f;
    y[0] = row[at];
}
extern "C" __global__ void get(const float* x, float* y, int at) { y[0] = x[at]; }
// Four numbers at once, from where they may be misaligned.
extern "C" __global__ void get_four(const float* x, float* y, int at) {
    *reinterpret_cast<float4*>(y) = *reinterpret_cast<const float4*>(x + at);
}

// y = x by asynchronous copies, two groups of 16 bytes a thread, of which the second is waited for, or not.
extern "C" __global__ void copied(const float* x, float* y, int wait) {
    DYNAMIC_SHARED(float, row);
    const int n = blockDim.x * 4, i = threadIdx.x * 4;
    copy_async_16(row + i, x + i, true);
    copy_async_commit();
    copy_async_16(row + n + i, x + n + i, threadIdx.x % 2 == 0);  // zeros for odd threads
    copy_async_commit();
    if (wait)
        copy_async_wait<0>();
    else
        copy_async_wait<1>();
    __syncthreads();
    for (int j = threadIdx.x; j < 2 * n; j += blockDim.x) y[j] = row[j];
}

// y = what shared memory holds when a block begins, static and dynamic; it leaves 1 there.
extern "C" __global__ void remains(float* y, int unused) {
    __shared__ float fixed[32];
    DYNAMIC_SHARED(float, dynamic);
    y[blockIdx.x * 64 + threadIdx.x] = fixed[threadIdx.x];
    y[blockIdx.x * 64 + 32 + threadIdx.x] = dynamic[threadIdx.x];
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 1.0f;
}

// y[0] counts; behind it stand the threads in the order in which they came by, before and after a barrier.
extern "C" __global__ void order(int* y) {
    y[1 + y[0]++] = threadIdx.x;
    __syncthreads();
    y[1 + y[0]++] = threadIdx.x;
    __syncwarp();
    y[1 + y[0]++] = threadIdx.x;
}

// y (9, 32): what each lane gets of the operations of a warp.
extern "C" __global__ void lanes(int* y) {
    const int lane = threadIdx.x;
    int* out = y + lane;
    out[0 * 32] = __shfl_sync(ALL_LANES, lane, 5);
    out[1 * 32] = __shfl_sync(ALL_LANES, lane, 5, 8);
    out[2 * 32] = __shfl_up_sync(ALL_LANES, lane, 3);
    out[3 * 32] = __shfl_down_sync(ALL_LANES, lane, 3, 16);
    out[4 * 32] = __shfl_xor_sync(ALL_LANES, lane, 6);
    out[5 * 32] = __ballot_sync(ALL_LANES, lane % 3 == 0);
    out[6 * 32] = __any_sync(ALL_LANES, lane == 40);
    out[7 * 32] = __all_sync(ALL_LANES, lane < 32);
    out[8 * 32] = lane < 16 ? __shfl_xor_sync(0x0000ffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2);
}

// y = how many threads, whether any, and whether all are below the limit.
extern "C" __global__ void votes(int* y, int limit) {
    const int count = __syncthreads_count(threadIdx.x < limit), any = __syncthreads_or(threadIdx.x < limit),
              all = __syncthreads_and(threadIdx.x < limit);
    y[threadIdx.x * 3] = count;
    y[threadIdx.x * 3 + 1] = any;
    y[threadIdx.x * 3 + 2] = all;
}
