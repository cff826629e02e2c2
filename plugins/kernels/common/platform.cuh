// The one place that knows whether a kernel source is compiled by nvcc for a GPU or by a C++ compiler for the host.
// Kernels use: CTX_HOST_DEVICE, CTX_DEVICE, CTX_KERNEL, CTX_KERNEL_RESIDENT, CTX_DYNAMIC_SHARED, CTX_UNROLL,
// CTX_UNROLL_BY and ctx::launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/runtime.h"

#include <cstring>

#if !defined(CTX_HOST_EXECUTION)

#define CTX_HOST_DEVICE __host__ __device__ __forceinline__
// For functions that know their thread.
#define CTX_DEVICE __device__ __forceinline__
#define CTX_KERNEL(threads) __global__ void __launch_bounds__(threads)
// With the registers of a thread when so many blocks share a multiprocessor; the compiler may aim at more blocks and
// spill.
#define CTX_KERNEL_RESIDENT(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
// 16-byte aligned dynamic shared memory of the block.
#define CTX_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// The host compiler's pass over the same source does not know the pragma.
#if defined(__CUDA_ARCH__)
#define CTX_PRAGMA(text) _Pragma(#text)
#define CTX_UNROLL CTX_PRAGMA(unroll)
#define CTX_UNROLL_BY(count) CTX_PRAGMA(unroll count)
#else
#define CTX_UNROLL
#define CTX_UNROLL_BY(count)
#endif

namespace ctx
{

struct LaunchShape
{
    int64_t blocks;
    int32_t threads;
    size_t sharedBytes;
};

// Dynamic shared memory above this needs the kernel's opt-in, which holds for the current device only.
constexpr size_t kDEFAULT_SHARED_BYTES = 48 * 1024;

// No operation of a stream, so it may happen while one is captured.
template <typename... Params>
cudaError_t allowShared(void (*kernel)(Params...), size_t sharedBytes)
{
    return sharedBytes <= kDEFAULT_SHARED_BYTES
        ? cudaSuccess
        : cudaFuncSetAttribute(reinterpret_cast<void const*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
              static_cast<int>(sharedBytes));
}

// Blocks of the kernel that the current device runs at a time; 0 if it does not say. No operation of a stream either.
template <typename... Params>
int64_t residentBlocks(void (*kernel)(Params...), int32_t threads, size_t sharedBytes)
{
    int device = 0;
    int processors = 0;
    int perProcessor = 0;
    if (allowShared(kernel, sharedBytes) != cudaSuccess || cudaGetDevice(&device) != cudaSuccess
        || cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess
        || cudaOccupancyMaxActiveBlocksPerMultiprocessor(
               &perProcessor, reinterpret_cast<void const*>(kernel), threads, sharedBytes)
            != cudaSuccess)
    {
        cudaGetLastError();
        return 0;
    }
    return static_cast<int64_t>(processors) * perProcessor;
}

template <typename... Params, typename... Arguments>
cudaError_t launch(
    void (*kernel)(Params...), LaunchShape const& shape, cudaStream_t stream, Arguments const&... arguments)
{
    if (cudaError_t const status = allowShared(kernel, shape.sharedBytes); status != cudaSuccess)
    {
        return status;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = shape.sharedBytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, Params(arguments)...);
}

} // namespace ctx

#endif

namespace ctx
{

// The least that a block may opt in to among the GPUs of compute capability 8.0 and later: 8.6, 8.9 and 12.0.
constexpr size_t kMAX_SHARED_BYTES = 99 * 1024;
constexpr int32_t kWARP_SIZE = 32;
constexpr unsigned kFULL_WARP = 0xffffffffU;

// The same value, of which the compiler knows nothing: what is computed from it stays where it is used, instead of
// moving out of a loop into registers.
CTX_HOST_DEVICE int opaque(int value)
{
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+r"(value));
#endif
    return value;
}

CTX_HOST_DEVICE uint32_t floatBits(float value)
{
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
#endif
}

CTX_HOST_DEVICE float floatOf(uint32_t bits)
{
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
#endif
}

} // namespace ctx
