// Tiles of queries, keys and values of 2 bytes in shared memory, for the tensor cores: loading and rotating.
#pragma once

#include "kernels/common/async_copy.cuh"
#include "kernels/common/quantised.cuh"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_packs.cuh"
#include "kernels/sink_window_attention/sink_window_attention_turn.cuh"

namespace ctx
{

using Vector = Pack<uint32_t, 4>; // 16 bytes: a chunk of 8 elements
constexpr int kCHUNK = 8;

// Rows of DIM elements in shared memory. The chunks of a row are permuted so that those at one place of any 8
// consecutive rows lie in different banks.
template <int DIM>
struct TileRows
{
    static constexpr int kCHUNKS = DIM / kCHUNK;
    static constexpr int kSPREAD = kCHUNKS % 8 == 0 ? 8 : kCHUNKS % 4 == 0 ? 4 : 2;
    static_assert(DIM % 16 == 0, "a matrix instruction takes 16 dims");

    // What a row's chunks are permuted by: the same 16 rows on.
    static constexpr CTX_HOST_DEVICE uint32_t spreadOf(uint32_t row)
    {
        return row * kSPREAD / 8 % kSPREAD;
    }

    // In elements.
    static constexpr CTX_HOST_DEVICE uint32_t chunkOffset(uint32_t row, uint32_t chunk)
    {
        return (row * kCHUNKS + (chunk ^ spreadOf(row))) * kCHUNK;
    }

    static CTX_HOST_DEVICE uint32_t elementOffset(uint32_t row, uint32_t dim)
    {
        return chunkOffset(row, dim / kCHUNK) + dim % kCHUNK;
    }

    // Whether any 8 consecutive rows hold one chunk each in the 8 different groups of 4 banks.
    static constexpr bool isFreeOfConflicts()
    {
        constexpr uint32_t kGROUPS = 8;
        for (uint32_t first = 0; first < 2 * kGROUPS; ++first)
        {
            for (uint32_t chunk = 0; chunk < kCHUNKS; ++chunk)
            {
                uint32_t groups = 0;
                for (uint32_t row = first; row < first + kGROUPS; ++row)
                {
                    groups |= 1U << (chunkOffset(row, chunk) / kCHUNK % kGROUPS);
                }
                if (groups != (1U << kGROUPS) - 1)
                {
                    return false;
                }
            }
        }
        return true;
    }
};

static_assert(TileRows<64>::isFreeOfConflicts() && TileRows<80>::isFreeOfConflicts()
        && TileRows<96>::isFreeOfConflicts() && TileRows<128>::isFreeOfConflicts()
        && TileRows<256>::isFreeOfConflicts(),
    "a load of matrices from shared memory takes one pass");

// Rotation of rows in shared memory: frequencies as phase steps.
template <int DIM>
struct SharedRotation
{
    uint64_t phaseStep[DIM / 2];
    float multiplier[DIM / 2]; // NaN where the frequency has no phase step
};

template <int DIM>
CTX_DEVICE void loadRotation(
    SharedRotation<DIM>& shared, CtxSinkWindowAttentionParams const& params, int64_t batch, int threads)
{
    if (params.rotaryDim == 0)
    {
        return;
    }
    RotaryTable const table = RotaryTable::of(params, batch);
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(params.rotaryDim / 2); i += threads)
    {
        float const frequency = table.frequency[i];
        shared.phaseStep[i] = hasPhaseStep(frequency) ? phaseStep(frequency) : 0;
        shared.multiplier[i] = hasPhaseStep(frequency) ? table.multiplier : NAN;
    }
}

