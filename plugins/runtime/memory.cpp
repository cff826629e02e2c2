#include "ctx_runtime/memory.h"

#include <cstdlib>
#include <cstring>

namespace ctx::runtime
{

namespace
{

constexpr size_t kALIGNMENT = 256;

} // namespace

std::byte* HostMemory::allocate(int64_t bytes) noexcept
{
    void* address = nullptr;
    bool const made = bytes > 0 && ::posix_memalign(&address, kALIGNMENT, static_cast<size_t>(bytes)) == 0;
    return made ? static_cast<std::byte*>(address) : nullptr;
}

void HostMemory::release(std::byte* address) noexcept
{
    std::free(address);
}

Status HostMemory::copyRows(PitchedRows target, PitchedRows source, int64_t width, int64_t count) noexcept
{
    for (int64_t row = 0; row < count; ++row)
    {
        std::memcpy(target.address + row * target.pitch, source.address + row * source.pitch, width);
    }
    return {};
}

Status HostMemory::zeroRows(PitchedRows target, int64_t width, int64_t count) noexcept
{
    for (int64_t row = 0; row < count; ++row)
    {
        std::memset(target.address + row * target.pitch, 0, width);
    }
    return {};
}

Status HostMemory::synchronize() noexcept
{
    return {};
}

} // namespace ctx::runtime
