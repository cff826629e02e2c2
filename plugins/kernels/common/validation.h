// Builds the messages of the parameter checks: what failed, the value got, the fix.
#pragma once

#include <cstdint>
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

inline bool isAligned(void const* pointer, std::uintptr_t bytes)
{
    return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

inline bool rangesOverlap(void const* first, void const* second, int64_t bytes)
{
    auto const a = reinterpret_cast<std::uintptr_t>(first);
    auto const b = reinterpret_cast<std::uintptr_t>(second);
    auto const distance = a < b ? b - a : a - b;
    return distance < static_cast<std::uintptr_t>(bytes);
}

} // namespace ctx
