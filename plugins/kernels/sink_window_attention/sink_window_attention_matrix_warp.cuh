// What a warp does with its queries on the tensor cores: scoring, the online softmax and the weighted sums.
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_matrix_tile.cuh"
#include "kernels/sink_window_attention/sink_window_attention_output.cuh"

namespace ctx
{

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
