// The kernels of float32 for keys in parts.

#include "kernels/parts_attention/parts_attention_block.cuh"
#include "kernels/sink_window_attention/sink_window_attention_scalar.cuh"

namespace ctx
{

template LaunchResult launchScalar(PartsAttentionParams const& params, cudaStream_t stream);

} // namespace ctx
