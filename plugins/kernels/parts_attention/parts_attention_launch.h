// The launches of a call whose queries see keys in parts.
#pragma once

#include "kernels/parts_attention/parts_attention_params.h"
#include "kernels/sink_window_attention/sink_window_attention_launch.h"

namespace ctx
{

// The means of the blocks that a call of MemoryAttention evicts, to their slots of `present`: from the tokens that are
// there, and from the call's rows, which are not yet.
LaunchResult launchPoolBlocks(PartsAttentionParams const& params, cudaStream_t stream);

} // namespace ctx
