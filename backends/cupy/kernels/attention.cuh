// What the attention kernels share: how scores enter the softmax, and the softmax that goes through them once.
//
// Shapes: B batch, H heads, T queries, S keys, d head size.
#pragma once
#include "common.cuh"
#include "mma.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr bool LARGEST = true, SUM = false;

// Of an operand that broadcasts to (B, H, T, S) one head's (T, S): null if there is none. A distance is 0 where it is
// broadcast.
template <class X>
struct Plane {
    const X* at;
    long long query;
    int key;

    __device__ Plane(const X* all, long long offset, long long query, int key)
        : at(all ? all + offset : nullptr), query(query), key(key) {}

    // Of a query; beyond the last one, the last one's.
    __device__ __forceinline__ const X* row(int t, int queries) const { return at + min(t, queries - 1) * query; }
};

// A query sees the keys before this one, of which there may be none: then it is 0 or less.
__device__ __forceinline__ int causal_end(int t, int queries, int keys) { return min(keys, t + keys - queries + 1); }

// The largest or the sum over a row, whose numbers are spread over so many neighbouring lanes.
template <bool largest, int NEIGHBOURS>
__device__ __forceinline__ float over_row(float x) {
#pragma unroll
    for (int bits = 1; bits < NEIGHBOURS; bits *= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, x, bits);
        x = largest ? fmaxf(x, other) : x + other;
    }
    return x;
}

// A thread's Scores are ROWS by COLUMNS numbers (i, j): of the queries row(i) of its block and the keys first() +
// offset(j) of a tile. offset is the same for all threads, so that it is a constant where loops are unrolled. A row is
// spread over NEIGHBOURS lanes.

// scores = scale * scores + bias, whose numbers are read RUN at a time.
template <int RUN, class Scores>
__device__ __forceinline__ void add_bias(Scores& scores, float scale, const Plane<T>& bias, int query, int queries,
                                         int key, int keys) {
    key += Scores::first();
#pragma unroll
    for (int i = 0; i < Scores::ROWS; i++) {
        const T* row = bias.row(query + Scores::row(i), queries) + key * bias.key;
#pragma unroll
        for (int j = 0; j < Scores::COLUMNS; j += RUN) {
            Pack<RUN> added;
            if constexpr (RUN == 1)
                added.v[0] = row[min(Scores::offset(j), keys - 1 - key) * bias.key];  // of the last one beyond it
            else
                added = *reinterpret_cast<const Pack<RUN>*>(row + Scores::offset(j));
#pragma unroll
            for (int e = 0; e < RUN; e++) scores(i, j + e) = fmaf(scores(i, j + e), scale, to_float(added.v[e]));
        }
    }
}

// The first ``count`` bits.
__device__ __forceinline__ unsigned first_bits(int count) {
    return count <= 0 ? 0u : count >= 32 ? ~0u : (1u << count) - 1;
}

// Which of a tile's keys the mask shows to a query, a bit for each. The lanes of a warp have the same query.
template <int WORDS>
__device__ __forceinline__ void seen_bits(unsigned (&bits)[WORDS], const Plane<bool>& mask, int t, int queries, int key,
                                          int keys) {
    const bool* row = mask.row(t, queries);
#pragma unroll
    for (int word = 0; word < WORDS; word++) {
        const int s = key + 32 * word + threadIdx.x % 32;
        bits[word] = __ballot_sync(ALL_LANES, row[min(s, keys - 1) * mask.key]);
    }
}

