// Writes the new keys and values of a call to their cache slots: rotated first, and quantised last, where the call asks
// for it. One pass over k and v.

#include "kernels/common/quantised.cuh"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_packs.cuh"
#include "kernels/sink_window_attention/sink_window_attention_launch.h"
#include "kernels/sink_window_attention/sink_window_attention_math.cuh"

#include <type_traits>

namespace ctx
{
namespace
{

constexpr int32_t kWRITE_THREADS = 128;

template <typename T, int COUNT>
CTX_DEVICE void storePack(void* cache, int64_t offset, Pack<T, COUNT> const& pack, float scale, int32_t cacheType)
{
    if (cacheType == CTX_CACHE_TYPE_SAME)
    {
        *reinterpret_cast<Pack<T, COUNT>*>(static_cast<T*>(cache) + offset) = pack;
        return;
    }
    constexpr int kBYTES = COUNT < 4 ? COUNT : 4;
    Pack<uint32_t, COUNT / kBYTES> words{};
    CTX_UNROLL
    for (int i = 0; i < COUNT; ++i)
    {
        uint32_t const byte = quantised(toFloat(pack.values[i]) / scale, cacheType);
        words.values[i / kBYTES] |= byte << (8 * (i % kBYTES));
    }
    uint8_t* const target = static_cast<uint8_t*>(cache) + offset;
    if constexpr (kBYTES == 4)
    {
        *reinterpret_cast<Pack<uint32_t, COUNT / kBYTES>*>(target) = words;
    }
    else
    {
        *target = static_cast<uint8_t>(words.values[0]);
    }
}

// A row of k or v and of its cache, from their first element.
template <typename T>
struct RowCopy
{
    T const* source;
    void* cache;
    int64_t target;
    float scale;
    int32_t cacheType;

    template <int COUNT>
    CTX_DEVICE Pack<T, COUNT> load(int64_t dim) const
    {
        return *reinterpret_cast<Pack<T, COUNT> const*>(source + dim);
    }

    // As it is, in one access where a pack has 16 bytes.
    template <int COUNT>
    CTX_DEVICE void copy(int64_t dim) const
    {
        if (cacheType == CTX_CACHE_TYPE_SAME)
        {
            using Bytes = std::conditional_t<sizeof(T) * COUNT == kVECTOR_BYTES, Pack<uint32_t, 4>, Pack<T, COUNT>>;
            *reinterpret_cast<Bytes*>(static_cast<T*>(cache) + target + dim)
                = *reinterpret_cast<Bytes const*>(source + dim);
            return;
        }
        storePack<T, COUNT>(cache, target + dim, load<COUNT>(dim), scale, cacheType);
    }

    template <int COUNT>
    CTX_DEVICE void store(int64_t dim, Pack<T, COUNT> const& pack) const
    {
        storePack<T, COUNT>(cache, target + dim, pack, scale, cacheType);
    }
};

// A thread moves one pack of a row, or the two of its pairs, of a key and of a value. Of several rows with one slot
// only the last is written.
template <typename T, int COUNT>
CTX_KERNEL(kWRITE_THREADS)
writeCache(CtxSinkWindowAttentionParams const params, CacheLayout const layout, RowPacks const packs)
{
    int64_t const item = static_cast<int64_t>(blockIdx.x) * kWRITE_THREADS + threadIdx.x;
    int64_t const sourceRow = item / packs.count;
    int64_t const row = sourceRow % params.rows;
    int64_t const head = sourceRow / params.rows;
    int64_t const batch = head / params.kvHeads;
    if (batch >= params.batch)
    {
        return;
    }
    Sequence const sequence = sequenceOf(params, batch);
    int64_t const position = sequence.seen + row;
    if (row >= sequence.answered || !layout.isKept(position, sequence.seen + sequence.count))
    {
        return;
    }
    int64_t const target = (head * params.capacity + layout.slotOf(position)) * params.headDim;
    int64_t const kvHead = head % params.kvHeads;
    auto const offset = [&](CtxStrides const& strides)
    { return batch * strides.batch + kvHead * strides.head + row * strides.token; };
    RowCopy<T> const key{static_cast<T const*>(params.key) + offset(params.keyStrides), params.presentKey, target,
        headScale(params.keyScale, kvHead), params.cacheType};
    RowCopy<T> const value{static_cast<T const*>(params.value) + offset(params.valueStrides), params.presentValue,
        target, headScale(params.valueScale, kvHead), params.cacheType};
    auto const pack = static_cast<int32_t>(item % packs.count);
    if (pack >= packs.pairPacks)
    {
        int64_t const dim = params.headDim - static_cast<int64_t>(packs.count - pack) * COUNT;
        key.template copy<COUNT>(dim);
        value.template copy<COUNT>(dim);
        return;
    }
    bool const interleaved = params.interleaved != 0;
    int64_t const first = static_cast<int64_t>(pack) * COUNT * (interleaved ? 2 : 1);
    int64_t const second = first + (interleaved ? COUNT : params.rotaryDim / 2);
    RotaryTable const table = RotaryTable::of(params, batch);
    CosSin turns[COUNT];
    CTX_UNROLL
    for (int32_t i = 0; i < COUNT; ++i)
    {
        turns[i] = table.turn(position, pack * COUNT + i);
    }
    Pack<T, COUNT> firstKeys = key.template load<COUNT>(first);
    Pack<T, COUNT> secondKeys = key.template load<COUNT>(second);
    rotatePacks<T, COUNT>(firstKeys, secondKeys, turns, interleaved);
    key.template store<COUNT>(first, firstKeys);
    key.template store<COUNT>(second, secondKeys);
    value.template copy<COUNT>(first);
    value.template copy<COUNT>(second);
}

template <typename T, int COUNT>
LaunchResult launchPacks(
    SinkWindowAttentionParams const& params, CacheLayout const& layout, int64_t rotaryDim, cudaStream_t stream)
{
    RowPacks const packs = RowPacks::of(params.headDim, rotaryDim, COUNT);
    int64_t const items = params.batch * params.kvHeads * params.rows * packs.count;
    LaunchShape const shape{(items + kWRITE_THREADS - 1) / kWRITE_THREADS, kWRITE_THREADS, 0};
    return LaunchResult::fromCuda(launch(writeCache<T, COUNT>, shape, stream, params, layout, packs), "writeCache");
}

template <typename T>
LaunchResult launchType(SinkWindowAttentionParams const& params, CacheLayout const& layout, cudaStream_t stream)
{
    constexpr int kCOUNT = kVECTOR_ELEMENTS<T>;
    int64_t const rotaryDim = params.rotation == CTX_ROTATION_ON_WRITE ? params.rotaryDim : 0;
    return rotaryDim / 2 % kCOUNT == 0 ? launchPacks<T, kCOUNT>(params, layout, rotaryDim, stream)
                                       : launchPacks<T, 1>(params, layout, rotaryDim, stream);
}

} // namespace

LaunchResult launchWriteCache(SinkWindowAttentionParams const& params, CacheLayout const& layout, cudaStream_t stream)
{
    switch (params.dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: return launchType<Half>(params, layout, stream);
    case CTX_DATA_TYPE_BFLOAT16: return launchType<BFloat16>(params, layout, stream);
    default: return launchType<float>(params, layout, stream);
    }
}

} // namespace ctx
