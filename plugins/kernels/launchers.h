// The launchers, one per operator, and what they return.
#pragma once

#include "kernels/common/runtime.h"
#include "kernels/dual_chunk_attention/dual_chunk_attention_params.h"
#include "kernels/landmark_attention/landmark_attention_params.h"
#include "kernels/memory_attention/memory_attention_params.h"
#include "kernels/rotary_frequencies/rotary_frequencies_params.h"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_params.h"
#include "kernels/self_extend_attention/self_extend_attention_params.h"
#include "kernels/sink_window_attention/sink_window_attention_params.h"

namespace ctx
{

struct LaunchResult
{
    CtxStatus status{CTX_STATUS_SUCCESS};
    std::string text;

    static LaunchResult invalid(std::string const& fault)
    {
        return LaunchResult{CTX_STATUS_INVALID_ARGUMENT, fault};
    }

    static LaunchResult fromCuda(cudaError_t error, char const* what)
    {
        if (error == cudaSuccess)
        {
            return {};
        }
        cudaGetLastError(); // what is reported here is not left for the application to find
        return LaunchResult{CTX_STATUS_LAUNCH_FAILED,
            message(what, " was not launched: ", cudaGetErrorString(error), " (CUDA error ", static_cast<int>(error),
                "); check that this GPU's architecture is one the library was built for")};
    }

    bool isSuccess() const
    {
        return status == CTX_STATUS_SUCCESS;
    }
};

LaunchResult launchRotaryFrequencies(RotaryFrequenciesParams const& params, cudaStream_t stream);
LaunchResult launchScaledRotaryEmbedding(ScaledRotaryEmbeddingParams const& params, cudaStream_t stream);
LaunchResult launchSinkWindowAttention(SinkWindowAttentionParams const& params, cudaStream_t stream);
LaunchResult launchSelfExtendAttention(SelfExtendAttentionParams const& params, cudaStream_t stream);
LaunchResult launchDualChunkAttention(DualChunkAttentionParams const& params, cudaStream_t stream);
LaunchResult launchMemoryAttention(MemoryAttentionParams const& params, cudaStream_t stream);
LaunchResult launchLandmarkAttention(LandmarkAttentionParams const& params, cudaStream_t stream);

// Bytes of workspace that the launcher can use for a call of these sizes or of any smaller ones.
uint64_t workspaceBytes(SinkWindowAttentionParams const& params);
uint64_t workspaceBytes(SelfExtendAttentionParams const& params);
uint64_t workspaceBytes(DualChunkAttentionParams const& params);
uint64_t workspaceBytes(MemoryAttentionParams const& params);
uint64_t workspaceBytes(LandmarkAttentionParams const& params);

} // namespace ctx