// LOWEST where a query may not see a key; beyond the last key, -infinity, which weighs nothing beside any number.
// ``bits`` is shared memory of WORDS for each query of the block.
template <class Scores>
__device__ __forceinline__ void hide(Scores& scores, const Plane<bool>& mask, bool causal, int query, int queries,
                                     int key, int keys, unsigned* bits) {
    constexpr int WIDTH = Scores::COLUMNS * Scores::NEIGHBOURS, WORDS = (WIDTH + 31) / 32;
    constexpr int OWN = Scores::ROWS * 32 / Scores::NEIGHBOURS;  // queries of a warp
    unsigned seen[WORDS];
#pragma unroll
    for (int word = 0; word < WORDS; word++) seen[word] = ~0u;
    if (mask.at && mask.query == 0) {  // the same keys for all queries
        seen_bits(seen, mask, 0, queries, key, keys);
    } else if (mask.at) {
#pragma unroll 1
        for (int row = threadIdx.x / 32 * OWN; row < (threadIdx.x / 32 + 1) * OWN; row++) {
            seen_bits(seen, mask, query + row, queries, key, keys);
#pragma unroll
            for (int word = 0; word < WORDS; word++)
                if (threadIdx.x % 32 == 0) bits[row * WORDS + word] = seen[word];
        }
        __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < Scores::ROWS; i++) {
        if (mask.at && mask.query != 0)
#pragma unroll
            for (int word = 0; word < WORDS; word++) seen[word] = bits[Scores::row(i) * WORDS + word];
        const int end = causal ? causal_end(query + Scores::row(i), queries, keys) : keys;
        unsigned own[WORDS];
#pragma unroll
        for (int word = 0; word < WORDS; word++)
            own[word] = (seen[word] & first_bits(end - key - 32 * word)) >> Scores::first();
#pragma unroll
        for (int j = 0; j < Scores::COLUMNS; j++)
            if (!(own[Scores::offset(j) / 32] >> Scores::offset(j) % 32 & 1)) scores(i, j) = LOWEST;
    }
    if (key + WIDTH > keys)
#pragma unroll
        for (int j = 0; j < Scores::COLUMNS; j++)
            if (Scores::offset(j) >= keys - key - Scores::first())
#pragma unroll
                for (int i = 0; i < Scores::ROWS; i++) scores(i, j) = -INFINITE;
}

// The softmax so far (Milakov & Gimelshein 2018): each row's largest score, and a thread's sum of exp(score - largest).
template <class Scores>
struct Softmax {
    float largest[Scores::ROWS], sum[Scores::ROWS];

    __device__ Softmax() {
#pragma unroll
        for (int i = 0; i < Scores::ROWS; i++) largest[i] = -INFINITE, sum[i] = 0.0f;
    }

    // What is subtracted from scores. Of -infinity alone it is 0: -infinity less itself would be NaN.
    static __device__ __forceinline__ float shift(float largest) { return largest == -INFINITE ? 0.0f : largest; }

    // Scores become 2^(factor (score - largest)), and the sum and the context before are brought to the new largest.
    // While a row has nothing but LOWEST, each key of it weighs 1; beside a greater score they come to weigh 0.
    template <class Context>
    __device__ __forceinline__ void add(Scores& scores, Context& context, float factor) {
#pragma unroll
        for (int i = 0; i < Scores::ROWS; i++) {
            float most = largest[i];
#pragma unroll
            for (int j = 0; j < Scores::COLUMNS; j++) most = fmaxf(most, scores(i, j));
            most = over_row<LARGEST, Scores::NEIGHBOURS>(most);
            const float base = shift(most), kept = exp2_fast((largest[i] - base) * factor);
            largest[i] = most;
            sum[i] *= kept;
#pragma unroll
            for (int j = 0; j < Context::COLUMNS; j++) context(i, j) *= kept;
#pragma unroll
            for (int j = 0; j < Scores::COLUMNS; j++) {
                scores(i, j) = exp2_fast((scores(i, j) - base) * factor);
                sum[i] += scores(i, j);
            }
        }
    }

    // Whether a query has seen nothing so far.
    __device__ __forceinline__ bool blind(int query, int queries) const {
        bool found = false;
#pragma unroll
        for (int i = 0; i < Scores::ROWS; i++)
            found |= query + Scores::row(i) < queries && largest[i] <= LOWEST;
        return found;
    }
};
