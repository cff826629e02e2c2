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

// The tensors' element type is no trait: all arithmetic is float32, so only loads and stores ask for it.
template <int PADDED_DIM, int ROWS_PER_WARP>
struct TileTraits
{
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

// Where a block's tile lies in the tensors. Packed rows are below 2^31; dividing 64 bits would be half the kernel's
// code.
struct TilePlace
{
    int64_t batch;
    int64_t kvHead;
    uint32_t groups;   // query heads per key-value head
    uint32_t firstRow; // packed
    uint32_t packedRows;

    CTX_HOST_DEVICE uint32_t tokenOf(uint32_t packedRow) const
    {
        return packedRow / groups;
    }

    CTX_HOST_DEVICE int64_t headOf(uint32_t packedRow) const
    {
        return kvHead * groups + packedRow % groups;
    }

    // Offset of a packed row in q, sink_q and y.
    CTX_HOST_DEVICE int64_t queryOffset(CtxSinkWindowAttentionParams const& params, uint32_t packedRow) const
    {
        int64_t const head = batch * params.queryHeads + headOf(packedRow);
        return (head * params.rows + tokenOf(packedRow)) * params.headDim;
    }
};

// 16 bytes of a tensor as they are in memory: 4 elements of float32, 8 of float16 or bfloat16.
using Vector = Pack<uint32_t, 4>;

template <typename T>
CTX_DEVICE void storeHalvesAsFloat(float* target, Vector const& source)
{
    CTX_UNROLL
    for (int i = 0; i < 4; i += 2)
    {
        uint32_t const first = source.values[i];
        uint32_t const second = source.values[i + 1];
        *reinterpret_cast<Float4*>(target + 2 * i)
            = Float4{toFloat(T{static_cast<uint16_t>(first)}), toFloat(T{static_cast<uint16_t>(first >> 16)}),
                toFloat(T{static_cast<uint16_t>(second)}), toFloat(T{static_cast<uint16_t>(second >> 16)})};
    }
}

CTX_DEVICE void storeAsFloat(float* target, Vector const& source, int32_t dataType)
{
    switch (dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: storeHalvesAsFloat<Half>(target, source); break;
    case CTX_DATA_TYPE_BFLOAT16: storeHalvesAsFloat<BFloat16>(target, source); break;
    default:
        *reinterpret_cast<Float4*>(target) = Float4{
            floatOf(source.values[0]), floatOf(source.values[1]), floatOf(source.values[2]), floatOf(source.values[3])};
    }
}

// A thread's part in loading rows of kPADDED_DIM elements: one column of vectors, in rows firstRow, firstRow + step, ….
struct Column
{
    int dim;
    int elementBytes;
    int firstRow;
    int step;

    template <typename Traits>
    static CTX_DEVICE Column ofThread(CtxSinkWindowAttentionParams const& params)
    {
        constexpr int kCOLUMNS_OF_4 = Traits::kPADDED_DIM / 4;
        constexpr int kCOLUMNS_OF_8 = Traits::kPADDED_DIM / 8;
        static_assert(Traits::kTHREADS % kCOLUMNS_OF_4 == 0 && Traits::kTHREADS % kCOLUMNS_OF_8 == 0,
            "a block loads whole rows at a time");
        int const thread = static_cast<int>(threadIdx.x);
        if (params.dataType == CTX_DATA_TYPE_FLOAT32)
        {
            return Column{thread % kCOLUMNS_OF_4 * 4, 4, thread / kCOLUMNS_OF_4, Traits::kTHREADS / kCOLUMNS_OF_4};
        }
        return Column{thread % kCOLUMNS_OF_8 * 8, 2, thread / kCOLUMNS_OF_8, Traits::kTHREADS / kCOLUMNS_OF_8};
    }

    // The vector of a row that starts `offset` elements into the tensor.
    CTX_DEVICE Vector load(void const* tensor, int64_t offset) const
    {
        return *reinterpret_cast<Vector const*>(static_cast<char const*>(tensor) + (offset + dim) * elementBytes);
    }
};

// Dims in [headDim, kPADDED_DIM) and rows past the end become zeros.
template <typename Traits>
CTX_DEVICE void loadQueries(
    SharedTile<Traits>& shared, CtxSinkWindowAttentionParams const& params, TilePlace const& place, void const* source)
{
    auto const column = Column::ofThread<Traits>(params);
    CTX_UNROLL_BY(1)
    for (int row = column.firstRow; row < Traits::kTILE_ROWS; row += column.step)
    {
        Vector vector{};
        if (place.firstRow + row < place.packedRows && column.dim < params.headDim)
        {
            vector = column.load(source, place.queryOffset(params, place.firstRow + row));
        }
        storeAsFloat(&shared.query[row][column.dim], vector, params.dataType);
    }
}

// Keys and values of tokens [first, first + kTILE_KEYS); those at or past `end` become zeros.
template <typename Traits>
CTX_DEVICE void loadKeysAndValues(SharedTile<Traits>& shared, CtxSinkWindowAttentionParams const& params,
    CacheLayout const& layout, TilePlace const& place, int64_t first, int64_t end)
{
    constexpr int kBATCH = 2; // loads of a thread that are under way together
    static_assert(
        Traits::kTILE_KEYS % (Traits::kTHREADS / (Traits::kPADDED_DIM / 8) * kBATCH) == 0, "a batch lies in the tile");
    auto const column = Column::ofThread<Traits>(params);
    int64_t const firstRow = (place.batch * params.kvHeads + place.kvHead) * params.capacity;
    int64_t const firstSlot = layout.slotOf(first);
    int const tokens = column.dim < params.headDim ? static_cast<int>(smaller(Traits::kTILE_KEYS, end - first)) : 0;
    CTX_UNROLL_BY(1)
    for (int token = column.firstRow; token < Traits::kTILE_KEYS; token += kBATCH * column.step)
    {
        Vector keys[kBATCH]{};
        Vector values[kBATCH]{};
        CTX_UNROLL
        for (int i = 0; i < kBATCH; ++i)
        {
            if (token + i * column.step < tokens)
            {
                int64_t const slot = layout.slotAfter(firstSlot, token + i * column.step);
                keys[i] = column.load(params.presentKey, (firstRow + slot) * params.headDim);
                values[i] = column.load(params.presentValue, (firstRow + slot) * params.headDim);
            }
        }
        CTX_UNROLL
        for (int i = 0; i < kBATCH; ++i)
        {
            storeAsFloat(&shared.key[token + i * column.step][column.dim], keys[i], params.dataType);
            storeAsFloat(&shared.value[token + i * column.step][column.dim], values[i], params.dataType);
        }
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
