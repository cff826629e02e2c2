// Attention of many queries on the tensor cores: a block keeps a tile of queries in shared memory and passes over the
// keys they see; each of its warps has rows of its own. While a tile of keys is scored its values arrive, while it is
// weighed the next tile's keys do (FlashAttention-2, arXiv 2307.08691).
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_launch.h"
#include "kernels/sink_window_attention/sink_window_attention_matrix_warp.cuh"

namespace ctx
{

template <typename Call_, typename T_, int DIM, int FRAGMENTS, int TILE_KEYS>
struct PrefillTraits
{
    using Call = Call_;
    using Params = typename Call::Params;
    using T = T_;
    static constexpr int kDIM = DIM;
    static constexpr int kFRAGMENTS = FRAGMENTS; // of 16 rows, of a warp
    static constexpr int kTILE_KEYS = TILE_KEYS;
    static constexpr int kWARPS = 4;
    static constexpr int kTHREADS = kWARPS * kWARP_SIZE;
    static constexpr int kWARP_ROWS = 16 * FRAGMENTS;
    static constexpr int kTILE_ROWS = kWARPS * kWARP_ROWS;
    using Scope = BlockScope<kTHREADS>;
    using Loader = TileLoader<T, DIM, TILE_KEYS, Scope, Call::kHAS_QUANTISED_CACHES>;
    using Queries = WarpQueries<DIM, FRAGMENTS>;
};

template <typename Traits>
struct PrefillShared
{
    alignas(16) uint16_t query[Traits::kTILE_ROWS * Traits::kDIM];
    alignas(16) uint16_t key[Traits::kTILE_KEYS * Traits::kDIM];
    alignas(16) uint16_t value[Traits::kTILE_KEYS * Traits::kDIM];
    typename Traits::Call::template Rows<Traits::kTILE_ROWS> rows;
    typename Traits::Call call; // here because registers are scarce
    // Last, because a call that rotates nothing does without: small GPUs then run two blocks at head dimension 96.
    alignas(16) SharedRotation<Traits::kDIM> rotation;
};

// The warp's first row of the block's.
template <typename Traits>
CTX_DEVICE int firstWarpRow()
{
    return static_cast<int>(threadIdx.x) / kWARP_SIZE * Traits::kWARP_ROWS;
}

// Its packed row.
template <typename Traits>
CTX_DEVICE uint32_t firstPackedRow(BlockCall const& call)
{
    return call.place.firstRow + firstWarpRow<Traits>();
}

// The split's part of the warp's rows.
template <typename Traits>
CTX_DEVICE void storePartials(CtxSinkWindowAttentionParams const& params, GridPlan const& grid, BlockCall const& call,
    typename Traits::Queries const& queries)
{
    Partials const partials = Partials::of(params, grid.splits);
    CTX_UNROLL
    for (int f = 0; f < Traits::kFRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int half = 0; half < 2; ++half)
        {
            uint32_t const packedRow = firstPackedRow<Traits>(call) + laneRow(f, half);
            float const denominator = rowSum(queries.softmax[f][half].denominator);
            if (packedRow >= call.place.packedRows || call.place.tokenOf(packedRow) >= call.sequence.answered)
            {
                continue;
            }
            int64_t const index = partials.index(params, call.place, packedRow, call.split);
            if (threadIdx.x % 4 == 0)
            {
                partials.states[index] = SoftmaxState{queries.softmax[f][half].maximum, denominator};
            }
            float* const sums = partials.sums + index * params.headDim + laneColumn();
            CTX_UNROLL
            for (int n = 0; n < Traits::kDIM / 8; ++n)
            {
                if (8 * n < params.headDim)
                {
                    float const(&sum)[4] = queries.sum[f][n].values;
                    *reinterpret_cast<Pack<float, 2>*>(sums + 8 * n) = {{sum[2 * half], sum[2 * half + 1]}};
                }
            }
        }
    }
}

