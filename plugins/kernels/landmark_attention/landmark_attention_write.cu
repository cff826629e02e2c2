// Writes the new keys and values of a call to their slots, and the means of the blocks that they complete.

#include "kernels/common/element.cuh"
#include "kernels/landmark_attention/landmark_attention_launch.h"

namespace ctx
{
namespace
{

constexpr int32_t kWRITE_THREADS = 128;

using Bytes16 = Pack<uint32_t, 4>;

LaunchShape shapeOf(int64_t items)
{
    return LaunchShape{(items + kWRITE_THREADS - 1) / kWRITE_THREADS, kWRITE_THREADS, 0};
}

// Chunks of 16 bytes in a row.
CTX_HOST_DEVICE int64_t rowChunks(CtxSinkWindowAttentionParams const& common)
{
    return common.headDim * (common.dataType == CTX_DATA_TYPE_FLOAT32 ? 4 : 2) / kVECTOR_BYTES;
}

// A thread moves 16 bytes of a key and of a value.
CTX_KERNEL(kWRITE_THREADS)
writeBlocks(LandmarkCall const call)
{
    CtxSinkWindowAttentionParams const& common = call.common;
    int64_t const item = static_cast<int64_t>(blockIdx.x) * kWRITE_THREADS + threadIdx.x;
    int64_t const chunks = rowChunks(common);
    int64_t const sourceRow = item / chunks;
    int64_t const row = sourceRow % common.rows;
    int64_t const head = sourceRow / common.rows;
    int64_t const batch = head / common.kvHeads;
    if (batch >= common.batch)
    {
        return;
    }
    Sequence const sequence = sequenceOf(common, batch);
    if (row >= sequence.answered)
    {
        return;
    }
    int64_t const slot = call.layout.slotOf(static_cast<uint32_t>(sequence.seen + row));
    int64_t const chunk = item % chunks;
    int64_t const target = (head * call.slots + slot) * chunks + chunk;
    int64_t const elements = common.headDim / chunks; // of a chunk
    auto const source = [&](CtxStrides const& strides)
    {
        int64_t const kvHead = head % common.kvHeads;
        return (batch * strides.batch + kvHead * strides.head + row * strides.token) / elements + chunk;
    };
    static_cast<Bytes16*>(common.presentKey)[target]
        = static_cast<Bytes16 const*>(common.key)[source(common.keyStrides)];
    static_cast<Bytes16*>(common.presentValue)[target]
        = static_cast<Bytes16 const*>(common.value)[source(common.valueStrides)];
}

// Means of whole blocks that a sequence may complete in a call.
CTX_HOST_DEVICE int64_t maxCompleted(LandmarkCall const& call)
{
    return (call.common.rows + call.layout.block - 1) / call.layout.block;
}

// A thread averages 16 bytes of a block's keys, in float32 of what the cache holds.
template <typename T>
CTX_KERNEL(kWRITE_THREADS)
averageBlocks(LandmarkCall const call)
{
    constexpr int kCOUNT = kVECTOR_ELEMENTS<T>;
    using Row = Pack<T, kCOUNT>;
    CtxSinkWindowAttentionParams const& common = call.common;
    LandmarkLayout const& layout = call.layout;
    int64_t const item = static_cast<int64_t>(blockIdx.x) * kWRITE_THREADS + threadIdx.x;
    int64_t const chunks = rowChunks(common);
    int64_t const index = item / chunks;
    int64_t const head = index / maxCompleted(call);
    int64_t const batch = head / common.kvHeads;
    if (batch >= common.batch)
    {
        return;
    }
    Sequence const sequence = sequenceOf(common, batch);
    int64_t const number = layout.filledBy(sequence.seen) + index % maxCompleted(call);
    if (sequence.answered == 0 || number >= layout.filledBy(sequence.seen + sequence.answered))
    {
        return;
    }
    int64_t const first
        = (head * call.slots + layout.slotOf(static_cast<uint32_t>(number), 0)) * chunks + item % chunks;
    auto* const keys = static_cast<Row*>(common.presentKey) + first;
    float sum[kCOUNT] = {};
    CTX_UNROLL_BY(4)
    for (uint32_t token = 0; token < layout.block; ++token)
    {
        Row const row = keys[token * chunks];
        CTX_UNROLL
        for (int i = 0; i < kCOUNT; ++i)
        {
            sum[i] += toFloat(row.values[i]);
        }
    }
    Row mean;
    CTX_UNROLL
    for (int i = 0; i < kCOUNT; ++i)
    {
        mean.values[i] = fromFloat<T>(sum[i] / static_cast<float>(layout.block));
    }
    keys[layout.block * chunks] = mean;
    static_cast<Bytes16*>(common.presentValue)[first + layout.block * chunks] = Bytes16{};
}

template <typename T>
LaunchResult launchAverages(LandmarkCall const& call, cudaStream_t stream)
{
    int64_t const items = call.heads() * maxCompleted(call) * rowChunks(call.common);
    return LaunchResult::fromCuda(launch(averageBlocks<T>, shapeOf(items), stream, call), "averageBlocks");
}

} // namespace

LaunchResult launchWriteBlocks(LandmarkCall const& call, cudaStream_t stream)
{
    CtxSinkWindowAttentionParams const& common = call.common;
    int64_t const items = call.heads() * common.rows * rowChunks(common);
    LaunchResult const result
        = LaunchResult::fromCuda(launch(writeBlocks, shapeOf(items), stream, call), "writeBlocks");
    if (call.layout.isLandmark || !result.isSuccess())
    {
        return result;
    }
    switch (common.dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: return launchAverages<Half>(call, stream);
    case CTX_DATA_TYPE_BFLOAT16: return launchAverages<BFloat16>(call, stream);
    default: return launchAverages<float>(call, stream);
    }
}

} // namespace ctx
