// SinkWindowAttention's launcher: copy past where present is other memory, write every new key and value to its slot,
// attend. Attention reads `present` alone, so past and present may be the same memory.

#include "kernels/sink_window_attention/sink_window_attention_kernels.cuh"

namespace ctx
{
namespace
{

constexpr int32_t kWRITE_THREADS = 128;

// One thread moves 16 bytes of a key and of a value. Of several rows with one slot only the last is written.
CTX_KERNEL(kWRITE_THREADS)
writeCache(CtxSinkWindowAttentionParams const params, int32_t vectorsPerRow)
{
    int64_t const item = static_cast<int64_t>(blockIdx.x) * kWRITE_THREADS + threadIdx.x;
    int64_t const sourceRow = item / vectorsPerRow;
    int64_t const row = sourceRow % params.rows;
    int64_t const head = sourceRow / params.rows;
    int64_t const batch = head / params.kvHeads;
    if (batch >= params.batch)
    {
        return;
    }
    Sequence const sequence = sequenceOf(params, batch);
    CacheLayout const layout = layoutOf(params);
    if (row >= sequence.answered || !layout.isKept(sequence.seen + row, sequence.seen + sequence.count))
    {
        return;
    }
    int64_t const column = item % vectorsPerRow;
    int64_t const target = (head * params.capacity + layout.slotOf(sequence.seen + row)) * vectorsPerRow + column;
    static_cast<Vector*>(params.presentKey)[target] = static_cast<Vector const*>(params.key)[item];
    static_cast<Vector*>(params.presentValue)[target] = static_cast<Vector const*>(params.value)[item];
}

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

LaunchResult launchWriteCache(SinkWindowAttentionParams const& params, cudaStream_t stream)
{
    int64_t const vectorsPerRow = params.headDim * params.elementBytes() / kVECTOR_BYTES;
    int64_t const items = params.batch * params.kvHeads * params.rows * vectorsPerRow;
    LaunchShape const shape{(items + kWRITE_THREADS - 1) / kWRITE_THREADS, kWRITE_THREADS, 0};
    return LaunchResult::fromCuda(
        launch(writeCache, shape, stream, params, static_cast<int32_t>(vectorsPerRow)), "writeCache");
}

} // namespace

LaunchResult launchSinkWindowAttention(SinkWindowAttentionParams const& params, cudaStream_t stream)
{
    if (std::string const fault = params.validate(); !fault.empty())
    {
        return LaunchResult::invalid(fault);
    }
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
    if (!result.isSuccess())
    {
        return result;
    }
    return launchAttention(params, stream);
}

} // namespace ctx
