// SinkWindowAttention's attention kernel for bfloat16; a file per type keeps the build parallel.

#include "kernels/sink_window_attention/sink_window_attention_kernels.cuh"

namespace ctx
{

template LaunchResult launchAttention<BFloat16>(SinkWindowAttentionParams const& params, cudaStream_t stream);

} // namespace ctx
