// A convolution over time of a signal of one channel, with the LayerNorm and the activation that follow.
//
// Define PACKS, 16 bytes of outputs that a lane makes of a frame.  Those of 512 outputs:
// variants: T=float PACKS=4
// variants: T=__half,__nv_bfloat16 PACKS=2

#include "common.cuh"

// A warp makes FRAMES frames at a time, so that a weight that is read from shared memory serves all of them, and their
// statistics need no barrier.  A lane makes OWN outputs of each: PACKS times LANES that lie side by side.
constexpr int OWN = PACKS * LANES, WARPS = 4;
constexpr int FRAMES = OWN >= 64 ? 1 : OWN >= 8 ? 64 / OWN : 8;  // 64 sums fit in a thread's registers

using Sums = float[FRAMES][OWN];

struct alignas(16) Quad {
    float v[4];
};

__device__ __forceinline__ int output_of(int own, int lane) { return (own / LANES * 32 + lane) * LANES + own % LANES; }

// filters (taps, OWN / 4, 32, 4) = weight (outputs, taps): the 4 numbers that a lane reads at a time lie beside its
// neighbours'.  0 where there is no output.
__device__ __forceinline__ void place_filters(float* filters, const T* weight, int outputs, int taps) {
    for (int i = threadIdx.x; i < taps * 32 * OWN; i += blockDim.x) {
        const int tap = i / (32 * OWN), own = i / 128 % (OWN / 4) * 4 + i % 4, o = output_of(own, i / 4 % 32);
        filters[i] = o < outputs ? to_float(weight[o * taps + tap]) : 0.f;
    }
}

// sums[f][own] = bias + sum_tap filters[tap] signal[f stride + tap dilation].
__device__ __forceinline__ void convolve(Sums& sums, const float* signal, int stride, int dilation,
                                         const float* filters, int taps, const T* bias, int outputs, int lane) {
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        const int o = output_of(own, lane);
        const float term = bias && o < outputs ? to_float(bias[o]) : 0.f;
#pragma unroll
        for (int f = 0; f < FRAMES; f++) sums[f][own] = term;
    }
#pragma unroll 1
    for (int tap = 0; tap < taps; tap++) {
        float sample[FRAMES];
#pragma unroll
        for (int f = 0; f < FRAMES; f++) sample[f] = signal[f * stride + tap * dilation];
#pragma unroll
        for (int quad = 0; quad < OWN / 4; quad++) {
            const Quad w = *reinterpret_cast<const Quad*>(filters + ((tap * (OWN / 4) + quad) * 32 + lane) * 4);
#pragma unroll
            for (int f = 0; f < FRAMES; f++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[f][quad * 4 + j] += sample[f] * w.v[j];
        }
    }
}

// layer_norm(sums) scale + shift, of each frame's outputs.  What is no output is 0, and left out of the variance.
__device__ __forceinline__ void normalise(Sums& sums, const T* scale, const T* shift, float eps, int outputs,
                                          int lane) {
#pragma unroll
    for (int f = 0; f < FRAMES; f++) {
        float sum = 0.f, squares = 0.f;
#pragma unroll
        for (int own = 0; own < OWN; own++) sum += sums[f][own];
        const float mean = warp_sum(sum) / outputs;
#pragma unroll
        for (int own = 0; own < OWN; own++) {
            sums[f][own] -= mean;
            squares += output_of(own, lane) < outputs ? sums[f][own] * sums[f][own] : 0.f;
        }
        const float over = 1.f / sqrtf(warp_sum(squares) / outputs + eps);
#pragma unroll
        for (int own = 0; own < OWN; own++) sums[f][own] *= over;
    }
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        const int o = output_of(own, lane);
        const bool given = scale && o < outputs;
        const float factor = given ? to_float(scale[o]) : 1.f, term = given ? to_float(shift[o]) : 0.f;
#pragma unroll
        for (int f = 0; f < FRAMES; f++) sums[f][own] = sums[f][own] * factor + term;
    }
}

// y (count, outputs) = the first frames' sums, or gelu of them.
__device__ __forceinline__ void store(T* y, int count, const Sums& sums, int gelu, int outputs, int lane) {
#pragma unroll
    for (int f = 0; f < FRAMES; f++) {
        if (f >= count) break;
        T* row = y + (long long)f * outputs;
#pragma unroll
        for (int pack = 0; pack < PACKS; pack++) {
            const int o = output_of(pack * LANES, lane);
            Pack<LANES> out;
#pragma unroll
            for (int j = 0; j < LANES; j++) {
                const float sum = sums[f][pack * LANES + j];
                out.v[j] = to_storage(gelu ? activate(GELU, sum) : sum);
            }
            if (outputs % LANES == 0) {
                if (o < outputs) store_pack(row + o, out);
            } else {
#pragma unroll
                for (int j = 0; j < LANES; j++)
                    if (o + j < outputs) row[o + j] = out.v[j];
            }
        }
    }
}

// y = conv1d(x), then layer_norm of it if `normalised`, then gelu if `gelu`.
//
// x (batch, frames), weight (outputs, taps), bias (outputs) or null, scale and shift (outputs), the LayerNorm's weight
// and bias, or both null, y (batch, made, outputs); outputs <= 32 OWN.  Block 32 WARPS; its pieces are WARPS FRAMES
// frames of one signal.  Shared memory: the filters, and what of the signal a piece is made of.  The 1 says that
// registers are not to be saved for the sake of more blocks: the compiler would spill some.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    one_channel(const T* __restrict__ x, int batch, int frames, const T* __restrict__ weight,
                const T* __restrict__ bias, int outputs, int taps, int stride, int padding, int dilation,
                int normalised, const T* __restrict__ scale, const T* __restrict__ shift, float eps, int gelu,
                T* __restrict__ y, int made) {
    DYNAMIC_SHARED(float, filters);
    float* signal = filters + taps * 32 * OWN;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    place_filters(filters, weight, outputs, taps);
    const int pieces = (made + WARPS * FRAMES - 1) / (WARPS * FRAMES);
    const int span = (WARPS * FRAMES - 1) * stride + (taps - 1) * dilation + 1;
    for (long long piece = blockIdx.x; piece < (long long)batch * pieces; piece += gridDim.x) {
        const long long b = piece / pieces;
        const int first = int(piece % pieces) * (WARPS * FRAMES);
        __syncthreads();  // the signal of the piece before is no longer read
        for (int i = threadIdx.x; i < span; i += blockDim.x) {
            const long long at = (long long)first * stride - padding + i;
            signal[i] = 0 <= at && at < frames ? to_float(x[b * frames + at]) : 0.f;
        }
        __syncthreads();
        const int begin = first + warp * FRAMES;  // of the warp
        Sums sums;
        convolve(sums, signal + warp * FRAMES * stride, stride, dilation, filters, taps, bias, outputs, lane);
        if (normalised) normalise(sums, scale, shift, eps, outputs, lane);
        store(y + (b * made + begin) * outputs, made - begin, sums, gelu, outputs, lane);
    }
}