// Two pairs of a row that lie in two words: halves of the row apart, or interleaved one after the other.
template <typename T>
CTX_DEVICE void rotateWords(uint32_t& a, uint32_t& b, CosSin first, CosSin second, bool interleaved)
{
    if (interleaved)
    {
        Pair const low = rotatePair(Pair{lowElement<T>(a), highElement<T>(a)}, first);
        Pair const high = rotatePair(Pair{lowElement<T>(b), highElement<T>(b)}, second);
        a = packWord<T>(low.first, low.second);
        b = packWord<T>(high.first, high.second);
        return;
    }
    Pair const low = rotatePair(Pair{lowElement<T>(a), lowElement<T>(b)}, first);
    Pair const high = rotatePair(Pair{highElement<T>(a), highElement<T>(b)}, second);
    a = packWord<T>(low.first, high.first);
    b = packWord<T>(low.second, high.second);
}

// A tile in shared memory whose rows are turned, two pairs at a time, or one where their number is odd.
template <typename T, int DIM>
struct RowRotation
{
    uint16_t* tile;
    SharedRotation<DIM> const& shared;
    int pairs;
    bool interleaved;

    CTX_DEVICE int units() const
    {
        return pairs % 2 == 0 ? pairs / 2 : pairs;
    }

    CTX_DEVICE CosSin turn(int64_t position, int pair) const
    {
        return scaled(rotation(position, shared.phaseStep[pair]), shared.multiplier[pair]);
    }

    CTX_DEVICE CosSin stepTurn(int pair) const
    {
        return rotation(1, shared.phaseStep[pair]);
    }

    CTX_DEVICE void rotateTwo(int row, int unit, CosSin first, CosSin second) const
    {
        int const firstWord = interleaved ? 4 * unit : 2 * unit;
        int const secondWord = interleaved ? 4 * unit + 2 : pairs + 2 * unit;
        auto& a = *reinterpret_cast<uint32_t*>(tile + TileRows<DIM>::elementOffset(row, firstWord));
        auto& b = *reinterpret_cast<uint32_t*>(tile + TileRows<DIM>::elementOffset(row, secondWord));
        rotateWords<T>(a, b, first, second, interleaved);
    }

    CTX_DEVICE void rotateOne(int row, int pair, CosSin turn) const
    {
        uint16_t& a = tile[TileRows<DIM>::elementOffset(row, firstDim(pair, interleaved))];
        uint16_t& b = tile[TileRows<DIM>::elementOffset(row, secondDim(pair, pairs, interleaved))];
        Pair const turned = rotatePair(Pair{toFloat(T{a}), toFloat(T{b})}, turn);
        a = fromFloat<T>(turned.first).bits;
        b = fromFloat<T>(turned.second).bits;
    }
};

template <typename T, int DIM>
CTX_DEVICE RowRotation<T, DIM> rowRotation(
    uint16_t* tile, CtxSinkWindowAttentionParams const& params, SharedRotation<DIM> const& shared)
{
    return RowRotation<T, DIM>{tile, shared, static_cast<int>(params.rotaryDim / 2), params.interleaved != 0};
}

// Turns the tile's first `rows` rows; `positionOf` gives a row's position. The scope's other threads see the result
// after a barrier.
template <typename Scope, typename T, int DIM, typename PositionOf>
CTX_DEVICE void rotateRows(Scope, RowRotation<T, DIM> const& rotation, int rows, PositionOf const& positionOf)
{
    int const units = rotation.units();
    CTX_UNROLL_BY(1)
    for (int item = opaque(Scope::thread()); item < rows * units; item += Scope::kTHREADS)
    {
        int const row = item / units;
        int const unit = item % units;
        int64_t const position = positionOf(row);
        if (rotation.pairs % 2 == 0)
        {
            rotation.rotateTwo(row, unit, rotation.turn(position, 2 * unit), rotation.turn(position, 2 * unit + 1));
        }
        else
        {
            rotation.rotateOne(row, unit, rotation.turn(position, unit));
        }
    }
}

