// One block's tile of float32 queries and keys in shared memory: loading, rotating, scoring and accumulating on the
// scalar units. A warp owns ROWS_PER_WARP packed rows. Scores: a lane per key. Values: a lane per kDIMS_PER_LANE dims.
#pragma once

#include "kernels/common/quantised.cuh"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_packs.cuh"
#include "kernels/sink_window_attention/sink_window_attention_turn.cuh"

namespace ctx
{

template <typename Call_, int PADDED_DIM, int ROWS_PER_WARP>
struct TileTraits
{
    using Call = Call_;
    using Params = typename Call::Params;
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
    typename Traits::Call::template Rows<Traits::kTILE_ROWS> rows;
    typename Traits::Call call;
};

// A thread's part in loading rows of kPADDED_DIM elements: one column of four, in rows firstRow, firstRow + step, ….
struct Column
{
    int dim;
    int firstRow;
    int step;

    template <typename Traits>
    static CTX_DEVICE Column ofThread()
    {
        constexpr int kCOLUMNS = Traits::kPADDED_DIM / 4;
        static_assert(Traits::kTHREADS % kCOLUMNS == 0, "a block loads whole rows at a time");
        int const thread = opaque(static_cast<int>(threadIdx.x));
        return Column{thread % kCOLUMNS * 4, thread / kCOLUMNS, Traits::kTHREADS / kCOLUMNS};
    }
};

// Dims in [headDim, kPADDED_DIM) and rows past the end become zeros; a negative scale turns signs.
template <typename Traits>
CTX_DEVICE void loadQueries(
    SharedTile<Traits>& shared, CtxSinkWindowAttentionParams const& params, BlockCall const& call, void const* source)
{
    auto const column = Column::ofThread<Traits>();
    CTX_UNROLL_BY(1)
    for (int row = column.firstRow; row < Traits::kTILE_ROWS; row += column.step)
    {
        Float4 vector{};
        if (row < call.rows(Traits::kTILE_ROWS) && column.dim < params.headDim)
        {
            vector = *reinterpret_cast<Float4 const*>(static_cast<float const*>(source)
                + call.place.rowOffset(params.queryStrides, call.place.firstRow + row) + column.dim);
        }
        CTX_UNROLL
        for (float& value : vector.values)
        {
            value = call.isNegative ? -value : value;
        }
        *reinterpret_cast<Float4*>(&shared.query[row][column.dim]) = vector;
    }
}

// Four elements of a cache, in units of its scale.
CTX_DEVICE Float4 cachedFour(void const* cache, int64_t offset, int32_t cacheType)
{
    if (cacheType == CTX_CACHE_TYPE_SAME)
    {
        return *reinterpret_cast<Float4 const*>(static_cast<float const*>(cache) + offset);
    }
    uint32_t const bytes = *reinterpret_cast<uint32_t const*>(static_cast<uint8_t const*>(cache) + offset);
    return Float4{{dequantised(bytes, cacheType), dequantised(bytes >> 8, cacheType),
        dequantised(bytes >> 16, cacheType), dequantised(bytes >> 24, cacheType)}};
}

// Keys and values of one tile of tokens; rows past its end become zeros.
template <typename Traits>
CTX_DEVICE void loadKeysAndValues(
    SharedTile<Traits>& shared, typename Traits::Params const& params, typename Traits::Call const& call, int32_t tile)
{
    CachePlace const& place = call.cacheOf(tile);
    int64_t const firstSlot = call.firstSlot(tile);
    auto const column = Column::ofThread<Traits>();
    int const tokens = column.dim < params.headDim ? call.tiles.keysOf(tile) : 0;
    CTX_UNROLL_BY(2)
    for (int token = column.firstRow; token < Traits::kTILE_KEYS; token += column.step)
    {
        Float4 key{};
        Float4 value{};
        if (token < tokens)
        {
            int64_t const offset
                = (place.firstRow + place.layout.slotAfter(firstSlot, token)) * params.headDim + column.dim;
            key = cachedFour(params.presentKey, offset, params.cacheType);
            value = cachedFour(params.presentValue, offset, params.cacheType);
        }
        *reinterpret_cast<Float4*>(&shared.key[token][column.dim]) = key;
        *reinterpret_cast<Float4*>(&shared.value[token][column.dim]) = value;
    }
}

template <typename Traits>
CTX_DEVICE void loadFrequencies(SharedTile<Traits>& shared, CtxSinkWindowAttentionParams const& params, int64_t batch)
{
    if (params.rotaryDim == 0)
    {
        return;
    }
    RotaryTable const table = RotaryTable::of(params, batch);
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(params.rotaryDim / 2); i += Traits::kTHREADS)
    {
        float const frequency = table.frequency[i];
        shared.phaseStep[i] = hasPhaseStep(frequency) ? phaseStep(frequency) : 0;
        shared.multiplier[i] = hasPhaseStep(frequency) ? table.multiplier : NAN;
    }
}

