// What a kernel that runs on the CPU calls of fibers.cpp: see cuda_on_cpu.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <vector_types.h>

namespace emulator {

constexpr int WARP = 32;
constexpr unsigned char POISON = 0xFF;  // all bits are ones: NaN in every format

// Where in the source an operation is called.
struct Place {
    const char* file;
    int line;
};
// Two parameters that tell a function where it is called.
#define CALLED_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define HERE \
    emulator::Place { file, line }

extern int current;           // the thread that runs, of its block
extern int threads;           // how many threads a block has
extern uint3* thread_index;   // threadIdx, of each
extern uint3 block_index;     // blockIdx
extern dim3 block_size, grid_size;
extern unsigned char* dynamic_shared;

// Gives the kernel up.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

// All threads of the block arrive here, or the kernel is wrong.  Returns for how many the predicate holds.
int block_barrier(bool predicate, Place place);

// Waits for the lanes that ``mask`` names.  The last one gets true, and the requests of all: 32 pointers, null for a
// lane that takes no part.  It does their work and then calls ``release``, for which the others wait.
bool arrive(const char* operation, unsigned mask, void* request, Place place, void** requests);
void release(unsigned mask);
void warp_barrier(unsigned mask, Place place);

// An operation of a warp: work(requests) reads what all lanes ask for and writes what they get.
template <class Request, class Work>
void together(const char* operation, unsigned mask, Request& mine, Place place, Work work) {
    void* requests[WARP];
    if (!arrive(operation, mask, &mine, place, requests)) return;
    work(reinterpret_cast<Request**>(requests));
    release(mask);
}

// Whether it lies in shared memory, static or dynamic.
bool is_shared(const void* at, size_t bytes);

// An asynchronous copy of 16 bytes, of zeros from a null pointer; what was begun before a commit is a group.
void begin_copy(void* to, const void* from);
void commit_copies();
void wait_for_copies(size_t groups);  // until no more groups than these are left
// Memory that an instruction reads or writes, for who looks for races.
void note_read(const void* at, size_t bytes);
void note_write(void* at, size_t bytes);

// ---- the kernels of a file, for launching.cpp

struct Parameter {
    const char* dtype;  // NumPy's word
    bool pointer, writable;
};

struct Kernel {
    const char* name;
    const Parameter* parameters;
    int count;
    void (*call)(void** arguments);
};

extern const Kernel kernels[];
extern const int kernel_count;

}  // namespace emulator
