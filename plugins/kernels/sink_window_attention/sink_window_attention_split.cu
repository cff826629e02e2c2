// Splitting the keys over blocks where a call has too few queries to fill the GPU, and merging what the splits found.
// How far a sequence's keys reach is known on the device alone: the number of splits follows from sizes, and each block
// takes its share of the tiles there are.

#include "kernels/sink_window_attention/sink_window_attention_launch.h"
#include "kernels/sink_window_attention/sink_window_attention_output.cuh"

namespace ctx
{
namespace
{

constexpr int32_t kMERGE_WARPS = 4;
constexpr int32_t kMERGE_THREADS = kMERGE_WARPS * kWARP_SIZE;
constexpr int64_t kMAX_SPLITS = 128;
// A split of fewer keys takes longer to merge than to compute.
constexpr int64_t kMIN_SPLIT_KEYS = 256;
// Of all splits together: 17 MB with a head dimension of 128.
constexpr int64_t kMAX_PARTIAL_ROWS = 32768;
constexpr size_t kRESERVED_SHARED_BYTES = 1024; // the driver's part of a block's shared memory

int64_t partialBytes(SinkWindowAttentionParams const& params)
{
    return params.headDim * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(sizeof(SoftmaxState));
}

int64_t maxSplits(SinkWindowAttentionParams const& params)
{
    int64_t const reach
        = params.window > 0 ? smaller(params.capacity, params.sinks + params.window + params.rows) : params.capacity;
    return larger(1, smaller(kMAX_SPLITS, reach / kMIN_SPLIT_KEYS));
}

// Blocks that the device runs at a time; 0 if it does not say.
int64_t residentBlocks(BlockShape const& shape)
{
    int device = 0;
    int processors = 0;
    int sharedBytes = 0;
    if (cudaGetDevice(&device) != cudaSuccess
        || cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess
        || cudaDeviceGetAttribute(&sharedBytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) != cudaSuccess)
    {
        return 0;
    }
    auto const perProcessor
        = static_cast<int64_t>(static_cast<size_t>(sharedBytes) / (shape.sharedBytes + kRESERVED_SHARED_BYTES));
    return processors * larger(1, perProcessor);
}

// The fewest splits with which the last wave of blocks leaves little of the device idle.
int64_t fillingSplits(int64_t blocks, int64_t resident, int64_t limit)
{
    constexpr double kGOOD_SHARE = 0.9; // of the best
    auto const utilisation = [blocks, resident](int64_t splits)
    {
        int64_t const waves = (blocks * splits + resident - 1) / resident;
        return static_cast<double>(blocks * splits) / static_cast<double>(waves * resident);
    };
    double best = 0.0;
    for (int64_t splits = 1; splits <= limit; ++splits)
    {
        best = utilisation(splits) > best ? utilisation(splits) : best;
    }
    int64_t splits = 1;
    while (utilisation(splits) < kGOOD_SHARE * best)
    {
        ++splits;
    }
    return splits;
}

// Of one row: each warp's splits together, then those of all warps.
struct SharedMerge
{
    SoftmaxState state[kMERGE_WARPS];
    alignas(16) float sum[kMERGE_WARPS][SinkWindowAttentionParams::kMAX_HEAD_DIM];
};

// The part of a row's sum that is taken into another whose weight is 1 at its own maximum.
CTX_DEVICE void addPart(Pack<float, 4>& sum, float factor, float const* part, float weight)
{
    auto const values = *reinterpret_cast<Pack<float, 4> const*>(part);
    CTX_UNROLL
    for (int i = 0; i < 4; ++i)
    {
        sum.values[i] = sum.values[i] * factor + values.values[i] * weight;
    }
}

// A warp's splits of a row: every kMERGE_WARPS-th. A split without keys has written a state alone.
CTX_DEVICE void mergeWarpSplits(
    SharedMerge& shared, Partials const& partials, GridPlan const& grid, int64_t row, int64_t headDim)
{
    constexpr int kPACKS = SinkWindowAttentionParams::kMAX_HEAD_DIM / (4 * kWARP_SIZE);
    auto const warp = static_cast<int>(threadIdx.x) / kWARP_SIZE;
    int const firstDim = 4 * (static_cast<int>(threadIdx.x) % kWARP_SIZE);
    SoftmaxState total{-INFINITY, 0.0F};
    Pack<float, 4> sum[kPACKS]{};
    for (auto split = static_cast<uint32_t>(warp); split < grid.splits; split += kMERGE_WARPS)
    {
        int64_t const partial = split * partials.rows + row;
        SoftmaxState const state = partials.states[partial];
        if (state.denominator == 0.0F)
        {
            continue;
        }
        float const factor = total.raise(state.maximum);
        float const weight = total.weight(state.maximum);
        total.denominator += state.denominator * weight;
        CTX_UNROLL
        for (int pack = 0; pack < kPACKS; ++pack)
        {
            int const dim = firstDim + 4 * kWARP_SIZE * pack;
            if (dim < headDim)
            {
                addPart(sum[pack], factor, partials.sums + partial * headDim + dim, weight);
            }
        }
    }
    CTX_UNROLL
    for (int pack = 0; pack < kPACKS; ++pack)
    {
        *reinterpret_cast<Pack<float, 4>*>(&shared.sum[warp][firstDim + 4 * kWARP_SIZE * pack]) = sum[pack];
    }
    shared.state[warp] = total;
}

// A block merges a row.
CTX_KERNEL(kMERGE_THREADS)
mergeSplits(CtxSinkWindowAttentionParams const params, GridPlan const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<SharedMerge*>(memory);
    int64_t const row = blockIdx.x;
    Partials const partials = Partials::of(params, grid.splits);
    auto const groups = static_cast<uint32_t>(params.queryHeads / params.kvHeads);
    uint32_t const packedRows = groups * static_cast<uint32_t>(params.rows);
    int64_t const head = row / packedRows;
    TilePlace const place{head / params.kvHeads, head % params.kvHeads, groups, 0, packedRows};
    auto const packedRow = static_cast<uint32_t>(row % packedRows);
    Sequence const sequence = sequenceOf(params, place.batch);
    int64_t const token = place.tokenOf(packedRow);
    bool const attends = token < sequence.answered;
    if (attends)
    {
        mergeWarpSplits(shared, partials, grid, row, params.headDim);
    }
    __syncthreads();
    int const dim = 4 * static_cast<int>(threadIdx.x);
    if (dim >= params.headDim)
    {
        return;
    }
    float const fill = fillOf(sequence, token);
    Pack<float, 4> sum{{fill, fill, fill, fill}};
    if (attends)
    {
        SoftmaxState total{-INFINITY, 0.0F};
        sum = {};
        CTX_UNROLL
        for (int warp = 0; warp < kMERGE_WARPS; ++warp)
        {
            SoftmaxState const& state = shared.state[warp];
            float const factor = total.raise(state.maximum);
            float const weight = total.weight(state.maximum);
            total.denominator += state.denominator * weight;
            addPart(sum, factor, &shared.sum[warp][dim], weight);
        }
        float const scale = headScale(params.valueScale, place.kvHead) / total.denominator;
        CTX_UNROLL
        for (float& value : sum.values)
        {
            value *= scale;
        }
    }
    storeMeans(params.output, place.queryOffset(params, packedRow) + dim, sum, params.dataType);
}

} // namespace

GridPlan planGrid(SinkWindowAttentionParams const& params, BlockShape const& shape)
{
    int64_t const packedRows = params.queryHeads / params.kvHeads * params.rows;
    int64_t const tiles = (packedRows + shape.tileRows - 1) / shape.tileRows;
    int64_t const blocks = params.batch * params.kvHeads * tiles;
    int64_t const rows = params.batch * params.queryHeads * params.rows;
    auto const held = static_cast<int64_t>(params.workspaceBytes) / partialBytes(params);
    int64_t const room = params.workspace == nullptr ? 0 : smaller(held, kMAX_PARTIAL_ROWS) / rows;
    int64_t const limit = smaller(maxSplits(params), room);
    int64_t const resident = limit > 1 ? residentBlocks(shape) : 0;
    int64_t const splits = resident > 0 ? fillingSplits(blocks, resident, limit) : 1;
    return GridPlan{static_cast<uint32_t>(tiles), static_cast<uint32_t>(splits)};
}

LaunchShape launchShape(SinkWindowAttentionParams const& params, GridPlan const& grid, BlockShape const& shape)
{
    return LaunchShape{
        params.batch * params.kvHeads * grid.tilesPerHead * grid.splits, shape.threads, shape.sharedBytes};
}

LaunchResult launchMerge(SinkWindowAttentionParams const& params, GridPlan const& grid, cudaStream_t stream)
{
    if (grid.splits == 1)
    {
        return {};
    }
    LaunchShape const shape{params.batch * params.queryHeads * params.rows, kMERGE_THREADS, sizeof(SharedMerge)};
    return LaunchResult::fromCuda(launch(mergeSplits, shape, stream, params, grid), "mergeSplits");
}

uint64_t workspaceBytes(SinkWindowAttentionParams const& params)
{
    if (!areSizes({params.batch, params.queryHeads, params.rows, params.headDim}) || !areSizes({params.capacity})
        || params.headDim == 0)
    {
        return 0;
    }
    // Of this call or of one with smaller sizes, which may have more splits of fewer rows.
    int64_t const splits = maxSplits(params);
    int64_t const rows = smaller(kMAX_PARTIAL_ROWS, params.batch * params.queryHeads * params.rows * splits);
    return splits > 1 ? static_cast<uint64_t>(rows * partialBytes(params)) : 0;
}

} // namespace ctx
