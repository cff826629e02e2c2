// What the tensor-core kernels do with tiles of keys and values of 2 bytes in shared memory, and with a warp's queries:
// loading, rotating, scoring, the online softmax and the weighted sums.
#pragma once

#include "kernels/common/async_copy.cuh"
#include "kernels/common/quantised.cuh"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_packs.cuh"
#include "kernels/sink_window_attention/sink_window_attention_output.cuh"
#include "kernels/sink_window_attention/sink_window_attention_place.cuh"

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

    // In elements.
    static CTX_HOST_DEVICE int chunkOffset(int row, int chunk)
    {
        return (row * kCHUNKS + (chunk ^ (row * kSPREAD / 8 % kSPREAD))) * kCHUNK;
    }

    static CTX_HOST_DEVICE int elementOffset(int row, int dim)
    {
        return chunkOffset(row, dim / kCHUNK) + dim % kCHUNK;
    }
};

// The threads that work on a tile together.
template <int THREADS>
struct BlockScope
{
    static constexpr int kTHREADS = THREADS;

    static CTX_DEVICE int thread()
    {
        return static_cast<int>(threadIdx.x);
    }

    static CTX_DEVICE void sync()
    {
        __syncthreads();
    }
};

struct WarpScope
{
    static constexpr int kTHREADS = kWARP_SIZE;

    static CTX_DEVICE int thread()
    {
        return static_cast<int>(threadIdx.x) % kWARP_SIZE;
    }

    static CTX_DEVICE void sync()
    {
        __syncwarp();
    }
};

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

// Turns the tile's first `rows` rows; `positionOf` gives a row's position. The scope's other threads see the result
// after a barrier.
template <typename T, int DIM, typename Scope, typename PositionOf>
CTX_DEVICE void rotateRows(uint16_t* tile, int rows, CtxSinkWindowAttentionParams const& params,
    SharedRotation<DIM> const& shared, PositionOf const& positionOf)
{
    auto const pairs = static_cast<int>(params.rotaryDim / 2);
    bool const interleaved = params.interleaved != 0;
    CTX_UNROLL_BY(1)
    for (int item = opaque(Scope::thread()); item < rows * pairs; item += Scope::kTHREADS)
    {
        int const row = item / pairs;
        int const pair = item % pairs;
        CosSin const turn = scaled(rotation(positionOf(row), shared.phaseStep[pair]), shared.multiplier[pair]);
        uint16_t& a = tile[TileRows<DIM>::elementOffset(row, firstDim(pair, interleaved))];
        uint16_t& b = tile[TileRows<DIM>::elementOffset(row, secondDim(pair, pairs, interleaved))];
        Pair const turned = rotatePair(Pair{toFloat(T{a}), toFloat(T{b})}, turn);
        a = fromFloat<T>(turned.first).bits;
        b = fromFloat<T>(turned.second).bits;
    }
}

// ROWS packed rows of q from `firstRow` on, rotated where the call asks for it; rows past the end and dims past the
// head's become zeros. A negative scale of the logits turns the queries' signs, so that it counts as positive later.
template <typename T, int DIM, int ROWS, typename Scope>
CTX_DEVICE void loadQueries(uint16_t* tile, CtxSinkWindowAttentionParams const& params, TilePlace const& place,
    void const* source, bool isNegative)
{
    using Rows = TileRows<DIM>;
    static_assert(ROWS * Rows::kCHUNKS % Scope::kTHREADS == 0, "every thread loads as many chunks");
    CTX_UNROLL_BY(2)
    for (int item = opaque(Scope::thread()); item < ROWS * Rows::kCHUNKS; item += Scope::kTHREADS)
    {
        int const row = item / Rows::kCHUNKS;
        int const chunk = item % Rows::kCHUNKS;
        Vector vector{};
        if (place.firstRow + row < place.packedRows && chunk * kCHUNK < params.headDim)
        {
            int64_t const offset = place.queryOffset(params, place.firstRow + row) + chunk * kCHUNK;
            vector = *reinterpret_cast<Vector const*>(static_cast<uint16_t const*>(source) + offset);
        }
        CTX_UNROLL
        for (uint32_t& word : vector.values)
        {
            word ^= isNegative ? 0x80008000U : 0U;
        }
        *reinterpret_cast<Vector*>(tile + Rows::chunkOffset(row, chunk)) = vector;
    }
}