// y of the warp's rows; its queries' memory collects them to whole rows.
template <typename Traits>
CTX_DEVICE void storeQueries(PrefillShared<Traits>& shared, CtxSinkWindowAttentionParams const& params,
    BlockCall const& call, typename Traits::Queries const& queries)
{
    using Rows = TileRows<Traits::kDIM>;
    int const warpRow = opaque(static_cast<int>(threadIdx.x)) / kWARP_SIZE * Traits::kWARP_ROWS;
    float const valueScale = headScale(params.valueScale, call.place.kvHead);
    CTX_UNROLL
    for (int f = 0; f < Traits::kFRAGMENTS; ++f)
    {
        CTX_UNROLL
        for (int half = 0; half < 2; ++half)
        {
            int const row = warpRow + laneRow(f, half);
            int64_t const token = call.place.tokenOf(call.place.firstRow + row);
            bool const attends = token < call.sequence.answered;
            float const factor = valueScale / rowSum(queries.softmax[f][half].denominator);
            float const fill = fillOf(call.sequence, token);
            CTX_UNROLL
            for (int n = 0; n < Traits::kDIM / 8; ++n)
            {
                float const first = attends ? queries.sum[f][n].values[2 * half] * factor : fill;
                float const second = attends ? queries.sum[f][n].values[2 * half + 1] * factor : fill;
                *reinterpret_cast<uint32_t*>(shared.query + Rows::elementOffset(row, 8 * n + laneColumn()))
                    = meanWord<typename Traits::T>(first, second);
            }
        }
    }
    __syncwarp();
    int const lane = opaque(static_cast<int>(threadIdx.x)) % kWARP_SIZE;
    CTX_UNROLL_BY(2)
    for (int item = lane; item < Traits::kWARP_ROWS * Rows::kCHUNKS; item += kWARP_SIZE)
    {
        int const row = warpRow + item / Rows::kCHUNKS;
        int const chunk = item % Rows::kCHUNKS;
        uint32_t const packedRow = call.place.firstRow + row;
        if (packedRow < call.place.packedRows && chunk * kCHUNK < params.headDim)
        {
            int64_t const offset = call.place.rowOffset(params.outputStrides, packedRow) + chunk * kCHUNK;
            *reinterpret_cast<Vector*>(static_cast<uint16_t*>(params.output) + offset)
                = *reinterpret_cast<Vector const*>(shared.query + Rows::chunkOffset(row, chunk));
        }
    }
}

// The warp's part in one tile of keys and values, of which the keys are under way.
template <typename Traits>
CTX_DEVICE void attendTile(typename Traits::Queries& queries, PrefillShared<Traits>& shared,
    typename Traits::Params const& params, int32_t tile)
{
    using Loader = typename Traits::Loader;
    typename Traits::Call const& call = shared.call;
    auto const begin = [&](uint16_t* rows, void const* cache, int32_t index)
    {
        Loader::begin(rows, cache, call.cacheOf(index), call.firstSlot(index), call.tiles.keysOf(index));
        commitCopies();
    };
    waitForCopies<0>();
    __syncthreads(); // the keys are there, the last values read
    begin(shared.value, params.presentValue, tile);
    prepareKeys<Loader, typename Traits::T, Traits::kDIM, typename Traits::Scope>(
        shared.key, params, shared.rotation, call, tile, 0, call.tiles.keysOf(tile));
    auto const visibility = visibilityOf(call, params, tile);
    int const warpRow = firstWarpRow<Traits>();
    auto const* const rows = shared.rows.ofTile(call, tile) + warpRow;
    int const last
        = (call.attendingRows - warpRow < Traits::kWARP_ROWS ? call.attendingRows - warpRow : Traits::kWARP_ROWS) - 1;
    bool const attends = last >= 0 && !visibility.isNothing(rows[0], rows[last]);
    FragmentC score[Traits::kFRAGMENTS][Traits::kTILE_KEYS / 8];
    if (attends)
    {
        scoreKeys<typename Traits::T, Traits::kDIM, Traits::kFRAGMENTS, Traits::kTILE_KEYS>(
            score, shared.query, warpRow, shared.key, 0);
    }
    waitForCopies<0>();
    __syncthreads(); // the values are there, the keys read
    if (tile + 1 < call.share.end)
    {
        begin(shared.key, params.presentKey, tile + 1);
    }
    if (attends)
    {
        if (call.scale.cap > 0.0F)
        {
            capScores(score, call.scale);
        }
        if (!visibility.isAll(rows[0], rows[last], Traits::kTILE_KEYS))
        {
            hideKeys(score, rows, visibility, 0);
        }
        weighScores<Traits::kDIM>(score, queries, call.scale.perScore());
    }
    if (Loader::isQuantised(params.cacheType))
    {
        Loader::expand(shared.value, params.cacheType);
        __syncthreads();
    }
    if constexpr (!Traits::Call::kHAS_QUANTISED_CACHES)
    {
        __syncwarp(); // else the compiler mixes the steps before and after, for which registers do not suffice
    }
    if (attends)
    {
        addValues<typename Traits::T, Traits::kDIM, Traits::kFRAGMENTS, Traits::kTILE_KEYS>(
            queries, score, shared.value, 0);
    }
}