// As rotateRows, for rows at positions `first`, first + 1, …. Angles are exact at every eighth row; those of the rows
// before and after it, at most four away, follow by turning on step by step, which adds less than 2e-7 rad a step.
template <typename Scope, typename T, int DIM>
CTX_DEVICE void rotateRun(Scope, RowRotation<T, DIM> const& rotation, int rows, int64_t first)
{
    constexpr int kRUN = 8;
    if (rotation.pairs % 2 != 0)
    {
        rotateRows(Scope{}, rotation, rows, [first](int row) { return first + row; });
        return;
    }
    int const units = rotation.units();
    int const runs = (rows + kRUN - 1) / kRUN;
    CTX_UNROLL_BY(1)
    for (int item = opaque(Scope::thread()); item < runs * units; item += Scope::kTHREADS)
    {
        int const unit = item % units;
        int const middle = item / units * kRUN + kRUN / 2;
        CosSin const steps[2] = {rotation.stepTurn(2 * unit), rotation.stepTurn(2 * unit + 1)};
        CosSin after[2] = {rotation.turn(first + middle, 2 * unit), rotation.turn(first + middle, 2 * unit + 1)};
        CosSin before[2] = {after[0], after[1]};
        CTX_UNROLL
        for (int step = 0; step < kRUN / 2; ++step)
        {
            CTX_UNROLL
            for (int i = 0; i < 2; ++i)
            {
                before[i] = added(before[i], reversed(steps[i]));
            }
            if (middle - 1 - step < rows)
            {
                rotation.rotateTwo(middle - 1 - step, unit, before[0], before[1]);
            }
            if (middle + step < rows)
            {
                rotation.rotateTwo(middle + step, unit, after[0], after[1]);
            }
            CTX_UNROLL
            for (int i = 0; i < 2; ++i)
            {
                after[i] = added(after[i], steps[i]);
            }
        }
    }
}

// As rotateRows, for rows of which most are at the position of the one before or at the next. Angles are exact at every
// fourth row and after a jump; the others follow by turning on, which adds less than 2e-7 rad a step.
template <typename Scope, typename T, int DIM, typename PositionOf>
CTX_DEVICE void rotateSteps(Scope, RowRotation<T, DIM> const& rotation, int rows, PositionOf const& positionOf)
{
    constexpr int kRUN = 8;
    constexpr int kEXACT = 4;
    if (rotation.pairs % 2 != 0)
    {
        rotateRows(Scope{}, rotation, rows, positionOf);
        return;
    }
    int const units = rotation.units();
    int const runs = (rows + kRUN - 1) / kRUN;
    CTX_UNROLL_BY(1)
    for (int item = opaque(Scope::thread()); item < runs * units; item += Scope::kTHREADS)
    {
        int const unit = item % units;
        int const begin = item / units * kRUN;
        int const end = begin + kRUN < rows ? begin + kRUN : rows;
        CosSin const steps[2] = {rotation.stepTurn(2 * unit), rotation.stepTurn(2 * unit + 1)};
        CosSin turns[2] = {steps[0], steps[1]};
        int64_t position = 0;
        CTX_UNROLL_BY(1)
        for (int row = begin; row < end; ++row)
        {
            int64_t const next = positionOf(row);
            if ((row - begin) % kEXACT == 0 || (next != position && next != position + 1))
            {
                turns[0] = rotation.turn(next, 2 * unit);
                turns[1] = rotation.turn(next, 2 * unit + 1);
            }
            else if (next != position)
            {
                turns[0] = added(turns[0], steps[0]);
                turns[1] = added(turns[1], steps[1]);
            }
            position = next;
            rotation.rotateTwo(row, unit, turns[0], turns[1]);
        }
    }
}

