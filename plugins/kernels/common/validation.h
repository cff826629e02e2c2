// Builds the messages of the parameter checks: what failed, the value got, the fix.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <string>

namespace ctx
{

// An empty string means valid, so a call without a fault builds no message.
template <typename... Parts>
std::string message(Parts const&... parts)
{
    std::ostringstream stream;
    (stream << ... << parts);
    return stream.str();
}

// What sizes and tensors may reach, so that no index of the kernels overflows and a grid of 128 threads a block that
// has a thread per element is one that CUDA can launch.
constexpr int64_t kMAX_SIZE = 2147483647;
constexpr int64_t kMAX_ELEMENTS = int64_t{1} << 37;

inline bool areSizes(std::initializer_list<int64_t> sizes)
{
    int64_t elements = 1;
    for (int64_t const size : sizes)
    {
        if (size < 0 || size > kMAX_SIZE)
        {
            return false;
        }
        bool const fits = size == 0 || elements <= kMAX_ELEMENTS / size;
        elements = fits ? elements * size : kMAX_ELEMENTS + 1;
    }
    return elements <= kMAX_ELEMENTS;
}

inline bool isAligned(void const* pointer, std::uintptr_t bytes)
{
    return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

// Whether two ranges of that many bytes share memory without being the same.
inline bool rangesCross(void const* first, void const* second, int64_t bytes)
{
    auto const a = reinterpret_cast<std::uintptr_t>(first);
    auto const b = reinterpret_cast<std::uintptr_t>(second);
    auto const distance = a < b ? b - a : a - b;
    return distance != 0 && distance < static_cast<std::uintptr_t>(bytes);
}

} // namespace ctx
