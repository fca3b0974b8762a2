// The threads of a block as fibers: see cuda_on_cpu.h.
//
// A fiber has a stack of its own and runs until it waits for other threads (at a barrier, or in an operation of its
// warp) or ends; then another one is resumed.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "races.h"
#include "running.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" {  // the ends of the section that static shared memory is in
extern unsigned char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulator {

constexpr size_t STACK = 256 << 10;

struct Copy {
    void* to;
    const void* from;
};

struct Fiber {
    enum State { READY, WAITING, ENDED };
    State state;
    // What it waits in, and what it gives to the others of its warp; no mask: at a barrier of the block.
    const char* operation;
    Place place;
    unsigned mask;
    void* request;
    std::vector<std::vector<Copy>> copies;  // by groups; the last one is still open
    bool made, started;
    ucontext_t context;
    jmp_buf resumed;
    void* fake_stack;  // AddressSanitizer's
};

int current, threads;
static uint3 indices[MOST_THREADS];
uint3* thread_index = indices;
uint3 block_index;
dim3 block_size, grid_size;
unsigned char* dynamic_shared;

size_t dynamic_shared_bytes;
static Fiber fibers[MOST_THREADS];
static unsigned char* stacks;
const Kernel* kernel;
void** arguments;
static int at_barrier, votes, result_of_votes;
static unsigned at_warp[MOST_THREADS / WARP];  // bit l: lane l waits in an operation of the warp
std::string failure;
static jmp_buf scheduler;
static ucontext_t scheduler_context;

// ---- from fiber to fiber

#ifdef __SANITIZE_ADDRESS__  // follows swapcontext, if it is told, but not a longjmp
static const void* scheduler_stack;
static size_t scheduler_stack_size;

static void leave_fiber() {
    Fiber& me = fibers[current];
    __sanitizer_start_switch_fiber(&me.fake_stack, scheduler_stack, scheduler_stack_size);
    swapcontext(&me.context, &scheduler_context);
    __sanitizer_finish_switch_fiber(me.fake_stack, nullptr, nullptr);
}

static void enter_fiber(Fiber& fiber) {
    void* fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, stacks + current * STACK, STACK);
    swapcontext(&scheduler_context, &fiber.context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
    fiber.context.uc_stack.ss_size = 0;  // or AddressSanitizer forgets, on return to it, what it knows of the stack
}

static void fiber_begins() { __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size); }
#else  // swapcontext calls the system, which takes ten times as long
static void leave_fiber() {
    if (!_setjmp(fibers[current].resumed)) _longjmp(scheduler, 1);
}

static __attribute__((noinline)) void enter_fiber(Fiber& fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.resumed, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

static void fiber_begins() {}
#endif

// A fiber outlives its block: it is sooner resumed than made.
static void fiber_main() {
    fiber_begins();
    for (;;) {
        kernel->call(arguments);
        fibers[current].state = Fiber::ENDED;
        leave_fiber();
    }
}

static void make(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks + (&fiber - fibers) * STACK;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    fiber.made = true;
    fiber.started = false;
}

// ---- failures

static std::string formatted(const char* format, va_list values) {
    char text[1000];
    vsnprintf(text, sizeof text, format, values);
    return text;
}

std::string formatted(const char* format, ...) {
    va_list values;
    va_start(values, format);
    const std::string text = formatted(format, values);
    va_end(values);
    return text;
}

static std::string triple(const char* what, uint3 i) { return formatted("%s (%u, %u, %u)", what, i.x, i.y, i.z); }

void give_up(const std::string& why) {
    failure = kernel->name + (", " + triple("block", block_index)) + why;
    for (Fiber& fiber : fibers) fiber.made = false;  // where they stand they stay
}

void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    give_up(", " + triple("thread", thread_index[current]) + ": " + formatted(format, values));
    va_end(values);
    leave_fiber();
    abort();  // nobody resumes it
}

// How many threads wait where, or have ended.
static std::string standing() {
    std::string text;
    std::vector<bool> told(threads);
    for (int i = 0; i < threads; i++) {
        if (told[i]) continue;
        const Fiber& one = fibers[i];
        int count = 0;
        for (int j = i; j < threads; j++) {
            const Fiber& other = fibers[j];
            const bool same_place = other.place.line == one.place.line && other.operation == one.operation;
            if (other.state != one.state || (one.state == Fiber::WAITING && !same_place)) continue;
            told[j] = true;
            count++;
        }
        text += (text.empty() ? "" : "; ") + formatted("%d threads, ", count) + triple("first", thread_index[i]);
        if (one.state == Fiber::ENDED)
            text += ", have ended";
        else
            text += formatted(", wait in %s at %s:%d", one.operation, one.place.file, one.place.line);
    }
    return text;
}

// ---- what kernels call

static void wait_in(const char* operation, Place place) {
    Fiber& me = fibers[current];
    me.operation = operation;
    me.place = place;
    me.state = Fiber::WAITING;
    leave_fiber();
}

