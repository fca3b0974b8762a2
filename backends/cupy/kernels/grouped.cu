// A convolution over time of several groups.
//
// Defines: PAIRS, pairs of tiles of 8 outputs, and TILES, tiles of 64 frames, that a block makes; MMA, 1 for tensor
// cores (bfloat16, half or, of float, TF32) and 0 for multiply-adds in float32.  Those of groups of 48 and 64 outputs:
// variants: T=float PAIRS=3,4 TILES=1,2 MMA=0,1
// variants: T=__half,__nv_bfloat16 PAIRS=3,4 TILES=1,2 MMA=1
// tensor cores: T=float,__half,__nv_bfloat16 PAIRS=3,4 TILES=1,2 MMA=1

#include "common.cuh"
#include "mma.cuh"

// y = conv1d(x) of `groups` groups, as products whose windows are never laid out (an implicit GEMM).
//
// x (batch, frames, groups inside), weight (groups across, taps, inside), bias (groups across) or null,
// y (batch, made, groups across).
//
// A block makes ROWS frames of COLUMNS outputs of a group.  It holds the frames that these are made of in shared
// memory, `chunk` channels at a time, and of the weights one tap in each of STAGES stages, of which the last are on
// their way while the first is computed with.  A tap's factor is then a part of the window, `tap dilation` frames on.
// Shared memory: (span + STAGES COLUMNS, pitch), rows `pitch` apart so that 8 of them lie in different banks.
// `vectors`: whether rows of x and weight can be read 16 bytes at a time.  Grid (batch and its tiles of frames, groups
// and their parts of outputs), block THREADS.

constexpr int ROWS = 64 * TILES, COLUMNS = 16 * PAIRS, STAGES = 4, THREADS = 128;

// Rows begin ... end of `source`, `distance` apart, of `count` numbers each, as rows of a tile of `chunk` numbers; 0
// elsewhere.  Eight threads for each row: a chunk has at most 8 vectors.
__device__ __forceinline__ void fetch(T* tile, int rows, int chunk, int pitch, const T* source, long long distance,
                                      int begin, int end, int count, bool vectors) {
    const int c = threadIdx.x % 8 * LANES;
    if (c >= chunk) return;
    for (int row = threadIdx.x / 8; row < rows; row += THREADS / 8) {
        T* to = tile + row * pitch + c;
        const bool there = begin <= row && row < end;
        const T* from = there ? source + row * distance + c : source + begin * distance;
        if (vectors) {
            copy_async_16(to, from, there && c < count);
        } else {
#pragma unroll
            for (int j = 0; j < LANES; j++) to[j] = there && c + j < count ? from[j] : to_storage(0.f);
        }
    }
}

#if MMA
constexpr int STEP = 32 / sizeof(T);  // channels that a product of fragments takes

// sums (16 x 8) += a (16 x STEP) b (STEP x 8).
__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (sizeof(T) == 2)
        mma_16x8x16(sums, a, b);
    else
        mma_16x8x8_tf32(sums, a, b);
}

template <int N>
__device__ __forceinline__ void round_fragment(unsigned (&fragment)[N]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < N; i++) fragment[i] = to_tf32(__uint_as_float(fragment[i]));
    }
}

// A warp's sums: 16 TILES frames of all columns.  The fragments of matrices of 8 rows of 16 bytes are those of STEP
// channels in every storage type.
struct Sums {
    float v[TILES][2 * PAIRS][4];
    const int warp, lane;

    __device__ Sums() : v{}, warp(threadIdx.x / 32), lane(threadIdx.x % 32) {}

    __device__ __forceinline__ void add(const T* window, int stride, const T* weight, int pitch, int chunk) {
        const T* x = window + (warp * 16 * TILES + lane % 16) * stride * pitch + lane / 16 * LANES;
        const T* w = weight + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * LANES;
        for (int c = 0; c < chunk; c += STEP) {
            unsigned a[TILES][4];
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                ldmatrix_x4(a[i], x + i * 16 * stride * pitch + c);
                round_fragment(a[i]);
            }
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                unsigned both[4];
                ldmatrix_x4(both, w + pair * 16 * pitch + c);
                round_fragment(both);
                const unsigned first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    multiply(v[i][2 * pair], a[i], first);
                    multiply(v[i][2 * pair + 1], a[i], second);
                }
            }
        }
    }

    // put(frame, column, sum) for every one of the thread's sums.
    template <typename Put>
    __device__ __forceinline__ void each(Put put) const {
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int j = 0; j < 2 * PAIRS; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    put((warp * TILES + i) * 16 + lane / 4 + e / 2 * 8, j * 8 + lane % 4 * 2 + e % 2, v[i][j][e]);
    }
};
#else
constexpr int STEP = LANES;