// The block's first ROWS packed rows of q; rows past the end and dims past the head's become zeros. A negative scale of
// the logits turns the queries' signs, so that it counts as positive later.
template <int DIM, int ROWS, typename Scope>
CTX_DEVICE void loadQueries(
    uint16_t* tile, CtxSinkWindowAttentionParams const& params, BlockCall const& call, void const* source)
{
    using Rows = TileRows<DIM>;
    uint32_t const signs = call.isNegative ? 0x80008000U : 0U;
    CTX_UNROLL_BY(2)
    for (int item = opaque(Scope::thread()); item < ROWS * Rows::kCHUNKS; item += Scope::kTHREADS)
    {
        int const row = item / Rows::kCHUNKS;
        int const chunk = item % Rows::kCHUNKS;
        Vector vector{};
        if (row < call.rows(ROWS) && chunk * kCHUNK < params.headDim)
        {
            int64_t const offset
                = call.place.rowOffset(params.queryStrides, call.place.firstRow + row) + chunk * kCHUNK;
            vector = *reinterpret_cast<Vector const*>(static_cast<uint16_t const*>(source) + offset);
        }
        CTX_UNROLL
        for (uint32_t& word : vector.values)
        {
            word ^= signs;
        }
        *reinterpret_cast<Vector*>(tile + Rows::chunkOffset(row, chunk)) = vector;
    }
}

// The queries that meet a tile of keys, and those after it until they change, turned where the call does that.
template <typename T, int DIM, typename Scope, int ROWS, template <int> typename Rows, typename Call>
CTX_DEVICE void placeQueries(uint16_t* queries, Rows<ROWS> const& rows, Call const& call,
    typename Call::Params const& params, SharedRotation<DIM> const& rotation, int32_t tile)
{
    loadQueries<DIM, ROWS, Scope>(queries, params, call, call.queries(params, tile));
    Scope::sync();
    if (rotatesQueries(params))
    {
        turnQueries<Scope>(rowRotation<T>(queries, params, rotation), rows, call, params, tile);
        Scope::sync();
    }
}

// ROWS tokens in shared memory, of which the first `keys` come from the cache and the others are zeros. A quantised
// token's bytes wait in the second half of the tile until they are expanded.
template <typename T, int DIM, int ROWS, typename Scope, bool HAS_QUANTISED_CACHES>
struct TileLoader
{
    using Rows = TileRows<DIM>;
    static constexpr int kITEMS = ROWS * Rows::kCHUNKS;
    static constexpr int kPER_THREAD = kITEMS / Scope::kTHREADS;
    static_assert(kITEMS % Scope::kTHREADS == 0, "every thread loads as many chunks");

    static CTX_HOST_DEVICE bool isQuantised(int32_t cacheType)
    {
        return HAS_QUANTISED_CACHES && cacheType != CTX_CACHE_TYPE_SAME;
    }

    static CTX_DEVICE uint8_t* waiting(uint16_t* tile, int item)
    {
        return reinterpret_cast<uint8_t*>(tile + kITEMS * kCHUNK / 2) + item * kCHUNK;
    }

    static CTX_DEVICE void begin(
        uint16_t* tile, void const* cache, CachePlace const& place, int64_t firstSlot, int32_t keys)
    {
        bool const isWhole = keys == ROWS && place.headDim == DIM && firstSlot + ROWS <= place.layout.capacity;
        int64_t const first = (place.firstRow + firstSlot) * place.headDim;
        if (isQuantised(place.cacheType))
        {
            isWhole ? beginWhole<true>(tile, static_cast<uint8_t const*>(cache) + first)
                    : beginPart<true>(tile, cache, place, firstSlot, keys);
        }
        else
        {
            isWhole ? beginWhole<false>(tile, static_cast<uint16_t const*>(cache) + first)
                    : beginPart<false>(tile, cache, place, firstSlot, keys);
        }
    }

