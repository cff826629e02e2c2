#include "trt/self_extend_attention_plugin.h"

namespace ctx
{

std::vector<Field<SelfExtendAttentionAttributes>> const& SelfExtendAttentionAttributes::fields()
{
    using A = SelfExtendAttentionAttributes;
    static std::vector<Field<A>> const table = withFarAttributes<A>({
        {&A::group, {"group", 1, kMAX_COUNT, "tokens that share a position, neighbor apart"}},
        {&A::neighbor, {"neighbor", 1, kMAX_COUNT, "distances below it are met at the tokens' own positions"}},
    });
    return table;
}

CtxSelfExtendAttentionParams SelfExtendAttentionAttributes::params(CtxAttentionCall const& call) const
{
    CtxSelfExtendAttentionParams params{};
    params.size = sizeof(params);
    params.group = group;
    params.neighbor = neighbor;
    params.call = call;
    return params;
}

SelfExtendAttentionPlugin::SelfExtendAttentionPlugin(Attributes const& attributes)
    : FarAttentionPlugin{attributes}
{
    if (mAttributes.neighbor % mAttributes.group != 0)
    {
        throw std::invalid_argument(message("attribute group is ", mAttributes.group, " and neighbor ",
            mAttributes.neighbor, ": give a neighbor that is a multiple of the group"));
    }
}

} // namespace ctx
