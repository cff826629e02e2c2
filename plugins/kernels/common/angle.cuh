// Rotation angles, exact at every position a run can reach.
//
// A frequency f (float32, radians per token) becomes a phase step: f / 2pi turns in units of 2^-64 turn, rounded down.
// position * step modulo 2^64 is then the angle modulo one turn: whole turns fall off the top of the product.
// Error against the stored f: the step is off by less than one unit, so the phase is off by less than
// |position| * 2^-64 turn, that is 2.9e-9 rad at position 2^33 and 3.7e-7 rad at 2^40. Rounding the phase, at most half
// a turn, to float32 adds at most 2^-26 turn = 9.4e-8 rad. Together below 1e-7 rad at 2^33, far inside the promised
// 1e-6.
#pragma once

#include "kernels/common/platform.cuh"

#include <cmath>

namespace ctx
{

// Frequencies of this size or above (and NaN) have no phase step: their rotation is NaN.
constexpr float kMAX_FREQUENCY = 1048576.0F;

struct CosSin
{
    float cosine;
    float sine;
};

CTX_HOST_DEVICE uint64_t multiplyHigh(uint64_t a, uint64_t b)
{
#if defined(__CUDA_ARCH__)
    return __umul64hi(a, b);
#else
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<Wide>(a) * b) >> 64);
#endif
}

CTX_HOST_DEVICE bool hasPhaseStep(float inverseFrequency)
{
    return fabsf(inverseFrequency) < kMAX_FREQUENCY;
}

// floor(|f| / 2pi * 2^64) modulo 2^64, with f's sign. f = mantissa * 2^exponent with a 24-bit mantissa, and
// 1 / 2pi = 0.(kHIGH)(kLOW) in base 2^64, so that mantissa * (1 / 2pi) is 152 bits, shifted right by 64 - exponent.
CTX_HOST_DEVICE uint64_t phaseStep(float inverseFrequency)
{
    constexpr uint64_t kHIGH = 0x28be60db9391054aULL;
    constexpr uint64_t kLOW = 0x7f09d5f47d4d3770ULL;
    uint32_t const bits = floatBits(inverseFrequency);
    int const biased = static_cast<int>((bits >> 23) & 0xffU);
    uint64_t const fraction = bits & 0x7fffffU;
    uint64_t const mantissa = biased == 0 ? fraction : fraction | 0x800000U;
    int const exponent = (biased == 0 ? 1 : biased) - 150;
    // Bits 64-127 and 128-151 of the product; kMAX_FREQUENCY keeps the shift at 68 or more.
    uint64_t const partial = mantissa * kHIGH;
    uint64_t const middle = partial + multiplyHigh(mantissa, kLOW);
    uint64_t const top = multiplyHigh(mantissa, kHIGH) + (middle < partial ? 1U : 0U);
    int const shift = 64 - exponent;
    uint64_t step = 0;
    if (shift < 128)
    {
        step = (top << (128 - shift)) | (middle >> (shift - 64));
    }
    else if (shift < 192)
    {
        step = top >> (shift - 128);
    }
    return (bits >> 31) != 0 ? 0 - step : step;
}

// cos and sin of 2pi * position * step / 2^64.
CTX_HOST_DEVICE CosSin rotation(int64_t position, uint64_t step)
{
    uint64_t const phase = static_cast<uint64_t>(position) * step;
    // The signed reading lies in [-1/2, 1/2) turn; 2^-63 scales it to half turns.
    float const halfTurns = static_cast<float>(static_cast<int64_t>(phase)) * 1.0842021724855044e-19F;
    CosSin result;
    sincospif(halfTurns, &result.sine, &result.cosine);
    return result;
}

CTX_HOST_DEVICE CosSin invalidRotation()
{
    return CosSin{NAN, NAN};
}

} // namespace ctx
