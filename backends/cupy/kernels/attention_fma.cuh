// Multiply-adds in float32, not rounded to TF32: a warp has 16 queries, each thread 4 of them by an eighth of the keys.
#pragma once
#include "attention.cuh"

constexpr int QUERIES = 16 * WARPS;
// Four rows and eight columns of p at once are in 32 different banks.
constexpr int P_PITCH = KEYS + 8;
static_assert(sizeof(T) == 4, "float");

struct Queries {
    const T* at;

    __device__ explicit Queries(const T* shared) : at(shared) {}
};

__device__ __forceinline__ Pack<4> load_four(const T* from) { return *reinterpret_cast<const Pack<4>*>(from); }

__device__ __forceinline__ float dot(float sum, const Pack<4>& a, const Pack<4>& b) {
#pragma unroll
    for (int e = 0; e < 4; e++) sum = fmaf(a.v[e], b.v[e], sum);
    return sum;
}

struct Scores {
    static constexpr int ROWS = 4, COLUMNS = KEYS / 8, RUN = 1, NEIGHBOURS = 8;
    float at[ROWS][COLUMNS] = {};

    // Rows and keys of neighbouring threads follow each other: at PITCH their vectors are in different banks.
    static __device__ __forceinline__ int row(int i) {
        return threadIdx.x / 32 * 16 + i * 4 + threadIdx.x % 32 / 8;
    }
    static __device__ __forceinline__ int first() { return threadIdx.x % 8; }
    static __device__ constexpr int offset(int j) { return j * 8; }
    __device__ __forceinline__ float& operator()(int i, int j) { return at[i][j]; }

    // q k^T, for keys (KEYS, PITCH) in shared memory.
    __device__ Scores(const Queries& queries, const T* keys) {
#pragma unroll 2
        for (int k = 0; k < D; k += 4) {
            Pack<4> q[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) q[i] = load_four(queries.at + row(i) * PITCH + k);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                const Pack<4> own = load_four(keys + (first() + offset(j)) * PITCH + k);
#pragma unroll
                for (int i = 0; i < ROWS; i++) at[i][j] = dot(at[i][j], q[i], own);
            }
        }
    }
};

struct Context {
    static constexpr int CHUNKS = (D / 4 + 7) / 8, COLUMNS = 4 * CHUNKS, RUN = 4;
    float at[Scores::ROWS][COLUMNS] = {};

    static __device__ __forceinline__ int first() { return threadIdx.x % 8 * 4; }
    static __device__ constexpr int offset(int j) { return j / 4 * 32 + j % 4; }
    __device__ __forceinline__ float& operator()(int i, int j) { return at[i][j]; }

    // Adds p v, for values (KEYS, PITCH) in shared memory; p goes to the other threads of its warp through scratch.
    __device__ void add(Scores& p, const T* values, T* scratch) {
#pragma unroll
        for (int i = 0; i < Scores::ROWS; i++)
#pragma unroll
            for (int j = 0; j < Scores::COLUMNS; j++)
                scratch[Scores::row(i) * P_PITCH + Scores::first() + Scores::offset(j)] = p(i, j);
        __syncwarp();
#pragma unroll 2
        for (int k = 0; k < KEYS; k += 4) {
            Pack<4> weights[Scores::ROWS];
#pragma unroll
            for (int i = 0; i < Scores::ROWS; i++)
                weights[i] = load_four(scratch + Scores::row(i) * P_PITCH + k);
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int chunk = 0; chunk < CHUNKS; chunk++) {
                    const int column = first() + offset(4 * chunk);
                    if (D % 32 != 0 && column >= D) continue;  // a row's last vectors are not enough for all threads
                    const Pack<4> own = load_four(values + (k + e) * PITCH + column);
#pragma unroll
                    for (int i = 0; i < Scores::ROWS; i++)
#pragma unroll
                        for (int c = 0; c < 4; c++)
                            at[i][4 * chunk + c] = fmaf(weights[i].v[e], own.v[c], at[i][4 * chunk + c]);
                }
        }
        __syncwarp();
    }
};