// Where a head's tokens are in the caches.
struct CachePlace
{
    CacheLayout layout;
    int64_t firstRow;
    int32_t headDim;
    int32_t cacheType;
};

// ROWS tokens in shared memory, of which the first `keys` come from the cache and the others are zeros. A quantised
// token's bytes wait in the second half of the tile until they are expanded.
template <typename T, int DIM, int ROWS, typename Scope>
struct TileLoader
{
    using Rows = TileRows<DIM>;
    static constexpr int kITEMS = ROWS * Rows::kCHUNKS;
    static constexpr int kPER_THREAD = kITEMS / Scope::kTHREADS;
    static_assert(kITEMS % Scope::kTHREADS == 0, "every thread loads as many chunks");

    static CTX_DEVICE uint8_t* waiting(uint16_t* tile, int item)
    {
        return reinterpret_cast<uint8_t*>(tile + kITEMS * kCHUNK / 2) + item * kCHUNK;
    }

    static CTX_DEVICE void begin(
        uint16_t* tile, void const* cache, CachePlace const& place, int64_t firstSlot, int32_t keys)
    {
        bool const isQuantised = place.cacheType != CTX_CACHE_TYPE_SAME;
        int const thread = opaque(Scope::thread());
        CTX_UNROLL_BY(2)
        for (int i = 0; i < kPER_THREAD; ++i)
        {
            int const item = i * Scope::kTHREADS + thread;
            int const row = item / Rows::kCHUNKS;
            int const chunk = item % Rows::kCHUNKS;
            bool const valid = row < keys && chunk * kCHUNK < place.headDim;
            int64_t const slot = place.firstRow + place.layout.slotAfter(firstSlot, valid ? row : 0);
            int64_t const offset = slot * place.headDim + (valid ? chunk * kCHUNK : 0);
            if (isQuantised)
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

    // After the thread's own copies have arrived; a barrier must follow. The first half of the items is written over
    // none but their own bytes, which have been read by then.
    static CTX_DEVICE void expand(uint16_t* tile, int32_t cacheType)
    {
        constexpr int kHALF = (kPER_THREAD + 1) / 2;
        expandItems<0, kHALF>(tile, cacheType);
        expandItems<kHALF, kPER_THREAD - kHALF>(tile, cacheType);
    }

private:
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

// A warp's FRAGMENTS x 16 queries while it passes over the keys. Of each fragment a lane holds parts of two rows,
// lane / 4 and 8 below.
template <int DIM, int FRAGMENTS>
struct WarpQueries
{
    FragmentC sum[FRAGMENTS][DIM / 8];
    SoftmaxState softmax[FRAGMENTS][2]; // denominators of this lane's keys alone
};

CTX_DEVICE int laneRow(int fragment, int half)
{
    return 16 * fragment + 8 * half + opaque(static_cast<int>(threadIdx.x)) % kWARP_SIZE / 4;
}

CTX_DEVICE int laneColumn()
{
    return 2 * (static_cast<int>(threadIdx.x) % 4);
}

// `firstRow`: packed row of the warp's first query. The head's learned sink is one more logit without a value.
template <int DIM, int FRAGMENTS>
CTX_DEVICE void startQueries(WarpQueries<DIM, FRAGMENTS>& queries, CtxSinkWindowAttentionParams const& params,
    TilePlace const& place, uint32_t firstRow, bool countsHeadSink)
{
    CTX_UNROLL
    for (int f = 0; f < FRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int n = 0; n < DIM / 8; ++n)
        {
            queries.sum[f][n] = FragmentC{};
        }
        CTX_UNROLL
        for (int half = 0; half < 2; ++half)
        {
            uint32_t const row = firstRow + laneRow(f, half);
            queries.softmax[f][half] = SoftmaxState{-INFINITY, 0.0F};
            if (countsHeadSink && row < place.packedRows)
            {
                float const sink = params.headSink[place.headOf(row)] * kLOG2_E;
                queries.softmax[f][half] = SoftmaxState{sink, threadIdx.x % 4 == 0 ? 1.0F : 0.0F};
            }
        }
    }
}

// Products of the warp's queries with KEYS keys of a tile, from row `firstKey` of it on.
template <typename T, int DIM, int FRAGMENTS, int KEYS>
CTX_DEVICE void scoreKeys(
    FragmentC (&score)[FRAGMENTS][KEYS / 8], uint16_t const* query, int firstQuery, uint16_t const* key, int firstKey)
{
    using Rows = TileRows<DIM>;
    int const lane = opaque(static_cast<int>(threadIdx.x) % kWARP_SIZE);
    CTX_UNROLL
    for (int f = 0; f < FRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int n = 0; n < KEYS / 8; ++n)
        {
            score[f][n] = FragmentC{};
        }
    }
    CTX_UNROLL_BY(2)
    for (int k = 0; k < DIM / 16; ++k)
    {
        FragmentA a[FRAGMENTS];
        CTX_UNROLL
        for (int f = 0; f < FRAGMENTS; ++f)
        {
            Matrices const m
                = loadMatrices(query + Rows::chunkOffset(firstQuery + 16 * f + lane % 16, 2 * k + lane / 16));
            a[f] = FragmentA{{m.values[0], m.values[1], m.values[2], m.values[3]}};
        }
        CTX_UNROLL
        for (int n = 0; n < KEYS / 16; ++n)
        {
            int const row = firstKey + 16 * n + lane / 16 * 8 + lane % 8;
            Matrices const m = loadMatrices(key + Rows::chunkOffset(row, 2 * k + lane / 8 % 2));
            CTX_UNROLL
            for (int f = 0; f < FRAGMENTS; ++f)
            {
                multiplyAdd<T>(score[f][2 * n], a[f], FragmentB{{m.values[0], m.values[1]}});
                multiplyAdd<T>(score[f][2 * n + 1], a[f], FragmentB{{m.values[2], m.values[3]}});
            }
        }
    }
}

// Which of a tile's keys a query sees, counted from the tile's first key: that of token + oldest to that of token +
// newest, below `keys`.
struct TileVisibility
{
    int32_t oldest;
    int32_t newest;
    int32_t keys;

