// Averages the blocks that a call of MemoryAttention evicts. It runs before the call's rows are written: the ring then
// still holds all tokens of the blocks that are older than the call.

#include "kernels/common/element.cuh"
#include "kernels/parts_attention/parts_attention_launch.h"

namespace ctx
{
namespace
{

constexpr int32_t kPOOL_THREADS = 128;

// Where a head's tokens are, by token: those before the call in the cache, the others among its rows.
template <typename T, int COUNT>
struct TokenRows
{
    T const* cache; // the head's first slot
    T const* rows;  // the head's first row of the call
    int64_t headDim;
    int64_t rowStride;

    CTX_DEVICE Pack<T, COUNT> cached(int64_t slot) const
    {
        return *reinterpret_cast<Pack<T, COUNT> const*>(cache + slot * headDim);
    }

    CTX_DEVICE Pack<T, COUNT> given(int64_t row) const
    {
        return *reinterpret_cast<Pack<T, COUNT> const*>(rows + row * rowStride);
    }
};

// A block of threads for one head and one of the `blocks` that the rows can evict at most; a thread averages one pack
// of its keys, or of its values.
template <typename T, int COUNT>
CTX_KERNEL(kPOOL_THREADS)
poolBlocks(PartsAttentionParams const params, uint32_t const blocks)
{
    uint32_t const packs = static_cast<uint32_t>(params.headDim) / COUNT;
    uint32_t const dim = threadIdx.x % packs * COUNT;
    bool const isValue = threadIdx.x >= packs;
    if (threadIdx.x >= 2 * packs)
    {
        return;
    }
    uint32_t const index = blockIdx.x % blocks;
    uint32_t const head = blockIdx.x / blocks;
    auto const kvHeads = static_cast<uint32_t>(params.kvHeads);
    uint32_t const batch = head / kvHeads;
    MemoryRule const& rule = params.rule.memory;
    Sequence const sequence = sequenceOf(params, batch);
    int64_t const end = rule.evicted(sequence.seen + sequence.answered - 1);
    int64_t const block = rule.evicted(sequence.seen - 1) + index;
    // Of several blocks with one slot only the last is kept.
    if (sequence.answered == 0 || block >= end || block + rule.memorySlots < end)
    {
        return;
    }
    CtxStrides const& strides = isValue ? params.valueStrides : params.keyStrides;
    T* const cache = static_cast<T*>(isValue ? params.presentValue : params.presentKey)
        + static_cast<int64_t>(head) * params.capacity * params.headDim + dim;
    TokenRows<T, COUNT> const tokens{cache,
        static_cast<T const*>(isValue ? params.value : params.key) + batch * strides.batch
            + head % kvHeads * strides.head + dim,
        params.headDim, strides.token};
    CacheLayout const layout = rule.layout(MemoryRule::kTOKENS, params.capacity);
    int64_t const first = rule.sinks + block * rule.block;
    int64_t const firstSlot = layout.slotOf(first);
    auto const count = static_cast<int32_t>(rule.block);
    auto const older = static_cast<int32_t>(smaller(count, larger(0, sequence.seen - first)));
    int64_t const slot = rule.layout(MemoryRule::kBLOCKS, params.capacity).slotOf(block);
    float const share = 1.0F / static_cast<float>(count);
    float sum[COUNT] = {};
    CTX_UNROLL_BY(2)
    for (int32_t i = 0; i < count; ++i)
    {
        Pack<T, COUNT> const pack
            = i < older ? tokens.cached(layout.slotAfter(firstSlot, i)) : tokens.given(first + i - sequence.seen);
        CTX_UNROLL
        for (int j = 0; j < COUNT; ++j)
        {
            sum[j] += toFloat(pack.values[j]);
        }
    }
    Pack<T, COUNT> mean;
    CTX_UNROLL
    for (int i = 0; i < COUNT; ++i)
    {
        mean.values[i] = fromFloat<T>(sum[i] * share);
    }
    *reinterpret_cast<Pack<T, COUNT>*>(cache + slot * params.headDim) = mean;
}

template <typename T>
LaunchResult launchPool(PartsAttentionParams const& params, cudaStream_t stream)
{
    constexpr int kCOUNT = kVECTOR_ELEMENTS<T>;
    static_assert(2 * SinkWindowAttentionParams::kMAX_HEAD_DIM / kCOUNT <= kPOOL_THREADS, "a thread for each pack");
    int64_t const block = params.rule.memory.block;
    auto const blocks = static_cast<uint32_t>((params.rows + block - 1) / block);
    auto const packs = static_cast<int32_t>(2 * params.headDim / kCOUNT);
    int32_t const threads = (packs + kWARP_SIZE - 1) / kWARP_SIZE * kWARP_SIZE;
    LaunchShape const shape{params.batch * params.kvHeads * blocks, threads, 0};
    return LaunchResult::fromCuda(launch(poolBlocks<T, kCOUNT>, shape, stream, params, blocks), "poolBlocks");
}

} // namespace

LaunchResult launchPoolBlocks(PartsAttentionParams const& params, cudaStream_t stream)
{
    switch (params.dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: return launchPool<Half>(params, stream);
    case CTX_DATA_TYPE_BFLOAT16: return launchPool<BFloat16>(params, stream);
    default: return launchPool<float>(params, stream);
    }
}

} // namespace ctx
