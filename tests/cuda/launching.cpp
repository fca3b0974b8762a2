// Launches on copies of operands, and the functions that emulator.py calls.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "races.h"
#include "running.h"

namespace emulator {

// Memory as aligned as the card's, between bytes that nobody may write and that are NaN to who reads them.
// (AddressSanitizer has guards of its own, which must begin where the memory ends.)
class Guarded {
   public:
    explicit Guarded(size_t bytes) : bytes(bytes) {
        if (posix_memalign(&base, ALIGNMENT, bytes + 2 * GUARD)) abort();
        memset(base, POISON, bytes + 2 * GUARD);
    }
    Guarded(const Guarded&) = delete;
    ~Guarded() { free(base); }

    unsigned char* data() const { return static_cast<unsigned char*>(base) + GUARD; }

    // What was written outside of the memory, or nothing.
    std::string written() const {
        for (size_t i = 0; i < GUARD; i++) {
            if (data()[bytes + i] != POISON) return formatted("written %zu bytes beyond the end of ", i + 1);
            if (*(data() - i - 1) != POISON) return formatted("written %zu bytes before the beginning of ", i + 1);
        }
        return "";
    }

    const size_t bytes;

   private:
    static constexpr size_t ALIGNMENT = 512;
#ifdef __SANITIZE_ADDRESS__
    static constexpr size_t GUARD = 0;
#else
    static constexpr size_t GUARD = 4096;
#endif
    void* base;
};

static void run_grid(size_t shared, unsigned seed) {
    const Guarded memory(shared);
    dynamic_shared = memory.data();
    dynamic_shared_bytes = shared;
    races::watch(dynamic_shared, shared, true, "dynamic shared memory");
    watch_static_shared();
    for (int i = 0; i < threads; i++)
        thread_index[i] = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    Schedule schedule(seed, threads);
    for (unsigned z = 0; z < grid_size.z; z++)
        for (unsigned y = 0; y < grid_size.y; y++)
            for (unsigned x = 0; x < grid_size.x; x++) {
                block_index = {x, y, z};
                memset(dynamic_shared, POISON, shared);
                poison_static_shared();
                run_block(schedule);
                if (failure.empty() && !memory.written().empty())
                    give_up(": " + memory.written() + formatted("%zu bytes of dynamic shared memory", shared));
                if (!failure.empty()) return;
            }
}

// One argument: a scalar's bits, or an operand and the offset in it; operand -1 is a scalar, -2 a null pointer.
struct Argument {
    long long operand, value;
};

// An operand, and whether the kernel may write it.
struct Operand {
    unsigned char* data;
    long long bytes, writable;
};

// Runs a kernel on copies of its operands, and copies what it may write back.
static void launch(const unsigned* dims, size_t shared, unsigned seed, const Argument* given, Operand* operands,
                   int count) {
    std::vector<std::unique_ptr<Guarded>> copies;
    races::forget();
    for (int i = 0; i < count; i++) {
        copies.push_back(std::make_unique<Guarded>(operands[i].bytes));
        if (operands[i].bytes) memcpy(copies[i]->data(), operands[i].data, operands[i].bytes);
        races::watch(copies[i]->data(), operands[i].bytes, false, formatted("operand %d", i));
    }
    std::vector<long long> values(kernel->count);
    std::vector<void*> addresses(kernel->count);
    for (int i = 0; i < kernel->count; i++) {
        const auto [operand, value] = given[i];
        values[i] = operand >= 0 ? reinterpret_cast<long long>(copies[operand]->data() + value) : value;
        addresses[i] = &values[i];
    }
    arguments = addresses.data();
    grid_size = {dims[0], dims[1], dims[2]};
    block_size = {dims[3], dims[4], dims[5]};
    threads = dims[3] * dims[4] * dims[5];
    failure.clear();
    run_grid(shared, seed);
    for (int i = 0; i < count; i++) {
        if (failure.empty() && !copies[i]->written().empty())
            failure = std::string(kernel->name) + ": " + copies[i]->written() +
                      formatted("operand %d of %lld bytes", i, operands[i].bytes);
        if (operands[i].writable && operands[i].bytes) memcpy(operands[i].data, copies[i]->data(), operands[i].bytes);
    }
}

}  // namespace emulator

// ---- what emulator.py calls

// The kernels, one a line: name and its parameters' dtypes, "*" after a pointer's and "const" before what is read only.
extern "C" __attribute__((visibility("default"))) const char* emulated_kernels() {
    static std::string text;
    text.clear();
    for (int i = 0; i < emulator::kernel_count; i++) {
        const emulator::Kernel& kernel = emulator::kernels[i];
        text += kernel.name;
        for (int j = 0; j < kernel.count; j++) {
            const emulator::Parameter& one = kernel.parameters[j];
            text += std::string(j ? "," : ":") + (one.writable ? "" : "const ") + one.dtype + (one.pointer ? "*" : "");
        }
        text += "\n";
    }
    return text.c_str();
}

// Runs a kernel.  Returns what went wrong, or null.
extern "C" __attribute__((visibility("default"))) const char* emulated_launch(
    int index, const unsigned* dims, long long shared, unsigned seed, const emulator::Argument* arguments,
    emulator::Operand* operands, int count) {
    using namespace emulator;
    kernel = &kernels[index];
    launch(dims, shared, seed, arguments, operands, count);
    return failure.empty() ? nullptr : failure.c_str();
}

#ifdef EMULATED_PROGRAM
// The same for a process of its own: int64 numbers and operands from the standard input, and then to the output what
// went wrong and what was written.  With a word on the command line it lists the kernels.
static void receive(void* to, size_t bytes) {
    if (bytes && fread(to, 1, bytes, stdin) != bytes) exit(3);
}

static long long number() {
    long long value;
    receive(&value, sizeof value);
    return value;
}

int main(int words, char**) {
    if (words > 1) {
        fputs(emulated_kernels(), stdout);
        return 0;
    }
    const int kernel = number();
    unsigned dims[6];
    for (unsigned& dim : dims) dim = number();
    const long long shared = number(), seed = number();
    std::vector<emulator::Argument> arguments(number());
    for (auto& one : arguments) one.operand = number(), one.value = number();
    std::vector<emulator::Operand> operands(number());
    std::vector<std::vector<unsigned char>> data(operands.size());
    for (size_t i = 0; i < operands.size(); i++) {
        data[i].resize(number());
        operands[i] = {data[i].data(), static_cast<long long>(data[i].size()), number()};
        receive(data[i].data(), data[i].size());
    }
    const char* wrong = emulated_launch(kernel, dims, shared, seed, arguments.data(), operands.data(), operands.size());
    const long long length = wrong ? strlen(wrong) : 0;
    fwrite(&length, sizeof length, 1, stdout);
    fputs(wrong ? wrong : "", stdout);
    for (const auto& one : operands)
        if (one.writable && one.bytes) fwrite(one.data, 1, one.bytes, stdout);
}
#endif
