// LandmarkAttention on the tensor cores. A block of threads takes a tile of 16 packed rows and its share of the keys
// that they read; each warp brings its own keys and values, several steps ahead, and meets the others at the end alone.
#pragma once

#include "kernels/landmark_attention/landmark_attention_group.cuh"

namespace ctx
{

template <typename Traits>
struct AttendShared : BlocksShared<Traits>
{
    alignas(16) uint16_t key[Traits::kWARPS][Traits::kSTAGES][Traits::kSTEP_ELEMENTS];
    alignas(16) uint16_t value[Traits::kWARPS][Traits::kSTAGES][Traits::kSTEP_ELEMENTS];
    alignas(16) KeyPlace place[Traits::kWARPS][Traits::kSTAGES][Traits::kSTEP_KEYS];
    SoftmaxState state[Traits::kWARPS][kLANDMARK_ROWS];

    // Sums of a warp's row, in place of the keys when all warps are done.
    CTX_DEVICE float* sums(int warp, int row)
    {
        static_assert(sizeof(key) >= sizeof(float) * Traits::kWARPS * kLANDMARK_ROWS * Traits::kDIM,
            "the warps' sums fit into the memory of their keys");
        return reinterpret_cast<float*>(&key[0][0][0]) + (warp * kLANDMARK_ROWS + row) * Traits::kDIM;
    }
};

// Begins the copies of the keys of a warp's step of a tile and ends their group, which is empty past the last tile.
template <typename Traits>
CTX_DEVICE void beginKeys(
    AttendShared<Traits>& shared, LandmarkCall const& call, uint32_t tile, uint32_t end, int stage)
{
    if (tile < end)
    {
        LandmarkBlock const& block = shared.block;
        KeyPlace* const places = shared.place[warpOfBlock()][stage];
        if (laneOfWarp() < Traits::kSTEP_KEYS)
        {
            int const part = block.keys.partOf(tile);
            uint32_t const key = block.keys.firstKey(part, tile, Traits::kTILE_KEYS)
                + static_cast<uint32_t>(warpOfBlock() * Traits::kSTEP_KEYS + laneOfWarp());
            places[laneOfWarp()] = block.keys.keyOf(call.layout, block.row, part, key);
        }
        __syncwarp();
        if (isAnySeen<Traits>(places))
        {
            auto const* const cache
                = static_cast<uint16_t const*>(call.common.presentKey) + block.tile.cacheOffset(call);
            beginRows<Traits>(shared.key[warpOfBlock()][stage], cache, call, places);
        }
    }
    commitCopies();
}

// Likewise of the values, when those of the keys have begun.
template <typename Traits>
CTX_DEVICE void beginValues(
    AttendShared<Traits>& shared, LandmarkCall const& call, uint32_t tile, uint32_t end, int stage)
{
    KeyPlace const* const places = shared.place[warpOfBlock()][stage];
    if (tile < end && isAnySeen<Traits>(places))
    {
        auto const* const cache
            = static_cast<uint16_t const*>(call.common.presentValue) + shared.block.tile.cacheOffset(call);
        beginRows<Traits>(shared.value[warpOfBlock()][stage], cache, call, places);
    }
    commitCopies();
}

// The grouped softmax: a logit within its block's becomes one among those of the query's own group.
template <typename Traits>
CTX_DEVICE void addBiases(typename Traits::Score& score, KeyPlace const* places, float const* biases)
{
    CTX_UNROLL
    for (int half = 0; half < 2; ++half)
    {
        int const row = laneRow(0, half);
        CTX_UNROLL
        for (int n = 0; n < Traits::kSTEP_KEYS / 8; ++n)
        {
            CTX_UNROLL
            for (int i = 2 * half; i < 2 * half + 2; ++i)
            {
                KeyPlace const& place = places[8 * n + laneColumn() + i % 2];
                if ((place.rows >> row & 1U) != 0)
                {
                    score[0][n].values[i] += biases[static_cast<int64_t>(place.entry) * kLANDMARK_ROWS + row];
                }
            }
        }
    }
}

// The warp's step of one tile, of which keys and values are under way in `stage`.
template <typename Traits>
CTX_DEVICE void attendBlocksStep(typename Traits::Queries& queries, AttendShared<Traits>& shared,
    LandmarkCall const& call, uint32_t tile, uint32_t end, int stage)
{
    using T = typename Traits::T;
    constexpr int kPENDING = 2 * Traits::kSTAGES - 1;
    LandmarkBlock const& block = shared.block;
    uint16_t* const key = shared.key[warpOfBlock()][stage];
    KeyPlace const* const places = shared.place[warpOfBlock()][stage];
    bool const attends = isAnySeen<Traits>(places);
    typename Traits::Score score;
    waitForCopies<kPENDING>();
    __syncwarp(); // the keys are there
    if (attends)
    {
        int const part = block.keys.partOf(tile);
        turnKeys<Traits>(key, shared, call, places, areRuns<Traits>(call.layout, part));
        scoreKeys<T, Traits::kDIM, 1, Traits::kSTEP_KEYS>(score, shared.query, 0, key, 0);
        hideUnseen<Traits>(score, places, block.scale);
        if (block.keys.biases != nullptr && (part == kFAR_PART || part == kNEAR_PART))
        {
            addBiases<Traits>(score, places, block.keys.biases);
        }
    }
    __syncwarp(); // the keys and their places are read
    beginKeys<Traits>(shared, call, tile + Traits::kSTAGES, end, stage);
    if (attends)
    {
        weighScores<Traits::kDIM>(score, queries, 1.0F);
    }
    waitForCopies<kPENDING>();
    __syncwarp(); // the values are there
    if (attends)
    {
        addValues<T, Traits::kDIM, 1, Traits::kSTEP_KEYS>(queries, score, shared.value[warpOfBlock()][stage], 0);
    }
    __syncwarp(); // the values are read
    beginValues<Traits>(shared, call, tile + Traits::kSTAGES, end, stage);
}

// Tiles [begin, end), all met by the same queries.
template <typename Traits>
CTX_DEVICE void attendBlocksTiles(typename Traits::Queries& queries, AttendShared<Traits>& shared,
    LandmarkCall const& call, uint32_t begin, uint32_t end, bool isFar)
{
    for (int stage = 0; stage < Traits::kSTAGES; ++stage)
    {
        beginKeys<Traits>(shared, call, begin + stage, end, stage);
        beginValues<Traits>(shared, call, begin + stage, end, stage);
    }
    placeBlockQueries<Traits>(shared, call, isFar);
    int stage = 0;
    CTX_UNROLL_BY(1)
    for (uint32_t tile = begin; tile < end; ++tile)
    {
        attendBlocksStep<Traits>(queries, shared, call, tile, end, stage);
        stage = stage + 1 == Traits::kSTAGES ? 0 : stage + 1;
    }
    waitForCopies<0>();
}

// Leaves the warp's results where the block merges them.
template <typename Traits>
CTX_DEVICE void shareBlocksSums(AttendShared<Traits>& shared, typename Traits::Queries const& queries)
{
    CTX_UNROLL
    for (int half = 0; half < 2; ++half)
    {
        int const row = laneRow(0, half);
        float const denominator = rowSum(queries.softmax[0][half].denominator);
        if (threadIdx.x % 4 == 0)
        {
            shared.state[warpOfBlock()][row] = SoftmaxState{queries.softmax[0][half].maximum, denominator};
        }
        float* const sums = shared.sums(warpOfBlock(), row) + laneColumn();
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
CTX_DEVICE void mergeBlocksWarps(AttendShared<Traits>& shared, LandmarkCall const& call, GridPlan const& grid)
{
    LandmarkBlock const& block = shared.block;
    Partials const partials = Partials::of(call.common, grid.splits);
    auto const headDim = static_cast<int>(call.common.headDim);
    for (int item = static_cast<int>(threadIdx.x); item < kLANDMARK_ROWS * Traits::kDIM / 4; item += Traits::kTHREADS)
    {
        int const row = item / (Traits::kDIM / 4);
        int const dim = item % (Traits::kDIM / 4) * 4;
        if (row >= static_cast<int>(block.tile.rows) || dim >= headDim)
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
        uint32_t const packedRow = block.tile.place.firstRow + static_cast<uint32_t>(row);
        if (grid.splits > 1)
        {
            int64_t const index = partials.index(call.common, block.tile.place, packedRow, block.split);
            *reinterpret_cast<Pack<float, 4>*>(partials.sums + index * headDim + dim) = sum;
            if (dim == 0)
            {
                partials.states[index] = total;
            }
            continue;
        }
        float const fill = fillOf(block.sequence, block.tile.place.tokenOf(packedRow));
        CTX_UNROLL
        for (int i = 0; i < 4; ++i)
        {
            sum.values[i] = block.isAttending(row) ? sum.values[i] / total.denominator : fill;
        }
        storeMeans(
            call.common.output, block.rowOffset(call.common.outputStrides, row) + dim, sum, call.common.dataType);
    }
}

template <typename Traits>
CTX_KERNEL_RESIDENT(Traits::kTHREADS, 3)
attendBlocksMatrix(LandmarkCall const call, GridPlan const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<AttendShared<Traits>*>(memory);
    startBlock(shared.block, call, grid, Traits::kTILE_KEYS);
    LandmarkBlock const& block = shared.block;
    loadRotation(shared.rotation, call.common, block.tile.place.batch, Traits::kTHREADS);
    typename Traits::Queries queries;
    startQueries(queries, call.common, block.tile.place, block.tile.place.firstRow,
        call.common.headSink != nullptr && block.split == 0 && warpOfBlock() == 0);
    uint32_t const turn = block.end < block.keys.farTiles() ? block.end : block.keys.farTiles();
    if (block.begin < turn)
    {
        attendBlocksTiles<Traits>(queries, shared, call, block.begin, turn, true);
    }
    uint32_t const begin = block.begin < turn ? turn : block.begin;
    if (begin < block.end)
    {
        attendBlocksTiles<Traits>(queries, shared, call, begin, block.end, false);
    }
    __syncthreads(); // all keys are read
    shareBlocksSums<Traits>(shared, queries);
    __syncthreads();
    mergeBlocksWarps<Traits>(shared, call, grid);
}

template <typename Traits>
LaunchResult launchBlocks(LandmarkCall const& call, cudaStream_t stream)
{
    using Shared = AttendShared<Traits>;
    static_assert(sizeof(Shared) <= kMAX_SHARED_BYTES, "a tile fits every GPU's shared memory");
    BlockShape const shape{kLANDMARK_ROWS, Traits::kTILE_KEYS, Traits::kTHREADS, sizeof(Shared)};
    return launchAttendBlocks(call, shape, attendBlocksMatrix<Traits>, stream, "attendBlocksMatrix");
}

// 48 to 64 KB of keys and values under way in each block.
template <typename T>
LaunchResult launchMatrixBlocks(LandmarkCall const& call, cudaStream_t stream)
{
    if (call.layout.isLandmark)
    {
        LaunchResult const result = launchGroupMatrix<T>(call, stream);
        if (!result.isSuccess())
        {
            return result;
        }
    }
    int64_t const dim = call.common.headDim;
    if (dim <= 64)
    {
        return launchBlocks<BlocksTraits<T, 64, 4, 4>>(call, stream);
    }
    if (dim <= 80)
    {
        return launchBlocks<BlocksTraits<T, 80, 4, 3>>(call, stream);
    }
    if (dim <= 96)
    {
        return launchBlocks<BlocksTraits<T, 96, 4, 2>>(call, stream);
    }
    if (dim <= 128)
    {
        return launchBlocks<BlocksTraits<T, 128, 4, 2>>(call, stream);
    }
    return launchBlocks<BlocksTraits<T, 256, 2, 2>>(call, stream);
}

} // namespace ctx
