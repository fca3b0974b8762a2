// softmax(scale q k^T + bias) v without the scores in memory (Dao 2023, FlashAttention-2): a block has some queries of
// a head and goes through the keys and values a tile at a time, of which the next one is on its way meanwhile.
//
// Defines: D, the head size of a tile (32, 64, 80 or 128); KEYS, the keys of a tile; MMA, 1 for tensor cores and 0 for
// multiply-adds in float32; TILES, with tensor cores, the tiles of 16 queries of a warp.
// Grid (tiles of queries, heads, batch); 128 threads; shared memory for (4 KEYS + QUERIES) PITCH numbers and, without
// tensor cores, QUERIES P_PITCH.
//
// variants: T=float MMA=0 D=32,64,80 KEYS=32
// variants: T=float MMA=0 D=128 KEYS=16
// variants: T=float MMA=1 TILES=1 D=32,64,80 KEYS=32
// variants: T=float MMA=1 TILES=1 D=128 KEYS=16
// variants: T=__half,__nv_bfloat16 MMA=1 TILES=1 D=32,64,80 KEYS=64
// variants: T=__half,__nv_bfloat16 MMA=1 TILES=1 D=128 KEYS=32
// variants: T=__half,__nv_bfloat16 MMA=1 TILES=2 D=64 KEYS=32
// tensor cores: T=float MMA=1 TILES=1 D=32,64,80 KEYS=32
// tensor cores: T=float MMA=1 TILES=1 D=128 KEYS=16
// tensor cores: T=__half,__nv_bfloat16 MMA=1 TILES=1 D=32,64,80 KEYS=64
// tensor cores: T=__half,__nv_bfloat16 MMA=1 TILES=1 D=128 KEYS=32
// tensor cores: T=__half,__nv_bfloat16 MMA=1 TILES=2 D=64 KEYS=32
#include "attention.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;
// A row of a tile, and 16 bytes more, so that the 16-byte vectors of a row are odd in number: eight rows at one column
// are in eight different groups of four banks, and neither ldmatrix nor vectors read down a column meet a conflict.
constexpr int PITCH = D + LANES;

#if MMA
#include "attention_mma.cuh"
#else
#include "attention_fma.cuh"
#endif

constexpr int TILE = KEYS * PITCH, STAGE = 2 * TILE;

// Queries, keys or values (B, T, H d), in rows that may have others between them.
struct Rows {
    const T* at;
    long long distance;
    int count, size;
    bool vectors;  // whether they can be copied 16 bytes at a time

    __device__ Rows(const T* all, long long batch, long long distance, int count, int size)
        : at(all + blockIdx.z * batch + blockIdx.y * size), distance(distance), count(count), size(size),
          vectors(aligned_rows(all + blockIdx.z * batch, distance) && size % LANES == 0) {}

    // Of this block's head COUNT rows from the first, on their way to (COUNT, PITCH) in shared memory; 0 beyond them.
    template <int COUNT>
    __device__ void fetch(T* to, int first) const {
        if (vectors) {
            constexpr int ACROSS = D / LANES, DOWN = THREADS / ACROSS;
            const int column = threadIdx.x % ACROSS * LANES;
            const T* from = at + (first + threadIdx.x / ACROSS) * distance + column;
#pragma unroll
            for (int row = threadIdx.x / ACROSS; row < COUNT; row += DOWN, from += DOWN * distance)
                if (THREADS % ACROSS == 0 || threadIdx.x < DOWN * ACROSS)
                    copy_async_16(to + row * PITCH + column, from, first + row < count && column < size);
        } else {
            for (int i = threadIdx.x; i < COUNT * D; i += THREADS) {
                const int row = i / D, column = i % D;
                const bool inside = first + row < count && column < size;
                to[row * PITCH + column] = inside ? at[(first + row) * distance + column] : to_storage(0.0f);
            }
        }
    }
};

// The end of the tiles in which a query of this block may see a key, as far as the order of the keys tells and a mask
// that is the same for all queries: sequences of a batch that are filled up end with keys that nobody sees.
__device__ int seen_end(const Plane<bool>& mask, bool causal, int query, int queries, int keys, float* shared32) {
    int end = causal ? causal_end(query + QUERIES - 1, queries, keys) : keys;
    if (mask.at && mask.query == 0) {
        int last = 0;
        for (int s = threadIdx.x; s < end; s += THREADS)
            if (mask.at[s * mask.key]) last = s + 1;
        end = int(block_max(float(last), shared32));
    }
    return min(keys, (end + KEYS - 1) / KEYS * KEYS);
}

