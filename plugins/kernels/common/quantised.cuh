// Elements of quantised caches: float8 e4m3 (sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinities, 0x7f
// is NaN) and int8.
#pragma once

#include "ctx_plugins/ctx_kernels.h"
#include "kernels/common/element.cuh"

#include <cmath>

namespace ctx
{

constexpr float kMAX_E4M3 = 448.0F;
constexpr float kMAX_INT8 = 127.0F;

// Nearest, ties to even; past the largest it is the largest.
CTX_HOST_DEVICE uint8_t e4m3Of(float value)
{
    uint32_t const bits = floatBits(value);
    uint32_t const sign = bits >> 24 & 0x80U;
    float const magnitude = floatOf(bits & 0x7fffffffU);
    if (!(magnitude <= kMAX_E4M3))
    {
        return static_cast<uint8_t>(sign | (magnitude > kMAX_E4M3 ? 0x7eU : 0x7fU));
    }
    if (magnitude < 0.015625F) // 2^-6: subnormal, in steps of 2^-9; 8 steps carry into the exponent
    {
        return static_cast<uint8_t>(sign | static_cast<uint32_t>(rintf(magnitude * 512.0F)));
    }
    uint32_t const rounded = (floatBits(magnitude) + 0x7ffffU + (bits >> 20 & 1U)) >> 20;
    return static_cast<uint8_t>(sign | (rounded - (120U << 3)));
}

// Of a byte that is not NaN. Read as a float32 of the same mantissa, the exponent's bias is 120 too small; the product
// with 2^120 is exact, for subnormals too.
CTX_HOST_DEVICE float finiteE4m3ToFloat(uint32_t byte)
{
    return floatOf((byte & 0x80U) << 24 | (byte & 0x7fU) << 20) * 1.329227995784916e36F;
}

CTX_HOST_DEVICE float e4m3ToFloat(uint32_t byte)
{
    return (byte & 0x7fU) == 0x7fU ? NAN : finiteE4m3ToFloat(byte);
}

CTX_HOST_DEVICE uint8_t int8Of(float value)
{
    float const rounded = rintf(fminf(fmaxf(value, -kMAX_INT8), kMAX_INT8));
    return static_cast<uint8_t>(static_cast<int32_t>(rounded));
}

CTX_HOST_DEVICE float int8ToFloat(uint32_t byte)
{
    // 2^23 + 128 + the integer.
    return floatOf(0x4b000000U | ((byte & 0xffU) ^ 0x80U)) - 8388736.0F;
}

CTX_HOST_DEVICE uint8_t quantised(float value, int32_t cacheType)
{
    return cacheType == CTX_CACHE_TYPE_INT8 ? int8Of(value) : e4m3Of(value);
}

CTX_HOST_DEVICE float dequantised(uint32_t byte, int32_t cacheType)
{
    return cacheType == CTX_CACHE_TYPE_INT8 ? int8ToFloat(byte) : e4m3ToFloat(byte & 0xffU);
}

// Elements of T from four bytes, the lowest first.
template <typename T>
CTX_HOST_DEVICE Pack<uint32_t, 2> dequantisedWords(uint32_t bytes, int32_t cacheType)
{
    if (cacheType == CTX_CACHE_TYPE_INT8)
    {
        return {{packWord<T>(int8ToFloat(bytes), int8ToFloat(bytes >> 8)),
            packWord<T>(int8ToFloat(bytes >> 16), int8ToFloat(bytes >> 24))}};
    }
    if ((((bytes & 0x7f7f7f7fU) + 0x01010101U) & 0x80808080U) != 0) // one of them is NaN
    {
        return {{packWord<T>(e4m3ToFloat(bytes), e4m3ToFloat(bytes >> 8)),
            packWord<T>(e4m3ToFloat(bytes >> 16), e4m3ToFloat(bytes >> 24))}};
    }
    return {{packWord<T>(finiteE4m3ToFloat(bytes), finiteE4m3ToFloat(bytes >> 8)),
        packWord<T>(finiteE4m3ToFloat(bytes >> 16), finiteE4m3ToFloat(bytes >> 24))}};
}

} // namespace ctx
