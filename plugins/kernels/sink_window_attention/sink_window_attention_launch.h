// The launches that make up one call of SinkWindowAttention. All read keys and values from `present` alone.
#pragma once

#include "kernels/common/element.cuh"
#include "kernels/launchers.h"
#include "kernels/sink_window_attention/sink_window_attention_place.cuh"

namespace ctx
{

// Past to present, where they are different memory.
LaunchResult copyPast(SinkWindowAttentionParams const& params, cudaStream_t stream);

// New keys and values to the slots that the layout gives them.
LaunchResult launchWriteCache(SinkWindowAttentionParams const& params, CacheLayout const& layout, cudaStream_t stream);

// Attention of float32 tensors on the scalar units.
template <typename Params>
LaunchResult launchScalar(Params const& params, cudaStream_t stream);

// Attention of float16 or bfloat16 tensors on the tensor cores: of many queries, of at most kDECODE_ROWS packed rows.
template <typename T, typename Params>
LaunchResult launchPrefill(Params const& params, cudaStream_t stream);

template <typename T, typename Params>
LaunchResult launchDecode(Params const& params, cudaStream_t stream);

constexpr int32_t kDECODE_ROWS = 16;

// y of the splits' results, if there are more than one.
LaunchResult launchMerge(SinkWindowAttentionParams const& params, GridPlan const& grid, cudaStream_t stream);

// What a kernel makes of a block's work.
struct BlockShape
{
    int32_t tileRows;
    int32_t tileKeys;
    int32_t threads;
    size_t sharedBytes;
};

// Splits that the call's keys and workspace allow.
int64_t splitLimit(SinkWindowAttentionParams const& params);

GridPlan planGrid(
    SinkWindowAttentionParams const& params, BlockShape const& shape, int64_t splitLimit, int64_t residentBlocks);

LaunchShape launchShape(GridPlan const& grid, BlockShape const& shape);

// Launches an attention kernel, with as many blocks as suit this device, and the merge of its splits.
template <typename Params, typename Kernel>
LaunchResult launchAttend(
    Params const& params, BlockShape const& shape, Kernel kernel, cudaStream_t stream, char const* what)
{
    int64_t const limit = splitLimit(params);
    int64_t const resident = limit > 1 ? residentBlocks(kernel, shape.threads, shape.sharedBytes) : 0;
    GridPlan const grid = planGrid(params, shape, limit, resident);
    LaunchResult const result
        = LaunchResult::fromCuda(launch(kernel, launchShape(grid, shape), stream, params, grid), what);
    return result.isSuccess() ? launchMerge(params, grid, stream) : result;
}

template <typename T, typename Params>
LaunchResult launchMatrix(Params const& params, cudaStream_t stream)
{
    bool const isFew = params.queryHeads / params.kvHeads * params.rows <= kDECODE_ROWS;
    return isFew ? launchDecode<T>(params, stream) : launchPrefill<T>(params, stream);
}

// Attention over `present`, after the new keys and values have been written to it.
template <typename Params>
LaunchResult launchAttention(Params const& params, cudaStream_t stream)
{
    switch (params.dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: return launchMatrix<Half>(params, stream);
    case CTX_DATA_TYPE_BFLOAT16: return launchMatrix<BFloat16>(params, stream);
    default: return launchScalar(params, stream);
    }
}

} // namespace ctx
