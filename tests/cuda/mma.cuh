// The instructions of backends/cupy/kernels/mma.cuh on the CPU, from the PTX ISA's tables of which lane holds which
// element (sections "Matrix Fragments for mma.m16n8k16", "... mma.m16n8k8", "ldmatrix", "cp.async").  It is included
// before a kernel's source and takes the other file's place.
#pragma once
#define D2V_MMA_CUH

#include "cuda_on_cpu.h"

namespace emulator {

struct At {
    int row, column;
};

struct Product {
    float* d;
    const unsigned *a, *b;
};

// Of both shapes: row g or g + 8, columns 2 t and 2 t + 1, for lane = 4 g + t.
inline At d_place(int lane, int i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }

// D (16, 8) += A (16, depth) B (depth, 8), by the lane that arrives last.  ``convert(registers, i)`` is number i of a
// fragment, and ``a_place(lane, i)`` and ``b_place(lane, i)`` are where in A and B it belongs.
template <int depth, int a_count, int b_count, class Convert, class APlace, class BPlace>
void multiply(const char* operation, Product mine, Place place, Convert convert, APlace a_place, BPlace b_place) {
    together(operation, ~0u, mine, place, [&](Product** lanes) {
        float a[16][depth], b[depth][8], sum[16][8];
        for (int lane = 0; lane < WARP; lane++) {
            for (int i = 0; i < a_count; i++) {
                const At at = a_place(lane, i);
                a[at.row][at.column] = convert(lanes[lane]->a, i);
            }
            for (int i = 0; i < b_count; i++) {
                const At at = b_place(lane, i);
                b[at.row][at.column] = convert(lanes[lane]->b, i);
            }
        }
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) {
                sum[row][column] = 0.0f;
                for (int k = 0; k < depth; k++) sum[row][column] += a[row][k] * b[k][column];
            }
        for (int lane = 0; lane < WARP; lane++)
            for (int i = 0; i < 4; i++) {
                const At at = d_place(lane, i);
                lanes[lane]->d[i] += sum[at.row][at.column];
            }
    });
}

// count 8 x 8 matrices of 16-bit numbers: lane l gives the address of row l % 8 of matrix l / 8, and gets of row
// lane / 4 the numbers 2 (lane % 4) and the next one; of each matrix transposed, if ``transposed``.
template <int count>
void load_matrices(unsigned (&r)[count], const void* shared, bool transposed, Place place) {
    struct Request {
        const void* row;
        unsigned* result;
    } mine{shared, r};
    if (current % WARP < 8 * count) {  // the addresses of other lanes are not looked at
        if ((uintptr_t)shared % 16) fail("ldmatrix at %s:%d: a row is not aligned to 16 bytes", place.file, place.line);
        if (!is_shared(shared, 16)) fail("ldmatrix at %s:%d: a row is not in shared memory", place.file, place.line);
        note_read(shared, 16);
    }
    together("ldmatrix", ~0u, mine, place, [transposed](Request** lanes) {
        for (int lane = 0; lane < WARP; lane++)
            for (int matrix = 0; matrix < count; matrix++) {
                uint16_t pair[2];
                for (int i = 0; i < 2; i++) {
                    int row = lane / 4, column = lane % 4 * 2 + i;
                    if (transposed) row = lane % 4 * 2 + i, column = lane / 4;
                    memcpy(&pair[i], (const uint16_t*)lanes[8 * matrix + row]->row + column, sizeof pair[i]);
                }
                memcpy(&lanes[lane]->result[matrix], pair, sizeof pair);
            }
    });
}

}  // namespace emulator

// ---- the functions of mma.cuh

// d (16, 8) += a (16, 16) b (16, 8) of half or bfloat16 numbers, two to a register.
template <class Number = STORAGE>
void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], CALLED_AT) {
    static_assert(sizeof(Number) == 2, "half or bfloat16 numbers");
    auto convert = [](const unsigned* registers, int i) {
        return float(reinterpreted<Number>(uint16_t(registers[i / 2] >> (i % 2 * 16))));
    };
    auto a_place = [](int lane, int i) {  // a0 a1: row g; a2 a3: row g + 8; a4 ... a7: the same, 8 columns on
        return emulator::At{lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8};
    };
    auto b_place = [](int lane, int i) { return emulator::At{lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4}; };
    emulator::multiply<16, 8, 4>("mma.m16n8k16", {d, a, b}, HERE, convert, a_place, b_place);
}

// d (16, 8) += a (16, 8) b (8, 8) of tf32 numbers: the lower 13 bits of a register are not looked at.
inline void mma_16x8x8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], CALLED_AT) {
    auto convert = [](const unsigned* registers, int i) { return __uint_as_float(registers[i] & ~0x1FFFu); };
    auto a_place = [](int lane, int i) { return emulator::At{lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4}; };
    auto b_place = [](int lane, int i) { return emulator::At{lane % 4 + i * 4, lane / 4}; };
    emulator::multiply<8, 4, 2>("mma.m16n8k8", {d, a, b}, HERE, convert, a_place, b_place);
}

inline void ldmatrix_x4(unsigned (&r)[4], const void* shared, CALLED_AT) {
    emulator::load_matrices(r, shared, false, HERE);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared, CALLED_AT) {
    emulator::load_matrices(r, shared, true, HERE);
}
inline void ldmatrix_x2(unsigned (&r)[2], const void* shared, CALLED_AT) {
    emulator::load_matrices(r, shared, false, HERE);
}
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* shared, CALLED_AT) {
    emulator::load_matrices(r, shared, true, HERE);
}

// What is copied is there after the wait, and until then NaN.
inline void copy_async_16(void* shared, const void* global, bool valid, CALLED_AT) {
    if ((uintptr_t)shared % 16) emulator::fail("cp.async at %s:%d: to no multiple of 16 bytes", file, line);
    if (valid && (uintptr_t)global % 16)
        emulator::fail("cp.async at %s:%d: from no multiple of 16 bytes", file, line);
    if (!emulator::is_shared(shared, 16))
        emulator::fail("cp.async at %s:%d: not to shared memory", file, line);
    emulator::begin_copy(shared, valid ? global : nullptr);
}

inline void copy_async_commit() { emulator::commit_copies(); }

// All groups but the last ``count`` that were committed.
template <int count>
void copy_async_wait() {
    emulator::wait_for_copies(count);
}

// The nearest tf32 number, of two that are as near the one of larger magnitude (cvt.rna.tf32.f32).
inline unsigned to_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7F800000u) == 0x7F800000u) return bits & 0x7FFFFFu ? 0x7FFFFFFFu : bits;
    return (bits + 0x1000u) & ~0x1FFFu;
}

// A denormal result is 0, as ex2.approx.ftz.f32 has it.
inline float exp2_fast(float x) {
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
