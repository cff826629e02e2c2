// One block's tile of queries and keys in shared memory: loading, rotating, scoring and accumulating.
//
// A tile has kTILE_ROWS queries of one sequence and one key-value head, all its query heads side by side: packed row
// m = row * groups + head within the group. A warp owns ROWS_PER_WARP of them. Scores: a lane per key. Values: a lane
// per kDIMS_PER_LANE dims.
#pragma once

#include "kernels/common/element.cuh"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_math.cuh"
#include "kernels/sink_window_attention/sink_window_attention_math.cuh"

namespace ctx
{

template <typename ELEMENT, int PADDED_DIM, int ROWS_PER_WARP>
struct TileTraits
{
    using Element = ELEMENT;
    static constexpr int kPADDED_DIM = PADDED_DIM;
    static constexpr int kROWS_PER_WARP = ROWS_PER_WARP;
    static constexpr int kWARPS = 4;
    static constexpr int kTHREADS = kWARPS * kWARP_SIZE;
    static constexpr int kTILE_ROWS = kWARPS * ROWS_PER_WARP;
    static constexpr int kTILE_KEYS = kWARP_SIZE;
    // 4 floats more than a row: 16-byte reads of 8 lanes in 8 rows then hit all 32 banks once.
    static constexpr int kKEY_STRIDE = PADDED_DIM + 4;
    static constexpr int kDIMS_PER_LANE = PADDED_DIM / kWARP_SIZE;
    static constexpr int kLANE_PACK = kDIMS_PER_LANE < 4 ? kDIMS_PER_LANE : 4;
    static constexpr int kLANE_PACKS = kDIMS_PER_LANE / kLANE_PACK;
    static_assert(kTILE_KEYS == kWARP_SIZE, "a lane scores one key of the tile");
};

using Float4 = Pack<float, 4>;

template <typename Traits>
struct SharedTile
{
    alignas(16) float query[Traits::kTILE_ROWS][Traits::kPADDED_DIM];
    alignas(16) float key[Traits::kTILE_KEYS][Traits::kKEY_STRIDE];
    alignas(16) float value[Traits::kTILE_KEYS][Traits::kKEY_STRIDE];
    alignas(16) float weight[Traits::kTILE_ROWS][Traits::kTILE_KEYS];
    uint64_t phaseStep[Traits::kPADDED_DIM / 2];
    float multiplier[Traits::kPADDED_DIM / 2]; // NaN where the frequency has no phase step
    int64_t position[Traits::kTILE_ROWS];      // -1: the row does not attend
};

// Where a block's tile lies in the tensors.
struct TilePlace
{
    int64_t batch;
    int64_t kvHead;
    int64_t groups;   // query heads per key-value head
    int64_t firstRow; // packed
    int64_t packedRows;

    CTX_HOST_DEVICE int64_t headOf(int64_t packedRow) const
    {
        return kvHead * groups + packedRow % groups;
    }

