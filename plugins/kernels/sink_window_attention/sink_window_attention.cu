// SinkWindowAttention's launcher: copy past where present is other memory, write every new key and value to its slot,
// attend. Attention reads `present` alone, so past and present may be the same memory.

#include "kernels/common/element.cuh"
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

template <typename T>
LaunchResult launchMatrixAttention(SinkWindowAttentionParams const& params, cudaStream_t stream)
{
    bool const isFew = params.queryHeads / params.kvHeads * params.rows <= kDECODE_ROWS;
    return isFew ? launchDecode<T>(params, stream) : launchPrefill<T>(params, stream);
}

LaunchResult launchAttention(SinkWindowAttentionParams const& params, cudaStream_t stream)
{
    switch (params.dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: return launchMatrixAttention<Half>(params, stream);
    case CTX_DATA_TYPE_BFLOAT16: return launchMatrixAttention<BFloat16>(params, stream);
    default: return launchScalarAttention(params, stream);
    }
}

} // namespace

LaunchResult launchSinkWindowAttention(SinkWindowAttentionParams const& given, cudaStream_t stream)
{
    if (std::string const fault = given.validate(); !fault.empty())
    {
        return LaunchResult::invalid(fault);
    }
    SinkWindowAttentionParams const params = given.withStrides();
    LaunchResult result = copyCache(params.presentKey, params.pastKey, params.cacheBytes(), stream);
    if (result.isSuccess())
    {
        result = copyCache(params.presentValue, params.pastValue, params.cacheBytes(), stream);
    }
    if (params.isEmpty() || !result.isSuccess())
    {
        return result;
    }
    result = launchWriteCache(params, stream);
    return result.isSuccess() ? launchAttention(params, stream) : result;
}

} // namespace ctx
