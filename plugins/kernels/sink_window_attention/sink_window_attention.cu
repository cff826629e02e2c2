// SinkWindowAttention's launcher: copy past where present is other memory, write every new key and value to its slot,
// attend. Attention reads `present` alone, so past and present may be the same memory.

#include "kernels/sink_window_attention/sink_window_attention_kernels.cuh"

namespace ctx
{

extern template LaunchResult launchAttention<float>(SinkWindowAttentionParams const&, cudaStream_t);
extern template LaunchResult launchAttention<Half>(SinkWindowAttentionParams const&, cudaStream_t);
extern template LaunchResult launchAttention<BFloat16>(SinkWindowAttentionParams const&, cudaStream_t);

namespace
{

constexpr int32_t kWRITE_THREADS = 128;

// One thread moves 16 bytes of a key and of a value. Of several rows with one slot only the last is written.
CTX_KERNEL(kWRITE_THREADS)
writeCache(CtxSinkWindowAttentionParams const params, int32_t vectorsPerRow)
{
    using Vector = Pack<uint32_t, 4>;
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
    int64_t const token = sequence.seen + row;
    if (row >= sequence.answered || !layout.isKept(token, sequence.seen + sequence.count))
    {
        return;
    }
    int64_t const column = item % vectorsPerRow;
    int64_t const target = (head * params.capacity + layout.slotOf(token)) * vectorsPerRow + column;
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
    int64_t const blocks = (items + kWRITE_THREADS - 1) / kWRITE_THREADS;
    if (blocks > kMAX_BLOCKS)
    {
        return LaunchResult::invalid(message(
            "k has ", params.batch, " x ", params.kvHeads, " x ", params.rows, " rows, too many: split the batch"));
    }
    LaunchShape const shape{blocks, kWRITE_THREADS, 0};
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
    switch (params.dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: return launchAttention<Half>(params, stream);
    case CTX_DATA_TYPE_BFLOAT16: return launchAttention<BFloat16>(params, stream);
    default: return launchAttention<float>(params, stream);
    }
}

} // namespace ctx
