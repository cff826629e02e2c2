// Frequencies as a function of the rope length n, in float64.
//
// With growth g = max(1, slope * n + offset), and of each pair the long one where n > threshold:
// inv_freq = f * (1 - ramp + ramp / g) * g^exponent, multiplier = m * (1 + gain * ln g) / (1 + gain_all * ln g).
#pragma once

#include "kernels/common/platform.cuh"

#include <cmath>

namespace ctx
{

// Rows of `tables` [4, 2, F] and of `scalars` [7, 2].
enum FrequencyRow : int32_t
{
    kSHORT,
    kLONG,
    kRAMP,
    kEXPONENT
};

enum FrequencyScalar : int32_t
{
    kTHRESHOLD,
    kSLOPE,
    kOFFSET,
    kSHORT_MULTIPLIER,
    kLONG_MULTIPLIER,
    kGAIN,
    kGAIN_ALL
};

// Float32 parts of which the sum is a number of 48 bits: the high one, and the low one `stride` floats after it.
CTX_HOST_DEVICE double joined(float const* high, int64_t stride)
{
    return static_cast<double>(high[0]) + static_cast<double>(high[stride]);
}

CTX_HOST_DEVICE double scalarOf(float const* scalars, FrequencyScalar which)
{
    return joined(scalars + 2 * which, 1);
}

CTX_HOST_DEVICE double rowOf(float const* tables, FrequencyRow row, int64_t pair, int64_t pairs)
{
    return joined(tables + 2 * row * pairs + pair, pairs);
}

CTX_HOST_DEVICE bool isLong(double length, float const* scalars)
{
    return length > scalarOf(scalars, kTHRESHOLD);
}

CTX_HOST_DEVICE double growthAt(double length, float const* scalars)
{
    double const growth = scalarOf(scalars, kSLOPE) * length + scalarOf(scalars, kOFFSET);
    return growth < 1.0 ? 1.0 : growth;
}

CTX_HOST_DEVICE double frequencyAt(
    double length, double growth, float const* tables, float const* scalars, int64_t pair, int64_t pairs)
{
    double const ramp = rowOf(tables, kRAMP, pair, pairs);
    double const frequency = rowOf(tables, isLong(length, scalars) ? kLONG : kSHORT, pair, pairs);
    return frequency * (1.0 - ramp + ramp / growth) * pow(growth, rowOf(tables, kEXPONENT, pair, pairs));
}

CTX_HOST_DEVICE double multiplierAt(double length, double growth, float const* scalars)
{
    double const logarithm = log(growth);
    double const multiplier = scalarOf(scalars, isLong(length, scalars) ? kLONG_MULTIPLIER : kSHORT_MULTIPLIER);
    return multiplier * (1.0 + scalarOf(scalars, kGAIN) * logarithm) / (1.0 + scalarOf(scalars, kGAIN_ALL) * logarithm);
}

} // namespace ctx