// A thread's sums: every 16th frame of every 8th column, four channels at a time.
struct Sums {
    float v[4 * TILES][2 * PAIRS];
    const int row, column;

    __device__ Sums() : v{}, row(threadIdx.x / 8), column(threadIdx.x % 8) {}

    __device__ __forceinline__ void add(const T* window, int stride, const T* weight, int pitch, int chunk) {
        for (int c = 0; c < chunk; c += STEP) {
            Pack<LANES> x[4 * TILES];
#pragma unroll
            for (int i = 0; i < 4 * TILES; i++)
                x[i] = *reinterpret_cast<const Pack<LANES>*>(window + (row + 16 * i) * stride * pitch + c);
#pragma unroll
            for (int j = 0; j < 2 * PAIRS; j++) {
                const Pack<LANES> w = *reinterpret_cast<const Pack<LANES>*>(weight + (column + 8 * j) * pitch + c);
#pragma unroll
                for (int i = 0; i < 4 * TILES; i++)
#pragma unroll
                    for (int k = 0; k < LANES; k++) v[i][j] += to_float(x[i].v[k]) * to_float(w.v[k]);
            }
        }
    }

    template <typename Put>
    __device__ __forceinline__ void each(Put put) const {
#pragma unroll
        for (int i = 0; i < 4 * TILES; i++)
#pragma unroll
            for (int j = 0; j < 2 * PAIRS; j++) put(row + 16 * i, column + 8 * j, v[i][j]);
    }
};
#endif

// The 1 says that registers are not to be saved for the sake of more blocks: the compiler would spill some.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped(const T* __restrict__ x, int frames, int groups, int inside, const T* __restrict__ weight,
            const T* __restrict__ bias, int across, int taps, int stride, int padding, int dilation, T* __restrict__ y,
            int made, int chunk, int vectors) {
    DYNAMIC_SHARED(T, shared);
    const int pitch = chunk + LANES, span = (ROWS - 1) * stride + (taps - 1) * dilation + 1;
    T* window = shared;                  // (span, pitch)
    T* weights = shared + span * pitch;  // (STAGES, COLUMNS, pitch)
    const int tiles = (made + ROWS - 1) / ROWS, parts = (across + COLUMNS - 1) / COLUMNS;
    const long long b = blockIdx.x / tiles;
    const int first = int(blockIdx.x % tiles) * ROWS, group = blockIdx.y / parts, column = blockIdx.y % parts * COLUMNS;
    const int outside = first * stride - padding;  // the frame of x that the window begins with; may be less than 0
    const int begin = max(0, -outside), end = min(span, frames - outside), columns = min(COLUMNS, across - column);
    const long long channels = (long long)groups * inside, depth = (long long)taps * inside;
    const T* source = x + (b * frames + outside) * channels + (long long)group * inside;
    const T* filters = weight + ((long long)group * across + column) * depth;

    Sums sums;
    for (int c = 0; c < inside; c += chunk) {
        const int count = min(chunk, inside - c);
        auto fetch_tap = [&](int tap) {
            if (tap < taps)
                fetch(weights + tap % STAGES * COLUMNS * pitch, COLUMNS, chunk, pitch, filters + tap * inside + c,
                      depth, 0, columns, count, vectors);
            copy_async_commit();
        };
        __syncthreads();  // the chunk before is no longer read
        fetch(window, span, chunk, pitch, source + c, channels, begin, end, count, vectors);
        for (int tap = 0; tap < STAGES - 1; tap++) fetch_tap(tap);
        for (int tap = 0; tap < taps; tap++) {
            copy_async_wait<STAGES - 2>();  // what this thread has fetched for this tap is there,
            __syncthreads();                // and what the others have; nobody reads the stage of the tap before
            fetch_tap(tap + STAGES - 1);
            sums.add(window + tap * dilation * pitch, stride, weights + tap % STAGES * COLUMNS * pitch, pitch, chunk);
        }
    }
    sums.each([&](int frame, int n, float sum) {
        if (first + frame >= made || n >= columns) return;
        const int o = group * across + column + n;
        const float term = bias ? to_float(bias[o]) : 0.f;
        y[(b * made + first + frame) * groups * across + o] = to_storage(sum + term);
    });
}