template <typename Traits>
CTX_KERNEL(Traits::kTHREADS)
attendPrefill(typename Traits::Params const params, GridPlan const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<PrefillShared<Traits>*>(memory);
    if (threadIdx.x == 0)
    {
        placeBlock(shared.call, params, grid, blockIdx.x, Traits::kTILE_ROWS, Traits::kTILE_KEYS);
    }
    __syncthreads();
    typename Traits::Call const& call = shared.call;
    loadRotation(shared.rotation, params, call.place.batch, Traits::kTHREADS);
    for (int row = static_cast<int>(threadIdx.x); row < Traits::kTILE_ROWS; row += Traits::kTHREADS)
    {
        shared.rows.place(call, params, row);
    }
    typename Traits::Queries queries;
    startQueries(
        queries, params, call.place, firstPackedRow<Traits>(call), params.headSink != nullptr && call.split == 0);
    if (call.share.begin < call.share.end)
    {
        int32_t const first = call.share.begin;
        Traits::Loader::begin(
            shared.key, params.presentKey, call.cacheOf(first), call.firstSlot(first), call.tiles.keysOf(first));
        commitCopies();
    }
    CTX_UNROLL_BY(1)
    for (int32_t tile = call.share.begin; tile < call.share.end; ++tile)
    {
        if (tile == call.share.begin || call.changesQueries(params, tile))
        {
            __syncthreads(); // the frequencies are there, the queries before them read
            placeQueries<typename Traits::T, Traits::kDIM, typename Traits::Scope>(
                shared.query, shared.rows, call, params, shared.rotation, tile);
        }
        attendTile<Traits>(queries, shared, params, tile);
    }
    if (grid.splits > 1)
    {
        storePartials<Traits>(params, grid, call, queries);
        return;
    }
    storeQueries<Traits>(shared, params, call, queries);
}

template <typename Traits, typename Params>
LaunchResult launchAttendPrefill(Params const& params, cudaStream_t stream)
{
    static_assert(sizeof(PrefillShared<Traits>) <= kMAX_SHARED_BYTES, "a tile fits every GPU's shared memory");
    constexpr size_t kROTATION = sizeof(SharedRotation<Traits::kDIM>);
    static_assert(kROTATION % 16 == 0, "nothing comes after the rotation");
    size_t const sharedBytes = sizeof(PrefillShared<Traits>) - (params.rotaryDim > 0 ? 0 : kROTATION);
    BlockShape const shape{Traits::kTILE_ROWS, Traits::kTILE_KEYS, Traits::kTHREADS, sharedBytes};
    return launchAttend(params, shape, attendPrefill<Traits>, stream, "attendPrefill");
}

template <typename T, typename Params>
LaunchResult launchPrefill(Params const& params, cudaStream_t stream)
{
    using Call = CallOf<Params>;
    if (params.headDim <= 64)
    {
        return launchAttendPrefill<PrefillTraits<Call, T, 64, 2, 64>>(params, stream);
    }
    if (params.headDim <= 80)
    {
        return launchAttendPrefill<PrefillTraits<Call, T, 80, 2, 64>>(params, stream);
    }
    if (params.headDim <= 96)
    {
        return launchAttendPrefill<PrefillTraits<Call, T, 96, 2, 64>>(params, stream);
    }
    if (params.headDim <= 128)
    {
        return launchAttendPrefill<PrefillTraits<Call, T, 128, 2, 64>>(params, stream);
    }
    return launchAttendPrefill<PrefillTraits<Call, T, 256, 1, Call::kWIDE_TILE_KEYS>>(params, stream);
}

} // namespace ctx
