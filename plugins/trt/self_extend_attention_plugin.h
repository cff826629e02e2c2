// TensorRT shell of SelfExtendAttention.
#pragma once

#include "trt/far_attention_shell.h"

namespace ctx
{

struct SelfExtendAttentionAttributes : FarAttentionAttributes
{
    int32_t group;
    int32_t neighbor;

    static std::vector<Field<SelfExtendAttentionAttributes>> const& fields();

    CtxSelfExtendAttentionParams params(CtxAttentionCall const& call) const;
};

class SelfExtendAttentionPlugin final
    : public FarAttentionPlugin<SelfExtendAttentionPlugin, SelfExtendAttentionAttributes>
{
public:
    static constexpr char const* kNAME = "SelfExtendAttention";
    static constexpr auto kLAUNCH = ctxSelfExtendAttention;
    static constexpr auto kWORKSPACE = ctxSelfExtendAttentionWorkspace;

    explicit SelfExtendAttentionPlugin(Attributes const& attributes);
};

} // namespace ctx
