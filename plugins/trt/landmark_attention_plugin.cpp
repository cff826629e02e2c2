#include "trt/landmark_attention_plugin.h"

namespace ctx
{

std::vector<Field<LandmarkAttentionAttributes>> const& LandmarkAttentionAttributes::fields()
{
    using A = LandmarkAttentionAttributes;
    static std::vector<Field<A>> const table = withFarAttributes<A>({
        {&A::sinks, {"sinks", 0, kMAX_COUNT, "first tokens, seen by all"}},
        {&A::window, {"window", 1, kMAX_COUNT, "newest tokens whose blocks are no candidates"}},
        {&A::block, {"block", 1, kMAX_COUNT, "tokens that are chosen together"}},
        {&A::topk, {"topk", 1, kMAX_COUNT, "blocks chosen per query"}},
        {&A::shared, {"shared", 0, 1, "1: one choice per key-value head, by the sum of its query heads' scores"}},
        {&A::landmark, {"landmark", 0, 1, "1: a block's last token represents it, with the grouped softmax"}},
    });
    return table;
}

CtxLandmarkAttentionParams LandmarkAttentionAttributes::params(CtxAttentionCall const& call) const
{
    CtxLandmarkAttentionParams params{};
    params.size = sizeof(params);
    params.sinks = sinks;
    params.window = window;
    params.block = block;
    params.topk = topk;
    params.shared = shared;
    params.landmark = landmark;
    params.call = call;
    return params;
}

LandmarkAttentionPlugin::LandmarkAttentionPlugin(Attributes const& attributes)
    : FarAttentionPlugin{attributes}
{
    if (mAttributes.landmark != 0 && (mAttributes.block < 2 || mShell.hasHeadSink()))
    {
        throw std::invalid_argument(
            message("attribute landmark is 1 with block ", mAttributes.block, " and optional_inputs \"",
                mAttributes.optionalInputs, "\": give a block of 2 or more and no head_sink, or landmark 0"));
    }
}

} // namespace ctx
