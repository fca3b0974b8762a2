// Maps, channels last: x (batch, height, across, channels).  A block's rows of threads have a pixel of the output each,
// whose channels they share, N side by side at a time: 16 bytes where `vectors` says that every row begins at a
// multiple of them, else one number.

#include "common.cuh"

template <int N>
__device__ __forceinline__ const Pack<N>& pack_at(const T* x) {
    return *reinterpret_cast<const Pack<N>*>(x);
}

template <int N>
__device__ __forceinline__ void put(T* y, const Pack<N>& pack) {
    *reinterpret_cast<Pack<N>*>(y) = pack;
}

// The pixel of this thread, and where it is in maps of height x across; false if there is none.
struct Pixel {
    long long index, b;
    int i, j;

    __device__ __forceinline__ bool in(long long begin, long long end, int height, int across) {
        index = begin + blockIdx.x * (long long)blockDim.y + threadIdx.y;
        if (index >= end) return false;
        b = index / ((long long)height * across);
        const int place = int(index - b * height * across);
        i = place / across;
        j = place % across;
        return true;
    }
};

// ---- windows: what a convolution multiplies with its weight

// y[pixel - begin, u, v, c] = x[b, i stride_i + u dilation - padding_i, j stride_j + v - padding_j, c], 0 outside.
//
// x at distances (x_b, x_i, x_j, x_c), y (end - begin, kernel_i, kernel_j, channels) of the pixels begin ... end of
// maps of made_i x made_j.
template <int N>
__device__ __forceinline__ void windows_by(const T* x, long long x_b, long long x_i, long long x_j, long long x_c,
                                           int height, int across, int channels, int kernel_i, int kernel_j,
                                           int stride_i, int stride_j, int padding_i, int padding_j, int dilation,
                                           int made_i, int made_j, long long begin, long long end, T* y) {
    Pixel at;
    if (!at.in(begin, end, made_i, made_j)) return;
    const int packs = channels / N, depth = kernel_i * kernel_j * packs;
    T* row = y + (at.index - begin) * depth * N;
    for (int k = threadIdx.x; k < depth; k += blockDim.x) {
        const int tap = k / packs, c = k % packs * N;
        const int i = at.i * stride_i + tap / kernel_j * dilation - padding_i,
                  j = at.j * stride_j + tap % kernel_j - padding_j;
        Pack<N> pack;
        if (0 <= i && i < height && 0 <= j && j < across) {
            pack = pack_at<N>(x + at.b * x_b + i * x_i + j * x_j + c * x_c);
        } else {
#pragma unroll
            for (int n = 0; n < N; n++) pack.v[n] = to_storage(0.f);
        }
        put<N>(row + k * N, pack);
    }
}

extern "C" __global__ void windows(const T* __restrict__ x, long long x_b, long long x_i, long long x_j, long long x_c,
                                   int height, int across, int channels, int kernel_i, int kernel_j, int stride_i,
                                   int stride_j, int padding_i, int padding_j, int dilation, int made_i, int made_j,
                                   long long begin, long long end, T* __restrict__ y, int vectors) {
    if (vectors)
        windows_by<LANES>(x, x_b, x_i, x_j, x_c, height, across, channels, kernel_i, kernel_j, stride_i, stride_j,
                          padding_i, padding_j, dilation, made_i, made_j, begin, end, y);
    else
        windows_by<1>(x, x_b, x_i, x_j, x_c, height, across, channels, kernel_i, kernel_j, stride_i, stride_j,
                      padding_i, padding_j, dilation, made_i, made_j, begin, end, y);
}

// ---- tiles: what a product gives for a transposed convolution, put where it belongs

// y[b, i side + u, j side + v, c] = x[b, i, j, u, v, c].  x (batch, height, across, side, side, channels).
template <int N>
__device__ __forceinline__ void tiles_by(const T* x, long long pixels, int height, int across, int side, int channels,
                                         T* y) {
    Pixel at;
    if (!at.in(0, pixels, height * side, across * side)) return;
    const long long tile = (at.b * height + at.i / side) * across + at.j / side;
    const T* from = x + ((tile * side + at.i % side) * side + at.j % side) * channels;
    for (int c = threadIdx.x * N; c < channels; c += blockDim.x * N)
        put<N>(y + at.index * channels + c, pack_at<N>(from + c));
}

extern "C" __global__ void tiles(const T* __restrict__ x, long long pixels, int height, int across, int side,
                                 int channels, T* __restrict__ y, int vectors) {
    if (vectors)
        tiles_by<LANES>(x, pixels, height, across, side, channels, y);
    else
        tiles_by<1>(x, pixels, height, across, side, channels, y);
}

// ---- normalisation by statistics of training

