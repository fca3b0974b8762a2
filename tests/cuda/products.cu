// The functions of mma.cuh at work, for test_emulator.py: one warp, T of 16 bits.

#include "common.cuh"
#include "mma.cuh"

__device__ unsigned pair(T low, T high) {
    Pack<2> pack = {{low, high}};
    return *reinterpret_cast<unsigned*>(&pack);
}

// d (16, 8) = a (16, 16) b (16, 8), all row-major.  ``way`` 0: fragments number by number, as mma.cuh has them; 1: by
// ldmatrix, b transposed by it; 2: by ldmatrix from b transposed in memory.  ``swapped`` exchanges two registers.
extern "C" __global__ void product(const T* a, const T* b, float* d, int way, int swapped) {
    __shared__ __align__(16) T a_tile[16 * 16], b_tile[16 * 8], turned[8 * 16];
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (int i = lane; i < 16 * 16; i += 32) a_tile[i] = a[i];
    for (int i = lane; i < 16 * 8; i += 32) {
        b_tile[i] = b[i];
        turned[i % 8 * 16 + i / 8] = b[i];
    }
    __syncwarp();
    unsigned af[4], bf[2];
    if (way == 0) {
        for (int i = 0; i < 4; i++) {
            const T* at = a_tile + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
            af[i] = pair(at[0], at[1]);
        }
        for (int i = 0; i < 2; i++) {
            const T* at = b_tile + (2 * t + i * 8) * 8 + g;
            bf[i] = pair(at[0], at[8]);
        }
    } else {
        ldmatrix_x4(af, a_tile + lane % 16 * 16 + lane / 16 * 8);
        if (way == 1)
            ldmatrix_x2_trans(bf, b_tile + lane % 16 * 8);
        else
            ldmatrix_x2(bf, turned + lane % 8 * 16 + lane / 8 % 2 * 8);
    }
    if (swapped == 1) {
        const unsigned kept = af[1];
        af[1] = af[2];
        af[2] = kept;
    }
    if (swapped == 2) {
        const unsigned kept = bf[0];
        bf[0] = bf[1];
        bf[1] = kept;
    }
    float sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};  // what is there before is added to
    mma_16x8x16(sum, af, bf);
    for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i] - 1.0f;
}

// y (4, 32, 2): what the lanes get of x (32, 8), four matrices one above the other, transposed.
extern "C" __global__ void four_turned(const T* x, T* y) {
    __shared__ __align__(16) T tile[32 * 8];
    for (int i = threadIdx.x; i < 32 * 8; i += 32) tile[i] = x[i];
    __syncwarp();
    unsigned r[4];
    ldmatrix_x4_trans(r, tile + threadIdx.x * 8);
    for (int i = 0; i < 4; i++) *reinterpret_cast<unsigned*>(y + (i * 32 + threadIdx.x) * 2) = r[i];
}

// d (16, 8) = a (16, 8) b (8, 8) in tf32.
extern "C" __global__ void product_tf32(const float* a, const float* b, float* d) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned af[4], bf[2];
    for (int i = 0; i < 4; i++) af[i] = to_tf32(a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    for (int i = 0; i < 2; i++) bf[i] = to_tf32(b[(t + i * 4) * 8 + g]);
    float sum[4] = {};
    mma_16x8x8_tf32(sum, af, bf);
    for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}
