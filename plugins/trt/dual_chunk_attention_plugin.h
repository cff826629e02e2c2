// TensorRT shell of DualChunkAttention.
#pragma once

#include "trt/far_attention_shell.h"

namespace ctx
{

struct DualChunkAttentionAttributes : FarAttentionAttributes
{
    int32_t chunk;
    int32_t reach;

    static std::vector<Field<DualChunkAttentionAttributes>> const& fields();

    CtxDualChunkAttentionParams params(CtxAttentionCall const& call) const;
};

class DualChunkAttentionPlugin final : public FarAttentionPlugin<DualChunkAttentionPlugin, DualChunkAttentionAttributes>
{
public:
    static constexpr char const* kNAME = "DualChunkAttention";
    static constexpr auto kLAUNCH = ctxDualChunkAttention;
    static constexpr auto kWORKSPACE = ctxDualChunkAttentionWorkspace;

    explicit DualChunkAttentionPlugin(Attributes const& attributes);
};

} // namespace ctx
