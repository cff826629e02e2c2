// The launches that make up one call of LandmarkAttention. All read keys and values from `present` alone.
#pragma once

#include "kernels/landmark_attention/landmark_attention_place.cuh"
#include "kernels/launchers.h"
#include "kernels/sink_window_attention/sink_window_attention_launch.h"

namespace ctx
{

// New keys and values to their slots, then the means of the blocks that they complete.
LaunchResult launchWriteBlocks(LandmarkCall const& call, cudaStream_t stream);

// Scores of the blocks, for the section's queries that have to choose.
LaunchResult launchScoreBlocks(LandmarkCall const& call, cudaStream_t stream);

// Lists of the blocks that the section's tiles read.
LaunchResult launchChooseBlocks(LandmarkCall const& call, cudaStream_t stream);

// Attention of the section's queries to the sinks, the blocks of their lists and the tokens after them: of float32
// tensors on the scalar units, of others on the tensor cores.
LaunchResult launchScalarBlocks(LandmarkCall const& call, cudaStream_t stream);

template <typename T>
LaunchResult launchMatrixBlocks(LandmarkCall const& call, cudaStream_t stream);

// How tiles of kLANDMARK_ROWS rows are cut into blocks, at most `splitLimit` for each.
inline GridPlan planTiles(LandmarkCall const& call, BlockShape const& shape, int64_t splitLimit, int64_t residentBlocks)
{
    SinkWindowAttentionParams section{call.common};
    section.rows = call.tokens;
    return planGrid(section, shape, splitLimit, residentBlocks);
}

// Launches an attention kernel, with as many blocks as suit this device, and the merge of its splits.
template <typename Kernel>
LaunchResult launchAttendBlocks(
    LandmarkCall const& call, BlockShape const& shape, Kernel kernel, cudaStream_t stream, char const* what)
{
    SinkWindowAttentionParams const common{call.common};
    int64_t const limit = call.tokens < common.rows ? 1 : splitLimit(common);
    int64_t const resident = limit > 1 ? residentBlocks(kernel, shape.threads, shape.sharedBytes) : 0;
    GridPlan const grid = planTiles(call, shape, limit, resident);
    LaunchResult const result
        = LaunchResult::fromCuda(launch(kernel, launchShape(grid, shape), stream, call, grid), what);
    return result.isSuccess() ? launchMerge(common, grid, stream) : result;
}

// Launches a kernel that writes the biases of the lists' blocks.
template <typename Shared, typename Kernel>
LaunchResult launchGroup(
    LandmarkCall const& call, Kernel kernel, int32_t threads, cudaStream_t stream, char const* what)
{
    static_assert(sizeof(Shared) <= kMAX_SHARED_BYTES, "a tile fits every GPU's shared memory");
    BlockShape const shape{kLANDMARK_ROWS, kLANDMARK_ROWS, threads, sizeof(Shared)};
    int64_t const listed = call.sizes.rowEntries + call.sizes.tileEntries;
    int64_t const warps = threads / kWARP_SIZE;
    constexpr int64_t kMAX_SPLITS = 128;
    int64_t const limit = smaller(kMAX_SPLITS, (listed + warps - 1) / warps);
    GridPlan const grid = planTiles(call, shape, limit, residentBlocks(kernel, threads, sizeof(Shared)));
    return LaunchResult::fromCuda(launch(kernel, launchShape(grid, shape), stream, call, grid), what);
}

} // namespace ctx
