// Attention of few queries on the tensor cores: all query heads of a key-value head share one tile of 16 packed rows,
// and the warps of a block share its keys. Each warp brings its own keys and values, several steps ahead, and meets the
// others at the end alone.
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_launch.h"
#include "kernels/sink_window_attention/sink_window_attention_matrix_warp.cuh"

namespace ctx
{

template <typename Call_, typename T_, int DIM, int WARPS, int STAGES>
struct DecodeTraits
{
    using Call = Call_;
    using Params = typename Call::Params;
    using T = T_;
    static constexpr int kDIM = DIM;
    static constexpr int kWARPS = WARPS;
    static constexpr int kSTAGES = STAGES;
    static constexpr int kTHREADS = WARPS * kWARP_SIZE;
    static constexpr int kTILE_ROWS = kDECODE_ROWS;
    static constexpr int kSTEP_KEYS = 16; // of a warp
    static constexpr int kTILE_KEYS = WARPS * kSTEP_KEYS;
    static constexpr int kSTEP_ELEMENTS = kSTEP_KEYS * DIM;
    using Loader = TileLoader<T, DIM, kSTEP_KEYS, WarpScope, Call::kHAS_QUANTISED_CACHES>;
    using Queries = WarpQueries<DIM, 1>;
};

template <typename Traits>
struct DecodeShared
{
    alignas(16) uint16_t query[Traits::kTILE_ROWS * Traits::kDIM];
    alignas(16) uint16_t key[Traits::kWARPS][Traits::kSTAGES][Traits::kSTEP_ELEMENTS];
    alignas(16) uint16_t value[Traits::kWARPS][Traits::kSTAGES][Traits::kSTEP_ELEMENTS];
    SharedRotation<Traits::kDIM> rotation;
    SoftmaxState state[Traits::kWARPS][Traits::kTILE_ROWS];
    typename Traits::Call::template Rows<Traits::kTILE_ROWS> rows;
    typename Traits::Call call;

