// What fibers.cpp and launching.cpp share.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "fibers.h"

namespace emulator {

constexpr int MOST_THREADS = 1024;

extern const Kernel* kernel;
extern void** arguments;     // its own
extern std::string failure;  // why the kernel was given up, or empty
extern size_t dynamic_shared_bytes;

__attribute__((format(printf, 1, 2))) std::string formatted(const char* format, ...);
void give_up(const std::string& why);

void poison_static_shared();
void watch_static_shared();

// Which fiber comes next.  0: in turn.  1: in turn, backwards.  Even: in turn, shuffled for each block.  Odd: shuffled,
// and a warp runs as far as it can before another one does.
struct Schedule {
    std::vector<int> order;
    bool shuffled, greedy;
    std::mt19937 random;

    Schedule(unsigned seed, int threads)
        : order(threads), shuffled(seed > 1), greedy(shuffled && seed % 2), random(seed) {
        for (int i = 0; i < threads; i++) order[i] = seed == 1 ? threads - 1 - i : i;
    }

    void next_block() {
        if (!shuffled) return;
        std::shuffle(order.begin(), order.end(), random);
        if (!greedy) return;
        const unsigned salt = random();
        auto rank = [=](int i) { return (i / WARP * 2654435761u) ^ salt; };  // of a warp
        std::stable_sort(order.begin(), order.end(), [=](int a, int b) { return rank(a) < rank(b); });
    }
};

// Runs the threads of the block ``block_index``, until all have ended or the kernel is given up.
void run_block(Schedule& schedule);

}  // namespace emulator
