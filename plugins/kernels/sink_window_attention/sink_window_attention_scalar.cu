// The kernels of float32.

#include "kernels/sink_window_attention/sink_window_attention_scalar.cuh"

namespace ctx
{

template LaunchResult launchScalar(SinkWindowAttentionParams const& params, cudaStream_t stream);

} // namespace ctx
