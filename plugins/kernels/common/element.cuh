// Storage types of tensors and their conversion to float32, in which all arithmetic is done.
#pragma once

#include "kernels/common/platform.cuh"

#if !defined(CTX_HOST_EXECUTION)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "host/half_conversion.h"
#endif

namespace ctx
{

struct Half
{
    uint16_t bits;
};

struct BFloat16
{
    uint16_t bits;
};

CTX_HOST_DEVICE float toFloat(float value)
{
    return value;
}

CTX_HOST_DEVICE float toFloat(Half value)
{
#if !defined(CTX_HOST_EXECUTION)
    return __half2float(__half(__half_raw{value.bits}));
#else
    return host::halfToFloat(value.bits);
#endif
}

CTX_HOST_DEVICE float toFloat(BFloat16 value)
{
#if !defined(CTX_HOST_EXECUTION)
    return __bfloat162float(__nv_bfloat16(__nv_bfloat16_raw{value.bits}));
#else
    return host::bfloat16ToFloat(value.bits);
#endif
}

template <typename T>
CTX_HOST_DEVICE T fromFloat(float value);

template <>
CTX_HOST_DEVICE float fromFloat<float>(float value)
{
    return value;
}

template <>
CTX_HOST_DEVICE Half fromFloat<Half>(float value)
{
#if !defined(CTX_HOST_EXECUTION)
    return Half{static_cast<__half_raw>(__float2half_rn(value)).x};
#else
    return Half{host::floatToHalf(value)};
#endif
}

template <>
CTX_HOST_DEVICE BFloat16 fromFloat<BFloat16>(float value)
{
#if !defined(CTX_HOST_EXECUTION)
    return BFloat16{static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(value)).x};
#else
    return BFloat16{host::floatToBfloat16(value)};
#endif
}

// Two elements in a word, the first one low.
template <typename T>
CTX_HOST_DEVICE uint32_t packWord(float first, float second);

template <>
CTX_HOST_DEVICE uint32_t packWord<Half>(float first, float second)
{
#if defined(__CUDA_ARCH__)
    __half2_raw const raw = __floats2half2_rn(first, second);
    return static_cast<uint32_t>(raw.x) | static_cast<uint32_t>(raw.y) << 16;
#else
    return static_cast<uint32_t>(fromFloat<Half>(first).bits)
        | static_cast<uint32_t>(fromFloat<Half>(second).bits) << 16;
#endif
}

template <>
CTX_HOST_DEVICE uint32_t packWord<BFloat16>(float first, float second)
{
#if defined(__CUDA_ARCH__)
    __nv_bfloat162_raw const raw = __floats2bfloat162_rn(first, second);
    return static_cast<uint32_t>(raw.x) | static_cast<uint32_t>(raw.y) << 16;
#else
    return static_cast<uint32_t>(fromFloat<BFloat16>(first).bits)
        | static_cast<uint32_t>(fromFloat<BFloat16>(second).bits) << 16;
#endif
}

template <typename T>
CTX_HOST_DEVICE float lowElement(uint32_t word)
{
    return toFloat(T{static_cast<uint16_t>(word)});
}

template <typename T>
CTX_HOST_DEVICE float highElement(uint32_t word)
{
    return toFloat(T{static_cast<uint16_t>(word >> 16)});
}

// COUNT consecutive elements that move as one access where COUNT * sizeof(T) is 16.
template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack
{
    T values[COUNT];
};

constexpr int kVECTOR_BYTES = 16;

template <typename T>
constexpr int kVECTOR_ELEMENTS = kVECTOR_BYTES / static_cast<int>(sizeof(T));

} // namespace ctx
