// The one place that knows whether a kernel source is compiled by nvcc for a GPU or by a C++ compiler for the host.
// Kernels use: CTX_HOST_DEVICE, CTX_DEVICE, CTX_KERNEL, CTX_DYNAMIC_SHARED, CTX_UNROLL and ctx::launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/runtime.h"

#if !defined(CTX_HOST_EXECUTION)

#define CTX_HOST_DEVICE __host__ __device__ __forceinline__
// For functions that know their thread.
#define CTX_DEVICE __device__ __forceinline__
#define CTX_KERNEL(threads) __global__ void __launch_bounds__(threads)
// 16-byte aligned dynamic shared memory of the block.
#define CTX_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// The host compiler's pass over the same source does not know the pragma.
#if defined(__CUDA_ARCH__)
#define CTX_UNROLL _Pragma("unroll")
#else
#define CTX_UNROLL
#endif

namespace ctx
{

struct LaunchShape
{
    int64_t blocks;
    int32_t threads;
    size_t sharedBytes;
};

// Dynamic shared memory above this needs the kernel's opt-in.
constexpr size_t kDEFAULT_SHARED_BYTES = 48 * 1024;

template <typename... Params, typename... Arguments>
cudaError_t launch(
    void (*kernel)(Params...), LaunchShape const& shape, cudaStream_t stream, Arguments const&... arguments)
{
    if (shape.sharedBytes > kDEFAULT_SHARED_BYTES)
    {
        cudaError_t const status = cudaFuncSetAttribute(reinterpret_cast<void const*>(kernel),
            cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.sharedBytes));
        if (status != cudaSuccess)
        {
            return status;
        }
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

// gridDim.x's limit; every launch here is one-dimensional.
constexpr int64_t kMAX_BLOCKS = 2147483647;
constexpr int32_t kWARP_SIZE = 32;
constexpr unsigned kFULL_WARP = 0xffffffffU;

} // namespace ctx
