// Splitting the keys over blocks where a call has too few queries to fill the GPU, and merging what the splits found.
// How far a sequence's keys reach is known on the device alone: the number of splits follows from sizes, and each block
// takes its share of the tiles there are.

#include "kernels/common/async_copy.cuh"
#include "kernels/sink_window_attention/sink_window_attention_launch.h"
#include "kernels/sink_window_attention/sink_window_attention_output.cuh"

namespace ctx
{
namespace
{

constexpr int32_t kMERGE_WARPS = 4;
constexpr int32_t kMERGE_THREADS = kMERGE_WARPS * kWARP_SIZE;
constexpr uint32_t kMERGE_BATCH = 8; // splits of a warp under way at a time
constexpr int64_t kMAX_SPLITS = 128;
// A split of fewer keys takes longer to merge than to compute.
constexpr int64_t kMIN_SPLIT_KEYS = 256;
// Keys and values of heads whose blocks take turns: a good part of the L2 cache of a large GPU.
constexpr int64_t kSECTION_BYTES = 16 << 20;
// Of all splits together: 17 MB with a head dimension of 128.
constexpr int64_t kMAX_PARTIAL_ROWS = 32768;

int64_t partialBytes(SinkWindowAttentionParams const& params)
{
    return params.headDim * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(sizeof(SoftmaxState));
}

int64_t maxSplits(SinkWindowAttentionParams const& params)
{
    int64_t const reach = params.window > 0
        ? smaller(params.capacity,
              smaller(params.sinks, params.capacity) + smaller(params.window, params.capacity) + params.rows)
        : params.capacity;
    return larger(1, smaller(kMAX_SPLITS, reach / kMIN_SPLIT_KEYS));
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

// Of one row: each split's weight, then each warp's part of the sum.
struct SharedMerge
{
    Pack<float, 4> part[kMERGE_BATCH][kMERGE_THREADS]; // on their way
    float weight[kMAX_SPLITS];
    SoftmaxState state[kMERGE_WARPS];
    alignas(16) float sum[kMERGE_WARPS][SinkWindowAttentionParams::kMAX_HEAD_DIM];
};

static_assert(kMAX_SPLITS == kMERGE_THREADS, "a thread weighs one split");

// The splits' states together; a weight for each split, relative to the maximum of all.
CTX_DEVICE SoftmaxState weighSplits(SharedMerge& shared, Partials const& partials, GridPlan const& grid, int64_t row)
{
    uint32_t const split = threadIdx.x;
    SoftmaxState state{-INFINITY, 0.0F};
    if (split < grid.splits)
    {
        state = partials.states[split * partials.rows + row];
    }
    SoftmaxState warp = state;
    CTX_UNROLL
    for (int distance = kWARP_SIZE / 2; distance > 0; distance /= 2)
    {
        warp.maximum = fmaxf(warp.maximum, __shfl_xor_sync(kFULL_WARP, warp.maximum, distance));
    }
    warp.denominator = state.denominator * warp.weight(state.maximum);
    CTX_UNROLL
    for (int distance = kWARP_SIZE / 2; distance > 0; distance /= 2)
    {
        warp.denominator += __shfl_xor_sync(kFULL_WARP, warp.denominator, distance);
    }
    if (threadIdx.x % kWARP_SIZE == 0)
    {
        shared.state[threadIdx.x / kWARP_SIZE] = warp;
    }
    __syncthreads();
    SoftmaxState total{-INFINITY, 0.0F};
    CTX_UNROLL
    for (SoftmaxState const& part : shared.state)
    {
        total.raise(part.maximum);
        total.denominator += part.denominator * total.weight(part.maximum);
    }
    shared.weight[split] = total.weight(state.maximum);
    __syncthreads();
    return total;
}

// A warp's splits of a row: every kMERGE_WARPS-th. Loads do not wait for each other.
CTX_DEVICE void sumSplits(
    SharedMerge& shared, Partials const& partials, GridPlan const& grid, int64_t row, int32_t headDim)
{
    constexpr int kSTEP = 4 * kWARP_SIZE;
    auto const warp = static_cast<int>(threadIdx.x) / kWARP_SIZE;
    for (int dim = 4 * (static_cast<int>(threadIdx.x) % kWARP_SIZE); dim < headDim; dim += kSTEP)
    {
        Pack<float, 4> sum{};
        float const* part = partials.sums + row * headDim + dim;
        CTX_UNROLL_BY(1)
        for (auto first = static_cast<uint32_t>(warp); first < grid.splits; first += kMERGE_BATCH * kMERGE_WARPS)
        {
            CTX_UNROLL
            for (uint32_t i = 0; i < kMERGE_BATCH; ++i)
            {
                uint32_t const split = first + i * kMERGE_WARPS;
                bool const valid = split < grid.splits;
                copyAsync<16>(
                    &shared.part[i][threadIdx.x], part + (valid ? split : 0) * partials.rows * headDim, valid);
            }
            commitCopies();
            waitForCopies<0>(); // the thread's own copies
            CTX_UNROLL
            for (uint32_t i = 0; i < kMERGE_BATCH; ++i)
            {
                uint32_t const split = first + i * kMERGE_WARPS;
                float const weight = split < grid.splits ? shared.weight[split] : 0.0F;
                Pack<float, 4> const values = shared.part[i][threadIdx.x];
                CTX_UNROLL
                for (int j = 0; j < 4; ++j)
                {
                    sum.values[j] += values.values[j] * weight;
                }
            }
        }
        *reinterpret_cast<Pack<float, 4>*>(&shared.sum[warp][dim]) = sum;
    }
}

// A block merges a row.
CTX_KERNEL(kMERGE_THREADS)
mergeSplits(CtxSinkWindowAttentionParams const params, GridPlan const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<SharedMerge*>(memory);
    int64_t const row = blockIdx.x;
    Partials const partials = Partials::of(params, grid.splits);
    auto const groups = static_cast<uint32_t>(params.queryHeads) / static_cast<uint32_t>(params.kvHeads);
    uint32_t const packedRows = groups * static_cast<uint32_t>(params.rows);
    uint32_t const head = blockIdx.x / packedRows;
    auto const kvHeads = static_cast<uint32_t>(params.kvHeads);
    TilePlace const place{head / kvHeads, head % kvHeads, groups, 0, packedRows};
    uint32_t const packedRow = blockIdx.x % packedRows;
    Sequence const sequence = sequenceOf(params, place.batch);
    int64_t const token = place.tokenOf(packedRow);
    bool const attends = token < sequence.answered;
    SoftmaxState total{};
    if (attends)
    {
        total = weighSplits(shared, partials, grid, row);
        sumSplits(shared, partials, grid, row, static_cast<int32_t>(params.headDim));
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
        sum = {};
        float const scale = headScale(params.valueScale, place.kvHead) / total.denominator;
        CTX_UNROLL
        for (int i = 0; i < 4; ++i)
        {
            CTX_UNROLL
            for (int warp = 0; warp < kMERGE_WARPS; ++warp)
            {
                sum.values[i] += shared.sum[warp][dim + i];
            }
            sum.values[i] *= scale;
        }
    }
    storeMeans(params.output, place.rowOffset(params.outputStrides, packedRow) + dim, sum, params.dataType);
}

} // namespace

int64_t splitLimit(SinkWindowAttentionParams const& params)
{
    int64_t const rows = params.batch * params.queryHeads * params.rows;
    auto const held = static_cast<int64_t>(params.workspaceBytes) / partialBytes(params);
    int64_t const room = params.workspace == nullptr ? 0 : smaller(held, kMAX_PARTIAL_ROWS) / rows;
    return larger(1, smaller(maxSplits(params), room));
}

GridPlan planGrid(
    SinkWindowAttentionParams const& params, BlockShape const& shape, int64_t splitLimit, int64_t residentBlocks)
{
    int64_t const packedRows = params.queryHeads / params.kvHeads * params.rows;
    int64_t const tiles = (packedRows + shape.tileRows - 1) / shape.tileRows;
    int64_t const heads = params.batch * params.kvHeads;
    int64_t const splits = residentBlocks > 0 ? fillingSplits(heads * tiles, residentBlocks, splitLimit) : 1;
    int64_t const headBytes = larger(1, 2 * params.cacheBytes() / heads);
    int64_t const section = larger(1, smaller(heads, kSECTION_BYTES / headBytes));
    return GridPlan{static_cast<uint32_t>(tiles), static_cast<uint32_t>(splits), static_cast<uint32_t>(heads),
        static_cast<uint32_t>(section)};
}

LaunchShape launchShape(GridPlan const& grid, BlockShape const& shape)
{
    return LaunchShape{int64_t{grid.heads} * grid.tilesPerHead * grid.splits, shape.threads, shape.sharedBytes};
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
