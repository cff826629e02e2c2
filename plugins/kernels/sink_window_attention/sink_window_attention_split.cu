// Splitting the keys over blocks where a call has too few queries to fill the GPU, and merging what the splits found.
// How far a sequence's keys reach is known on the device alone: the number of splits follows from sizes, and each block
// takes its share of the tiles there are.

#include "kernels/sink_window_attention/sink_window_attention_launch.h"
#include "kernels/sink_window_attention/sink_window_attention_output.cuh"

namespace ctx
{
namespace
{

constexpr int32_t kMERGE_THREADS = 128;
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

// A warp merges a row.
CTX_KERNEL(kMERGE_THREADS)
mergeSplits(CtxSinkWindowAttentionParams const params, GridPlan const grid)
{
    int64_t const row = static_cast<int64_t>(blockIdx.x) * (kMERGE_THREADS / kWARP_SIZE) + threadIdx.x / kWARP_SIZE;
    Partials const partials = Partials::of(params, grid.splits);
    if (row >= partials.rows)
    {
        return;
    }
    auto const groups = static_cast<uint32_t>(params.queryHeads / params.kvHeads);
    uint32_t const packedRows = groups * static_cast<uint32_t>(params.rows);
    int64_t const head = row / packedRows;
    TilePlace const place{head / params.kvHeads, head % params.kvHeads, groups, 0, packedRows};
    auto const packedRow = static_cast<uint32_t>(row % packedRows);
    Sequence const sequence = sequenceOf(params, place.batch);
    int64_t const token = place.tokenOf(packedRow);
    SoftmaxState total{-INFINITY, 0.0F};
    for (uint32_t split = 0; split < grid.splits && token < sequence.answered; ++split)
    {
        SoftmaxState const& state = partials.states[split * partials.rows + row];
        total.raise(state.maximum);
        total.denominator += state.denominator * total.weight(state.maximum);
    }
    float const scale = headScale(params.valueScale, place.kvHead) / total.denominator;
    for (int64_t dim = 4 * (threadIdx.x % kWARP_SIZE); dim < params.headDim; dim += 4 * kWARP_SIZE)
    {
        Pack<float, 4> sum{};
        for (uint32_t split = 0; split < grid.splits && token < sequence.answered; ++split)
        {
            int64_t const partial = split * partials.rows + row;
            float const weight = total.weight(partials.states[partial].maximum);
            // A split without keys has written no sum.
            if (partials.states[partial].denominator != 0.0F)
            {
                auto const part
                    = *reinterpret_cast<Pack<float, 4> const*>(partials.sums + partial * params.headDim + dim);
                CTX_UNROLL
                for (int i = 0; i < 4; ++i)
                {
                    sum.values[i] += weight * part.values[i];
                }
            }
        }
        CTX_UNROLL
        for (int i = 0; i < 4; ++i)
        {
            sum.values[i] = token < sequence.answered ? sum.values[i] * scale : fillOf(sequence, token);
        }
        storeMeans(params.output, place.queryOffset(params, packedRow) + dim, sum, params.dataType);
    }
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
    // More blocks than the device runs at a time need no splits, whatever the last wave.
    int64_t const splits = blocks < resident ? fillingSplits(blocks, resident, limit) : 1;
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
    constexpr int64_t kROWS = kMERGE_THREADS / kWARP_SIZE;
    int64_t const rows = params.batch * params.queryHeads * params.rows;
    LaunchShape const shape{(rows + kROWS - 1) / kROWS, kMERGE_THREADS, 0};
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
