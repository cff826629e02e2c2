// The prefill kernels of float16, in a file of their own so that they compile beside the others.

#include "kernels/sink_window_attention/sink_window_attention_prefill.cuh"

namespace ctx
{

template LaunchResult launchPrefill<Half>(SinkWindowAttentionParams const& params, cudaStream_t stream);

} // namespace ctx
