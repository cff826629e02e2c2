// Launchers of the attentions whose queries see keys in parts: copy past where present is other memory, average what
// the call evicts, write every new key and value to its slot, attend.

#include "kernels/parts_attention/parts_attention_launch.h"

namespace ctx
{
namespace
{

LaunchResult launchRule(PartsAttentionParams const& params, cudaStream_t stream)
{
    LaunchResult result = copyPast(params, stream);
    if (params.isEmpty() || !result.isSuccess())
    {
        return result;
    }
    if (params.rule.kind == PartRule::Kind::kMEMORY)
    {
        result = launchPoolBlocks(params, stream);
    }
    if (result.isSuccess())
    {
        result = launchWriteCache(params, params.rule.tokenLayout(params.capacity), stream);
    }
    return result.isSuccess() ? launchAttention(params, stream) : result;
}

template <typename Params>
LaunchResult launchChecked(Params const& given, cudaStream_t stream)
{
    if (std::string const fault = given.validate(); !fault.empty())
    {
        return LaunchResult::invalid(fault);
    }
    PartsAttentionParams const params = given.parts();
    return launchRule(PartsAttentionParams{params.withStrides(), params.rule}, stream);
}

} // namespace

LaunchResult launchSelfExtendAttention(SelfExtendAttentionParams const& params, cudaStream_t stream)
{
    return launchChecked(params, stream);
}

LaunchResult launchDualChunkAttention(DualChunkAttentionParams const& params, cudaStream_t stream)
{
    return launchChecked(params, stream);
}

LaunchResult launchMemoryAttention(MemoryAttentionParams const& params, cudaStream_t stream)
{
    return launchChecked(params, stream);
}

uint64_t workspaceBytes(SelfExtendAttentionParams const& params)
{
    return workspaceBytes(commonParams(params.call));
}

uint64_t workspaceBytes(DualChunkAttentionParams const& params)
{
    return workspaceBytes(commonParams(params.call));
}

uint64_t workspaceBytes(MemoryAttentionParams const& params)
{
    return workspaceBytes(commonParams(params.call));
}

} // namespace ctx
