// The table of a file's kernels.  The file that is compiled includes the kernels and then this, and ends with
// KERNELS(ENTRY(one), ENTRY(other)).
#pragma once

#include <type_traits>
#include <utility>

#include "fibers.h"

namespace emulator {

template <class Value>
constexpr const char* dtype = nullptr;
template <>
inline constexpr const char* dtype<bool> = "bool";
template <>
inline constexpr const char* dtype<signed char> = "int8";
template <>
inline constexpr const char* dtype<unsigned char> = "uint8";
template <>
inline constexpr const char* dtype<int> = "int32";
template <>
inline constexpr const char* dtype<unsigned> = "uint32";
template <>
inline constexpr const char* dtype<long long> = "int64";
template <>
inline constexpr const char* dtype<unsigned long long> = "uint64";
template <>
inline constexpr const char* dtype<float> = "float32";
template <>
inline constexpr const char* dtype<double> = "float64";
template <>
inline constexpr const char* dtype<__half> = "float16";
template <>
inline constexpr const char* dtype<__nv_bfloat16> = "bfloat16";

template <class Value>
constexpr Parameter parameter() {
    using Target = std::remove_pointer_t<Value>;
    static_assert(dtype<std::remove_const_t<Target>>, "a kernel takes pointers and numbers of NumPy's types");
    return {dtype<std::remove_const_t<Target>>, std::is_pointer_v<Value>, !std::is_const_v<Target>};
}

template <auto function>
struct Entry;
template <class... Values, void (*function)(Values...)>
struct Entry<function> {
    static constexpr Parameter parameters[] = {parameter<Values>()...};

    static void call(void** arguments) { call(arguments, std::index_sequence_for<Values...>()); }
    template <size_t... i>
    static void call(void** arguments, std::index_sequence<i...>) {
        function(*static_cast<std::remove_const_t<Values>*>(arguments[i])...);
    }
    static constexpr Kernel kernel(const char* name) { return {name, parameters, sizeof...(Values), call}; }
};

}  // namespace emulator

#define ENTRY(name) emulator::Entry<&name>::kernel(#name)
#define KERNELS(...)                                     \
    const emulator::Kernel emulator::kernels[] = {__VA_ARGS__}; \
    const int emulator::kernel_count = sizeof emulator::kernels / sizeof *emulator::kernels;
