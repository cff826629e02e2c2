// inv_freq and multiplier at each sequence's rope length; see ctx_kernels.h. A thread computes one frequency, the first
// of a sequence its multiplier too.

#include "kernels/launchers.h"
#include "kernels/rotary_frequencies/rotary_frequencies_math.cuh"

namespace ctx
{
namespace
{

constexpr int32_t kTHREADS = 128;

CTX_KERNEL(kTHREADS)
frequenciesAtLength(RotaryFrequenciesParams const params)
{
    int64_t const item = static_cast<int64_t>(blockIdx.x) * kTHREADS + threadIdx.x;
    if (item >= params.batch * params.pairs)
    {
        return;
    }
    int64_t const batch = item / params.pairs;
    int64_t const pair = item % params.pairs;
    double const length = static_cast<double>(params.ropeLength[batch]);
    double const growth = growthAt(length, params.scalars);
    params.inverseFrequency[item]
        = static_cast<float>(frequencyAt(length, growth, params.tables, params.scalars, pair, params.pairs));
    if (pair == 0)
    {
        params.multiplier[batch] = static_cast<float>(multiplierAt(length, growth, params.scalars));
    }
}

} // namespace

LaunchResult launchRotaryFrequencies(RotaryFrequenciesParams const& params, cudaStream_t stream)
{
    if (std::string const fault = params.validate(); !fault.empty())
    {
        return LaunchResult::invalid(fault);
    }
    if (params.isEmpty())
    {
        return {};
    }
    LaunchShape const shape{(params.batch * params.pairs + kTHREADS - 1) / kTHREADS, kTHREADS, 0};
    return LaunchResult::fromCuda(launch(frequenciesAtLength, shape, stream, params), "frequenciesAtLength");
}

} // namespace ctx
