// Tensor cores: a warp has TILES times 16 queries, and products are mma of 16 queries by 8 keys or dimensions.
//
// A register of a fragment holds two numbers of 16 bits or one of TF32: counted in bytes, all shapes below are the same
// for both. mma.cuh tells which lane has what.
#pragma once
#include "attention.cuh"

constexpr int QUERIES = 16 * TILES * WARPS;
constexpr int STEP = 2 * LANES;  // terms that one mma sums up: 32 bytes

__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    if constexpr (sizeof(T) == 2)
        mma_16x8x16(sums, a, b);
    else
        mma_16x8x8_tf32(sums, a, b);
}

// Four matrices of eight rows of 16 bytes, rounded to TF32 where the numbers are float. A lane gives one of their rows.
__device__ __forceinline__ void fragments(unsigned (&r)[4], const T* row) {
    ldmatrix_x4(r, row);
    if constexpr (sizeof(T) == 4)
        for (int i = 0; i < 4; i++) r[i] = to_tf32(__uint_as_float(r[i]));
}

__device__ __forceinline__ unsigned pair(float low, float high) {
    const Pack<2> both = {{to_storage(low), to_storage(high)}};
    return reinterpret_cast<const unsigned&>(both);
}

// The tile of queries, (QUERIES, PITCH) in shared memory; a warp's are kept in registers where those are enough.
struct Queries {
    static constexpr bool KEPT = D / STEP * TILES <= 8;
    const T* row;
    unsigned at[KEPT ? D / STEP : 1][TILES][4];

    __device__ explicit Queries(const T* shared)
        : row(shared + (threadIdx.x / 32 * TILES * 16 + threadIdx.x % 16) * PITCH + threadIdx.x % 32 / 16 * LANES) {
        if constexpr (KEPT)
#pragma unroll
            for (int k = 0; k < D / STEP; k++) read(at[k], k);
    }

    __device__ __forceinline__ void load(unsigned (&a)[TILES][4], int k) const {
        if constexpr (KEPT)
            memcpy(a, at[k], sizeof a);
        else
            read(a, k);
    }

    // The matrices of a fragment: rows 0-7 and 8-15 of the first 16 bytes, then of the next.
    __device__ __forceinline__ void read(unsigned (&a)[TILES][4], int k) const {
#pragma unroll
        for (int m = 0; m < TILES; m++) fragments(a[m], row + m * 16 * PITCH + k * STEP);
    }
};

struct Scores {
    static constexpr int ROWS = 2 * TILES, COLUMNS = KEYS / 4, RUN = 2, NEIGHBOURS = 4;
    float at[TILES][KEYS / 8][4] = {};

    static __device__ __forceinline__ int row(int i) {
        return (threadIdx.x / 32 * TILES + i / 2) * 16 + i % 2 * 8 + threadIdx.x % 32 / 4;
    }
    static __device__ __forceinline__ int first() { return threadIdx.x % 4 * 2; }
    static __device__ constexpr int offset(int j) { return j / 2 * 8 + j % 2; }
    __device__ __forceinline__ float& operator()(int i, int j) { return at[i / 2][j / 2][i % 2 * 2 + j % 2]; }

    // q k^T, for keys (KEYS, PITCH) in shared memory: two times eight keys a step.
    __device__ Scores(const Queries& queries, const T* keys) {
        const int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, half = lane / 8 % 2 * LANES;
#pragma unroll
        for (int k = 0; k < D / STEP; k++) {
            unsigned a[TILES][4];
            queries.load(a, k);
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                unsigned b[4];
                fragments(b, keys + (n * 8 + row) * PITCH + k * STEP + half);
#pragma unroll
                for (int m = 0; m < TILES; m++) {
                    multiply(at[m][n], a[m], b[0], b[1]);
                    multiply(at[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
};

struct Context {
    static constexpr int COLUMNS = D / 4, RUN = 2;
    float at[TILES][D / 8][4] = {};

    static __device__ __forceinline__ int first() { return Scores::first(); }
    static __device__ constexpr int offset(int j) { return Scores::offset(j); }
    __device__ __forceinline__ float& operator()(int i, int j) { return at[i / 2][j / 2][i % 2 * 2 + j % 2]; }

    // Adds p v, for values (KEYS, PITCH) in shared memory. A lane that has p as a result has it as a factor too: of 16
    // bits as it is, and of TF32 if key 2t is taken for term t of eight and key 2t + 1 for term t + 4.
    __device__ void add(const Scores& p, const T* values, T*) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < KEYS / STEP; k++) {
            unsigned a[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; m++) as_factor(a[m], p, m, k);
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                unsigned b[4];
                if constexpr (sizeof(T) == 2) {
                    ldmatrix_x4_trans(b, values + (k * 16 + lane % 16) * PITCH + n * 8 + lane / 16 * 8);
                } else {
                    const float* first = (const float*)values + (k * 8 + lane % 4 * 2) * PITCH + n * 8 + lane / 4;
#pragma unroll
                    for (int i = 0; i < 4; i++)  // 2t rows and g numbers on: 32 different banks
                        b[i] = to_tf32(first[i % 2 * PITCH + i / 2 * 8]);
                }
#pragma unroll
                for (int m = 0; m < TILES; m++) {
                    multiply(at[m][n], a[m], b[0], b[1]);
                    multiply(at[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    static __device__ __forceinline__ void as_factor(unsigned (&a)[4], const Scores& p, int m, int k) {
        if constexpr (sizeof(T) == 2) {
            const float(&low)[4] = p.at[m][2 * k], (&high)[4] = p.at[m][2 * k + 1];
            a[0] = pair(low[0], low[1]), a[1] = pair(low[2], low[3]);
            a[2] = pair(high[0], high[1]), a[3] = pair(high[2], high[3]);
        } else {
            const float(&both)[4] = p.at[m][k];
            a[0] = to_tf32(both[0]), a[1] = to_tf32(both[2]), a[2] = to_tf32(both[1]), a[3] = to_tf32(both[3]);
        }
    }
};
