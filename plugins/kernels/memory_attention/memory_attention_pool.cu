// Averages the blocks that a call of MemoryAttention evicts. It runs before the call's rows are written: the ring then
// still holds all tokens of the blocks that are older than the call.

#include "kernels/common/element.cuh"
#include "kernels/parts_attention/parts_attention_launch.h"

namespace ctx
{
namespace
{

constexpr int32_t kPOOL_THREADS = 128;

// How a call's blocks are cut into threads: for each sequence and key-value head as many blocks as the rows can evict,
// each in packs of dims.
struct PoolPlan
{
    int64_t blocks;
    int64_t packs;
};

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

// A thread averages one pack of a block's keys, or of its values.
template <typename T, int COUNT>
CTX_KERNEL_RESIDENT(kPOOL_THREADS, 8)
poolBlocks(PartsAttentionParams const params, PoolPlan const plan)
{
    int64_t const item = static_cast<int64_t>(blockIdx.x) * kPOOL_THREADS + threadIdx.x;
    int64_t const dim = item % plan.packs * COUNT;
    bool const isValue = item / plan.packs % 2 != 0;
    int64_t const index = item / plan.packs / 2 % plan.blocks;
    int64_t const head = item / plan.packs / 2 / plan.blocks;
    int64_t const batch = head / params.kvHeads;
    if (batch >= params.batch)
    {
        return;
    }
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
        + head * params.capacity * params.headDim + dim;
    TokenRows<T, COUNT> const tokens{cache,
        static_cast<T const*>(isValue ? params.value : params.key) + batch * strides.batch
            + head % params.kvHeads * strides.head + dim,
        params.headDim, strides.token};
    CacheLayout const layout = rule.layout(MemoryRule::kTOKENS, params.capacity);
    int64_t const first = rule.sinks + block * rule.block;
    int64_t const firstSlot = layout.slotOf(first);
    auto const count = static_cast<int32_t>(rule.block);
    auto const older = static_cast<int32_t>(smaller(count, larger(0, sequence.seen - first)));
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
        mean.values[i] = fromFloat<T>(sum[i] / static_cast<float>(rule.block));
    }
    int64_t const slot = rule.layout(MemoryRule::kBLOCKS, params.capacity).slotOf(block);
    *reinterpret_cast<Pack<T, COUNT>*>(cache + slot * params.headDim) = mean;
}

template <typename T>
LaunchResult launchPool(PartsAttentionParams const& params, cudaStream_t stream)
{
    constexpr int kCOUNT = kVECTOR_ELEMENTS<T>;
    int64_t const block = params.rule.memory.block;
    PoolPlan const plan{(params.rows + block - 1) / block, params.headDim / kCOUNT};
    int64_t const items = params.batch * params.kvHeads * plan.blocks * 2 * plan.packs;
    LaunchShape const shape{(items + kPOOL_THREADS - 1) / kPOOL_THREADS, kPOOL_THREADS, 0};
    return LaunchResult::fromCuda(launch(poolBlocks<T, kCOUNT>, shape, stream, params, plan), "poolBlocks");
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
