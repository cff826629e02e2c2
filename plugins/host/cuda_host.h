// The part of CUDA that the kernels use, executed by the host: each thread of a block is a fiber, blocks run one after
// the other. Barriers and warp collectives suspend a fiber until the others arrive, so a kernel that lacks a barrier
// reads what other threads have not written yet; shared memory starts as NaN, and writing past it is an error.
// Device pointers are host pointers; a stream is ignored, since every call has finished when it returns.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchFailure = 719
};

enum cudaMemcpyKind
{
    cudaMemcpyDeviceToDevice = 3
};

using cudaStream_t = struct CUstream_st*;

char const* cudaGetErrorString(cudaError_t error);

inline cudaError_t cudaMemcpyAsync(void* target, void const* source, size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    std::memcpy(target, source, bytes);
    return cudaSuccess;
}

#define CTX_HOST_DEVICE inline
#define CTX_DEVICE inline
#define CTX_KERNEL(threads) void
#define CTX_KERNEL_RESIDENT(threads, blocks) void
#define CTX_UNROLL
#define CTX_UNROLL_BY(count)
#define CTX_DYNAMIC_SHARED(name) unsigned char* const name = ctx::host::sharedMemory()

namespace ctx::host
{

struct Index
{
    unsigned x;
};

constexpr int kWARP_LANES = 32;

unsigned char* sharedMemory();

// Suspends until every running thread of the block is here.
void syncBlock();

// Suspends until every lane of `mask` is here.
void syncWarp(unsigned mask);

constexpr size_t kMAX_SHARED_BY_LANE = 32;

// Suspends until every lane of `mask` is here; what each brought, at most kMAX_SHARED_BY_LANE bytes, is then at
// sharedBy(the round returned, its lane) until this thread shares for the second time after.
unsigned share(unsigned mask, void const* brought, size_t bytes);
void const* sharedBy(unsigned round, int lane);

// This thread's asynchronous copies: `copied` of `bytes` from the source, the rest zeros.
void beginCopy(void* target, void const* source, size_t copied, size_t bytes);
void commitCopies();
void waitForCopies(size_t pending);

} // namespace ctx::host

// Of the thread and block that run now.
extern ctx::host::Index threadIdx;
extern ctx::host::Index blockIdx;

inline void __syncthreads()
{
    ctx::host::syncBlock();
}

inline void __syncwarp(unsigned mask = 0xffffffffU)
{
    ctx::host::syncWarp(mask);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int laneMask)
{
    static_assert(sizeof(T) <= ctx::host::kMAX_SHARED_BY_LANE, "a shuffle moves few bytes");
    unsigned const round = ctx::host::share(mask, &value, sizeof(T));
    int const source = (static_cast<int>(threadIdx.x) % ctx::host::kWARP_LANES) ^ laneMask;
    std::memcpy(&value, ctx::host::sharedBy(round, source), sizeof(T));
    return value;
}

inline int __any_sync(unsigned mask, int predicate)
{
    unsigned const round = ctx::host::share(mask, &predicate, sizeof(predicate));
    bool any = false;
    for (int lane = 0; lane < ctx::host::kWARP_LANES; ++lane)
    {
        int brought = 0;
        std::memcpy(&brought, ctx::host::sharedBy(round, lane), sizeof(brought));
        any = any || ((mask >> lane & 1U) != 0 && brought != 0);
    }
    return any ? 1 : 0;
}

inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    unsigned const round = ctx::host::share(mask, &predicate, sizeof(predicate));
    unsigned ballot = 0;
    for (int lane = 0; lane < ctx::host::kWARP_LANES; ++lane)
    {
        int brought = 0;
        std::memcpy(&brought, ctx::host::sharedBy(round, lane), sizeof(brought));
        ballot |= (mask >> lane & 1U) != 0 && brought != 0 ? 1U << lane : 0U;
    }
    return ballot;
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance)
{
    static_assert(sizeof(T) <= ctx::host::kMAX_SHARED_BY_LANE, "a shuffle moves few bytes");
    unsigned const round = ctx::host::share(mask, &value, sizeof(T));
    int const source = static_cast<int>(threadIdx.x) % ctx::host::kWARP_LANES - static_cast<int>(distance);
    if (source >= 0)
    {
        std::memcpy(&value, ctx::host::sharedBy(round, source), sizeof(T));
    }
    return value;
}

inline int __popc(unsigned value)
{
    return __builtin_popcount(value);
}

inline unsigned atomicAdd(unsigned* address, unsigned value)
{
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

inline cudaError_t cudaGetLastError()
{
    return cudaSuccess;
}

inline void sincospif(float halfTurns, float* sine, float* cosine)
{
    double const angle = 3.14159265358979323846 * static_cast<double>(halfTurns);
    *sine = static_cast<float>(std::sin(angle));
    *cosine = static_cast<float>(std::cos(angle));
}

namespace ctx
{

struct LaunchShape
{
    int64_t blocks;
    int32_t threads;
    size_t sharedBytes;
};

namespace host
{

// Runs the grid; `thread` is called once by every thread of every block.
cudaError_t runGrid(LaunchShape const& shape, void (*thread)(void*), void* argument);

} // namespace host

// Of a small GPU, so that calls of a test's size have more multiprocessors than blocks.
template <typename... Params>
int64_t residentBlocks(void (*)(Params...), int32_t, size_t)
{
    return 12;
}

template <typename... Params, typename... Arguments>
cudaError_t launch(void (*kernel)(Params...), LaunchShape const& shape, cudaStream_t, Arguments const&... arguments)
{
    using Call = std::pair<void (*)(Params...), std::tuple<std::decay_t<Params>...>>;
    Call call{kernel, std::tuple<std::decay_t<Params>...>{arguments...}};
    return host::runGrid(
        shape,
        [](void* argument)
        {
            auto const& bound = *static_cast<Call const*>(argument);
            std::apply(bound.first, bound.second);
        },
        &call);
}

} // namespace ctx
