// SinkWindowAttention's attention kernel for float32; a file per type keeps the build parallel.

#include "kernels/sink_window_attention/sink_window_attention_kernels.cuh"

namespace ctx
{

template LaunchResult launchAttention<float>(SinkWindowAttentionParams const& params, cudaStream_t stream);

} // namespace ctx
