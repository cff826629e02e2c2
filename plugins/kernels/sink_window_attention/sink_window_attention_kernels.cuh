// SinkWindowAttention's attention kernel and its launcher. It reads keys and values from `present` alone.
#pragma once

#include "kernels/launchers.h"
#include "kernels/sink_window_attention/sink_window_attention_tile.cuh"

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
    CtxSinkWindowAttentionParams const& params, TilePlace const& place)
{
    rows.warp = threadIdx.x / kWARP_SIZE;
    rows.lane = threadIdx.x % kWARP_SIZE;
    rows.attends = false;
    CTX_UNROLL
    for (int r = 0; r < Traits::kROWS_PER_WARP; ++r)
    {
        int const row = rows.warp * Traits::kROWS_PER_WARP + r;
        bool const attends = shared.position[row] >= 0;
        rows.attends = rows.attends || attends;
        rows.softmax[r] = SoftmaxState{-INFINITY, 0.0F};
        if (params.headSink != nullptr && attends)
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

// Attends from the warp's rows to the tile's tokens [first, …).
template <typename Traits>
CTX_DEVICE void attendToTile(WarpRows<Traits>& rows, SharedTile<Traits>& shared,
    CtxSinkWindowAttentionParams const& params, TokenRange const& range, int64_t first)
{
    constexpr int kROWS = Traits::kROWS_PER_WARP;
    float score[kROWS];
    scoreKey<Traits>(shared, rows.warp, rows.lane, static_cast<int>(params.headDim), score);
    CTX_UNROLL
    for (int r = 0; r < kROWS; ++r)
    {
        int const row = rows.warp * kROWS + r;
        bool const visible = isVisible(range, params.window, shared.position[row], first + rows.lane);
        float const logit = visible ? scaledLogit(score[r], params.scale, params.softcap) : -INFINITY;
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

template <typename Traits>
CTX_DEVICE void attendToRange(WarpRows<Traits>& rows, SharedTile<Traits>& shared,
    CtxSinkWindowAttentionParams const& params, CacheLayout const& layout, TilePlace const& place,
    TokenRange const& range)
{
    for (int64_t first = range.begin; first < range.end; first += Traits::kTILE_KEYS)
    {
        __syncthreads(); // the previous tile is read, the queries are written
        loadKeysAndValues<Traits>(shared, params, layout, place, first, range.end);
        __syncthreads();
        if (params.rotaryDim > 0)
        {
            rotateKeys<Traits>(shared, params, first, range.end);
            __syncthreads();
        }
        if (rows.attends)
        {
            attendToTile<Traits>(rows, shared, params, range, first);
        }
    }
}

// Stores one row's dims of this lane.
template <typename Traits, typename T>
CTX_DEVICE void storeRow(T* output, int lane, int headDim, float const (&values)[Traits::kDIMS_PER_LANE])
{
    constexpr int kPACK = Traits::kLANE_PACK;
    CTX_UNROLL
    for (int pack = 0; pack < Traits::kLANE_PACKS; ++pack)
    {
        int const dim = (pack * kWARP_SIZE + lane) * kPACK;
        Pack<T, kPACK> result;
        CTX_UNROLL
        for (int i = 0; i < kPACK; ++i)
        {
            result.values[i] = fromFloat<T>(values[pack * kPACK + i]);
        }
        if (dim < headDim)
        {
            *reinterpret_cast<Pack<T, kPACK>*>(output + dim) = result;
        }
    }
}

// Results of attending rows, NaN for rows without a slot, zeros for padding.
template <typename Traits>
CTX_DEVICE void storeRows(WarpRows<Traits>& rows, SharedTile<Traits> const& shared,
    CtxSinkWindowAttentionParams const& params, TilePlace const& place, Sequence const& sequence)
{
    CTX_UNROLL
    for (int r = 0; r < Traits::kROWS_PER_WARP; ++r)
    {
        int const row = rows.warp * Traits::kROWS_PER_WARP + r;
        uint32_t const packedRow = place.firstRow + row;
        bool const attends = shared.position[row] >= 0;
        float const denominator = warpSum(rows.softmax[r].denominator);
        float const fill = place.tokenOf(packedRow) < sequence.count ? NAN : 0.0F;
        CTX_UNROLL
        for (int i = 0; i < Traits::kDIMS_PER_LANE; ++i)
        {
            rows.sum[r][i] = attends ? rows.sum[r][i] / denominator : fill;
        }
        if (packedRow < place.packedRows)
        {
            int64_t const offset = place.queryOffset(params, packedRow);
            int const headDim = static_cast<int>(params.headDim);
            switch (params.dataType)
            {
            case CTX_DATA_TYPE_FLOAT16:
                storeRow<Traits>(static_cast<Half*>(params.output) + offset, rows.lane, headDim, rows.sum[r]);
                break;
            case CTX_DATA_TYPE_BFLOAT16:
                storeRow<Traits>(static_cast<BFloat16*>(params.output) + offset, rows.lane, headDim, rows.sum[r]);
                break;
            default: storeRow<Traits>(static_cast<float*>(params.output) + offset, rows.lane, headDim, rows.sum[r]);
            }
        }
    }
}

// One block per tile of queries; the tiles with the most keys come first.
template <typename Traits>
CTX_KERNEL(Traits::kTHREADS)
attendTile(CtxSinkWindowAttentionParams const params, uint32_t tilesPerHead)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<SharedTile<Traits>*>(memory);
    int64_t const head = blockIdx.x / tilesPerHead;
    uint32_t const tile = tilesPerHead - 1 - blockIdx.x % tilesPerHead;
    auto const groups = static_cast<uint32_t>(params.queryHeads / params.kvHeads);
    TilePlace const place{head / params.kvHeads, head % params.kvHeads, groups, tile * Traits::kTILE_ROWS,
        groups * static_cast<uint32_t>(params.rows)};
    Sequence const sequence = sequenceOf(params, place.batch);
    CacheLayout const layout = layoutOf(params);
    for (int row = threadIdx.x; row < Traits::kTILE_ROWS; row += Traits::kTHREADS)
    {
        int64_t const token = place.tokenOf(place.firstRow + row);
        shared.position[row] = token < sequence.answered ? sequence.seen + token : -1;
    }
    loadFrequencies<Traits>(shared, params, place.batch);
    __syncthreads();
    WarpRows<Traits> rows;
    startRows<Traits>(rows, shared, params, place);
    int64_t const firstToken = place.tokenOf(place.firstRow);
    int64_t const lastToken = smaller(place.tokenOf(place.firstRow + Traits::kTILE_ROWS - 1), sequence.answered - 1);
    if (firstToken <= lastToken)
    {
        int64_t const last = sequence.seen + lastToken;
        TokenRange range = sinkRange(layout.sinks, last);
        void const* query = params.sinkQuery != nullptr ? params.sinkQuery : params.query;
        // One loop, so that the code of a tile is there once.
        CTX_UNROLL_BY(1)
        for (int i = 0; i < 2; ++i)
        {
            if (i == 0 || query != params.query)
            {
                query = i == 0 ? query : params.query;
                __syncthreads(); // the sink queries are read
                loadQueries<Traits>(shared, params, place, query);
            }
            attendToRange<Traits>(rows, shared, params, layout, place, range);
            range
                = windowRange(layout, params.window, sequence.seen + firstToken, last, sequence.seen + sequence.count);
        }
    }
    storeRows<Traits>(rows, shared, params, place, sequence);
}

template <typename Traits>
LaunchResult launchAttendTile(SinkWindowAttentionParams const& params, cudaStream_t stream)
{
    int64_t const packedRows = params.queryHeads / params.kvHeads * params.rows;
    int64_t const tiles = (packedRows + Traits::kTILE_ROWS - 1) / Traits::kTILE_ROWS;
    static_assert(sizeof(SharedTile<Traits>) <= kMAX_SHARED_BYTES, "a tile fits every GPU's shared memory");
    static_assert(alignof(SharedTile<Traits>) <= 16, "dynamic shared memory is aligned to 16 bytes");
    LaunchShape const shape{params.batch * params.kvHeads * tiles, Traits::kTHREADS, sizeof(SharedTile<Traits>)};
    return LaunchResult::fromCuda(
        launch(attendTile<Traits>, shape, stream, params, static_cast<uint32_t>(tiles)), "attendTile");
}

// Few rows (decode): small tiles, so that more warps have a row. Wide heads: half the rows, to fit shared memory.
template <int PADDED_DIM>
LaunchResult launchPaddedDim(SinkWindowAttentionParams const& params, cudaStream_t stream)
{
    using FewRows = TileTraits<PADDED_DIM, 2>;
    using ManyRows = TileTraits<PADDED_DIM, PADDED_DIM <= 128 ? 8 : 4>;
    bool const isFew = params.queryHeads / params.kvHeads * params.rows <= FewRows::kTILE_ROWS;
    return isFew ? launchAttendTile<FewRows>(params, stream) : launchAttendTile<ManyRows>(params, stream);
}

inline LaunchResult launchAttention(SinkWindowAttentionParams const& params, cudaStream_t stream)
{
    if (params.headDim <= 64)
    {
        return launchPaddedDim<64>(params, stream);
    }
    return params.headDim <= 128 ? launchPaddedDim<128>(params, stream) : launchPaddedDim<256>(params, stream);
}

} // namespace ctx