    // Offset of a packed row in q, sink_q and y.
    CTX_HOST_DEVICE int64_t queryOffset(CtxSinkWindowAttentionParams const& params, int64_t packedRow) const
    {
        int64_t const head = batch * params.queryHeads + headOf(packedRow);
        return (head * params.rows + packedRow / groups) * params.headDim;
    }
};

template <typename T>
CTX_DEVICE void storeAsFloat(float* target, Pack<T, kVECTOR_ELEMENTS<T>> const& source)
{
    CTX_UNROLL
    for (int i = 0; i < kVECTOR_ELEMENTS<T>; i += 4)
    {
        *reinterpret_cast<Float4*>(target + i) = Float4{toFloat(source.values[i]), toFloat(source.values[i + 1]),
            toFloat(source.values[i + 2]), toFloat(source.values[i + 3])};
    }
}

// Dims in [headDim, kPADDED_DIM) and rows past the end become zeros.
template <typename Traits>
CTX_DEVICE void loadQueries(
    SharedTile<Traits>& shared, CtxSinkWindowAttentionParams const& params, TilePlace const& place, void const* source)
{
    using T = typename Traits::Element;
    constexpr int kCOUNT = kVECTOR_ELEMENTS<T>;
    constexpr int kCOLUMNS = Traits::kPADDED_DIM / kCOUNT;
    for (int i = threadIdx.x; i < Traits::kTILE_ROWS * kCOLUMNS; i += Traits::kTHREADS)
    {
        int const row = i / kCOLUMNS;
        int const dim = i % kCOLUMNS * kCOUNT;
        Pack<T, kCOUNT> pack{};
        if (place.firstRow + row < place.packedRows && dim < params.headDim)
        {
            T const* address = static_cast<T const*>(source) + place.queryOffset(params, place.firstRow + row) + dim;
            pack = *reinterpret_cast<Pack<T, kCOUNT> const*>(address);
        }
        storeAsFloat<T>(&shared.query[row][dim], pack);
    }
}

// Keys and values of tokens [first, first + kTILE_KEYS); those at or past `end` become zeros.
template <typename Traits>
CTX_DEVICE void loadKeysAndValues(SharedTile<Traits>& shared, CtxSinkWindowAttentionParams const& params,
    CacheLayout const& layout, TilePlace const& place, int64_t first, int64_t end)
{
    using T = typename Traits::Element;
    constexpr int kCOUNT = kVECTOR_ELEMENTS<T>;
    constexpr int kCOLUMNS = Traits::kPADDED_DIM / kCOUNT;
    int64_t const base = (place.batch * params.kvHeads + place.kvHead) * params.capacity * params.headDim;
    T const* keys = static_cast<T const*>(params.presentKey) + base;
    T const* values = static_cast<T const*>(params.presentValue) + base;
    int64_t const firstSlot = layout.slotOf(first);
    // A range is all sinks or all ring, so only ring tiles can pass the end of the cache, and a short ring repeatedly.
    bool const wraps = layout.ring > 0 && first >= layout.sinks;
    for (int i = threadIdx.x; i < Traits::kTILE_KEYS * kCOLUMNS; i += Traits::kTHREADS)
    {
        int const token = i / kCOLUMNS;
        int const dim = i % kCOLUMNS * kCOUNT;
        Pack<T, kCOUNT> key{};
        Pack<T, kCOUNT> value{};
        if (first + token < end && dim < params.headDim)
        {
            int64_t slot = firstSlot + token;
            while (wraps && slot >= layout.capacity)
            {
                slot -= layout.ring;
            }
            int64_t const offset = slot * params.headDim + dim;
            key = *reinterpret_cast<Pack<T, kCOUNT> const*>(keys + offset);
            value = *reinterpret_cast<Pack<T, kCOUNT> const*>(values + offset);
        }
        storeAsFloat<T>(&shared.key[token][dim], key);
        storeAsFloat<T>(&shared.value[token][dim], value);
    }
}

template <typename Traits>
CTX_DEVICE void loadFrequencies(SharedTile<Traits>& shared, CtxSinkWindowAttentionParams const& params, int64_t batch)
{
    int32_t const pairs = static_cast<int32_t>(params.rotaryDim / 2);
    float const* frequency = params.inverseFrequency + (params.frequencyBatch == 1 ? 0 : batch) * pairs;
    float const multiplier = pairs > 0 ? params.multiplier[params.multiplierBatch == 1 ? 0 : batch] : 1.0F;
    for (int i = threadIdx.x; i < pairs; i += Traits::kTHREADS)
    {
        shared.phaseStep[i] = hasPhaseStep(frequency[i]) ? phaseStep(frequency[i]) : 0;
        shared.multiplier[i] = hasPhaseStep(frequency[i]) ? multiplier : NAN;
    }
}

// Turns the tile's unrotated keys to their absolute positions [first, …).
template <typename Traits>
CTX_DEVICE void rotateKeys(
    SharedTile<Traits>& shared, CtxSinkWindowAttentionParams const& params, int64_t first, int64_t end)
{
    int32_t const pairs = static_cast<int32_t>(params.rotaryDim / 2);
    int32_t const tokens = static_cast<int32_t>(smaller(Traits::kTILE_KEYS, end - first));
    bool const interleaved = params.interleaved != 0;
    for (int i = threadIdx.x; i < tokens * pairs; i += Traits::kTHREADS)
    {
        int const token = i / pairs;
        int const pair = i % pairs;
        CosSin const turn = scaled(rotation(first + token, shared.phaseStep[pair]), shared.multiplier[pair]);
        float& a = shared.key[token][firstDim(pair, interleaved)];
        float& b = shared.key[token][secondDim(pair, pairs, interleaved)];
        Pair const turned = rotatePair(Pair{a, b}, turn);
        a = turned.first;
        b = turned.second;
    }
}

// Products of this lane's key with the warp's queries.
template <typename Traits>
CTX_DEVICE void scoreKey(
    SharedTile<Traits> const& shared, int warp, int lane, int headDim, float (&score)[Traits::kROWS_PER_WARP])
{
    constexpr int kROWS = Traits::kROWS_PER_WARP;
    CTX_UNROLL
    for (int r = 0; r < kROWS; ++r)
    {
        score[r] = 0.0F;
    }
    for (int dim = 0; dim < headDim; dim += 4)
    {
        Float4 const key = *reinterpret_cast<Float4 const*>(&shared.key[lane][dim]);
        CTX_UNROLL
        for (int r = 0; r < kROWS; ++r)
        {
            Float4 const query = *reinterpret_cast<Float4 const*>(&shared.query[warp * kROWS + r][dim]);
            CTX_UNROLL
            for (int i = 0; i < 4; ++i)
            {
                score[r] += query.values[i] * key.values[i];
            }
        }
    }
}

// Adds the tile's weighted values; this lane's dims are pack * kLANE_PACK * 32 + lane * kLANE_PACK + 0 ….
template <typename Traits>
CTX_DEVICE void accumulateValues(
    SharedTile<Traits> const& shared, int warp, int lane, float (&sum)[Traits::kROWS_PER_WARP][Traits::kDIMS_PER_LANE])
{
    constexpr int kROWS = Traits::kROWS_PER_WARP;
    constexpr int kPACK = Traits::kLANE_PACK;
    for (int token = 0; token < Traits::kTILE_KEYS; token += 4)
    {
        Float4 weight[kROWS];
        CTX_UNROLL
        for (int r = 0; r < kROWS; ++r)
        {
            weight[r] = *reinterpret_cast<Float4 const*>(&shared.weight[warp * kROWS + r][token]);
        }
        CTX_UNROLL
        for (int t = 0; t < 4; ++t)
        {
            CTX_UNROLL
            for (int pack = 0; pack < Traits::kLANE_PACKS; ++pack)
            {
                int const dim = (pack * kWARP_SIZE + lane) * kPACK;
                auto const value = *reinterpret_cast<Pack<float, kPACK> const*>(&shared.value[token + t][dim]);
                CTX_UNROLL
                for (int r = 0; r < kROWS; ++r)
                {
                    CTX_UNROLL
                    for (int i = 0; i < kPACK; ++i)
                    {
                        sum[r][pack * kPACK + i] += weight[r].values[t] * value.values[i];
                    }
                }
            }
        }
    }
}

} // namespace ctx
