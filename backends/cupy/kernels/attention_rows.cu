// Attention of any head size, with factors of the probabilities, which are written if they are wanted: scores are
// computed twice, once for the softmax's sums and once, a chunk of keys at a time, for what they weigh.
//
// Grid (tiles of QUERIES, heads times chunks of the head size, batch); THREADS threads.
#include "attention.cuh"

constexpr int QUERIES = 4, THREADS = 128;

// A thread's four scores of one key, at which every thread has another one.
struct Scores {
    static constexpr int ROWS = QUERIES, COLUMNS = 1, NEIGHBOURS = 1;
    float at[QUERIES];

    static __device__ constexpr int row(int i) { return i; }
    __device__ float& operator()(int i, int) { return at[i]; }
};

struct NoContext {
    static constexpr int COLUMNS = 0;
    float none;

    __device__ float& operator()(int, int) { return none; }
};

// What the scores of a head are made of.
struct Head {
    const T *q, *k;
    long long q_row, k_row;
    Plane<T> bias;
    Plane<bool> mask;
    int queries, keys, size;
    float scale;
    bool causal;

    // scale q k^T + bias, LOWEST where hidden, of the queries from ``query`` on; the last one's beyond it.
    __device__ void scores(Scores& x, int query, int s) const {
        for (int i = 0; i < QUERIES; i++) x.at[i] = 0.0f;
        for (int c = 0; c < size; c++) {
            const float key = to_float(k[s * k_row + c]);
            for (int i = 0; i < QUERIES; i++)
                x.at[i] = fmaf(to_float(q[min(query + i, queries - 1) * q_row + c]), key, x.at[i]);
        }
        for (int i = 0; i < QUERIES; i++) {
            const int t = min(query + i, queries - 1);
            const float added = bias.at ? to_float(bias.row(t, queries)[s * bias.key]) : 0.0f;
            const bool hidden = (mask.at && !mask.row(t, queries)[s * mask.key]) ||
                                (causal && s >= causal_end(t, queries, keys));
            x.at[i] = hidden ? LOWEST : fmaf(x.at[i], scale, added);
        }
    }
};

// out (B, T, H d) and probs (B, H, T, S), without gaps. bias, mask and factors broadcast to (B, H, T, S). Each but out
// may be null.
extern "C" __global__ void __launch_bounds__(THREADS)
attention_rows(const T* q, long long q_batch, long long q_row, const T* k, long long k_batch, long long k_row,  //
               const T* v, long long v_batch, long long v_row, T* out, int queries, int keys, int size, float scale,
               int causal,  //
               const T* bias_at, long long bias_batch, long long bias_head, long long bias_query, int bias_key,
               const bool* mask_at, long long mask_batch, long long mask_head, long long mask_query, int mask_key,
               const T* factors_at, long long factors_batch, long long factors_head, long long factors_query,
               int factors_key, T* probs, int heads) {
    __shared__ float shared32[32], weights[QUERIES][THREADS];
    const int b = blockIdx.z, h = blockIdx.y % heads, query = blockIdx.x * QUERIES;
    const int column = blockIdx.y / heads * THREADS + threadIdx.x;  // of the context, this thread's
    const Head head = {q + b * q_batch + h * size, k + b * k_batch + h * size, q_row, k_row,
                       Plane<T>(bias_at, b * bias_batch + h * bias_head, bias_query, bias_key),
                       Plane<bool>(mask_at, b * mask_batch + h * mask_head, mask_query, mask_key),
                       queries, keys, size, scale, causal != 0};
    const Plane<T> factors(factors_at, b * factors_batch + h * factors_head, factors_query, factors_key);
    Softmax<Scores> softmax;
    Scores x;
    NoContext none;
    for (int s = threadIdx.x; s < keys; s += THREADS) {
        head.scores(x, query, s);
        softmax.add(x, none, LOG2_E);
    }
    float base[QUERIES], inverse[QUERIES], context[QUERIES] = {};
    for (int i = 0; i < QUERIES; i++) {
        base[i] = softmax.shift(block_max(softmax.largest[i], shared32));
        const float own = softmax.sum[i] * exp2_fast((softmax.largest[i] - base[i]) * LOG2_E);
        inverse[i] = 1.0f / block_sum(own, shared32);
    }
    for (int first = 0; first < keys; first += THREADS) {
        const int s = first + threadIdx.x, count = min(THREADS, keys - first);
        if (s < keys) {
            head.scores(x, query, s);
            for (int i = 0; i < QUERIES; i++) {
                float p = exp2_fast((x.at[i] - base[i]) * LOG2_E) * inverse[i];
                if (factors.at) p *= to_float(factors.row(query + i, queries)[s * factors.key]);
                weights[i][threadIdx.x] = p;
                if (probs && blockIdx.y < heads && query + i < queries)
                    probs[(((long long)b * heads + h) * queries + query + i) * keys + s] = to_storage(p);
            }
        }
        __syncthreads();
        if (column < size)
            for (int j = 0; j < count; j++) {
                const float value = to_float(v[b * v_batch + (first + j) * v_row + h * size + column]);
                for (int i = 0; i < QUERIES; i++) context[i] = fmaf(weights[i][j], value, context[i]);
            }
        __syncthreads();
    }
    if (column < size)
        for (int i = 0; i < QUERIES && query + i < queries; i++)
            out[((long long)b * queries + query + i) * heads * size + h * size + column] = to_storage(context[i]);
}
