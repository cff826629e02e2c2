// Copies from global to shared memory that run while the thread goes on. They are waited for in groups, in order; what
// a thread copied is its own until a barrier.
#pragma once

#include "kernels/common/matrix.cuh"

#if defined(CTX_HOST_EXECUTION)
#include "host/async_copy_host.h"
#else

namespace ctx
{

// BYTES from `source`, or zeros where it is not valid (then `source` must still be an address of global memory).
template <int BYTES>
CTX_DEVICE void copyAsync(void* target, void const* source, bool valid)
{
    static_assert(BYTES == 8 || BYTES == 16, "a copy moves 8 or 16 bytes");
    int const bytes = valid ? BYTES : 0;
    if constexpr (BYTES == 16)
    {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(sharedAddress(target)), "l"(source),
            "r"(bytes)
            : "memory");
    }
    else
    {
        asm volatile(
            "cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(sharedAddress(target)), "l"(source), "r"(bytes)
            : "memory");
    }
}

// BYTES from a source that is valid.
template <int BYTES>
CTX_DEVICE void copyAsync(void* target, void const* source)
{
    static_assert(BYTES == 8 || BYTES == 16, "a copy moves 8 or 16 bytes");
    if constexpr (BYTES == 16)
    {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(sharedAddress(target)), "l"(source)
            : "memory");
    }
    else
    {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(sharedAddress(target)), "l"(source) : "memory");
    }
}

// Ends this thread's group of copies; a group may be empty.
CTX_DEVICE void commitCopies()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all but the newest PENDING groups have arrived.
template <int PENDING>
CTX_DEVICE void waitForCopies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

} // namespace ctx

#endif
