// See races.h.
#include "races.h"

#include <dlfcn.h>

#include <cstdio>
#include <vector>

#include "fibers.h"

namespace emulator {
namespace races {

constexpr size_t GRAIN = 2;  // bytes, of the smallest numbers that kernels write

// An access: by which thread of which block, after how many barriers of its block and of its warp.
struct Access {
    int block = -1, thread = 0;
    unsigned barriers = 0, warp_barriers = 0;
};

struct Cell {
    Access write, read, other_read;  // the last read, and the last one of another warp or block
};

struct Region {
    const unsigned char* begin;
    size_t bytes;
    bool shared;  // each block's own
    std::string what;
    std::vector<Cell> cells;
};

bool wanted = false;
static std::vector<Region> regions;
static const void* caller;  // behind the access, where a kernel itself makes it
static int block;
static unsigned barriers, warp_barriers[32];

void forget() { regions.clear(); }

void watch(const void* begin, size_t bytes, bool shared, const std::string& what) {
    const auto at = static_cast<const unsigned char*>(begin);
    if (wanted && bytes) regions.push_back({at, bytes, shared, what, std::vector<Cell>(bytes / GRAIN + 1)});
}

void block_begins() {
    block++;
    barriers++;
}

void block_barrier() { barriers++; }
void warp_barrier(int warp) { warp_barriers[warp]++; }

// Whether a barrier lies between an access and the thread that runs; blocks have none between them.
static bool is_before(const Access& access, bool shared) {
    if (access.block != block) return access.block < 0 || shared;
    if (access.thread == current || access.barriers < barriers) return true;
    const int warp = current / WARP;
    return access.thread / WARP == warp && access.warp_barriers < warp_barriers[warp];
}

static void check(const Access& access, const char* did, const char* does, const Region& region, size_t at) {
    if (is_before(access, region.shared)) return;
    const uint3 t = thread_index[access.thread];
    char place[32] = "";
    Dl_info library;
    if (caller && dladdr(caller, &library)) {  // emulator.py finds the line
        const long offset = static_cast<const char*>(caller) - static_cast<const char*>(library.dli_fbase);
        snprintf(place, sizeof place, ", at +0x%lx", offset - 1);
    }
    fail("race: %s byte %zu of %s, which %sthread (%u, %u, %u) %s with no barrier between%s", does, at,
         region.what.c_str(), access.block == block ? "" : "another block's ", t.x, t.y, t.z, did, place);
}

static void note(const void* at, size_t bytes, bool writes) {
    const unsigned char* begin = static_cast<const unsigned char*>(at);
    for (Region& region : regions) {
        if (begin < region.begin || begin >= region.begin + region.bytes) continue;
        const size_t offset = begin - region.begin;
        const Access now{block, current, barriers, warp_barriers[current / WARP]};
        for (size_t i = offset / GRAIN; i <= (offset + bytes - 1) / GRAIN && i < region.cells.size(); i++) {
            Cell& cell = region.cells[i];
            check(cell.write, "wrote", writes ? "writes" : "reads", region, i * GRAIN);
            if (writes) {
                check(cell.read, "read", "writes", region, i * GRAIN);
                check(cell.other_read, "read", "writes", region, i * GRAIN);
                cell.write = now;
            } else {
                if (cell.read.block != block || cell.read.thread / WARP != current / WARP) cell.other_read = cell.read;
                cell.read = now;
            }
        }
        return;
    }
}

}  // namespace races

void note_read(const void* at, size_t bytes) {
    if (races::wanted) races::note(at, bytes, false);
}
void note_write(void* at, size_t bytes) {
    if (races::wanted) races::note(at, bytes, true);
}

static void seen(const void* at, size_t bytes, bool writes, const void* caller) {
    races::caller = caller;
    races::note(at, bytes, writes);
    races::caller = nullptr;
}

}  // namespace emulator

// ---- what g++ -fsanitize=thread has accesses call

#define CALLER __builtin_return_address(0)
#define SEEN_OF(count)                                                                      \
    void __tsan_read##count(void* at) { emulator::seen(at, count, false, CALLER); }         \
    void __tsan_write##count(void* at) { emulator::seen(at, count, true, CALLER); }         \
    void __tsan_unaligned_read##count(void* at) { emulator::seen(at, count, false, CALLER); } \
    void __tsan_unaligned_write##count(void* at) { emulator::seen(at, count, true, CALLER); }

extern "C" {
SEEN_OF(1)
SEEN_OF(2)
SEEN_OF(4)
SEEN_OF(8)
SEEN_OF(16)
void __tsan_read_range(void* at, size_t bytes) { emulator::seen(at, bytes, false, CALLER); }
void __tsan_write_range(void* at, size_t bytes) { emulator::seen(at, bytes, true, CALLER); }
void __tsan_init() { emulator::races::wanted = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
}