    // Of queries with tokens from `first` to `last`.
    CTX_HOST_DEVICE bool isAll(int32_t first, int32_t last, int32_t tileKeys) const
    {
        return last + oldest <= 0 && first + newest >= tileKeys - 1 && keys == tileKeys;
    }

    CTX_HOST_DEVICE bool isNothing(int32_t first, int32_t last) const
    {
        return first + oldest >= keys || last + newest < 0;
    }
};

// `position`: of the block's first row. Tokens of a tile of queries are few, so that distances can be clamped.
CTX_HOST_DEVICE TileVisibility tileVisibility(KeyTiles const& tiles, int32_t tile, int64_t window, int64_t position)
{
    constexpr int64_t kFAR = int64_t{1} << 20;
    bool const isLimited = window > 0 && !tiles.rangeOf(tile).isSinks;
    int64_t const newest = position - tiles.firstToken(tile);
    int64_t const oldest = isLimited ? newest - window + 1 : -kFAR;
    return TileVisibility{static_cast<int32_t>(larger(-kFAR, smaller(kFAR, oldest))),
        static_cast<int32_t>(larger(-kFAR, smaller(kFAR, newest))), tiles.keysOf(tile)};
}

// Scores become -infinity where a query does not see a key; `tokens`: of the warp's rows, less that of the block's
// first row, `firstKey`: of the scores within the tile.
template <int FRAGMENTS, int TILES>
CTX_DEVICE void hideKeys(
    FragmentC (&score)[FRAGMENTS][TILES], int32_t const* tokens, TileVisibility const& visibility, int firstKey)
{
    CTX_UNROLL
    for (int f = 0; f < FRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int half = 0; half < 2; ++half)
        {
            int32_t const token = tokens[laneRow(f, half)];
            // Counted from the lane's first key, so that keys are constants.
            int32_t const ownFirst = firstKey + opaque(laneColumn());
            int32_t const oldest = token + visibility.oldest - ownFirst;
            int32_t const newest
                = (token + visibility.newest < visibility.keys ? token + visibility.newest : visibility.keys - 1)
                - ownFirst;
            CTX_UNROLL
            for (int n = 0; n < TILES; ++n)
            {
                CTX_UNROLL
                for (int i = 2 * half; i < 2 * half + 2; ++i)
                {
                    int const key = 8 * n + i % 2;
                    score[f][n].values[i] = key >= oldest && key <= newest ? score[f][n].values[i] : -INFINITY;
                }
            }
        }
    }
}

