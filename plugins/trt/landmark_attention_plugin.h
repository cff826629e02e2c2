// TensorRT shell of LandmarkAttention.
#pragma once

#include "trt/far_attention_shell.h"

namespace ctx
{

struct LandmarkAttentionAttributes : FarAttentionAttributes
{
    int32_t sinks;
    int32_t window;
    int32_t block;
    int32_t topk;
    int32_t shared;
    int32_t landmark;

    static std::vector<Field<LandmarkAttentionAttributes>> const& fields();

    CtxLandmarkAttentionParams params(CtxAttentionCall const& call) const;
};

class LandmarkAttentionPlugin final : public FarAttentionPlugin<LandmarkAttentionPlugin, LandmarkAttentionAttributes>
{
public:
    static constexpr char const* kNAME = "LandmarkAttention";
    static constexpr auto kLAUNCH = ctxLandmarkAttention;
    static constexpr auto kWORKSPACE = ctxLandmarkAttentionWorkspace;

    explicit LandmarkAttentionPlugin(Attributes const& attributes);
};

} // namespace ctx
