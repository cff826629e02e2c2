// SinkWindowAttention's launcher: copy past where present is other memory, write every new key and value to its slot,
// attend. Attention reads `present` alone, so past and present may be the same memory.

#include "kernels/sink_window_attention/sink_window_attention_launch.h"

namespace ctx
{
namespace
{

LaunchResult copyCache(void* present, void const* past, int64_t bytes, cudaStream_t stream)
{
    if (present == past || bytes == 0)
    {
        return {};
    }
    return LaunchResult::fromCuda(
        cudaMemcpyAsync(present, past, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
        "the copy of past to present");
}

} // namespace

LaunchResult copyPast(SinkWindowAttentionParams const& params, cudaStream_t stream)
{
    LaunchResult const keys = copyCache(params.presentKey, params.pastKey, params.cacheBytes(), stream);
    return keys.isSuccess() ? copyCache(params.presentValue, params.pastValue, params.cacheBytes(), stream) : keys;
}

LaunchResult launchSinkWindowAttention(SinkWindowAttentionParams const& given, cudaStream_t stream)
{
    if (std::string const fault = given.validate(); !fault.empty())
    {
        return LaunchResult::invalid(fault);
    }
    SinkWindowAttentionParams const params = given.withStrides();
    LaunchResult result = copyPast(params, stream);
    if (params.isEmpty() || !result.isSuccess())
    {
        return result;
    }
    result = launchWriteCache(params, layoutOf(params), stream);
    return result.isSuccess() ? launchAttention(params, stream) : result;
}

} // namespace ctx