template <int FRAGMENTS, int TILES>
CTX_DEVICE void capScores(FragmentC (&score)[FRAGMENTS][TILES], LogitScale const& scale)
{
    CTX_UNROLL
    for (int f = 0; f < FRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int n = 0; n < TILES; ++n)
        {
            CTX_UNROLL
            for (int i = 0; i < 4; ++i)
            {
                score[f][n].values[i] = scale.cappedFast(score[f][n].values[i]);
            }
        }
    }
}

// Reduces over the four lanes that hold a row.
CTX_DEVICE float rowMaximum(float value)
{
    value = fmaxf(value, __shfl_xor_sync(kFULL_WARP, value, 1));
    return fmaxf(value, __shfl_xor_sync(kFULL_WARP, value, 2));
}

CTX_DEVICE float rowSum(float value)
{
    value += __shfl_xor_sync(kFULL_WARP, value, 1);
    return value + __shfl_xor_sync(kFULL_WARP, value, 2);
}

// Scores become weights 2^(score * perScore - maximum); sums so far are scaled to the new maximum.
template <int DIM, int FRAGMENTS, int TILES>
CTX_DEVICE void weighScores(FragmentC (&score)[FRAGMENTS][TILES], WarpQueries<DIM, FRAGMENTS>& queries, float perScore)
{
    CTX_UNROLL
    for (int f = 0; f < FRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int half = 0; half < 2; ++half)
        {
            float maximum = -INFINITY;
            CTX_UNROLL
            for (int n = 0; n < TILES; ++n)
            {
                maximum = fmaxf(maximum, fmaxf(score[f][n].values[2 * half], score[f][n].values[2 * half + 1]));
            }
            SoftmaxState& state = queries.softmax[f][half];
            float const factor = state.raiseFast(rowMaximum(maximum) * perScore);
            float const offset = -SoftmaxState::reference(state.maximum);
            CTX_UNROLL
            for (int n = 0; n < TILES; ++n)
            {
                CTX_UNROLL
                for (int i = 2 * half; i < 2 * half + 2; ++i)
                {
                    float const weight = powerOfTwo(fmaf(score[f][n].values[i], perScore, offset));
                    score[f][n].values[i] = weight;
                    state.denominator += weight;
                }
            }
            CTX_UNROLL
            for (int n = 0; n < DIM / 8; ++n)
            {
                queries.sum[f][n].values[2 * half] *= factor;
                queries.sum[f][n].values[2 * half + 1] *= factor;
            }
        }
    }
}

// Adds the values of KEYS keys, from row `firstKey` of a tile on, with their weights.
template <typename T, int DIM, int FRAGMENTS, int KEYS>
CTX_DEVICE void addValues(WarpQueries<DIM, FRAGMENTS>& queries, FragmentC const (&weight)[FRAGMENTS][KEYS / 8],
    uint16_t const* value, int firstKey)
{
    using Rows = TileRows<DIM>;
    int const lane = opaque(static_cast<int>(threadIdx.x) % kWARP_SIZE);
    CTX_UNROLL
    for (int k = 0; k < KEYS / 16; ++k)
    {
        FragmentA a[FRAGMENTS];
        CTX_UNROLL
        for (int f = 0; f < FRAGMENTS; ++f)
        {
            float const(&left)[4] = weight[f][2 * k].values;
            float const(&right)[4] = weight[f][2 * k + 1].values;
            a[f] = FragmentA{{packWord<T>(left[0], left[1]), packWord<T>(left[2], left[3]),
                packWord<T>(right[0], right[1]), packWord<T>(right[2], right[3])}};
        }
        CTX_UNROLL
        for (int n = 0; n < DIM / 16; ++n)
        {
            Matrices const m
                = loadMatricesTransposed(value + Rows::chunkOffset(firstKey + 16 * k + lane % 16, 2 * n + lane / 16));
            CTX_UNROLL
            for (int f = 0; f < FRAGMENTS; ++f)
            {
                multiplyAdd<T>(queries.sum[f][2 * n], a[f], FragmentB{{m.values[0], m.values[1]}});
                multiplyAdd<T>(queries.sum[f][2 * n + 1], a[f], FragmentB{{m.values[2], m.values[3]}});
            }
        }
    }
}

} // namespace ctx
