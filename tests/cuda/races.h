// Finds what two threads do to the same memory with no barrier between them, whatever the schedule.
//
// g++ -fsanitize=thread has every access call a function of the sanitizer's library.  Here these functions are our own:
// they know a kernel's threads and barriers, which that library does not.  Of every two bytes is kept who wrote and who
// read them last, and how many barriers lay behind.
#pragma once

#include <cstddef>
#include <string>

namespace emulator::races {

extern bool wanted;  // whether the kernels are compiled so

void forget();  // what was watched before
void watch(const void* begin, size_t bytes, bool shared, const std::string& what);
void block_begins();
void block_barrier();
void warp_barrier(int warp);

}  // namespace emulator::races
