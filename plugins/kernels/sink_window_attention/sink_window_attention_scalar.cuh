// Attention of float32 tensors on the scalar units, whose sums are as exact as the tensors.
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_launch.h"
#include "kernels/sink_window_attention/sink_window_attention_output.cuh"
#include "kernels/sink_window_attention/sink_window_attention_scalar_tile.cuh"

namespace ctx
{

CTX_DEVICE float warpMaximum(float value)
{
    CTX_UNROLL
    for (int distance = kWARP_SIZE / 2; distance > 0; distance /= 2)
    {
        value = fmaxf(value, __shfl_xor_sync(kFULL_WARP, value, distance));
    }
    return value;
}

CTX_DEVICE float warpSum(float value)
{
    CTX_UNROLL
    for (int distance = kWARP_SIZE / 2; distance > 0; distance /= 2)
    {
        value += __shfl_xor_sync(kFULL_WARP, value, distance);
    }
    return value;
}

// A warp's queries while it passes over the keys; sums are [row][dim of this lane].
template <typename Traits>
struct WarpRows
{
    int warp;
    int lane;
    bool attends; // whether any of the warp's rows does
    SoftmaxState softmax[Traits::kROWS_PER_WARP];
    float sum[Traits::kROWS_PER_WARP][Traits::kDIMS_PER_LANE];
};

template <typename Traits>
CTX_DEVICE void startRows(WarpRows<Traits>& rows, SharedTile<Traits> const& shared,
    typename Traits::Params const& params, TilePlace const& place, bool countsHeadSink)
{
    rows.warp = static_cast<int>(threadIdx.x) / kWARP_SIZE;
    rows.lane = static_cast<int>(threadIdx.x) % kWARP_SIZE;
    rows.attends = false;
    CTX_UNROLL
    for (int r = 0; r < Traits::kROWS_PER_WARP; ++r)
    {
        int const row = rows.warp * Traits::kROWS_PER_WARP + r;
        bool const attends = row < shared.call.attendingRows;
        rows.attends = rows.attends || attends;
        rows.softmax[r] = SoftmaxState{-INFINITY, 0.0F};
        if (countsHeadSink && attends)
        {
            // The head's sink is one more logit without a value; lanes are summed at the end, so one lane counts it.
            rows.softmax[r].maximum = params.headSink[place.headOf(place.firstRow + row)] * kLOG2_E;
            rows.softmax[r].denominator = rows.lane == 0 ? 1.0F : 0.0F;
        }
        CTX_UNROLL
        for (int i = 0; i < Traits::kDIMS_PER_LANE; ++i)
        {
            rows.sum[r][i] = 0.0F;
        }
    }
}

// Attends from the warp's rows to a tile of keys.
template <typename Traits>
CTX_DEVICE void attendToTile(
    WarpRows<Traits>& rows, SharedTile<Traits>& shared, typename Traits::Params const& params, int32_t tile)
{
    constexpr int kROWS = Traits::kROWS_PER_WARP;
    float score[kROWS];
    scoreKey<Traits>(shared, rows.warp, rows.lane, static_cast<int>(params.headDim), score);
    auto const visibility = visibilityOf(shared.call, params, tile);
    CTX_UNROLL
    for (int r = 0; r < kROWS; ++r)
    {
        int const row = rows.warp * kROWS + r;
        RowLimits const limits = visibility.limitsOf(shared.rows.ofTile(shared.call, tile)[row]);
        bool const visible = rows.lane >= limits.oldest && rows.lane <= limits.newest;
        float const logit = visible ? shared.call.scale.logit(score[r]) : -INFINITY;
        float const factor = rows.softmax[r].raise(warpMaximum(logit));
        float const weight = rows.softmax[r].weight(logit);
        rows.softmax[r].denominator += weight;
        shared.weight[row][rows.lane] = weight;
        CTX_UNROLL
        for (int i = 0; i < Traits::kDIMS_PER_LANE; ++i)
        {
            rows.sum[r][i] *= factor;
        }
    }
    __syncwarp();
    accumulateValues<Traits>(shared, rows.warp, rows.lane, rows.sum);
}

// The queries that meet a tile of keys, and those after it until they change, turned where the call does that.
template <typename Traits>
CTX_DEVICE void placeQueries(SharedTile<Traits>& shared, typename Traits::Params const& params, int32_t tile)
{
    typename Traits::Call const& call = shared.call;
    loadQueries<Traits>(shared, params, call, call.queries(params, tile));
    if (rotatesQueries(params))
    {
        __syncthreads();
        turnQueries<BlockScope<Traits::kTHREADS>>(
            scalarRotation<Traits>(&shared.query[0][0], Traits::kPADDED_DIM, shared, params), shared.rows, call, params,
            tile);
    }
}

// Attends from the block's rows to its share of the tiles of keys.
template <typename Traits>
CTX_DEVICE void attendToTiles(WarpRows<Traits>& rows, SharedTile<Traits>& shared, typename Traits::Params const& params)
{
    typename Traits::Call const& call = shared.call;
    CTX_UNROLL_BY(1)
    for (int32_t tile = call.share.begin; tile < call.share.end; ++tile)
    {
        __syncthreads(); // the previous tile is read
        if (tile == call.share.begin || call.changesQueries(params, tile))
        {
            placeQueries<Traits>(shared, params, tile);
        }
        loadKeysAndValues<Traits>(shared, params, call, tile);
        __syncthreads();
        if (rotatesKeys(params))
        {
            turnKeys<BlockScope<Traits::kTHREADS>>(
                scalarRotation<Traits>(&shared.key[0][0], Traits::kKEY_STRIDE, shared, params), call, tile, 0,
                call.tiles.keysOf(tile));
            __syncthreads();
        }
        if (rows.attends)
        {
            attendToTile<Traits>(rows, shared, params, tile);
        }
    }
}

// Results of attending rows, or the split's part of them; NaN for rows without a slot, zeros for padding.
template <typename Traits>
CTX_DEVICE void storeRows(WarpRows<Traits>& rows, SharedTile<Traits> const& shared,
    typename Traits::Params const& params, GridPlan const& grid)
{
    TilePlace const& place = shared.call.place;
    Partials const partials = Partials::of(params, grid.splits);
    float const valueScale = headScale(params.valueScale, place.kvHead);
    int const headDim = static_cast<int>(params.headDim);
    CTX_UNROLL
    for (int r = 0; r < Traits::kROWS_PER_WARP; ++r)
    {
        int const row = rows.warp * Traits::kROWS_PER_WARP + r;
        uint32_t const packedRow = place.firstRow + row;
        bool const attends = row < shared.call.attendingRows;
        float const denominator = warpSum(rows.softmax[r].denominator);
        if (packedRow >= place.packedRows)
        {
            continue;
        }
        if (grid.splits > 1)
        {
            int64_t const index = partials.index(params, place, packedRow, shared.call.split);
            storeRow<Traits>(partials.sums + index * headDim, rows.lane, headDim, rows.sum[r]);
            if (rows.lane == 0)
            {
                partials.states[index] = SoftmaxState{rows.softmax[r].maximum, denominator};
            }
            continue;
        }
        float const fill = fillOf(shared.call.sequence, place.tokenOf(packedRow));
        CTX_UNROLL
        for (int i = 0; i < Traits::kDIMS_PER_LANE; ++i)
        {
            rows.sum[r][i] = attends ? rows.sum[r][i] * valueScale / denominator : fill;
        }
        storeRow<Traits>(static_cast<float*>(params.output) + place.rowOffset(params.outputStrides, packedRow),
            rows.lane, headDim, rows.sum[r]);
    }
}

// One block per tile of queries and split of the keys.
template <typename Traits>
CTX_KERNEL(Traits::kTHREADS)
attendScalar(typename Traits::Params const params, GridPlan const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<SharedTile<Traits>*>(memory);
    if (threadIdx.x == 0)
    {
        placeBlock(shared.call, params, grid, blockIdx.x, Traits::kTILE_ROWS, Traits::kTILE_KEYS);
    }
    __syncthreads();
    typename Traits::Call const& call = shared.call;
    for (int row = static_cast<int>(threadIdx.x); row < Traits::kTILE_ROWS; row += Traits::kTHREADS)
    {
        shared.rows.place(call, params, row);
    }
    loadFrequencies<Traits>(shared, params, call.place.batch);
    __syncthreads();
    WarpRows<Traits> rows;
    startRows<Traits>(rows, shared, params, call.place, params.headSink != nullptr && call.split == 0);
    attendToTiles<Traits>(rows, shared, params);
    storeRows<Traits>(rows, shared, params, grid);
}

template <typename Traits, typename Params>
LaunchResult launchAttendScalar(Params const& params, cudaStream_t stream)
{
    static_assert(sizeof(SharedTile<Traits>) <= kMAX_SHARED_BYTES, "a tile fits every GPU's shared memory");
    static_assert(alignof(SharedTile<Traits>) <= 16, "dynamic shared memory is aligned to 16 bytes");
    BlockShape const shape{Traits::kTILE_ROWS, Traits::kTILE_KEYS, Traits::kTHREADS, sizeof(SharedTile<Traits>)};
    return launchAttend(params, shape, attendScalar<Traits>, stream, "attendScalar");
}

// Few rows (decode): small tiles, so that more warps have a row. Wide heads: half the rows, to fit shared memory.
template <int PADDED_DIM, typename Params>
LaunchResult launchPaddedDim(Params const& params, cudaStream_t stream)
{
    using Call = CallOf<Params>;
    using FewRows = TileTraits<Call, PADDED_DIM, 2>;
    using ManyRows = TileTraits<Call, PADDED_DIM, PADDED_DIM <= 128 ? 8 : 4>;
    bool const isFew = params.queryHeads / params.kvHeads * params.rows <= FewRows::kTILE_ROWS;
    return isFew ? launchAttendScalar<FewRows>(params, stream) : launchAttendScalar<ManyRows>(params, stream);
}

template <typename Params>
LaunchResult launchScalar(Params const& params, cudaStream_t stream)
{
    if (params.headDim <= 64)
    {
        return launchPaddedDim<64>(params, stream);
    }
    return params.headDim <= 128 ? launchPaddedDim<128>(params, stream) : launchPaddedDim<256>(params, stream);
}

} // namespace ctx
