// float16 and bfloat16 bit patterns to and from float32, rounding to nearest even as the GPU's conversions do.
#pragma once

#include <cstdint>
#include <cstring>

namespace ctx::host
{

inline float floatOf(uint32_t bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline uint32_t bitsOf(float value)
{
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

inline bool isNan(uint32_t bits)
{
    return (bits & 0x7fffffffU) > 0x7f800000U;
}

inline float bfloat16ToFloat(uint16_t bits)
{
    return floatOf(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t floatToBfloat16(float value)
{
    uint32_t const bits = bitsOf(value);
    if (isNan(bits))
    {
        return 0x7fffU;
    }
    return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

inline float halfToFloat(uint16_t bits)
{
    uint32_t const sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
    uint32_t const exponent = (bits >> 10) & 0x1fU;
    uint32_t const mantissa = bits & 0x3ffU;
    if (exponent == 0)
    {
        // Subnormal: mantissa * 2^-24.
        float const magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8F;
        return floatOf(sign | bitsOf(magnitude));
    }
    uint32_t const wideExponent = exponent == 0x1fU ? 0xffU : exponent + 112U;
    return floatOf(sign | (wideExponent << 23) | (mantissa << 13));
}

inline uint16_t floatToHalf(float value)
{
    uint32_t const bits = bitsOf(value);
    auto const sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
    uint32_t const magnitude = bits & 0x7fffffffU;
    if (isNan(bits))
    {
        return 0x7fffU;
    }
    if (magnitude >= 0x477ff000U) // 65520 and above round to infinity
    {
        return static_cast<uint16_t>(sign | 0x7c00U);
    }
    if (magnitude < 0x38800000U) // below 2^-14: adding 0.5 leaves the mantissa rounded to 2^-24 at the bottom
    {
        return static_cast<uint16_t>(sign | (bitsOf(floatOf(magnitude) + 0.5F) - bitsOf(0.5F)));
    }
    uint32_t const rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

} // namespace ctx::host