    // After the thread's own copies have arrived; a barrier must follow. The first half of the items is written over
    // none but their own bytes, which have been read by then.
    static CTX_DEVICE void expand(uint16_t* tile, int32_t cacheType)
    {
        constexpr int kHALF = (kPER_THREAD + 1) / 2;
        expandItems<0, kHALF>(tile, cacheType);
        expandItems<kHALF, kPER_THREAD - kHALF>(tile, cacheType);
    }

private:
    // A tile that lies in the cache as one piece of memory, from `source` on.
    template <bool IS_QUANTISED>
    static CTX_DEVICE void beginWhole(uint16_t* tile, void const* source)
    {
        constexpr int kBYTES = IS_QUANTISED ? kCHUNK : 2 * kCHUNK;
        int const thread = opaque(Scope::thread());
        auto const* const own = static_cast<uint8_t const*>(source) + thread * kBYTES;
        CTX_UNROLL
        for (int i = 0; i < kPER_THREAD; ++i)
        {
            int const item = i * Scope::kTHREADS + thread;
            void* const target = IS_QUANTISED
                ? static_cast<void*>(waiting(tile, item))
                : static_cast<void*>(tile + Rows::chunkOffset(item / Rows::kCHUNKS, item % Rows::kCHUNKS));
            copyAsync<kBYTES>(target, own + i * Scope::kTHREADS * kBYTES);
        }
    }

    template <bool IS_QUANTISED>
    static CTX_DEVICE void beginPart(
        uint16_t* tile, void const* cache, CachePlace const& place, int64_t firstSlot, int32_t keys)
    {
        int const thread = opaque(Scope::thread());
        CTX_UNROLL_BY(1)
        for (int i = 0; i < kPER_THREAD; ++i)
        {
            int const item = i * Scope::kTHREADS + thread;
            int const row = item / Rows::kCHUNKS;
            int const chunk = item % Rows::kCHUNKS;
            bool const valid = row < keys && chunk * kCHUNK < place.headDim;
            int64_t const slot = place.firstRow + place.layout.slotAfter(firstSlot, valid ? row : 0);
            int64_t const offset = slot * place.headDim + (valid ? chunk * kCHUNK : 0);
            if constexpr (IS_QUANTISED)
            {
                copyAsync<8>(waiting(tile, item), static_cast<uint8_t const*>(cache) + offset, valid);
            }
            else
            {
                copyAsync<16>(
                    tile + Rows::chunkOffset(row, chunk), static_cast<uint16_t const*>(cache) + offset, valid);
            }
        }
    }

    template <int FIRST, int COUNT>
    static CTX_DEVICE void expandItems(uint16_t* tile, int32_t cacheType)
    {
        int const thread = opaque(Scope::thread());
        Pack<uint32_t, 2> bytes[COUNT];
        CTX_UNROLL
        for (int i = 0; i < COUNT; ++i)
        {
            bytes[i]
                = *reinterpret_cast<Pack<uint32_t, 2> const*>(waiting(tile, (FIRST + i) * Scope::kTHREADS + thread));
        }
        Scope::sync();
        CTX_UNROLL
        for (int i = 0; i < COUNT; ++i)
        {
            int const item = (FIRST + i) * Scope::kTHREADS + thread;
            Pack<uint32_t, 2> const low = dequantisedWords<T>(bytes[i].values[0], cacheType);
            Pack<uint32_t, 2> const high = dequantisedWords<T>(bytes[i].values[1], cacheType);
            Vector const vector{{low.values[0], low.values[1], high.values[0], high.values[1]}};
            *reinterpret_cast<Vector*>(tile + Rows::chunkOffset(item / Rows::kCHUNKS, item % Rows::kCHUNKS)) = vector;
        }
    }
};

// Expands and rotates keys of a tile that have arrived, from its key `first` on.
template <typename Loader, typename T, int DIM, typename Scope, typename Call>
CTX_DEVICE void prepareKeys(uint16_t* rows, typename Call::Params const& params, SharedRotation<DIM> const& rotation,
    Call const& call, int32_t tile, int first, int32_t keys)
{
    if (Loader::isQuantised(params.cacheType))
    {
        Loader::expand(rows, params.cacheType);
        Scope::sync();
    }
    if (rotatesKeys(params))
    {
        turnKeys<Scope>(rowRotation<T>(rows, params, rotation), call, tile, first, keys);
        Scope::sync();
    }
}

} // namespace ctx