// Rows in shared memory that can be turned.
template <typename Traits>
struct ScalarRotation
{
    float* first;
    int stride;
    SharedTile<Traits> const& shared;
    int32_t pairs;
    bool interleaved;
};

// Rows that start at `first` in shared memory.
template <typename Traits>
CTX_DEVICE ScalarRotation<Traits> scalarRotation(
    float* first, int stride, SharedTile<Traits> const& shared, CtxSinkWindowAttentionParams const& params)
{
    return ScalarRotation<Traits>{
        first, stride, shared, static_cast<int32_t>(params.rotaryDim / 2), params.interleaved != 0};
}

// Turns the first `rows` rows of queries or keys; `positionOf` gives a row's position.
template <typename Scope, typename Traits, typename PositionOf>
CTX_DEVICE void rotateRows(Scope, ScalarRotation<Traits> const& rotation, int rows, PositionOf const& positionOf)
{
    int32_t const pairs = rotation.pairs;
    for (int i = opaque(static_cast<int>(threadIdx.x)); i < rows * pairs; i += Scope::kTHREADS)
    {
        int const row = i / pairs;
        int const pair = i % pairs;
        CosSin const turn
            = scaled(ctx::rotation(positionOf(row), rotation.shared.phaseStep[pair]), rotation.shared.multiplier[pair]);
        float& a = rotation.first[row * rotation.stride + firstDim(pair, rotation.interleaved)];
        float& b = rotation.first[row * rotation.stride + secondDim(pair, pairs, rotation.interleaved)];
        Pair const turned = rotatePair(Pair{a, b}, turn);
        a = turned.first;
        b = turned.second;
    }
}

// As rotateRows, for rows at positions `first`, first + 1, ….
template <typename Scope, typename Traits>
CTX_DEVICE void rotateRun(Scope, ScalarRotation<Traits> const& rotation, int rows, int64_t first)
{
    rotateRows(Scope{}, rotation, rows, [first](int row) { return first + row; });
}

template <typename Scope, typename Traits, typename PositionOf>
CTX_DEVICE void rotateSteps(Scope, ScalarRotation<Traits> const& rotation, int rows, PositionOf const& positionOf)
{
    rotateRows(Scope{}, rotation, rows, positionOf);
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

// Stores one row's dims of this lane.
template <typename Traits>
CTX_DEVICE void storeRow(float* output, int lane, int headDim, float const (&values)[Traits::kDIMS_PER_LANE])
{
    constexpr int kPACK = Traits::kLANE_PACK;
    CTX_UNROLL
    for (int pack = 0; pack < Traits::kLANE_PACKS; ++pack)
    {
        int const dim = (pack * kWARP_SIZE + lane) * kPACK;
        Pack<float, kPACK> result;
        CTX_UNROLL
        for (int i = 0; i < kPACK; ++i)
        {
            result.values[i] = values[pack * kPACK + i];
        }
        if (dim < headDim)
        {
            *reinterpret_cast<Pack<float, kPACK>*>(output + dim) = result;
        }
    }
}

} // namespace ctx
