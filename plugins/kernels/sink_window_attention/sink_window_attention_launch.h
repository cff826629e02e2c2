// The launches that make up one call of SinkWindowAttention. All read keys and values from `present` alone.
#pragma once

#include "kernels/launchers.h"
#include "kernels/sink_window_attention/sink_window_attention_place.cuh"

namespace ctx
{

LaunchResult launchWriteCache(SinkWindowAttentionParams const& params, cudaStream_t stream);

// Attention of float32 tensors on the scalar units.
LaunchResult launchScalarAttention(SinkWindowAttentionParams const& params, cudaStream_t stream);

// Attention of float16 or bfloat16 tensors on the tensor cores: of many queries, of at most kDECODE_ROWS packed rows.
template <typename T>
LaunchResult launchPrefill(SinkWindowAttentionParams const& params, cudaStream_t stream);

template <typename T>
LaunchResult launchDecode(SinkWindowAttentionParams const& params, cudaStream_t stream);

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

// How many blocks take part, on this device and with the call's workspace.
GridPlan planGrid(SinkWindowAttentionParams const& params, BlockShape const& shape);

LaunchShape launchShape(SinkWindowAttentionParams const& params, GridPlan const& grid, BlockShape const& shape);

} // namespace ctx