    // Sums of a warp's row, in place of the keys when all warps are done.
    CTX_DEVICE float* sums(int warp, int row)
    {
        static_assert(sizeof(key) >= sizeof(float) * Traits::kWARPS * Traits::kTILE_ROWS * Traits::kDIM,
            "the warps' sums fit into the memory of their keys");
        return reinterpret_cast<float*>(&key[0][0][0]) + (warp * Traits::kTILE_ROWS + row) * Traits::kDIM;
    }
};

CTX_DEVICE int warpIndex()
{
    return static_cast<int>(threadIdx.x) / kWARP_SIZE;
}

// Begins the copies of a warp's step of a tile and ends their group, which is empty past the last tile.
template <typename Traits>
CTX_DEVICE void beginStep(
    uint16_t* rows, void const* cache, typename Traits::Call const& call, int32_t tile, int32_t end)
{
    int const first = warpIndex() * Traits::kSTEP_KEYS;
    if (tile < end && first < call.tiles.keysOf(tile))
    {
        CachePlace const& place = call.cacheOf(tile);
        int64_t const slot = place.layout.slotAfter(call.firstSlot(tile), first);
        Traits::Loader::begin(rows, cache, place, slot, call.tiles.keysOf(tile) - first);
    }
    commitCopies();
}

// The warp's step of one tile, of which keys and values are under way in `stage`.
template <typename Traits>
CTX_DEVICE void attendStep(typename Traits::Queries& queries, DecodeShared<Traits>& shared,
    typename Traits::Params const& params, int32_t tile, int32_t end, int stage)
{
    using T = typename Traits::T;
    constexpr int kPENDING = 2 * Traits::kSTAGES - 1;
    typename Traits::Call const& call = shared.call;
    uint16_t* const key = shared.key[warpIndex()][stage];
    uint16_t* const value = shared.value[warpIndex()][stage];
    int const first = warpIndex() * Traits::kSTEP_KEYS;
    auto const visibility = visibilityOf(call, params, tile);
    bool const attends = first < visibility.keys;
    FragmentC score[1][Traits::kSTEP_KEYS / 8];
    waitForCopies<kPENDING>();
    __syncwarp(); // the keys are there
    if (attends)
    {
        prepareKeys<typename Traits::Loader, T, Traits::kDIM, WarpScope>(key, params, shared.rotation, call, tile,
            first, static_cast<int32_t>(smaller(Traits::kSTEP_KEYS, visibility.keys - first)));
        scoreKeys<T, Traits::kDIM, 1, Traits::kSTEP_KEYS>(score, shared.query, 0, key, 0);
    }
    __syncwarp(); // the keys are read
    beginStep<Traits>(key, params.presentKey, call, tile + Traits::kSTAGES, end);
    if (attends)
    {
        if (call.scale.cap > 0.0F)
        {
            capScores(score, call.scale);
        }
        hideKeys(score, shared.rows.ofTile(call, tile), visibility, first);
        weighScores<Traits::kDIM>(score, queries, call.scale.perScore());
    }
    waitForCopies<kPENDING>();
    __syncwarp(); // the values are there
    if (attends)
    {
        if (Traits::Loader::isQuantised(params.cacheType))
        {
            Traits::Loader::expand(value, params.cacheType);
            __syncwarp();
        }
        addValues<T, Traits::kDIM, 1, Traits::kSTEP_KEYS>(queries, score, value, 0);
    }
    __syncwarp(); // the values are read
    beginStep<Traits>(value, params.presentValue, call, tile + Traits::kSTAGES, end);
}

// Begins the copies of the warp's first steps of tiles [begin, end).
template <typename Traits>
CTX_DEVICE void beginTiles(
    DecodeShared<Traits>& shared, typename Traits::Params const& params, int32_t begin, int32_t end)
{
    for (int stage = 0; stage < Traits::kSTAGES; ++stage)
    {
        beginStep<Traits>(shared.key[warpIndex()][stage], params.presentKey, shared.call, begin + stage, end);
        beginStep<Traits>(shared.value[warpIndex()][stage], params.presentValue, shared.call, begin + stage, end);
    }
}

// The block's tiles [begin, end), all met by the same queries; their copies have begun.
template <typename Traits>
CTX_DEVICE void attendTiles(typename Traits::Queries& queries, DecodeShared<Traits>& shared,
    typename Traits::Params const& params, int32_t begin, int32_t end)
{
    int stage = 0;
    CTX_UNROLL_BY(1)
    for (int32_t tile = begin; tile < end; ++tile)
    {
        attendStep<Traits>(queries, shared, params, tile, end, stage);
        stage = stage + 1 == Traits::kSTAGES ? 0 : stage + 1;
    }
    waitForCopies<0>();
}

// Leaves the warp's results where the block merges them.
template <typename Traits>
CTX_DEVICE void shareSums(DecodeShared<Traits>& shared, typename Traits::Queries const& queries)
{
    CTX_UNROLL
    for (int half = 0; half < 2; ++half)
    {
        int const row = laneRow(0, half);
        float const denominator = rowSum(queries.softmax[0][half].denominator);
        if (threadIdx.x % 4 == 0)
        {
            shared.state[warpIndex()][row] = SoftmaxState{queries.softmax[0][half].maximum, denominator};
        }
        float* const sums = shared.sums(warpIndex(), row) + laneColumn();
        CTX_UNROLL
        for (int n = 0; n < Traits::kDIM / 8; ++n)
        {
            float const(&sum)[4] = queries.sum[0][n].values;
            *reinterpret_cast<Pack<float, 2>*>(sums + 8 * n) = {{sum[2 * half], sum[2 * half + 1]}};
        }
    }
}

// y of the block's rows, or the split's part of it.
template <typename Traits>
CTX_DEVICE void mergeWarps(DecodeShared<Traits>& shared, typename Traits::Params const& params, GridPlan const& grid)
{
    typename Traits::Call const& call = shared.call;
    Partials const partials = Partials::of(params, grid.splits);
    auto const headDim = static_cast<int>(params.headDim);
    for (int item = static_cast<int>(threadIdx.x); item < Traits::kTILE_ROWS * Traits::kDIM / 4;
        item += Traits::kTHREADS)
    {
        int const row = item / (Traits::kDIM / 4);
        int const dim = item % (Traits::kDIM / 4) * 4;
        uint32_t const packedRow = call.place.firstRow + row;
        if (packedRow >= call.place.packedRows || dim >= headDim)
        {
            continue;
        }
        SoftmaxState total{-INFINITY, 0.0F};
        Pack<float, 4> sum{};
        CTX_UNROLL
        for (int warp = 0; warp < Traits::kWARPS; ++warp)
        {
            SoftmaxState const& state = shared.state[warp][row];
            float const factor = total.raise(state.maximum);
            float const weight = total.weight(state.maximum);
            total.denominator += state.denominator * weight;
            auto const part = *reinterpret_cast<Pack<float, 4> const*>(shared.sums(warp, row) + dim);
            CTX_UNROLL
            for (int i = 0; i < 4; ++i)
            {
                sum.values[i] = sum.values[i] * factor + part.values[i] * weight;
            }
        }
        if (grid.splits > 1)
        {
            int64_t const index = partials.index(params, call.place, packedRow, call.split);
            *reinterpret_cast<Pack<float, 4>*>(partials.sums + index * headDim + dim) = sum;
            if (dim == 0)
            {
                partials.states[index] = total;
            }
            continue;
        }
        int64_t const token = call.place.tokenOf(packedRow);
        bool const attends = token < call.sequence.answered;
        float const factor = headScale(params.valueScale, call.place.kvHead) / total.denominator;
        CTX_UNROLL
        for (int i = 0; i < 4; ++i)
        {
            sum.values[i] = attends ? sum.values[i] * factor : fillOf(call.sequence, token);
        }
        storeMeans(params.output, call.place.rowOffset(params.outputStrides, packedRow) + dim, sum, params.dataType);
    }
}

template <typename Traits>
CTX_KERNEL(Traits::kTHREADS)
attendDecode(typename Traits::Params const params, GridPlan const grid)
{
    using T = typename Traits::T;
    using Scope = BlockScope<Traits::kTHREADS>;
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<DecodeShared<Traits>*>(memory);
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
    __syncthreads();
    typename Traits::Queries queries;
    startQueries(queries, params, call.place, call.place.firstRow,
        params.headSink != nullptr && call.split == 0 && warpIndex() == 0);
    int32_t begin = call.share.begin;
    while (begin < call.share.end)
    {
        int32_t const end = call.endOfQueries(params, begin);
        beginTiles<Traits>(shared, params, begin, end);
        __syncthreads(); // the queries before them are read
        placeQueries<T, Traits::kDIM, Scope>(shared.query, shared.rows, call, params, shared.rotation, begin);
        attendTiles<Traits>(queries, shared, params, begin, end);
        begin = end;
    }
    __syncthreads(); // all keys are read
    shareSums<Traits>(shared, queries);
    __syncthreads();
    mergeWarps<Traits>(shared, params, grid);
}

template <typename Traits, typename Params>
LaunchResult launchAttendDecode(Params const& params, cudaStream_t stream)
{
    static_assert(sizeof(DecodeShared<Traits>) <= kMAX_SHARED_BYTES, "a tile fits every GPU's shared memory");
    BlockShape const shape{Traits::kTILE_ROWS, Traits::kTILE_KEYS, Traits::kTHREADS, sizeof(DecodeShared<Traits>)};
    return launchAttend(params, shape, attendDecode<Traits>, stream, "attendDecode");
}

// 48 to 64 KB of keys and values under way in each block.
template <typename T, typename Params>
LaunchResult launchDecode(Params const& params, cudaStream_t stream)
{
    using Call = CallOf<Params>;
    if (params.headDim <= 64)
    {
        return launchAttendDecode<DecodeTraits<Call, T, 64, 4, 4>>(params, stream);
    }
    if (params.headDim <= 80)
    {
        return launchAttendDecode<DecodeTraits<Call, T, 80, 4, 3>>(params, stream);
    }
    if (params.headDim <= 96)
    {
        return launchAttendDecode<DecodeTraits<Call, T, 96, 4, 2>>(params, stream);
    }
    if (params.headDim <= 128)
    {
        return launchAttendDecode<DecodeTraits<Call, T, 128, 4, 2>>(params, stream);
    }
    return launchAttendDecode<DecodeTraits<Call, T, 256, 2, 2>>(params, stream);
}

} // namespace ctx
