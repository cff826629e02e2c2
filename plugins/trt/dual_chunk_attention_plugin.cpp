#include "trt/dual_chunk_attention_plugin.h"

namespace ctx
{

std::vector<Field<DualChunkAttentionAttributes>> const& DualChunkAttentionAttributes::fields()
{
    using A = DualChunkAttentionAttributes;
    static std::vector<Field<A>> const table = withFarAttributes<A>({
        {&A::chunk, {"chunk", 1, kMAX_COUNT, "tokens whose positions count up"}},
        {&A::reach, {"reach", 1, kMAX_COUNT, "positions stay below it"}},
    });
    return table;
}

CtxDualChunkAttentionParams DualChunkAttentionAttributes::params(CtxAttentionCall const& call) const
{
    CtxDualChunkAttentionParams params{};
    params.size = sizeof(params);
    params.chunk = chunk;
    params.reach = reach;
    params.call = call;
    return params;
}

DualChunkAttentionPlugin::DualChunkAttentionPlugin(Attributes const& attributes)
    : FarAttentionPlugin{attributes}
{
    if (mAttributes.reach < mAttributes.chunk)
    {
        throw std::invalid_argument(message("attribute reach is ", mAttributes.reach, " and chunk ", mAttributes.chunk,
            ": give a reach of at least the chunk"));
    }
}

} // namespace ctx
