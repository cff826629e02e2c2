// Storing y.
#pragma once

#include "ctx_plugins/ctx_kernels.h"
#include "kernels/common/element.cuh"

namespace ctx
{

// A mean of values as an element. Weights rounded to 11 bits can carry a mean of values at float16's end past it, by
// 2^-10 of it at most, which no mean exceeds.
template <typename T>
CTX_HOST_DEVICE float boundedMean(float mean)
{
    return mean;
}

template <>
CTX_HOST_DEVICE float boundedMean<Half>(float mean)
{
    constexpr float kEND = 65504.0F;
    bool const isRounding = fabsf(mean) > kEND && fabsf(mean) <= kEND * (1.0F + 1.0F / 1024.0F);
    return isRounding ? copysignf(kEND, mean) : mean;
}

template <typename T>
CTX_HOST_DEVICE uint32_t meanWord(float first, float second)
{
    return packWord<T>(boundedMean<T>(first), boundedMean<T>(second));
}

// Four means from an offset, in elements.
CTX_HOST_DEVICE void storeMeans(void* output, int64_t offset, Pack<float, 4> const& means, int32_t dataType)
{
    float const(&m)[4] = means.values;
    auto* const words = reinterpret_cast<Pack<uint32_t, 2>*>(static_cast<uint16_t*>(output) + offset);
    switch (dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: *words = {{meanWord<Half>(m[0], m[1]), meanWord<Half>(m[2], m[3])}}; break;
    case CTX_DATA_TYPE_BFLOAT16: *words = {{meanWord<BFloat16>(m[0], m[1]), meanWord<BFloat16>(m[2], m[3])}}; break;
    default: *reinterpret_cast<Pack<float, 4>*>(static_cast<float*>(output) + offset) = means;
    }
}

} // namespace ctx