__device__ void write(Context& context, const Softmax<Scores>& softmax, T* out, int query, int queries, int size) {
#pragma unroll
    for (int i = 0; i < Scores::ROWS; i++) {
        const float inverse = 1.0f / over_row<SUM, Scores::NEIGHBOURS>(softmax.sum[i]);
        const int t = query + Scores::row(i);
        T* row = out + (((long long)blockIdx.z * queries + t) * gridDim.y + blockIdx.y) * size;
#pragma unroll
        for (int j = 0; j < Context::COLUMNS; j += Context::RUN) {
            const int column = Context::first() + Context::offset(j);
            Pack<Context::RUN> run;
#pragma unroll
            for (int e = 0; e < Context::RUN; e++) run.v[e] = to_storage(context(i, j + e) * inverse);
            if (t < queries && size % Context::RUN == 0 && column < size)
                *reinterpret_cast<Pack<Context::RUN>*>(row + column) = run;
            else if (t < queries)
#pragma unroll
                for (int e = 0; e < Context::RUN; e++)
                    if (column + e < size) row[column + e] = run.v[e];
        }
    }
}

// out (B, T, H d), without gaps. bias and mask broadcast to (B, H, T, S) and may be null.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
attention(const T* q, long long q_batch, long long q_row, const T* k, long long k_batch, long long k_row,  //
          const T* v, long long v_batch, long long v_row, T* out, int queries, int keys, int size, float scale,
          int causal,  //
          const T* bias_at, long long bias_batch, long long bias_head, long long bias_query, int bias_key,
          const bool* mask_at, long long mask_batch, long long mask_head, long long mask_query, int mask_key) {
    DYNAMIC_SHARED(T, shared);
    __shared__ float shared32[32];
    __shared__ unsigned bits[QUERIES * ((KEYS + 31) / 32)];
    const int b = blockIdx.z, h = blockIdx.y;
    // With causal order the last queries see the most keys: their blocks begin first.
    const int query = (causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * QUERIES;
    const Rows own_q(q, q_batch, q_row, queries, size);
    const Rows own_k(k, k_batch, k_row, keys, size), own_v(v, v_batch, v_row, keys, size);
    const Plane<T> bias(bias_at, b * bias_batch + h * bias_head, bias_query, bias_key);
    const Plane<bool> mask(mask_at, b * mask_batch + h * mask_head, mask_query, mask_key);
    const bool runs = bias.key == 1 && bias.query % Scores::RUN == 0 &&
                      reinterpret_cast<unsigned long long>(bias.at) % sizeof(Pack<Scores::RUN>) == 0;
    const float factor = bias.at ? LOG2_E : scale * LOG2_E;

    T* const kept = shared + 2 * STAGE;
    own_q.fetch<QUERIES>(kept, query);
    own_k.fetch<KEYS>(shared, 0);
    own_v.fetch<KEYS>(shared + TILE, 0);
    copy_async_commit();
    int end = seen_end(mask, causal, query, queries, keys, shared32);
    copy_async_wait<0>();
    __syncthreads();
    const Queries tile(kept);
    Softmax<Scores> softmax;
    Context context;
    T* stage = shared;
    for (int key = 0;;) {
        for (; key < end; key += KEYS) {
            T* const next = stage == shared ? shared + STAGE : shared;
            copy_async_wait<0>();
            __syncthreads();  // this tile is there, and the last one read by all
            if (key + KEYS < end) {
                own_k.fetch<KEYS>(next, key + KEYS);
                own_v.fetch<KEYS>(next + TILE, key + KEYS);
                copy_async_commit();
            }
            Scores scores(tile, stage);
            if (bias.at && runs && key + KEYS <= keys)
                add_bias<Scores::RUN>(scores, scale, bias, query, queries, key, keys);
            else if (bias.at)
                add_bias<1>(scores, scale, bias, query, queries, key, keys);
            if (mask.at || key + KEYS > (causal ? causal_end(query, queries, keys) : keys))
                hide(scores, mask, causal, query, queries, key, keys, bits);
            softmax.add(scores, context, factor);
            context.add(scores, stage + TILE, kept + QUERIES * PITCH);
            stage = next;
        }
        // A query that has seen nothing attends evenly to all keys, those that were left out too.
        if (end == keys || !__syncthreads_or(softmax.blind(query, queries))) break;
        end = keys;
        own_k.fetch<KEYS>(stage, key);
        own_v.fetch<KEYS>(stage + TILE, key);
        copy_async_commit();
    }
    write(context, softmax, out, query, queries, size);
}