// y = activation((x - mean) / sqrt(var + eps) weight + bias).  x and y (rows, channels), y may be x; the others
// (channels).  A thread keeps its channels and goes from row to row.
template <int N>
__device__ __forceinline__ void batch_norm_by(const T* x, long long rows, int channels, const T* mean, const T* var,
                                              const T* weight, const T* bias, float eps, int activation, T* y) {
    for (int c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
        float middle[N], factor[N], term[N];
#pragma unroll
        for (int n = 0; n < N; n++) {
            middle[n] = to_float(mean[c + n]);
            factor[n] = to_float(weight[c + n]) / sqrtf(to_float(var[c + n]) + eps);
            term[n] = to_float(bias[c + n]);
        }
        long long row = blockIdx.x * (long long)blockDim.y + threadIdx.y;
        for (; row < rows; row += (long long)gridDim.x * blockDim.y) {
            Pack<N> pack = pack_at<N>(x + row * channels + c);
#pragma unroll
            for (int n = 0; n < N; n++)
                pack.v[n] = to_storage(activate(activation, (to_float(pack.v[n]) - middle[n]) * factor[n] + term[n]));
            put<N>(y + row * channels + c, pack);
        }
    }
}

extern "C" __global__ void batch_norm(const T* x, long long rows, int channels, const T* __restrict__ mean,
                                      const T* __restrict__ var, const T* __restrict__ weight,
                                      const T* __restrict__ bias, float eps, int activation, T* y, int vectors) {
    if (vectors)
        batch_norm_by<LANES>(x, rows, channels, mean, var, weight, bias, eps, activation, y);
    else
        batch_norm_by<1>(x, rows, channels, mean, var, weight, bias, eps, activation, y);
}

// ---- pooling

// y[b, i, j, c] = the largest of x[b, i side ... , j side ... , c], of side x side pixels; NaN if one of them is.
template <int N>
__device__ __forceinline__ void max_pool_by(const T* x, long long pixels, int height, int across, int channels,
                                            int side, T* y) {
    Pixel at;
    if (!at.in(0, pixels, height / side, across / side)) return;
    for (int c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
        const T* tile = x + ((at.b * height + at.i * side) * across + at.j * side) * channels + c;
        Pack<N> largest = pack_at<N>(tile);
        for (int k = 1; k < side * side; k++) {
            const Pack<N> other = pack_at<N>(tile + ((long long)(k / side) * across + k % side) * channels);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float mine = to_float(largest.v[n]), theirs = to_float(other.v[n]);
                if (theirs > mine || theirs != theirs) largest.v[n] = other.v[n];
            }
        }
        put<N>(y + at.index * channels + c, largest);
    }
}

extern "C" __global__ void max_pool(const T* __restrict__ x, long long pixels, int height, int across, int channels,
                                    int side, T* __restrict__ y, int vectors) {
    if (vectors)
        max_pool_by<LANES>(x, pixels, height, across, channels, side, y);
    else
        max_pool_by<1>(x, pixels, height, across, channels, side, y);
}

// The sum of what the threads of a block's column give, in the order of its rows; all of them get it.
// Block (32, SPLITS).
constexpr int SPLITS = 16;

