// y = x with the pairs of each head rotated by position * frequency; see ctx_kernels.h.
//
// A thread owns COUNT pairs of one token and turns them in up to kHEADS_PER_THREAD heads, so that sines and cosines
// are computed once per token and pair, not once per head. Pairs move as two packs of COUNT elements.

#include "kernels/common/element.cuh"
#include "kernels/launchers.h"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_math.cuh"

namespace ctx
{
namespace
{

constexpr int32_t kTHREADS = 128;
constexpr int32_t kHEADS_PER_THREAD = 4;

struct Work
{
    int64_t items;       // threads that have work
    int32_t headGroups;  // of kHEADS_PER_THREAD heads
    int32_t packsPerRow; // pair packs, then packs of dims that pass through
    int32_t pairPacks;
};

template <int COUNT>
Work planWork(ScaledRotaryEmbeddingParams const& params)
{
    Work work{};
    int64_t const pairs = params.rotaryDim / 2;
    int64_t const passThrough = params.headDim - params.rotaryDim;
    work.pairPacks = static_cast<int32_t>(pairs / COUNT);
    work.packsPerRow = static_cast<int32_t>(work.pairPacks + passThrough / COUNT);
    work.headGroups = static_cast<int32_t>((params.heads + kHEADS_PER_THREAD - 1) / kHEADS_PER_THREAD);
    work.items = params.batch * params.rows * work.headGroups * work.packsPerRow;
    return work;
}

template <int COUNT>
CTX_HOST_DEVICE void pairRotations(
    ScaledRotaryEmbeddingParams const& params, int64_t batch, int64_t row, int32_t firstPair, CosSin (&turns)[COUNT])
{
    int64_t const position = params.positions[batch * params.rows + row];
    int64_t const table = params.frequencyBatch == 1 ? 0 : batch;
    float const* frequency = params.inverseFrequency + table * (params.rotaryDim / 2) + firstPair;
    float const multiplier = params.multiplier[params.multiplierBatch == 1 ? 0 : batch];
    CTX_UNROLL
    for (int32_t i = 0; i < COUNT; ++i)
    {
        CosSin const turn
            = hasPhaseStep(frequency[i]) ? rotation(position, phaseStep(frequency[i])) : invalidRotation();
        turns[i] = scaled(turn, multiplier);
    }
}

template <typename T, int COUNT>
CTX_HOST_DEVICE void rotatePacks(
    Pack<T, COUNT>& first, Pack<T, COUNT>& second, CosSin const (&turns)[COUNT], bool interleaved)
{
    CTX_UNROLL
    for (int32_t i = 0; i < COUNT; ++i)
    {
        // Interleaved, the 2 * COUNT elements of both packs are the pairs one after the other.
        T& a = interleaved ? (2 * i < COUNT ? first.values[2 * i] : second.values[2 * i - COUNT]) : first.values[i];
        T& b = interleaved ? (2 * i + 1 < COUNT ? first.values[2 * i + 1] : second.values[2 * i + 1 - COUNT])
                           : second.values[i];
        Pair const turned = rotatePair(Pair{toFloat(a), toFloat(b)}, turns[i]);
        a = fromFloat<T>(turned.first);
        b = fromFloat<T>(turned.second);
    }
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
    int32_t const pack = static_cast<int32_t>(item % work.packsPerRow);
    int64_t const row = item / work.packsPerRow % params.rows;
    int64_t const group = item / work.packsPerRow / params.rows % work.headGroups;
    int64_t const batch = item / work.packsPerRow / params.rows / work.headGroups;
    int64_t const firstHead = group * kHEADS_PER_THREAD;
    int64_t const lastHead
        = firstHead + kHEADS_PER_THREAD < params.heads ? firstHead + kHEADS_PER_THREAD : params.heads;
    int64_t const headStride = params.rows * params.headDim;
    int64_t const base = ((batch * params.heads + firstHead) * params.rows + row) * params.headDim;
    T const* x = static_cast<T const*>(params.x) + base;
    T* y = static_cast<T*>(params.y) + base;
    if (pack >= work.pairPacks)
    {
        int64_t const dim = params.rotaryDim + static_cast<int64_t>(pack - work.pairPacks) * COUNT;
        for (int64_t head = firstHead; head < lastHead; ++head, x += headStride, y += headStride)
        {
            *reinterpret_cast<Elements*>(y + dim) = *reinterpret_cast<Elements const*>(x + dim);
        }
        return;
    }
    CosSin turns[COUNT];
    pairRotations<COUNT>(params, batch, row, pack * COUNT, turns);
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
