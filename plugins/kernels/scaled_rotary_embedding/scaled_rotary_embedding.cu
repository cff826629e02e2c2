// y = x with the pairs of each head rotated by position * frequency; see ctx_kernels.h.
//
// A thread owns COUNT pairs of one token and turns them in up to kHEADS_PER_THREAD heads, so that sines and cosines
// are computed once per token and pair, not once per head. Pairs move as two packs of COUNT elements.

#include "kernels/launchers.h"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_packs.cuh"

namespace ctx
{
namespace
{

constexpr int32_t kTHREADS = 128;
constexpr int32_t kHEADS_PER_THREAD = 4;

struct Work
{
    int64_t items;      // threads that have work
    int32_t headGroups; // of kHEADS_PER_THREAD heads
    RowPacks packs;
};

template <int COUNT>
Work planWork(ScaledRotaryEmbeddingParams const& params)
{
    Work work{};
    work.packs = RowPacks::of(params.headDim, params.rotaryDim, COUNT);
    work.headGroups = static_cast<int32_t>((params.heads + kHEADS_PER_THREAD - 1) / kHEADS_PER_THREAD);
    work.items = params.batch * params.rows * work.headGroups * work.packs.count;
    return work;
}

template <typename T, int COUNT>
CTX_KERNEL(kTHREADS)
rotateHeads(ScaledRotaryEmbeddingParams const params, Work const work)
{
    using Elements = Pack<T, COUNT>;
    int64_t const item = static_cast<int64_t>(blockIdx.x) * kTHREADS + threadIdx.x;
    if (item >= work.items)
    {
        return;
    }
    int32_t const pack = static_cast<int32_t>(item % work.packs.count);
    int64_t const row = item / work.packs.count % params.rows;
    int64_t const group = item / work.packs.count / params.rows % work.headGroups;
    int64_t const batch = item / work.packs.count / params.rows / work.headGroups;
    int64_t const firstHead = group * kHEADS_PER_THREAD;
    int64_t const lastHead
        = firstHead + kHEADS_PER_THREAD < params.heads ? firstHead + kHEADS_PER_THREAD : params.heads;
    int64_t const headStride = params.rows * params.headDim;
    int64_t const base = ((batch * params.heads + firstHead) * params.rows + row) * params.headDim;
    T const* x = static_cast<T const*>(params.x) + base;
    T* y = static_cast<T*>(params.y) + base;
    if (pack >= work.packs.pairPacks)
    {
        int64_t const dim = params.rotaryDim + static_cast<int64_t>(pack - work.packs.pairPacks) * COUNT;
        for (int64_t head = firstHead; head < lastHead; ++head, x += headStride, y += headStride)
        {
            *reinterpret_cast<Elements*>(y + dim) = *reinterpret_cast<Elements const*>(x + dim);
        }
        return;
    }
    CosSin turns[COUNT];
    RotaryTable const table = RotaryTable::of(params, batch);
    int64_t const position = params.positions[batch * params.rows + row];
    CTX_UNROLL
    for (int32_t i = 0; i < COUNT; ++i)
    {
        turns[i] = table.turn(position, pack * COUNT + i);
    }
    bool const interleaved = params.interleaved != 0;
    int64_t const firstOffset = static_cast<int64_t>(pack) * COUNT * (interleaved ? 2 : 1);
    int64_t const secondOffset = firstOffset + (interleaved ? COUNT : params.rotaryDim / 2);
    for (int64_t head = firstHead; head < lastHead; ++head, x += headStride, y += headStride)
    {
        Elements first = *reinterpret_cast<Elements const*>(x + firstOffset);
        Elements second = *reinterpret_cast<Elements const*>(x + secondOffset);
        rotatePacks<T, COUNT>(first, second, turns, interleaved);
        *reinterpret_cast<Elements*>(y + firstOffset) = first;
        *reinterpret_cast<Elements*>(y + secondOffset) = second;
    }
}

template <typename T, int COUNT>
LaunchResult launchPacks(ScaledRotaryEmbeddingParams const& params, cudaStream_t stream)
{
    Work const work = planWork<COUNT>(params);
    LaunchShape const shape{(work.items + kTHREADS - 1) / kTHREADS, kTHREADS, 0};
    return LaunchResult::fromCuda(launch(rotateHeads<T, COUNT>, shape, stream, params, work), "rotateHeads");
}

template <typename T>
LaunchResult launchType(ScaledRotaryEmbeddingParams const& params, cudaStream_t stream)
{
    constexpr int COUNT = kVECTOR_ELEMENTS<T>;
    bool const packed = params.rotaryDim / 2 % COUNT == 0 && params.headDim % COUNT == 0
        && isAligned(params.x, kVECTOR_BYTES) && isAligned(params.y, kVECTOR_BYTES);
    return packed ? launchPacks<T, COUNT>(params, stream) : launchPacks<T, 1>(params, stream);
}

} // namespace

LaunchResult launchScaledRotaryEmbedding(ScaledRotaryEmbeddingParams const& params, cudaStream_t stream)
{
    if (std::string const fault = params.validate(); !fault.empty())
    {
        return LaunchResult::invalid(fault);
    }
    if (params.isEmpty())
    {
        return {};
    }
    switch (params.dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: return launchType<Half>(params, stream);
    case CTX_DATA_TYPE_BFLOAT16: return launchType<BFloat16>(params, stream);
    default: return launchType<float>(params, stream);
    }
}

} // namespace ctx
