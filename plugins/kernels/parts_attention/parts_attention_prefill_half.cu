// The prefill kernels of float16 for keys in parts, in a file of their own so that they compile beside the others.

#include "kernels/parts_attention/parts_attention_block.cuh"
#include "kernels/sink_window_attention/sink_window_attention_prefill.cuh"

namespace ctx
{

template LaunchResult launchPrefill<Half>(PartsAttentionParams const& params, cudaStream_t stream);

} // namespace ctx
