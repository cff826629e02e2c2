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

// The rows of a tile that a lane addresses when the warp loads matrices. Matrices 16 rows on are a constant further.
template <int DIM>
struct LaneRows
{
    SharedAddress row;
    uint32_t chunk; // the lane's of two, permuted

    // `row` of the tile, `chunk` 0 or 1.
    static CTX_DEVICE LaneRows of(uint16_t const* tile, uint32_t row, uint32_t chunk)
    {
        return LaneRows{sharedAddress(tile) + row * DIM * 2, chunk ^ TileRows<DIM>::spreadOf(row)};
    }

    // Of matrices `rows` rows below, in the row's chunks 2 * pair and 2 * pair + 1.
    CTX_DEVICE SharedAddress at(uint32_t rows, uint32_t pair) const
    {
        return row + rows * DIM * 2 + (chunk ^ (2 * pair)) * kCHUNK * 2;
    }
};

// Products of the warp's queries with KEYS keys of a tile, from row `firstKey` of it on.
template <typename T, int DIM, int FRAGMENTS, int KEYS>
CTX_DEVICE void scoreKeys(
    FragmentC (&score)[FRAGMENTS][KEYS / 8], uint16_t const* query, int firstQuery, uint16_t const* key, int firstKey)
{
    auto const lane = static_cast<uint32_t>(opaque(static_cast<int>(threadIdx.x) % kWARP_SIZE));
    auto const queries = LaneRows<DIM>::of(query, firstQuery + lane % 16, lane / 16);
    auto const keys = LaneRows<DIM>::of(key, firstKey + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    CTX_UNROLL
    for (int f = 0; f < FRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int n = 0; n < KEYS / 8; ++n)
        {
            score[f][n] = FragmentC{};
        }
    }
    CTX_UNROLL_BY(4)
    for (int k = 0; k < DIM / 16; ++k)
    {
        FragmentA a[FRAGMENTS];
        CTX_UNROLL
        for (int f = 0; f < FRAGMENTS; ++f)
        {
            Matrices const m = loadMatrices(queries.at(16 * f, k));
            a[f] = FragmentA{{m.values[0], m.values[1], m.values[2], m.values[3]}};
        }
        CTX_UNROLL
        for (int n = 0; n < KEYS / 16; ++n)
        {
            Matrices const m = loadMatrices(keys.at(16 * n, k));
            CTX_UNROLL
            for (int f = 0; f < FRAGMENTS; ++f)
            {
                multiplyAdd<T>(score[f][2 * n], a[f], FragmentB{{m.values[0], m.values[1]}});
                multiplyAdd<T>(score[f][2 * n + 1], a[f], FragmentB{{m.values[2], m.values[3]}});
            }
        }
    }
}

// Scores become -infinity where a query does not see a key; `rows`: the warp's, `firstKey`: of the scores within the
// tile.
template <int FRAGMENTS, int TILES, typename Row, typename Visibility>
CTX_DEVICE void hideKeys(
    FragmentC (&score)[FRAGMENTS][TILES], Row const* rows, Visibility const& visibility, int firstKey)
{
    CTX_UNROLL
    for (int f = 0; f < FRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int half = 0; half < 2; ++half)
        {
            RowLimits const limits = visibility.limitsOf(rows[laneRow(f, half)]);
            // Counted from the lane's first key, so that keys are constants.
            int32_t const ownFirst = firstKey + opaque(laneColumn());
            int32_t const oldest = limits.oldest - ownFirst;
            int32_t const newest = limits.newest - ownFirst;
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

// Sums so far are scaled to new maxima; where no row of the warp has one, there is nothing to do.
template <int DIM, int FRAGMENTS>
CTX_DEVICE void scaleSums(WarpQueries<DIM, FRAGMENTS>& queries, float const (&factor)[FRAGMENTS][2])
{
    bool isScaled = false;
    CTX_UNROLL
    for (int f = 0; f < FRAGMENTS; ++f)
    {
        isScaled = isScaled || factor[f][0] != 1.0F || factor[f][1] != 1.0F;
    }
    if (!__any_sync(kFULL_WARP, isScaled))
    {
        return;
    }
    CTX_UNROLL
    for (int f = 0; f < FRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int n = 0; n < DIM / 8; ++n)
        {
            CTX_UNROLL
            for (int i = 0; i < 4; ++i)
            {
                queries.sum[f][n].values[i] *= factor[f][i / 2];
            }
        }
    }
}

// Scores become weights 2^(score * perScore - maximum).
template <int DIM, int FRAGMENTS, int TILES>
CTX_DEVICE void weighScores(FragmentC (&score)[FRAGMENTS][TILES], WarpQueries<DIM, FRAGMENTS>& queries, float perScore)
{
    float factor[FRAGMENTS][2];
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
            factor[f][half] = state.raiseFast(rowMaximum(maximum) * perScore);
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
        }
    }
    scaleSums(queries, factor);
}

// Adds the values of KEYS keys, from row `firstKey` of a tile on, with their weights.
template <typename T, int DIM, int FRAGMENTS, int KEYS>
CTX_DEVICE void addValues(WarpQueries<DIM, FRAGMENTS>& queries, FragmentC const (&weight)[FRAGMENTS][KEYS / 8],
    uint16_t const* value, int firstKey)
{
    auto const lane = static_cast<uint32_t>(opaque(static_cast<int>(threadIdx.x) % kWARP_SIZE));
    auto const values = LaneRows<DIM>::of(value, firstKey + lane % 16, lane / 16);
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
            Matrices const m = loadMatricesTransposed(values.at(16 * k, n));
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