__device__ __forceinline__ float column_sum(float x, float (&shared)[SPLITS][32]) {
    __syncthreads();  // the sum before is no longer read
    shared[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    float sum = 0.f;
#pragma unroll
    for (int lane = 0; lane < SPLITS; lane++) sum += shared[lane][threadIdx.x];
    return sum;
}

// y[b, i, j, c] = the mean of x[b, floor(i height / side) ... ceil((i + 1) height / side), the same of j, c].
//
// y (batch, side, side, channels).  Grid (cells, channels / 32), block (32, SPLITS): a thread adds every SPLITS-th
// pixel.
extern "C" __global__ void average_pool(const T* __restrict__ x, int height, int across, int channels, int side,
                                        T* __restrict__ y) {
    __shared__ float shared[SPLITS][32];
    const int c = blockIdx.y * 32 + threadIdx.x, i = blockIdx.x / side % side, j = blockIdx.x % side;
    const long long b = blockIdx.x / (side * side);
    const int top = int((long long)i * height / side), bottom = int(((i + 1LL) * height + side - 1) / side);
    const int left = int((long long)j * across / side), right = int(((j + 1LL) * across + side - 1) / side);
    const int wide = right - left, count = (bottom - top) * wide;
    float sum = 0.f;
    if (c < channels)
        for (int k = threadIdx.y; k < count; k += SPLITS)
            sum += to_float(x[((b * height + top + k / wide) * across + left + k % wide) * channels + c]);
    sum = column_sum(sum, shared);
    if (c < channels && threadIdx.y == 0) y[(long long)blockIdx.x * channels + c] = to_storage(sum / count);
}

// y = means and unbiased standard deviations of the first counts[b] frames: NaN of none, and of fewer than two.
//
// x (batch, frames, channels), y (batch, 2 channels).  Grid (batch, channels / 32), block (32, SPLITS).
extern "C" __global__ void statistics(const T* __restrict__ x, const int* __restrict__ counts, int frames, int channels,
                                      T* __restrict__ y) {
    __shared__ float shared[SPLITS][32];
    const int c = blockIdx.y * 32 + threadIdx.x, count = counts[blockIdx.x];
    const T* first = x + (long long)blockIdx.x * frames * channels + c;
    float sum = 0.f, squares = 0.f;
    if (c < channels)
        for (int t = threadIdx.y; t < count; t += SPLITS) sum += to_float(first[(long long)t * channels]);
    const float mean = column_sum(sum, shared) / count;
    if (c < channels)
        for (int t = threadIdx.y; t < count; t += SPLITS) {
            const float off = to_float(first[(long long)t * channels]) - mean;
            squares += off * off;
        }
    squares = column_sum(squares, shared);
    if (c >= channels || threadIdx.y > 0) return;
    T* row = y + (long long)blockIdx.x * 2 * channels;
    row[c] = to_storage(mean);                                           // 0 / 0 of no frame
    row[channels + c] = to_storage(sqrtf(squares / max(count - 1, 0)));  // 0 / 0 of one
}

// ---- another resolution

// The kernel of cubic convolution at distances 0 ... 2 (Keys 1981, eq. 15).
__device__ __forceinline__ float keys(float distance) {
    const float a = -0.75f;
    return distance <= 1.f ? ((a + 2.f) * distance - (a + 3.f)) * distance * distance + 1.f
                           : a * (((distance - 5.f) * distance + 8.f) * distance - 4.f);
}

// Which pixels of `length` make pixel `out` of `made`, and with which weights: 2 (bilinear) or 4 (bicubic).
//
// It lies at (out + 1/2) length / made - 1/2, computed in integers: whole and rest are exact.
template <int TAPS>
struct Interpolation {
    int at[TAPS];
    float weight[TAPS];

    __device__ __forceinline__ Interpolation(int out, int length, int made) {
        const long long below = 2LL * made;
        const long long above = (2LL * out + 1) * length - made;
        const int whole = int((above + below) / below) - 1;  // rounded down: above >= -made
        const float rest = float(above - whole * below) / float(below);
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++) {
            const int step = TAPS == 2 ? tap : tap - 1;
            at[tap] = min(max(whole + step, 0), length - 1);
            weight[tap] = TAPS == 4 ? keys(fabsf(rest - step)) : tap ? rest : 1.f - rest;
        }
    }
};

// y[b, i, j, c] = sum_u,v weight_u weight_v x[b, at_u, at_v, c].  y (batch, made_i, made_j, channels).
template <int TAPS, int N>
__device__ __forceinline__ void resize_by(const T* x, long long pixels, int height, int across, int channels,
                                          int made_i, int made_j, T* y) {
    Pixel at;
    if (!at.in(0, pixels, made_i, made_j)) return;
    const Interpolation<TAPS> rows(at.i, height, made_i), columns(at.j, across, made_j);
    for (int c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
        float sums[N] = {};
#pragma unroll
        for (int u = 0; u < TAPS; u++) {
#pragma unroll
            for (int v = 0; v < TAPS; v++) {
                const Pack<N> pack =
                    pack_at<N>(x + ((at.b * height + rows.at[u]) * across + columns.at[v]) * channels + c);
                const float weight = rows.weight[u] * columns.weight[v];
#pragma unroll
                for (int n = 0; n < N; n++) sums[n] += weight * to_float(pack.v[n]);
            }
        }
        Pack<N> out;
#pragma unroll
        for (int n = 0; n < N; n++) out.v[n] = to_storage(sums[n]);
        put<N>(y + at.index * channels + c, out);
    }
}

extern "C" __global__ void bilinear(const T* __restrict__ x, long long pixels, int height, int across, int channels,
                                    int made_i, int made_j, T* __restrict__ y, int vectors) {
    if (vectors)
        resize_by<2, LANES>(x, pixels, height, across, channels, made_i, made_j, y);
    else
        resize_by<2, 1>(x, pixels, height, across, channels, made_i, made_j, y);
}

extern "C" __global__ void bicubic(const T* __restrict__ x, long long pixels, int height, int across, int channels,
                                   int made_i, int made_j, T* __restrict__ y, int vectors) {
    if (vectors)
        resize_by<4, LANES>(x, pixels, height, across, channels, made_i, made_j, y);
    else
        resize_by<4, 1>(x, pixels, height, across, channels, made_i, made_j, y);
}
