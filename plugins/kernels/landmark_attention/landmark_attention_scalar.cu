// LandmarkAttention of float32 tensors on the scalar units, whose sums are as exact as the tensors.

#include "kernels/landmark_attention/landmark_attention_keys.cuh"
#include "kernels/landmark_attention/landmark_attention_launch.h"
#include "kernels/sink_window_attention/sink_window_attention_output.cuh"
#include "kernels/sink_window_attention/sink_window_attention_scalar_tile.cuh"

namespace ctx
{
namespace
{

template <int PADDED_DIM>
using BlocksTile = TileTraits<SinkWindowCall, PADDED_DIM, 4>;

static_assert(BlocksTile<64>::kTILE_ROWS == kLANDMARK_ROWS, "a block's warps take a tile of rows");

template <typename Traits>
struct ScalarShared
{
    SharedTile<Traits> tile;
    KeyPlace place[Traits::kTILE_KEYS];
    LandmarkBlock block;
};

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
struct BlocksRows
{
    int warp;
    int lane;
    SoftmaxState softmax[Traits::kROWS_PER_WARP];
    float sum[Traits::kROWS_PER_WARP][Traits::kDIMS_PER_LANE];
};

template <typename Traits>
CTX_DEVICE void startBlocksRows(BlocksRows<Traits>& rows, LandmarkBlock const& block, float const* headSink)
{
    rows.warp = static_cast<int>(threadIdx.x) / kWARP_SIZE;
    rows.lane = static_cast<int>(threadIdx.x) % kWARP_SIZE;
    CTX_UNROLL
    for (int r = 0; r < Traits::kROWS_PER_WARP; ++r)
    {
        int const row = rows.warp * Traits::kROWS_PER_WARP + r;
        rows.softmax[r] = SoftmaxState{-INFINITY, 0.0F};
        if (headSink != nullptr && block.split == 0 && block.isAttending(row))
        {
            // The head's sink is one more logit without a value; lanes are summed at the end, so one lane counts it.
            TilePlace const& place = block.tile.place;
            rows.softmax[r].maximum = headSink[place.headOf(place.firstRow + row)] * kLOG2_E;
            rows.softmax[r].denominator = rows.lane == 0 ? 1.0F : 0.0F;
        }
        CTX_UNROLL
        for (int i = 0; i < Traits::kDIMS_PER_LANE; ++i)
        {
            rows.sum[r][i] = 0.0F;
        }
    }
}

// The tile's queries as they meet far or near keys, zeros past its end. Barriers included.
template <typename Traits>
CTX_DEVICE void placeBlockQueries(ScalarShared<Traits>& shared, LandmarkCall const& call, bool isFar)
{
    LandmarkBlock const& block = shared.block;
    auto const column = Column::ofThread<Traits>();
    auto const rows = static_cast<int>(block.tile.rows);
    __syncthreads(); // the queries before are read
    CTX_UNROLL_BY(1)
    for (int row = column.firstRow; row < Traits::kTILE_ROWS; row += column.step)
    {
        Float4 vector{};
        if (row < rows && column.dim < call.common.headDim)
        {
            vector = *reinterpret_cast<Float4 const*>(static_cast<float const*>(call.common.query)
                + block.rowOffset(call.common.queryStrides, row) + column.dim);
        }
        CTX_UNROLL
        for (float& value : vector.values)
        {
            value = block.isNegative ? -value : value;
        }
        *reinterpret_cast<Float4*>(&shared.tile.query[row][column.dim]) = vector;
    }
    __syncthreads();
    rotateRows(BlockScope<Traits::kTHREADS>{},
        scalarRotation<Traits>(&shared.tile.query[0][0], Traits::kPADDED_DIM, shared.tile, call.common), rows,
        [&block, isFar](int row) { return block.queryPosition(row, isFar); });
    __syncthreads();
}

// Rows of a cache that some row of the tile sees, zeros for the others.
template <typename Traits>
CTX_DEVICE void gatherRows(
    float (*rows)[Traits::kKEY_STRIDE], void const* cache, ScalarShared<Traits> const& shared, LandmarkCall const& call)
{
    auto const column = Column::ofThread<Traits>();
    float const* const first = static_cast<float const*>(cache) + shared.block.tile.cacheOffset(call);
    CTX_UNROLL_BY(2)
    for (int key = column.firstRow; key < Traits::kTILE_KEYS; key += column.step)
    {
        Float4 vector{};
        if (shared.place[key].rows != 0 && column.dim < call.common.headDim)
        {
            vector = *reinterpret_cast<Float4 const*>(
                first + static_cast<int64_t>(shared.place[key].slot) * call.common.headDim + column.dim);
        }
        *reinterpret_cast<Float4*>(&rows[key][column.dim]) = vector;
    }
}

// Keys whose places are known, turned. Barriers included.
template <typename Traits>
CTX_DEVICE void placeBlockKeys(ScalarShared<Traits>& shared, LandmarkCall const& call)
{
    __syncthreads();
    gatherRows<Traits>(shared.tile.key, call.common.presentKey, shared, call);
    __syncthreads();
    rotateRows(BlockScope<Traits::kTHREADS>{},
        scalarRotation<Traits>(&shared.tile.key[0][0], Traits::kKEY_STRIDE, shared.tile, call.common),
        Traits::kTILE_KEYS, [&shared](int key) { return int64_t{shared.place[key].position}; });
}

// Attends from the warp's rows to a tile of keys.
template <typename Traits>
CTX_DEVICE void attendToKeys(BlocksRows<Traits>& rows, ScalarShared<Traits>& shared, LandmarkCall const& call, int part)
{
    constexpr int kROWS = Traits::kROWS_PER_WARP;
    float score[kROWS];
    scoreKey<Traits>(shared.tile, rows.warp, rows.lane, static_cast<int>(call.common.headDim), score);
    KeyPlace const place = shared.place[rows.lane];
    bool const isGrouped = shared.block.keys.biases != nullptr && (part == kFAR_PART || part == kNEAR_PART);
    CTX_UNROLL
    for (int r = 0; r < kROWS; ++r)
    {
        int const row = rows.warp * kROWS + r;
        float logit = -INFINITY;
        if ((place.rows >> row & 1U) != 0)
        {
            logit = shared.block.scale.logit(score[r]);
            logit += isGrouped ? shared.block.keys.biases[static_cast<int64_t>(place.entry) * kLANDMARK_ROWS + row]
                               : 0.0F;
        }
        float const factor = rows.softmax[r].raise(warpMaximum(logit));
        float const weight = rows.softmax[r].weight(logit);
        rows.softmax[r].denominator += weight;
        shared.tile.weight[row][rows.lane] = weight;
        CTX_UNROLL
        for (int i = 0; i < Traits::kDIMS_PER_LANE; ++i)
        {
            rows.sum[r][i] *= factor;
        }
    }
    __syncwarp();
    accumulateValues<Traits>(shared.tile, rows.warp, rows.lane, rows.sum);
}

template <typename Traits>
CTX_DEVICE void attendToShare(BlocksRows<Traits>& rows, ScalarShared<Traits>& shared, LandmarkCall const& call)
{
    LandmarkBlock const& block = shared.block;
    CTX_UNROLL_BY(1)
    for (uint32_t tile = block.begin; tile < block.end; ++tile)
    {
        __syncthreads(); // the tile before is read
        if (tile == block.begin || tile == block.keys.farTiles())
        {
            placeBlockQueries<Traits>(shared, call, tile < block.keys.farTiles());
        }
        int const part = block.keys.partOf(tile);
        if (threadIdx.x < Traits::kTILE_KEYS)
        {
            uint32_t const key = block.keys.firstKey(part, tile, Traits::kTILE_KEYS) + threadIdx.x;
            shared.place[threadIdx.x] = block.keys.keyOf(call.layout, block.row, part, key);
        }
        placeBlockKeys<Traits>(shared, call);
        gatherRows<Traits>(shared.tile.value, call.common.presentValue, shared, call);
        __syncthreads();
        attendToKeys<Traits>(rows, shared, call, part);
    }
}

// Results of the tile's rows, or the split's part of them; NaN for rows without a slot, zeros for padding.
template <typename Traits>
CTX_DEVICE void storeBlocksRows(
    BlocksRows<Traits>& rows, LandmarkBlock const& block, LandmarkCall const& call, GridPlan const& grid)
{
    Partials const partials = Partials::of(call.common, grid.splits);
    auto const headDim = static_cast<int>(call.common.headDim);
    CTX_UNROLL
    for (int r = 0; r < Traits::kROWS_PER_WARP; ++r)
    {
        int const row = rows.warp * Traits::kROWS_PER_WARP + r;
        uint32_t const packedRow = block.tile.place.firstRow + static_cast<uint32_t>(row);
        float const denominator = warpSum(rows.softmax[r].denominator);
        if (row >= static_cast<int>(block.tile.rows))
        {
            continue;
        }
        if (grid.splits > 1)
        {
            int64_t const index = partials.index(call.common, block.tile.place, packedRow, block.split);
            storeRow<Traits>(partials.sums + index * headDim, rows.lane, headDim, rows.sum[r]);
            if (rows.lane == 0)
            {
                partials.states[index] = SoftmaxState{rows.softmax[r].maximum, denominator};
            }
            continue;
        }
        float const fill = fillOf(block.sequence, block.tile.place.tokenOf(packedRow));
        CTX_UNROLL
        for (int i = 0; i < Traits::kDIMS_PER_LANE; ++i)
        {
            rows.sum[r][i] = block.isAttending(row) ? rows.sum[r][i] / denominator : fill;
        }
        float* const output = static_cast<float*>(call.common.output) + block.rowOffset(call.common.outputStrides, row);
        storeRow<Traits>(output, rows.lane, headDim, rows.sum[r]);
    }
}

// One block of threads per tile of queries and split of the keys.
template <typename Traits>
CTX_KERNEL(Traits::kTHREADS)
attendBlocksScalar(LandmarkCall const call, GridPlan const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<ScalarShared<Traits>*>(memory);
    startBlock(shared.block, call, grid, Traits::kTILE_KEYS);
    loadFrequencies<Traits>(shared.tile, call.common, shared.block.tile.place.batch);
    BlocksRows<Traits> rows;
    startBlocksRows<Traits>(rows, shared.block, call.common.headSink);
    attendToShare<Traits>(rows, shared, call);
    storeBlocksRows<Traits>(rows, shared.block, call, grid);
}

// Of the warp's rows, for one block of tokens: see landmark_attention_group.cuh.
template <typename Traits>
CTX_DEVICE void groupKeys(ScalarShared<Traits>& shared, LandmarkCall const& call, uint32_t entry, bool isFar)
{
    constexpr int kROWS = Traits::kROWS_PER_WARP;
    LandmarkBlock const& block = shared.block;
    int const warp = static_cast<int>(threadIdx.x) / kWARP_SIZE;
    int const lane = static_cast<int>(threadIdx.x) % kWARP_SIZE;
    int const part = isFar ? kFAR_PART : kNEAR_PART;
    uint32_t const first = (entry - (isFar ? 0 : block.keys.farBlocks)) * call.layout.block;
    SoftmaxState tokens[kROWS];
    float landmark[kROWS];
    CTX_UNROLL
    for (int r = 0; r < kROWS; ++r)
    {
        tokens[r] = SoftmaxState{-INFINITY, 0.0F};
        landmark[r] = -INFINITY;
    }
    CTX_UNROLL_BY(1)
    for (uint32_t offset = 0; offset < call.layout.block; offset += Traits::kTILE_KEYS)
    {
        __syncthreads(); // the tile before is read
        if (threadIdx.x < Traits::kTILE_KEYS)
        {
            uint32_t const own = offset + threadIdx.x;
            bool const exists = own < call.layout.block;
            KeyPlace place = exists ? block.keys.keyOf(call.layout, block.row, part, first + own) : KeyPlace{};
            place.rows = exists ? block.keys.blocks[entry].rows : 0; // the landmark, too
            shared.place[threadIdx.x] = place;
        }
        placeBlockKeys<Traits>(shared, call);
        __syncthreads();
        float score[kROWS];
        scoreKey<Traits>(shared.tile, warp, lane, static_cast<int>(call.common.headDim), score);
        uint32_t const key = offset + static_cast<uint32_t>(lane);
        CTX_UNROLL
        for (int r = 0; r < kROWS; ++r)
        {
            float const logit = block.scale.logit(score[r]);
            landmark[r] = key == call.layout.block - 1 ? logit : landmark[r];
            float const own = key < call.layout.block - 1 ? logit : -INFINITY;
            tokens[r].raise(warpMaximum(own));
            tokens[r].denominator += tokens[r].weight(own);
        }
    }
    float* const biases = call.biases + (block.tile.firstEntry(call) + entry) * kLANDMARK_ROWS;
    CTX_UNROLL
    for (int r = 0; r < kROWS; ++r)
    {
        float const bias = warpMaximum(landmark[r]) - tokens[r].maximum - log2f(warpSum(tokens[r].denominator));
        if (lane == 0)
        {
            biases[warp * kROWS + r] = bias;
        }
    }
}

// A block of threads takes a tile of rows and a share of its list.
template <typename Traits>
CTX_KERNEL(Traits::kTHREADS)
groupBlocksScalar(LandmarkCall const call, GridPlan const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<ScalarShared<Traits>*>(memory);
    startBlock(shared.block, call, grid, Traits::kTILE_KEYS);
    loadFrequencies<Traits>(shared.tile, call.common, shared.block.tile.place.batch);
    EntryShare const share = EntryShare::of(shared.block, call, grid);
    CTX_UNROLL_BY(1)
    for (uint32_t entry = share.begin; entry < share.end; ++entry)
    {
        if (entry == share.begin || entry == share.turn)
        {
            placeBlockQueries<Traits>(shared, call, entry < share.turn);
        }
        groupKeys<Traits>(shared, call, entry, entry < share.turn);
    }
}

template <int PADDED_DIM>
LaunchResult launchDim(LandmarkCall const& call, cudaStream_t stream)
{
    using Traits = BlocksTile<PADDED_DIM>;
    using Shared = ScalarShared<Traits>;
    static_assert(sizeof(Shared) <= kMAX_SHARED_BYTES, "a tile fits every GPU's shared memory");
    if (call.layout.isLandmark)
    {
        LaunchResult const result
            = launchGroup<Shared>(call, groupBlocksScalar<Traits>, Traits::kTHREADS, stream, "groupBlocksScalar");
        if (!result.isSuccess())
        {
            return result;
        }
    }
    BlockShape const shape{kLANDMARK_ROWS, Traits::kTILE_KEYS, Traits::kTHREADS, sizeof(Shared)};
    return launchAttendBlocks(call, shape, attendBlocksScalar<Traits>, stream, "attendBlocksScalar");
}

} // namespace

LaunchResult launchScalarBlocks(LandmarkCall const& call, cudaStream_t stream)
{
    if (call.common.headDim <= 64)
    {
        return launchDim<64>(call, stream);
    }
    return call.common.headDim <= 128 ? launchDim<128>(call, stream) : launchDim<256>(call, stream);
}

} // namespace ctx