int block_barrier(bool predicate, Place place) {
    fibers[current].mask = 0;
    for (int i = 0; at_barrier && i < threads; i++) {
        const Fiber& other = fibers[i];
        if (other.state != Fiber::WAITING || other.mask) continue;
        if (other.place.line != place.line || strcmp(other.place.file, place.file))
            fail("a barrier at %s:%d, while %s is at that of %s:%d", place.file, place.line,
                 triple("thread", thread_index[i]).c_str(), other.place.file, other.place.line);
        break;
    }
    votes += predicate;
    if (++at_barrier < threads) {
        wait_in("__syncthreads", place);
        return result_of_votes;
    }
    for (int i = 0; i < threads; i++) fibers[i].state = Fiber::READY;
    result_of_votes = votes;
    at_barrier = votes = 0;
    races::block_barrier();
    return result_of_votes;
}

bool arrive(const char* operation, unsigned mask, void* request, Place place, void** requests) {
    const int warp = current / WARP, first = warp * WARP, lane = current % WARP;
    if (!(mask >> lane & 1))
        fail("%s at %s:%d: mask %08x leaves out its own lane", operation, place.file, place.line, mask);
    if (threads - first < WARP && mask >> (threads - first))
        fail("%s at %s:%d: mask %08x names lanes that the block has not", operation, place.file, place.line, mask);
    Fiber& me = fibers[current];
    me.mask = mask;
    me.operation = operation;
    me.request = request;
    at_warp[warp] |= 1u << lane;
    bool all = (at_warp[warp] & mask) == mask;
    for (int i = 0; i < WARP && all; i++) {
        const Fiber& other = fibers[first + i];
        const bool named = mask >> i & 1;
        requests[i] = named ? other.request : nullptr;
        all = !named || (other.mask == mask && !strcmp(other.operation, operation));
    }
    if (!all) wait_in(operation, place);
    return all;
}

void release(unsigned mask) {
    const int warp = current / WARP;
    at_warp[warp] &= ~mask;
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1) fibers[warp * WARP + i].state = Fiber::READY;
}

void warp_barrier(unsigned mask, Place place) {
    int nothing;
    together("__syncwarp", mask, nothing, place, [mask](int**) {
        if (mask == ~0u) races::warp_barrier(current / WARP);
    });
}

bool is_shared(const void* at, size_t bytes) {
    auto within = [=](const unsigned char* begin, const unsigned char* end) {
        return at >= begin && static_cast<const unsigned char*>(at) + bytes <= end;
    };
    return within(dynamic_shared, dynamic_shared + dynamic_shared_bytes) ||
           within(__start_cuda_shared, __stop_cuda_shared);
}

void begin_copy(void* to, const void* from) {
    note_write(to, 16);
    memset(to, POISON, 16);  // who reads it before the wait gets NaN
    fibers[current].copies.back().push_back({to, from});
}

void commit_copies() { fibers[current].copies.emplace_back(); }

void wait_for_copies(size_t groups) {
    auto& copies = fibers[current].copies;
    while (copies.size() > groups + 1) {
        for (const Copy& copy : copies.front()) {
            note_write(copy.to, 16);
            if (copy.from) note_read(copy.from, 16);
            if (copy.from)
                memcpy(copy.to, copy.from, 16);
            else
                memset(copy.to, 0, 16);
        }
        copies.erase(copies.begin());
    }
}

// ---- running blocks

void run_block(Schedule& schedule) {
    if (!stacks)
        stacks = static_cast<unsigned char*>(mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (int i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.state = Fiber::READY;
        fiber.copies.assign(1, {});
        if (!fiber.made) make(fiber);
    }
    at_barrier = votes = 0;
    std::fill(std::begin(at_warp), std::end(at_warp), 0);
    races::block_begins();
    schedule.next_block();
    const int chunk = schedule.greedy ? WARP : threads;
    for (bool any = true; any;) {
        any = false;
        for (int begin = 0; begin < threads; begin += chunk)
            for (bool again = true; again;) {
                again = false;
                for (int i = begin; i < std::min(begin + chunk, threads); i++) {
                    current = schedule.order[i];
                    if (fibers[current].state != Fiber::READY) continue;
                    enter_fiber(fibers[current]);
                    if (!failure.empty()) return;
                    any = true;
                    again = schedule.greedy;
                }
            }
    }
    if (std::any_of(fibers, fibers + threads, [](const Fiber& fiber) { return fiber.state != Fiber::ENDED; }))
        give_up(" hangs: " + standing());
}

__attribute__((no_sanitize("address"))) void poison_static_shared() {  // what lies between the arrays too
    for (unsigned char* at = __start_cuda_shared; at != __stop_cuda_shared; at++) *at = POISON;
}

void watch_static_shared() {
    races::watch(__start_cuda_shared, __stop_cuda_shared - __start_cuda_shared, true, "static shared memory");
}

}  // namespace emulator

// ---- what g++ -fsanitize=alignment has a misaligned access call, as its own library has it

#ifndef __SANITIZE_ADDRESS__
extern "C" void __ubsan_handle_type_mismatch_v1(const void* data, const void* at) {
    struct Source {
        const char* file;
        unsigned line, column;
    };
    const Source* source = static_cast<const Source*>(data);
    emulator::fail("misaligned address %p at %s:%u", at, source->file, source->line);
}
#endif
